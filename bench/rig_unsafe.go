package bench

import (
	"sync/atomic"
	"unsafe"
)

// word is a word of shared memory at an offset that is a multiple of 8.
func word(window []byte, off uint64) *atomic.Uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(&window[off : off+8][0]))
}
