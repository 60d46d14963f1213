package rpctest

import (
	"fmt"
	"runtime"
	"slices"
)

// Allocator is the guest's half of the shared allocator, written from the
// description of its layout and not from the monitor's half. Its methods may be
// called by several goroutines at once, as by a guest's CPUs. Like the kernel
// it panics where an assertion fails.
type Allocator struct {
	ram    []byte
	inner  uint64
	words  uint64
	counts uint64
	first  uint32
	end    uint32
}

// NewAllocator reads the raw data at an offset of RAM.
func NewAllocator(ram []byte, raw uint64) *Allocator {
	word(ram, raw).Store(0xffff_8001_0000_0000)
	a := &Allocator{
		ram:    ram,
		inner:  word(ram, raw+16).Load(),
		words:  word(ram, raw+24).Load(),
		counts: word(ram, raw+32).Load(),
	}
	assert(word(ram, raw+8).Load() == uint64(len(ram)), "RAM size")
	assert(word(ram, raw+40).Load() == uint64(len(ram))/4096, "number of reference counts")
	levels := word(ram, a.inner+40).Load()
	a.first, a.end = uint32(levels), uint32(levels>>32)
	return a
}

func assert(ok bool, what string, args ...any) {
	if !ok {
		panic("guest: assertion failed: " + fmt.Sprintf(what, args...))
	}
}

func (a *Allocator) lock() {
	for !word(a.ram, a.inner+560).CompareAndSwap(0, 1) {
		runtime.Gosched()
	}
}

func (a *Allocator) unlock() { word(a.ram, a.inner+560).Store(0) }

// Lock takes the lock and keeps it until Unlock. With it a test plays a CPU
// that loses its processor while it holds the lock.
func (a *Allocator) Lock() { a.lock() }

// Unlock gives the lock up.
func (a *Allocator) Unlock() { a.unlock() }

func (a *Allocator) level(size uint64) uint32 {
	level := a.first
	for uint64(1)<<level < size {
		level++
	}
	return level
}

// Alloc takes a block for size bytes; 0 if there is none.
func (a *Allocator) Alloc(size uint64) uint64 {
	a.lock()
	defer a.unlock()
	level := a.level(size)
	word(a.ram, a.inner+48+8*uint64(level)).Add(1)
	i, ok := a.allocate(level)
	if !ok {
		return 0
	}
	word(a.ram, a.inner+8).Add(1 << level)
	word(a.ram, a.Count(i<<level)).Store(0)
	return i << level
}

// Free frees a block of that size.
func (a *Allocator) Free(off, size uint64) {
	a.lock()
	defer a.unlock()
	assert(word(a.ram, a.Count(off)).Load() == 0, "a block that is freed has no references")
	level := a.level(size)
	word(a.ram, a.inner+48+8*uint64(level)).Add(1)
	a.release(level, off>>level)
	word(a.ram, a.inner+8).Add(-(uint64(1) << level))
}

// Count is the offset of the reference count of a block.
func (a *Allocator) Count(off uint64) uint64 { return a.counts + off/4096*8 }

// Used is the number of bytes in blocks that are taken.
func (a *Allocator) Used() uint64 { return word(a.ram, a.inner+8).Load() }

// Requests is the number of operations on a level.
func (a *Allocator) Requests(level uint32) uint64 {
	return word(a.ram, a.inner+48+8*uint64(level)).Load()
}

// HeadOffset is the offset of the head of a level's list. A test that breaks
// the list needs it.
func (a *Allocator) HeadOffset(level uint32) uint64 { return a.inner + 568 + 16*uint64(level) }

// Levels are the first level and the one after the last.
func (a *Allocator) Levels() (first, end uint32) { return a.first, a.end }

func (a *Allocator) allocate(level uint32) (uint64, bool) {
	if level >= a.end {
		return 0, false
	}
	if word(a.ram, a.HeadOffset(level)).Load() == 1 {
		i := word(a.ram, a.HeadOffset(level)+8).Load()
		assert(a.unlink(level, i), "the head of a list is free")
		return i, true
	}
	i, ok := a.allocate(level + 1)
	if !ok {
		return 0, false
	}
	a.release(level, 2*i)
	return 2*i + 1, true
}

