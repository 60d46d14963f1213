package rpctest

import (
	"sync/atomic"
	"unsafe"
)

// word returns a 64-bit word of RAM. A wild offset is a Go panic, as it is a
// fault in a kernel.
func word(ram []byte, off uint64) *atomic.Uint64 {
	b := ram[off : off+8]
	return (*atomic.Uint64)(unsafe.Pointer(unsafe.SliceData(b)))
}

// word32 returns a 32-bit word of RAM.
func word32(ram []byte, off uint64) *atomic.Uint32 {
	b := ram[off : off+4]
	return (*atomic.Uint32)(unsafe.Pointer(unsafe.SliceData(b)))
}

// storeByte and loadByte access a ring's flags, which the monitor looks at
// whenever it wants; see package rpc.
//
//go:norace
//go:noinline
func storeByte(p *byte, v byte) { *p = v }

//go:norace
//go:noinline
func loadByte(p *byte) byte { return *p }

// NewRAM makes zeroed memory whose first byte is aligned for words.
func NewRAM(size int) []byte {
	words := make([]uint64, (size+7)/8)
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(words))), size)
}
