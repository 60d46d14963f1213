package rpc

import (
	"sync/atomic"
	"unsafe"
)

// word returns the 64-bit word at an offset, which the caller has checked: a
// multiple of 8, inside.
func (m memory) word(off uint64) *atomic.Uint64 {
	b := m[off : off+8]
	return (*atomic.Uint64)(unsafe.Pointer(unsafe.SliceData(b)))
}

// word32 returns the 32-bit word at an offset, which the caller has checked: a
// multiple of 4, inside.
func (m memory) word32(off uint64) *atomic.Uint32 {
	b := m[off : off+4]
	return (*atomic.Uint32)(unsafe.Pointer(unsafe.SliceData(b)))
}

// flag is a byte that both sides may store and load at any time. sync/atomic
// has no bytes, and the word around it holds ring data. The processor loads and
// stores bytes whole and in order; noinline keeps the compiler from merging or
// moving the accesses, norace tells the race detector that they are meant.
type flag byte

func (m memory) flag(off uint64) *flag { return (*flag)(&m[off]) }

//go:norace
//go:noinline
func (f *flag) isSet() bool { return *f != 0 }

//go:norace
//go:noinline
func (f *flag) set() { *f = 1 }