func (a *Allocator) release(level uint32, i uint64) {
	if level+1 < a.end && a.unlink(level, i^1) {
		a.release(level+1, i/2)
		return
	}
	node := i << level
	word(a.ram, node).Store(0)
	word(a.ram, node+16).Store(0)
	head := a.HeadOffset(level)
	if word(a.ram, head).Load() == 1 {
		next := word(a.ram, head+8).Load()
		assert(word(a.ram, next<<level).Load() == 0, "the head of a list has none before it")
		word(a.ram, next<<level+8).Store(i)
		word(a.ram, next<<level).Store(1)
		word(a.ram, node+24).Store(next)
		word(a.ram, node+16).Store(1)
	}
	word(a.ram, head+8).Store(i)
	word(a.ram, head).Store(1)
	assert(!a.setBit(level, i, true), "block %d of level %d was free already", i, level)
}

// unlink takes a block off its list, if it is free.
func (a *Allocator) unlink(level uint32, i uint64) bool {
	if !a.setBit(level, i, false) {
		return false
	}
	node := i << level
	prev, next := a.link(node), a.link(node+16)
	if prev >= 0 {
		assert(a.link(uint64(prev)<<level+16) == int64(i), "next of previous")
		a.setLink(uint64(prev)<<level+16, next)
	} else {
		assert(a.link(a.HeadOffset(level)) == int64(i), "first of list")
		a.setLink(a.HeadOffset(level), next)
	}
	if next >= 0 {
		assert(a.link(uint64(next)<<level) == int64(i), "previous of next")
		a.setLink(uint64(next)<<level, prev)
	}
	word(a.ram, node).Store(0)
	word(a.ram, node+16).Store(0)
	return true
}

// link returns the block that a link of a list names, -1 if it names none. In
// RAM a link is an Option<usize>, as the kernel's Rust lays it out.
func (a *Allocator) link(off uint64) int64 {
	if word(a.ram, off).Load() == 0 {
		return -1
	}
	return int64(word(a.ram, off+8).Load())
}

func (a *Allocator) setLink(off uint64, i int64) {
	if i < 0 {
		word(a.ram, off).Store(0)
		return
	}
	word(a.ram, off+8).Store(uint64(i))
	word(a.ram, off).Store(1)
}

func (a *Allocator) bitWord(level uint32, i uint64) uint64 {
	inv := a.end - 1 - level
	start := uint64(inv)
	if inv > 6 {
		start = 1<<(inv-6) + 5
	}
	assert(start+i/64 < a.words, "bit %d of level %d lies in the bitmap", i, level)
	return a.inner + 1592 + 8*(start+i/64)
}

// setBit sets or clears a bit and returns what it was.
func (a *Allocator) setBit(level uint32, i uint64, free bool) bool {
	w := word(a.ram, a.bitWord(level, i))
	old := w.Load()
	if free {
		w.Store(old | 1<<(i%64))
	} else {
		w.Store(old &^ (1 << (i % 64)))
	}
	return old>>(i%64)&1 == 1
}

// Snapshot is the state of an allocator: the free blocks of each level, and the
// size of the others.
type Snapshot struct {
	Used uint64
	Free map[uint32][]uint64
}

// Snapshot walks all lists, checks them against the bitmap, and returns the
// free blocks of each level in ascending order.
func (a *Allocator) Snapshot() Snapshot {
	a.lock()
	defer a.unlock()
	s := Snapshot{Used: a.Used(), Free: make(map[uint32][]uint64)}
	free := uint64(0)
	for level := a.first; level < a.end; level++ {
		blocks := a.List(level)
		slices.Sort(blocks)
		if len(blocks) > 0 {
			s.Free[level] = blocks
		}
		free += uint64(len(blocks)) << level
		n := 0
		for i := range uint64(1) << (a.end - 1 - level) {
			if word(a.ram, a.bitWord(level, i)).Load()>>(i%64)&1 == 1 {
				n++
				_, found := slices.BinarySearch(blocks, i)
				assert(found, "free block %d of level %d is in its list", i, level)
			}
		}
		assert(n == len(blocks), "level %d: %d bits, %d in the list", level, n, len(blocks))
	}
	assert(free+s.Used == 1<<(a.end-1), "%d bytes free and %d used", free, s.Used)
	return s
}

// List returns the blocks of a level's list in order. The caller has the lock,
// or knows that nothing else uses the allocator.
func (a *Allocator) List(level uint32) []uint64 {
	var list []uint64
	prev := int64(-1)
	for i := a.link(a.HeadOffset(level)); i >= 0; i = a.link(uint64(i)<<level + 16) {
		assert(a.link(uint64(i)<<level) == prev, "previous of block %d of level %d", i, level)
		list = append(list, uint64(i))
		prev = i
	}
	return list
}
