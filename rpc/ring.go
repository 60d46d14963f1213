package rpc

import (
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Layout of a ring, and of the counts before it in its block.
const (
	ringRead         = 0
	ringWrite        = 8
	ringWriterClosed = 16
	ringReaderClosed = 17
	ringData         = 18

	blockStrong = 0
	blockWeak   = 8
	blockRing   = 16

	// ringOverhead is what a block holds besides a ring's data: a length of 2^k
	// - 40 fills a block of 2^k.
	ringOverhead = 40
)

var (
	errRing   = errors.New("the guest has broken a ring")
	errCounts = errors.New("the guest has broken the reference counts of a ring")
)

// ring is the monitor's end of one ring: the reader's of the guest's requests,
// the writer's of the responses. One goroutine at a time uses it. The monitor's
// own cursor is never read back from memory.
type ring struct {
	alloc  *allocator
	block  uint64 // offset
	data   []byte
	reader bool

	mine, theirs      *atomic.Uint64 // cursors
	myFlag, theirFlag *flag
	strong, weak      *atomic.Uint64
	own               uint64 // the monitor's cursor
	seen              uint64 // the guest's, as last checked
	released          bool
}

// ringBlockSize is the size that the guest frees a ring's block with: from it
// and the length it knows nothing else.
func ringBlockSize(length uint64) uint64 { return blockRing + (ringData+length+7)&^7 }

// newRing makes a ring of this length in a block of its own, with a reference
// for either side.
func newRing(a *allocator, length uint64, reader bool) (*ring, error) {
	block, err := a.alloc(ringBlockSize(length))
	if err != nil {
		return nil, err
	}
	off := block + blockRing
	m := a.ram
	r := &ring{
		alloc: a, block: block, reader: reader,
		data:   m[off+ringData : off+ringData+length : off+ringData+length],
		strong: m.word(block + blockStrong), weak: m.word(block + blockWeak),
	}
	read, write := m.word(off+ringRead), m.word(off+ringWrite)
	readerClosed, writerClosed := m.flag(off+ringReaderClosed), m.flag(off+ringWriterClosed)
	if reader {
		r.mine, r.theirs, r.myFlag, r.theirFlag = read, write, readerClosed, writerClosed
	} else {
		r.mine, r.theirs, r.myFlag, r.theirFlag = write, read, writerClosed, readerClosed
	}
	// Both flags lie in the word after the cursors.
	m.clear(off, 24)
	r.weak.Store(1)
	r.strong.Store(2)
	return r, nil
}

func (r *ring) offset() uint64 { return r.block + blockRing }

func (r *ring) length() uint64 { return uint64(len(r.data)) }

// capacity is how many bytes a ring holds.
func (r *ring) capacity() uint64 { return r.length() - 1 }

// readable is how many bytes the guest has written that the monitor has not
// read.
func (r *ring) readable() (uint64, error) {
	w := r.theirs.Load()
	n := w - r.own
	if n > r.capacity() || n < r.seen-r.own {
		return 0, fmt.Errorf("%w: its write cursor is %d, the monitor's read cursor %d, the length %d", errRing, w, r.own, r.length())
	}
	r.seen = w
	return n, nil
}

// unread is how many bytes the monitor has written that the guest has not read.
func (r *ring) unread() (uint64, error) {
	c := r.theirs.Load()
	n := r.own - c
	if n > r.capacity() || n > r.own-r.seen {
		return 0, fmt.Errorf("%w: its read cursor is %d, the monitor's write cursor %d, the length %d", errRing, c, r.own, r.length())
	}
	r.seen = c
	return n, nil
}

// span returns n bytes of ring memory, skip bytes after the monitor's cursor:
// two parts where it wraps.
func (r *ring) span(skip, n uint64) (a, b []byte) {
	at := (r.own + skip) % r.length()
	if end := at + n; end <= r.length() {
		return r.data[at:end:end], nil
	}
	return r.data[at:], r.data[:n-(r.length()-at)]
}

// move passes n bytes to the guest.
func (r *ring) move(n uint64) {
	r.own += n
	r.mine.Store(r.own)
}

// store copies b to skip bytes after the monitor's cursor.
func (r *ring) store(skip uint64, b []byte) {
	x, y := r.span(skip, uint64(len(b)))
	copy(y, b[copy(x, b):])
}

// load copies the bytes skip after the monitor's cursor to b.
func (r *ring) load(skip uint64, b []byte) {
	x, y := r.span(skip, uint64(len(b)))
	copy(b[copy(b, x):], y)
}

// shift moves n bytes of ring memory from one distance after the monitor's
// cursor down to another.
func (r *ring) shift(from, to, n uint64) {
	var buf [1024]byte
	for n > 0 {
		part := buf[:min(n, uint64(len(buf)))]
		r.load(from, part)
		r.store(to, part)
		k := uint64(len(part))
		from, to, n = from+k, to+k, n-k
	}
}

// release drops the monitor's end: it sets its flag, if the guest is to see
// that, and gives up its reference. The side that gives up the last one frees
// the block. The ring's memory may be another owner's from then on.
func (r *ring) release(flagged bool) error {
	if r.released {
		return nil
	}
	r.released = true
	if flagged {
		r.myFlag.set()
	}
	switch strong := r.strong.Add(^uint64(0)); {
	case strong > maxReferences:
		return fmt.Errorf("%w: strong %#x", errCounts, strong)
	case strong > 0:
		return nil
	}
	if weak := r.weak.Add(^uint64(0)); weak > maxReferences {
		return fmt.Errorf("%w: weak %#x", errCounts, weak)
	} else if weak > 0 {
		return nil
	}
	return r.free()
}

// maxReferences is more than a guest could have to a ring.
const maxReferences = 1 << 48

// discard frees a ring that the guest has never heard of.
func (r *ring) discard() error {
	r.released = true
	return r.free()
}

func (r *ring) free() error { return r.alloc.free(r.block, ringBlockSize(r.length())) }

// newRings makes a pipe's rings. Each is to have a block of the size wanted for
// it, but less where memory gets scarce: no more than one part in share of what
// can be spared, and less still before it fails. A block is a page at least.
func newRings(a *allocator, requests, responses, share uint64) (*ring, *ring, error) {
	rq, err := newRingOf(a, requests, share, true)
	if err != nil {
		return nil, nil, err
	}
	rs, err := newRingOf(a, responses, share, false)
	if err != nil {
		return nil, nil, errors.Join(err, rq.discard())
	}
	return rq, rs, nil
}

func newRingOf(a *allocator, want, share uint64, reader bool) (*ring, error) {
	level := levelOf(min(max(want, pageSize), max(a.spare()/share, pageSize)))
	for {
		r, err := newRing(a, 1<<level-ringOverhead, reader)
		if err == nil || !errors.Is(err, unix.ENOMEM) || level == firstLevel {
			return r, err
		}
		level--
	}
}
