package pipes

import (
	"reflect"
	"sync/atomic"
	"unsafe"
)

// headerAt returns the pipe header at an offset of the window. The caller has
// checked that it lies inside, at a multiple of 256.
func headerAt(window []byte, off uint64) *pipeHeader {
	b := window[off : off+HeaderSize]
	return (*pipeHeader)(unsafe.Pointer(unsafe.SliceData(b)))
}

// wordsAt returns n 64-bit words at an offset of the window. The caller has
// checked that it is a multiple of 8.
func wordsAt(window []byte, off, n uint64) []atomic.Uint64 {
	b := window[off : off+8*n]
	return unsafe.Slice((*atomic.Uint64)(unsafe.Pointer(unsafe.SliceData(b))), n)
}

// aligned reports whether the window's first byte lies on a multiple of 8.
func aligned(window []byte) bool { return reflect.ValueOf(window).Pointer()%8 == 0 }
