package kvm

import "unsafe"

// counter is the word at guestData, which the guest may be writing.
func (g *guest) counter() *uint64 { return (*uint64)(unsafe.Pointer(&g.mem[guestData])) }
