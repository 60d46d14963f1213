package pipes

import (
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/internal/limit"
)

// hotBytes is how much memory of freed rings is kept for the next ones instead of being given back to the host.
const hotBytes = 16 << 20

// Options of a [Table].
type Options struct {
	// CPUs is the number of virtual CPUs, 1 to 64.
	CPUs int

	// StreamLimit is the number of pipe slots, 1 to MaxStreams.
	StreamLimit int

	// Doorbell raises the stream interrupt on a CPU. It must not wait, nor use a pipe or the table. Several goroutines may call it at once.
	Doorbell func(cpu int)

	// Interrupt, if set, is called in Doorbell's place where no lock of this package is held: when a cursor has moved, but not when a state has changed. It
	// must not wait either, but may use pipes and the table, as the interrupt handler of a guest in this process does.
	Interrupt func(cpu int)

	// Release gives pages of the window back to the host, by a hole for instance; they read as zero or as before afterwards. nil: they are kept. It is called on
	// a goroutine of the table's own. [Table.Wait] waits for it.
	Release func(off, n int64) error

	// WatchInterval is how often the watchdog looks for lost wake-ups, which takes two looks; 0: every 2 seconds.
	WatchInterval time.Duration

	// Halted reports whether a CPU waits for an interrupt. The watchdog tells lost wake-ups from late ones by it. nil: every CPU does, always, and
	// a guest that needs longer than WatchInterval from a store to the signal that follows it is taken for one that forgot.
	Halted func(cpu int) bool

	// Logger gets what a guest did wrong, at a limited rate: broken rings as warnings, lost wake-ups as errors. nil: nobody does.
	Logger *slog.Logger

	// RingLimit is how many bytes the rings of all pipes may have together. 0: as many as the window has room for.
	RingLimit int64
}

// Table holds the pipes of one virtual machine. Its methods may be called by several goroutines at once.
type Table struct {
	o             Options
	window        []byte
	headers, ring uint64
	stride        uint64
	pending       []bitmap
	slots         []atomic.Pointer[Pipe]
	closing       atomic.Bool
	logs          struct{ broken, rescued, kept *limit.Log }
	raises        []raises // by CPU
	broken        atomic.Uint64
	rescued       atomic.Uint64
	forgotten     atomic.Uint64
	lateWakeUps   atomic.Uint64

	auditing   sync.Mutex // a look of the watchdog; before all other locks
	byHand     bool       // Audit has taken over
	looked     time.Time  // when the last look began
	suspicious bool       // it suspected something
	late       bool       // the look is, or a CPU of the guest isn't halted
	asked      bool       // the latter is known
	watched    int        // slots that its round has covered
	bells      []bell     // by CPU

	mu          sync.Mutex
	settled     sync.Cond // fewer pipes are open, or a trim ended
	alloc       *buddy
	hot         []block // oldest first
	hotSize     int64
	trimming    bool
	guestGone   bool
	used        int64
	generations []uint32 // of all slots that were ever used
	unused      []uint32 // those of them that are free
	open        int
	opened      uint64
	past        PipeStats // of freed pipes
	watching    bool      // the watchdog's timer runs, or a look is under way
	watchdog    *time.Timer
	due         time.Time // its next look
}

