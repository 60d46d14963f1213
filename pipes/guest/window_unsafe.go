package guest

import (
	"sync/atomic"
	"unsafe"
)

func word(window []byte, off uint64) *atomic.Uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(&window[off : off+8][0]))
}

func half(window []byte, off uint64) *atomic.Uint32 {
	return (*atomic.Uint32)(unsafe.Pointer(&window[off : off+4][0]))
}
