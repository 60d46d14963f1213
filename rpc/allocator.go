package rpc

import (
	"errors"
	"fmt"
	"iter"
	"math/bits"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Layout of the raw data, the block that the guest is given at its start.
const (
	rawSize       = 48
	rawRAMSize    = 8
	rawInner      = 16
	rawWords      = 24
	rawCounts     = 32
	rawCountCount = 40
)

// Layout of the inner block.
const (
	innerRefcnt     = 0
	innerUsed       = 8
	innerRawSize    = 16
	innerTotal      = 24
	innerAlignment  = 32
	innerFirstLevel = 40
	innerEndLevel   = 44
	innerRequests   = 48
	innerLock       = 560
	innerHeads      = 568
	innerBitmap     = 1592
)

// Layout of an option, and of the node in a free block.
const (
	optionSize = 16
	nodePrev   = 0
	nodeNext   = optionSize
	nodeSize   = 2 * optionSize
)

const (
	pageSize   = 4096
	firstLevel = 12
	// maxAlignment is the alignment of the guest's RAM, which starts at 4 GiB.
	maxAlignment = 4 << 30

	minRAM = 1 << 20
	maxRAM = 1 << 46

	// lockPatience is how long a guest may hold the lock. A virtual CPU may
	// lose its processor while it does, or be stopped by a debugger.
	lockPatience = 2 * time.Second
	// maxStuck is how many times in a row the lock may not be had before the
	// allocator counts as broken.
	maxStuck = 3
)

var (
	errCorrupt = errors.New("the guest has corrupted the allocator")
	errStuck   = errors.New("the guest doesn't give up the allocator's lock")
	errInUse   = errors.New("block is in use")
	errNotOurs = errors.New("block is free or referred to")
)

// allocator is the buddy allocator in guest memory that guest and monitor
// share. Its methods may be called by several goroutines at once, and while the
// guest allocates and frees. Nothing that it does is longer than its levels are
// many, but for the wait for the lock.
//
// The geometry is the monitor's own; what the guest has overwritten of it is
// never read.
type allocator struct {
	ram      memory
	inner    memory // the monitor's own memory until it has found a place in RAM
	counts   memory // reference counts; nil until they have found a place in RAM
	place    uint64 // of the raw data
	top      uint32 // the last level
	patience time.Duration

	mu     sync.Mutex // held around the guest's lock, so that one goroutine contends with it
	stuck  int
	broken error
	tell   func(error) // called once, when the allocator turns out to be unusable

	hurried    atomic.Bool
	stuckCount atomic.Uint64
}

func levels(ramSize uint64) (top uint32, words uint64) {
	top = uint32(bits.Len64(ramSize) - 1)
	return top, 1<<(top-firstLevel+1-6) + 5
}

// newAllocator lays out an allocator over all of ram, which is zero but for
// what reserved names. tell is called when the allocator turns out to be
// unusable; it must not wait.
func newAllocator(ram memory, reserved []Range, tell func(error)) (*allocator, error) {
	size := uint64(len(ram))
	if size < minRAM || size > maxRAM || size%pageSize != 0 || !ram.aligned() {
		return nil, fmt.Errorf("an allocator over %d bytes: %w", size, unix.EINVAL)
	}
	for _, r := range reserved {
		if r.Offset > size || r.Size > size-r.Offset {
			return nil, fmt.Errorf("reserve %d bytes at offset %#x of %d: %w", r.Size, r.Offset, size, unix.EINVAL)
		}
	}
	top, words := levels(size)
	innerSize := innerBitmap + 8*words
	a := &allocator{ram: ram, inner: make(memory, innerSize), top: top, patience: lockPatience, tell: tell}
	a.inner.word(innerRefcnt).Store(1)
	a.inner.word(innerRawSize).Store(size)
	a.inner.word(innerTotal).Store(1 << top)
	a.inner.word(innerAlignment).Store(maxAlignment)
	a.inner.word32(innerFirstLevel).Store(firstLevel)
	a.inner.word32(innerEndLevel).Store(top + 1)
	// To the guest an offset of 0 is a null pointer.
	if err := a.reserveAll(union(append([]Range{{0, pageSize}}, reserved...))); err != nil {
		return nil, err
	}
	inner, err1 := a.alloc(innerSize)
	counts, err2 := a.alloc(size / pageSize * 8)
	place, err3 := a.alloc(rawSize)
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, fmt.Errorf("placing the allocator: %w", err)
	}
	copy(ram[inner:], a.inner)
	a.inner = ram[inner : inner+innerSize : inner+innerSize]
	a.counts = ram[counts : counts+size/pageSize*8 : counts+size/pageSize*8]
	a.place = place
	ram.word(place + rawRAMSize).Store(size)
	ram.word(place + rawInner).Store(inner)
	ram.word(place + rawWords).Store(words)
	ram.word(place + rawCounts).Store(counts)
	ram.word(place + rawCountCount).Store(size / pageSize)
	return a, nil
}