// NewTable lays out the window: pending bitmaps, pipe headers, ring data. The window must be zero, and stays the caller's; it must stay mapped until
// [Table.Wait] has returned. EINVAL: an option is out of range or the window too small for a pipe.
func NewTable(window []byte, o Options) (*Table, error) {
	if o.CPUs < 1 || o.CPUs > 64 || o.StreamLimit < 1 || o.StreamLimit > MaxStreams || o.RingLimit < 0 || o.Doorbell == nil || !aligned(window) {
		return nil, fmt.Errorf("stream table of %d CPUs, %d streams: %w", o.CPUs, o.StreamLimit, unix.EINVAL)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Interrupt == nil {
		o.Interrupt = o.Doorbell
	}
	if o.WatchInterval <= 0 {
		o.WatchInterval = watchInterval
	}
	t := &Table{
		o: o, window: window,
		stride: roundUp(bitmapSize(o.StreamLimit), pageSize),
		slots:  make([]atomic.Pointer[Pipe], o.StreamLimit),
		raises: make([]raises, o.CPUs),
		bells:  make([]bell, o.CPUs),
	}
	t.logs.broken, t.logs.rescued, t.logs.kept = limit.NewLog(time.Second, 10), limit.NewLog(time.Second, 10), limit.NewLog(time.Second, 10)
	t.settled.L = &t.mu
	t.headers = uint64(o.CPUs) * t.stride
	t.ring = roundUp(t.headers+uint64(o.StreamLimit)*HeaderSize, pageSize)
	if t.ring+2*MinRingSize > uint64(len(window)) {
		return nil, fmt.Errorf("a window of %d bytes for %d streams: %w", len(window), o.StreamLimit, unix.EINVAL)
	}
	t.alloc = newBuddy(uint32((uint64(len(window)) - t.ring) / pageSize))
	for cpu := range o.CPUs {
		t.pending = append(t.pending, bitmapAt(window, uint64(cpu)*t.stride, o.StreamLimit))
	}
	return t, nil
}

func roundUp(n, to uint64) uint64 { return (n + to - 1) / to * to }

// PendingOffset is the offset of CPU 0's pending bitmap.
func (t *Table) PendingOffset() uint64 { return 0 }

// PendingStride is the distance from one CPU's pending bitmap to the next's.
func (t *Table) PendingStride() uint64 { return t.stride }

// New makes a pipe with rings of these sizes: powers of two, 4 KiB to 64 MiB. Its signals to the guest go to homeCPU. Its header is zero
// when New returns, so the guest may be told at once. The first pipe has id 0.
//
// EINVAL: a size or the CPU is out of range. ENOMEM: the window is exhausted, or the ring limit reached. EMFILE: all slots are in use. EPIPE: the guest
// has ended ([Table.EndGuest]). net.ErrClosed: the table was closed.
func (t *Table) New(outgoing, incoming uint32, homeCPU int) (*Pipe, error) {
	p, err := t.new(outgoing, incoming, homeCPU)
	if err != nil {
		return nil, fmt.Errorf("make a pipe: %w", err)
	}
	return p, nil
}

func (t *Table) new(outgoing, incoming uint32, homeCPU int) (*Pipe, error) {
	if !validRing(outgoing) || !validRing(incoming) || homeCPU < 0 || homeCPU >= t.o.CPUs {
		return nil, unix.EINVAL
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.guestGone {
		return nil, unix.EPIPE
	}
	if len(t.unused) == 0 && len(t.generations) == len(t.slots) {
		if t.closing.Load() {
			return nil, net.ErrClosed
		}
		return nil, unix.EMFILE
	}
	out, err := t.allocate(orderOf(outgoing))
	if err != nil {
		return nil, err
	}
	in, err := t.allocate(orderOf(incoming))
	if err != nil {
		t.keep(out)
		return nil, err
	}
	// allocate may have given up mu: other calls may have taken the slot, or closed the table.
	slot, err := t.takeSlot()
	if err != nil {
		t.keep(out)
		t.keep(in)
		return nil, err
	}
	d := Descriptor{
		ID:           ID(t.generations[slot])<<32 | ID(slot),
		Header:       t.headers + uint64(slot)*HeaderSize,
		Outgoing:     t.ring + uint64(out.offset()),
		Incoming:     t.ring + uint64(in.offset()),
		OutgoingSize: outgoing,
		IncomingSize: incoming,
	}
	p := &Pipe{descriptor: d, home: homeCPU, table: t}
	h := headerAt(t.window, d.Header)
	h.clear()
	p.rd.init(p, false, 0, ring(t.window, d.Outgoing, outgoing), &h.outgoing.consumer, &h.outgoing.producer)
	p.wr.init(p, true, 0, ring(t.window, d.Incoming, incoming), &h.incoming.producer, &h.incoming.consumer)
	t.open++
	t.opened++
	t.slots[slot].Store(p)
	t.startWatchdog()
	return p, nil
}

func (t *Table) takeSlot() (uint32, error) {
	if t.closing.Load() {
		return 0, net.ErrClosed
	}
	if n := len(t.unused); n > 0 {
		slot := t.unused[n-1]
		t.unused = t.unused[:n-1]
		t.generations[slot]++
		return slot, nil
	}
	if n := len(t.generations); n < len(t.slots) {
		t.generations = append(t.generations, 0)
		return uint32(n), nil
	}
	return 0, unix.EMFILE
}

// allocate takes a block, from the hot ones first. mu is held, but given up while pages that could be the needed ones are on their way back.
func (t *Table) allocate(order uint8) (block, error) {
	for {
		if t.o.RingLimit > 0 && t.used+(pageSize<<order) > t.o.RingLimit {
			return block{}, unix.ENOMEM
		}
		for i := len(t.hot) - 1; i >= 0; i-- {
			if b := t.hot[i]; b.order == order {
				t.hot = slices.Delete(t.hot, i, i+1)
				t.hotSize -= b.bytes()
				t.used += b.bytes()
				return b, nil
			}
		}
		if b, ok := t.alloc.alloc(order); ok {
			t.used += b.bytes()
			return b, nil
		}
		switch {
		case t.trimming:
			t.settled.Wait()
		case len(t.hot) > 0:
			t.trim(0)
		default:
			return block{}, unix.ENOMEM
		}
	}
}

// keep frees a block: it stays hot for a while. mu is held.
func (t *Table) keep(b block) {
	t.used -= b.bytes()
	t.hotSize += b.bytes()
	t.hot = append(t.hot, b)
	if t.hotSize > hotBytes && !t.trimming {
		t.trim(hotBytes / 4)
	}
}

// trim gives the oldest hot blocks back until no more than target bytes are hot. The system calls happen on a goroutine of their own: a virtual
// CPU's may be the one that freed the last block. mu is held.
func (t *Table) trim(target int64) {
	n := 0
	for t.hotSize > target {
		t.hotSize -= t.hot[n].bytes()
		n++
	}
	blocks := slices.Clone(t.hot[:n])
	t.hot = slices.Delete(t.hot, 0, n)
	if t.o.Release == nil {
		t.restore(blocks)
		return
	}
	t.trimming = true
	go func() {
		t.releasePages(blocks)
		t.mu.Lock()
		defer t.mu.Unlock()
		t.restore(blocks)
		t.trimming = false
		if t.hotSize > hotBytes {
			t.trim(hotBytes / 4)
		}
		t.settled.Broadcast()
	}()
}

func (t *Table) restore(blocks []block) {
	for _, b := range blocks {
		t.alloc.release(b)
	}
}

// releasePages makes one call for each run of neighbours.
func (t *Table) releasePages(blocks []block) {
	slices.SortFunc(blocks, func(a, b block) int { return int(a.page) - int(b.page) })
	for i := 0; i < len(blocks); {
		off, n := blocks[i].offset(), int64(0)
		for ; i < len(blocks) && blocks[i].offset() == off+n; i++ {
			n += blocks[i].bytes()
		}
		if err := t.o.Release(int64(t.ring)+off, n); err != nil {
			t.logs.kept.Log(t.o.Logger, slog.LevelWarn, "freed ring pages stay in memory",
				slog.Int64("offset", int64(t.ring)+off), slog.Int64("bytes", n), slog.Any("err", err))
		}
	}
}

// free is called once for each pipe, by the goroutine that found it finished.
func (t *Table) free(p *Pipe) {
	s := p.Stats()
	t.mu.Lock()
	defer t.mu.Unlock()
	d := p.descriptor
	t.slots[d.ID.Slot()].Store(nil)
	t.unused = append(t.unused, d.ID.Slot())
	t.keep(block{uint32((d.Outgoing - t.ring) / pageSize), orderOf(d.OutgoingSize)})
	t.keep(block{uint32((d.Incoming - t.ring) / pageSize), orderOf(d.IncomingSize)})
	t.past.add(s)
	t.open--
	t.settled.Broadcast()
}

func (t *Table) find(id ID) (*Pipe, error) {
	if slot := id.Slot(); uint64(slot) < uint64(len(t.slots)) {
		if p := t.slots[slot].Load(); p != nil && p.descriptor.ID == id {
			return p, nil
		}
	}
	return nil, unix.ENOENT
}

// Pipe returns the monitor's end of an open pipe; ENOENT if the id is unknown or outdated.
func (t *Table) Pipe(id ID) (*Pipe, error) { return t.find(id) }

// NotifyRead is hypercall NOTIFY_READ: bytes have become readable in a pipe's outgoing ring, or its writer's state changed. It wakes at most one
// goroutine, and runs hooks. It doesn't wait and doesn't allocate. ENOENT: the id is unknown or outdated.
func (t *Table) NotifyRead(id ID) error {
	p, err := t.find(id)
	if err == nil {
		p.rd.wake(true)
	}
	return err
}

// NotifyWrite is hypercall NOTIFY_WRITE: room has become writable in a pipe's incoming ring, or its reader's state changed. Otherwise as
// [Table.NotifyRead].
func (t *Table) NotifyWrite(id ID) error {
	p, err := t.find(id)
	if err == nil {
		p.wr.wake(true)
	}
	return err
}

func (t *Table) reportBroken(p *Pipe) {
	t.broken.Add(1)
	t.logs.broken.Log(t.o.Logger, slog.LevelWarn, "guest broke a ring; its pipe is reset", slog.Any("stream", p.descriptor.ID), slog.Any("err", unix.EPROTO))
}

// Close resets all pipes with ECONNRESET in both directions and wakes whoever waits: operations at the monitor's ends fail with net.ErrClosed
// from now on, New too, and notifications find nothing. Close doesn't wait for the guest, nor for operations under way: [Table.Wait] does for these.
// It is idempotent and returns nil.
func (t *Table) Close() error {
	t.mu.Lock()
	t.closing.Store(true)
	n := len(t.generations)
	t.stopWatchdog()
	t.settled.Broadcast()
	t.mu.Unlock()
	for i := range n {
		if p := t.slots[i].Load(); p != nil {
			_ = p.Reset(unix.ECONNRESET) // closed before: settled all the same
		}
	}
	return nil
}

// Wait returns when, after Close, nobody touches the window any more and it may be unmapped: when each Read, Write, ReadFrom, WriteTo and
// reservation that was under way at some pipe has ended. A goroutine in ReadFrom or WriteTo that waits for the other side has to be woken
// there; OnWriteError and OnReadError tell.
func (t *Table) Wait() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for t.open > 0 || t.trimming || t.watching {
		t.settled.Wait()
	}
}
