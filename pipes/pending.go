package pipes

import "sync/atomic"

// bitmap is a CPU's pending bitmap, PROTOCOL.md section 8, in shared memory.
type bitmap struct {
	top  *atomic.Uint64
	mid  []atomic.Uint64
	leaf []atomic.Uint64
}

const (
	midOffset  = 64
	leafOffset = 576
)

func leaves(streams int) uint64 { return (2*uint64(streams) + 63) / 64 }

func bitmapSize(streams int) uint64 { return leafOffset + 8*leaves(streams) }

func bitmapAt(window []byte, off uint64, streams int) bitmap {
	return bitmap{
		top:  &wordsAt(window, off, 1)[0],
		mid:  wordsAt(window, off+midOffset, 64),
		leaf: wordsAt(window, off+leafOffset, leaves(streams)),
	}
}

// set marks an event and reports whether the CPU needs an interrupt: not if one
// was raised before that the guest hasn't taken yet.
func (b *bitmap) set(event uint64) bool {
	leaf, mid := event/64, event/4096
	return b.leaf[leaf].Or(1<<(event%64)) == 0 &&
		b.mid[mid].Or(1<<(leaf%64)) == 0 &&
		b.top.Or(1<<mid) == 0
}

// raises counts what is raised on one CPU of the guest. It fills a cache line,
// so that CPUs share none.
type raises struct {
	underWay  atomic.Int32 // between the bit in the bitmap and the end of the doorbell
	doorbells atomic.Uint64
	_         [48]byte
}

// raise tells the guest of an event, by the doorbell given.
func (t *Table) raise(cpu int, event uint64, doorbell func(cpu int)) {
	r := &t.raises[cpu]
	r.underWay.Add(1)
	if t.pending[cpu].set(event) {
		r.doorbells.Add(1)
		doorbell(cpu)
	}
	r.underWay.Add(-1)
}
