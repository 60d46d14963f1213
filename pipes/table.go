package pipes

import (
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/internal/limit"
)

// Table holds the pipes of one virtual machine. Its methods may be called by
// several goroutines at once.
type Table struct {
	o         Options
	layout    layout
	pending   []bitmap     // by CPU
	raises    []raises     // by CPU
	ends      []monitorEnd // of pipes, by home CPU
	watchdog  watchdog
	broken    atomic.Uint64
	brokenLog *limit.Log
	closing   atomic.Bool

	mu        sync.Mutex
	settled   sync.Cond // fewer pipes are open, or a trim or the watchdog ended
	slots     slots
	memory    ringMemory
	guestGone bool
}

// newLog is for what a guest can cause as often as it likes.
func newLog() *limit.Log { return limit.NewLog(time.Second, 10) }

// NewTable lays out the window: pending bitmaps, pipe headers, ring data. The
// window must be zero, and stays the caller's; it must stay mapped until
// [Table.Wait] has returned. EINVAL: an option is out of range or the window
// too small for a pipe.
func NewTable(window []byte, o Options) (*Table, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	l, err := newLayout(window, o.CPUs, o.StreamLimit)
	if err != nil {
		return nil, err
	}
	t := &Table{
		o: o, layout: l,
		raises:    make([]raises, o.CPUs),
		ends:      make([]monitorEnd, o.CPUs),
		brokenLog: newLog(),
	}
	t.settled.L = &t.mu
	t.slots.pipes = make([]atomic.Pointer[Pipe], o.StreamLimit)
	t.memory = ringMemory{
		buddy: newBuddy(l.ringPages()), base: l.rings, limit: o.RingLimit,
		mu: &t.mu, settled: &t.settled,
		release: o.Release, log: newLog(), logger: o.Logger,
	}
	t.watchdog.init(t)
	for cpu := range o.CPUs {
		t.pending = append(t.pending, bitmapAt(window, uint64(cpu)*l.stride, o.StreamLimit))
		t.ends[cpu] = monitorEnd{t, cpu}
	}
	return t, nil
}

// PendingOffset is the offset of CPU 0's pending bitmap.
func (t *Table) PendingOffset() uint64 { return 0 }

// PendingStride is the distance from one CPU's pending bitmap to the next's.
func (t *Table) PendingStride() uint64 { return t.layout.stride }

// New makes a pipe with rings of these sizes: powers of two, 4 KiB to 64 MiB.
// Its signals to the guest go to homeCPU. Its header is zero when New returns,
// so the guest may be told at once. The first pipe has id 0. New may wait until
// pages that are on their way back to the host have arrived there.
//
// EINVAL: a size or the CPU is out of range. ENOMEM: the window is exhausted,
// or the ring limit reached. EMFILE: all slots are in use. EPIPE: the guest has
// ended ([Table.EndGuest]). net.ErrClosed: the table was closed.
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
	if err := t.refusal(); err != nil {
		return nil, err
	}
	out, err := t.memory.allocate(orderOf(outgoing))
	if err != nil {
		return nil, err
	}
	in, err := t.memory.allocate(orderOf(incoming))
	if err != nil {
		t.memory.keep(out)
		return nil, err
	}
	// allocate may have given up mu: other calls may have taken the slot, or
	// closed the table.
	id, err := t.takeSlot()
	if err != nil {
		t.memory.keep(out)
		t.memory.keep(in)
		return nil, err
	}
	p := t.pipe(Descriptor{
		ID:           id,
		Header:       t.layout.header(id.Slot()),
		Outgoing:     t.memory.offset(out),
		Incoming:     t.memory.offset(in),
		OutgoingSize: outgoing,
		IncomingSize: incoming,
	}, homeCPU)
	t.slots.put(p)
	t.watchdog.start()
	return p, nil
}

// refusal is why no pipe can be made, or nil. mu is held.
func (t *Table) refusal() error {
	switch {
	case t.guestGone:
		return unix.EPIPE
	case !t.slots.full():
		return nil
	case t.closing.Load():
		return net.ErrClosed
	}
	return unix.EMFILE
}

// takeSlot returns the id of a new pipe. mu is held.
func (t *Table) takeSlot() (ID, error) {
	if t.closing.Load() {
		return 0, net.ErrClosed
	}
	id, ok := t.slots.take()
	if !ok {
		return 0, unix.EMFILE
	}
	return id, nil
}

// pipe makes the monitor's end of a pipe whose slot and memory are taken.
func (t *Table) pipe(d Descriptor, homeCPU int) *Pipe {
	p := &Pipe{descriptor: d, end: &t.ends[homeCPU]}
	window := t.layout.window
	h := headerAt(window, d.Header)
	h.clear()
	out := ring(window, d.Outgoing, d.OutgoingSize)
	in := ring(window, d.Incoming, d.IncomingSize)
	p.rd.init(p, false, 0, shared{out, &h.outgoing.consumer, &h.outgoing.producer})
	p.wr.init(p, true, 0, shared{in, &h.incoming.producer, &h.incoming.consumer})
	return p
}

// free is called once for each pipe, by the goroutine that found it finished.
func (t *Table) free(p *Pipe) {
	counters := p.Stats()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.slots.free(p, counters)
	d := p.descriptor
	t.memory.keep(t.memory.blockAt(d.Outgoing, d.OutgoingSize))
	t.memory.keep(t.memory.blockAt(d.Incoming, d.IncomingSize))
	t.settled.Broadcast()
}

// Pipe returns the monitor's end of an open pipe; ENOENT if the id is unknown
// or outdated.
func (t *Table) Pipe(id ID) (*Pipe, error) { return t.slots.find(id) }

// NotifyRead is hypercall NOTIFY_READ: bytes have become readable in a pipe's
// outgoing ring, or its writer's state changed. It wakes at most one goroutine,
// and runs hooks. It doesn't wait and doesn't allocate. ENOENT: the id is
// unknown or outdated.
func (t *Table) NotifyRead(id ID) error {
	p, err := t.slots.find(id)
	if err == nil {
		p.rd.signalled()
	}
	return err
}

// NotifyWrite is hypercall NOTIFY_WRITE: room has become writable in a pipe's
// incoming ring, or its reader's state changed. Otherwise as
// [Table.NotifyRead].
func (t *Table) NotifyWrite(id ID) error {
	p, err := t.slots.find(id)
	if err == nil {
		p.wr.signalled()
	}
	return err
}

// Close resets all pipes with ECONNRESET in both directions and wakes all that
// waits: operations at the monitor's ends fail with net.ErrClosed from then on,
// New too, and notifications find nothing. Close doesn't wait for the guest,
// nor for operations under way: [Table.Wait] does for these. It is idempotent
// and returns nil.
func (t *Table) Close() error {
	t.mu.Lock()
	t.closing.Store(true)
	used := t.slots.used()
	t.watchdog.stop()
	t.settled.Broadcast()
	t.mu.Unlock()
	for i := range used {
		if p := t.slots.pipes[i].Load(); p != nil {
			_ = p.Reset(unix.ECONNRESET) // closed before: settled all the same
		}
	}
	return nil
}

// Wait returns when, after Close, nothing touches the window any more and it
// may be unmapped: when each Read, Write, ReadFrom, WriteTo and reservation
// that was under way at some pipe has ended. A goroutine in ReadFrom or WriteTo
// that waits for the other side has to be woken there; OnWriteError and
// OnReadError tell.
func (t *Table) Wait() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for t.slots.open > 0 || t.memory.trimming || t.watchdog.running {
		t.settled.Wait()
	}
}