// levelOf is the level of the smallest block that holds size bytes.
func levelOf(size uint64) uint32 {
	if size <= pageSize {
		return firstLevel
	}
	return uint32(bits.Len64(size - 1))
}

// alloc takes a block of at least size bytes, a power of two, and returns its
// offset, a multiple of its size. ENOMEM: there is none.
func (a *allocator) alloc(size uint64) (uint64, error) {
	level := levelOf(size)
	off := uint64(0)
	err := a.locked(func() error {
		if level > a.top {
			return unix.ENOMEM
		}
		a.inner.word(innerRequests + 8*uint64(level)).Add(1)
		i, err := a.split(level)
		if err != nil {
			return err
		}
		off = i << level
		a.inner.word(innerUsed).Add(1 << level)
		a.count(off).Store(0)
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("allocate %d bytes of guest memory: %w", size, err)
	}
	return off, nil
}

// free frees a block that alloc has returned for this size.
func (a *allocator) free(off, size uint64) error {
	level := levelOf(size)
	err := a.locked(func() error {
		if level > a.top || off>>a.top != 0 || off%(1<<level) != 0 {
			return unix.EINVAL
		}
		if a.count(off).Load() != 0 {
			return errNotOurs
		}
		for l := level; l <= a.top; l++ {
			if a.isFree(l, off>>l) {
				return errNotOurs
			}
		}
		a.inner.word(innerRequests + 8*uint64(level)).Add(1)
		if err := a.merge(level, off>>level); err != nil {
			return err
		}
		a.inner.word(innerUsed).Add(-(uint64(1) << level))
		return nil
	})
	if err != nil {
		return fmt.Errorf("free %d bytes of guest memory at offset %#x: %w", size, off, err)
	}
	return nil
}

// reserve takes the block of this size at this offset, a multiple of it.
func (a *allocator) reserve(off, size uint64) error {
	level := levelOf(size)
	err := a.locked(func() error {
		if level > a.top || off>>a.top != 0 || off%(1<<level) != 0 {
			return unix.EINVAL
		}
		a.inner.word(innerRequests + 8*uint64(level)).Add(1)
		if err := a.carve(level, off>>level); err != nil {
			return err
		}
		a.inner.word(innerUsed).Add(1 << level)
		a.count(off).Store(0)
		return nil
	})
	if err != nil {
		return fmt.Errorf("reserve %d bytes of guest memory at offset %#x: %w", size, off, err)
	}
	return nil
}

// reserveAll makes everything free but these pages, which hold something
// already and keep it: until all are reserved, blocks that lie in them are free
// now and then, and a free block's first bytes are a list node.
func (a *allocator) reserveAll(ranges []Range) error {
	var kept []byte
	for off := range pages(ranges) {
		kept = append(kept, a.ram[off:off+nodeSize]...)
	}
	if err := a.put(a.top, 0); err != nil {
		return err
	}
	for _, r := range ranges {
		if err := a.reserveRange(r); err != nil {
			return err
		}
	}
	for off := range pages(ranges) {
		copy(a.ram[off:], kept[:nodeSize])
		kept = kept[nodeSize:]
	}
	return nil
}

// pages yields the offset of each page of some ranges.
func pages(ranges []Range) iter.Seq[uint64] {
	return func(yield func(uint64) bool) {
		for _, r := range ranges {
			for off := r.Offset; off < r.Offset+r.Size; off += pageSize {
				if !yield(off) {
					return
				}
			}
		}
	}
}

// reserveRange reserves the pages of r, in blocks as large as may be. What lies
// above the allocator's part of RAM needs none.
func (a *allocator) reserveRange(r Range) error {
	off, end := r.Offset, min(r.Offset+r.Size, 1<<a.top)
	for off < end {
		size := uint64(1) << min(bits.TrailingZeros64(off|1<<a.top), bits.Len64(end-off)-1)
		if err := a.reserve(off, size); err != nil {
			return err
		}
		off += size
	}
	return nil
}

// spare is how many bytes are free, as far as the guest is to be believed,
// beyond the half of all that is left to the guest.
func (a *allocator) spare() uint64 {
	used, half := a.inner.word(innerUsed).Load(), uint64(1)<<a.top/2
	return half - min(used, half)
}

// count returns a block's reference count. Before the counts have a place in
// RAM, the guest can't see them.
func (a *allocator) count(off uint64) *atomic.Uint64 {
	if a.counts == nil {
		return new(atomic.Uint64)
	}
	return a.counts.word(off / pageSize * 8)
}

// locked runs f with the guest's lock held. A corrupt structure makes the
// allocator unusable for good.
func (a *allocator) locked(f func() error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.broken != nil {
		return a.broken
	}
	if err := a.lock(); err != nil {
		a.stuckCount.Add(1)
		if a.stuck++; a.stuck == maxStuck {
			a.fail(err)
		}
		return err
	}
	a.stuck = 0
	err := f()
	a.inner.word(innerLock).Store(0)
	if errors.Is(err, errCorrupt) {
		a.fail(err)
	}
	return err
}

// hurry is for the end: a lock that a stopped virtual CPU holds is waited for
// no more, and no error is told.
func (a *allocator) hurry() { a.hurried.Store(true) }

func (a *allocator) fail(err error) {
	a.broken = err
	if a.tell != nil && !a.hurried.Load() {
		a.tell(err)
	}
}

func (a *allocator) lock() error {
	w := a.inner.word(innerLock)
	for range 100 {
		if w.CompareAndSwap(0, 1) {
			return nil
		}
	}
	for deadline := time.Now().Add(a.patience); ; {
		for range 100 {
			runtime.Gosched()
			if w.CompareAndSwap(0, 1) {
				return nil
			}
		}
		if a.hurried.Load() || time.Now().After(deadline) {
			return errStuck
		}
		// The guest holds it for a microsecond at most, unless its CPU has lost
		// its processor.
		time.Sleep(50 * time.Microsecond)
	}
}

// split takes a block of a level off its list, or splits one of a level above.
func (a *allocator) split(level uint32) (uint64, error) {
	l := level
	i, ok, err := a.head(l)
	for !ok && err == nil {
		if l++; l > a.top {
			return 0, unix.ENOMEM
		}
		i, ok, err = a.head(l)
	}
	if err == nil {
		err = a.take(l, i)
	}
	for err == nil && l > level {
		l--
		err = a.put(l, 2*i)
		i = 2*i + 1
	}
	return i, err
}

// carve takes the given block, or splits it from the one above that is free.
func (a *allocator) carve(level uint32, i uint64) error {
	l := level
	for ; !a.isFree(l, i>>(l-level)); l++ {
		if l == a.top {
			return errInUse
		}
	}
	err := a.take(l, i>>(l-level))
	for err == nil && l > level {
		l--
		err = a.put(l, i>>(l-level)^1)
	}
	return err
}

// merge frees a block together with its buddy, its parent's and so on, as far
// as these are free.
func (a *allocator) merge(level uint32, i uint64) error {
	for ; level < a.top && a.isFree(level, i^1); level++ {
		if err := a.take(level, i^1); err != nil {
			return err
		}
		i /= 2
	}
	return a.put(level, i)
}

// bit returns the word of the bitmap that has a block's bit, and the bit.
func (a *allocator) bit(level uint32, i uint64) (*atomic.Uint64, uint64) {
	inv := a.top - level
	first := uint64(inv)
	if inv > 6 {
		first = 1<<(inv-6) + 5
	}
	return a.inner.word(innerBitmap + 8*(first+i/64)), 1 << (i % 64)
}

func (a *allocator) isFree(level uint32, i uint64) bool {
	w, b := a.bit(level, i)
	return w.Load()&b != 0
}

// option reads a list's link: the index of a block of this level, if there is
// one. It must be free.
func (a *allocator) option(m memory, off uint64, level uint32) (i uint64, some bool, err error) {
	switch m.word(off).Load() {
	case 0:
		return 0, false, nil
	case 1:
	default:
		return 0, false, fmt.Errorf("%w: a link of level %d is neither none nor some", errCorrupt, level)
	}
	i = m.word(off + 8).Load()
	if i >= 1<<(a.top-level) || !a.isFree(level, i) {
		return 0, false, fmt.Errorf("%w: the list of level %d holds block %#x, which isn't free", errCorrupt, level, i)
	}
	return i, true, nil
}

func setOption(m memory, off, i uint64, some bool) {
	if !some {
		m.word(off).Store(0)
		return
	}
	m.word(off + 8).Store(i)
	m.word(off).Store(1)
}

func headOffset(level uint32) uint64 { return innerHeads + optionSize*uint64(level) }

func (a *allocator) head(level uint32) (i uint64, some bool, err error) {
	return a.option(a.inner, headOffset(level), level)
}

// take removes a free block from its level's list and clears its node.
func (a *allocator) take(level uint32, i uint64) error {
	node := i << level
	prev, hasPrev, err := a.option(a.ram, node+nodePrev, level)
	if err != nil {
		return err
	}
	next, hasNext, err := a.option(a.ram, node+nodeNext, level)
	if err != nil {
		return err
	}
	// What leads here, in both directions, must be so before any of it is
	// changed.
	m, link := a.inner, headOffset(level)
	if hasPrev {
		m, link = a.ram, prev<<level+nodeNext
	}
	if err := a.leadsTo(m, link, level, i); err != nil {
		return err
	}
	if hasNext {
		if err := a.leadsTo(a.ram, next<<level+nodePrev, level, i); err != nil {
			return err
		}
		setOption(a.ram, next<<level+nodePrev, prev, hasPrev)
	}
	setOption(m, link, next, hasNext)
	w, b := a.bit(level, i)
	w.And(^b)
	a.ram.clear(node, nodeSize)
	return nil
}

func (a *allocator) leadsTo(m memory, off uint64, level uint32, i uint64) error {
	if to, some, err := a.option(m, off, level); err != nil {
		return err
	} else if !some || to != i {
		return fmt.Errorf("%w: the list of level %d is broken at block %#x", errCorrupt, level, i)
	}
	return nil
}

// put makes a block the head of its level's list.
func (a *allocator) put(level uint32, i uint64) error {
	w, b := a.bit(level, i)
	if w.Load()&b != 0 {
		return fmt.Errorf("%w: block %#x of level %d is free twice", errCorrupt, i, level)
	}
	head, some, err := a.head(level)
	if err != nil {
		return err
	}
	if some {
		setOption(a.ram, head<<level+nodePrev, i, true)
	}
	node := i << level
	setOption(a.ram, node+nodePrev, 0, false)
	setOption(a.ram, node+nodeNext, head, some)
	setOption(a.inner, headOffset(level), i, true)
	w.Or(b)
	return nil
}
