package guest

import (
	"sync/atomic"
	"unsafe"
)

// word is the 64-bit word at an offset of the window, a multiple of 8.
func word(window []byte, off uint64) *atomic.Uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(&window[off : off+8][0]))
}

// half is the 32-bit word at an offset of the window, a multiple of 4.
func half(window []byte, off uint64) *atomic.Uint32 {
	return (*atomic.Uint32)(unsafe.Pointer(&window[off : off+4][0]))
}
