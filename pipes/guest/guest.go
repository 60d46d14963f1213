// Package guest is the guest's half of PROTOCOL.md sections 7, 8 and 12 in Go,
// without KVM. Tests and benchmarks use it to play the guest for what stands at
// the monitor's ends of pipes. Package client, below it, speaks the messages.
//
// A [Guest] works on the same memory as the table that it is made for. It
// learns of signals as a guest kernel does, from the pending bitmap when an
// interrupt comes, and signals back by calling the table where a kernel would
// make hypercalls.
//
// Words of this package:
//
//	bell       what tells a CPU that an interrupt is pending
//	event      a bit of the pending bitmap, which names a slot and a direction
//	interrupt  what makes a CPU look at its pending bitmap
//	stray      an event for a slot at which the guest has no end
//	window     the memory that monitor and guest share
package guest

import (
	"errors"
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/fix-project/arcavm/pipes"
)

// Guest plays a guest kernel on the window of a table.
type Guest struct {
	Table  *pipes.Table
	Window []byte

	halted []atomic.Bool   // by CPU: it waits for an interrupt
	taking []atomic.Int32  // by CPU: interrupts that are raised or being handled
	bells  []chan struct{} // by CPU: room for one, as one pending interrupt is enough
	done   chan struct{}   // closed when the CPUs are to stop
	stop   sync.Once       // closes done
	cpus   sync.WaitGroup
	limit  int                    // slots
	conns  []atomic.Pointer[Conn] // by slot
	events atomic.Uint64
	stray  atomic.Uint64
	deaf   atomic.Int32 // how many more interrupts get lost
}

// New makes a table on a window, and a guest for it. The window must be zero
// and aligned to 8 bytes; it stays the caller's, and must stay mapped until
// Close and then [pipes.Table.Wait] have returned. New sets o.Doorbell and
// o.Interrupt. CPUs and StreamLimit default to 1 and 64.
func New(window []byte, o pipes.Options) (*Guest, error) {
	if o.CPUs == 0 {
		o.CPUs = 1
	}
	if o.StreamLimit == 0 {
		o.StreamLimit = 64
	}
	g := &Guest{Window: window, done: make(chan struct{}), limit: o.StreamLimit}
	g.conns = make([]atomic.Pointer[Conn], o.StreamLimit)
	g.halted = make([]atomic.Bool, o.CPUs)
	g.taking = make([]atomic.Int32, o.CPUs)
	if o.Halted == nil {
		o.Halted = func(cpu int) bool { return g.halted[cpu].Load() && g.taking[cpu].Load() == 0 }
	}
	for range o.CPUs {
		g.bells = append(g.bells, make(chan struct{}, 1))
	}
	o.Interrupt = func(cpu int) {
		if g.hears() {
			g.taking[cpu].Add(1)
			g.interrupt(cpu)
			g.taking[cpu].Add(-1)
		}
	}
	o.Doorbell = func(cpu int) {
		if !g.hears() {
			return
		}
		g.taking[cpu].Add(1)
		select {
		case g.bells[cpu] <- struct{}{}:
		default:
			g.taking[cpu].Add(-1)
		}
	}
	t, err := pipes.NewTable(g.Window, o)
	if err != nil {
		return nil, err
	}
	g.Table = t
	for cpu := range o.CPUs {
		g.cpus.Add(1)
		go g.run(cpu)
	}
	return g, nil
}

// Close closes the table and stops the guest's CPUs. It doesn't wait for
// operations at the monitor's ends. It returns an error if a wake-up was lost,
// in either direction, so that the table's watchdog had to make up for it: for
// that the watchdog looks once more, which takes time only if it suspects
// something.
func (g *Guest) Close() error {
	g.Table.Audit()
	return g.CloseAtOnce()
}

// CloseAtOnce is Close without the watchdog's last look, which may take some
// WatchIntervals. It suits a caller that makes many guests one after the other.
func (g *Guest) CloseAtOnce() error {
	err := g.Table.Close()
	g.stop.Do(func() { close(g.done) })
	g.cpus.Wait()
	for i := range g.conns {
		if c := g.conns[i].Load(); c != nil {
			c.WakeReader()
			c.WakeWriter()
		}
	}
	if s := g.Table.Stats(); s.Rescued+s.Forgotten > 0 {
		lost := fmt.Errorf("%d wake-ups of the monitor were lost, and %d of the guest", s.Rescued, s.Forgotten)
		err = errors.Join(err, lost)
	}
	return err
}

// LoseInterrupts makes the next n interrupts get lost on their way to the
// guest.
func (g *Guest) LoseInterrupts(n int) { g.deaf.Store(int32(n)) }

// Events returns the number of events taken so far, and how many of them were
// stray.
func (g *Guest) Events() (events, stray uint64) { return g.events.Load(), g.stray.Load() }

// run is a CPU that does nothing but wait for interrupts.
func (g *Guest) run(cpu int) {
	defer g.cpus.Done()
	for {
		g.halted[cpu].Store(true)
		select {
		case <-g.done:
			return
		case <-g.bells[cpu]:
			g.halted[cpu].Store(false)
			g.interrupt(cpu)
			g.taking[cpu].Add(-1)
		}
	}
}

// hears reports whether an interrupt arrives: not while some are to get lost.
func (g *Guest) hears() bool { return g.deaf.Load() <= 0 || g.deaf.Add(-1) < 0 }

// interrupt is the guest's handler of the stream vector. It runs on the CPU's
// goroutine, and, which spares a switch, on the one at the monitor's end that
// moved a cursor. Several may run at once, since each takes the bits that it
// handles. Any bit may be set: a test's guest writes where it likes.
func (g *Guest) interrupt(cpu int) {
	base := g.Table.PendingOffset() + uint64(cpu)*g.Table.PendingStride()
	leaves := uint64(2*g.limit+63) / 64
	for top := word(g.Window, base).Swap(0); top != 0; top &= top - 1 {
		m := uint64(bits.TrailingZeros64(top))
		for mid := word(g.Window, base+64+8*m).Swap(0); mid != 0; mid &= mid - 1 {
			l := 64*m + uint64(bits.TrailingZeros64(mid))
			if l >= leaves {
				continue
			}
			for leaf := word(g.Window, base+576+8*l).Swap(0); leaf != 0; leaf &= leaf - 1 {
				g.event(64*l + uint64(bits.TrailingZeros64(leaf)))
			}
		}
	}
}

// event wakes what waits for an event.
func (g *Guest) event(e uint64) {
	g.events.Add(1)
	if e/2 >= uint64(g.limit) {
		g.stray.Add(1)
		return
	}
	c := g.conns[e/2].Load()
	switch {
	case c == nil:
		g.stray.Add(1)
	case e%2 == 0:
		c.WakeReader()
	default:
		c.WakeWriter()
	}
}

// Conn is the guest's end of a pipe: a [net.Conn] with half-close, and with
// ways to break the rules.
type Conn struct {
	*pipes.Pipe
	guest *Guest
}

// Attach returns the guest's end of a pipe that the monitor has made. A slot
// has one end: that of the pipe before hears of no events any more.
func (g *Guest) Attach(d pipes.Descriptor) (*Conn, error) {
	if d.ID.Slot() >= uint32(g.limit) {
		return nil, fmt.Errorf("attach to pipe %v: no such slot", d.ID)
	}
	p, err := pipes.Attach(g.Window, d, g.Table)
	if err != nil {
		return nil, err
	}
	c := &Conn{Pipe: p, guest: g}
	g.conns[d.ID.Slot()].Store(c)
	return c, nil
}

// Forget lets go of the guest's end of a pipe that has nothing to do any more:
// its events are stray from then on, and Close doesn't wake it.
func (g *Guest) Forget(id pipes.ID) { g.conns[id.Slot()].Store(nil) }

// Pair makes a pipe and returns both of its ends.
func (g *Guest) Pair(outgoing, incoming uint32) (host *pipes.Pipe, guest *Conn, err error) {
	host, err = g.Table.New(outgoing, incoming, 0)
	if err != nil {
		return nil, nil, err
	}
	guest, err = g.Attach(host.Descriptor())
	return host, guest, err
}

// Store writes a word of the window, at an offset that is a multiple of 8, as a
// guest may at any time.
func (g *Guest) Store(off, value uint64) { word(g.Window, off).Store(value) }

// Load reads a word of the window, at an offset that is a multiple of 8.
func (g *Guest) Load(off uint64) uint64 { return word(g.Window, off).Load() }

// Ring is a ring of a pipe: the offset of its header from the pipe header.
type Ring uint64

// The two rings of a pipe.
const (
	Outgoing Ring = 0
	Incoming Ring = 128
)

// Poke writes a cursor and a state, whatever the rules say, and notifies the
// monitor. They are the guest's own in that ring: the producer's in the
// outgoing one, the consumer's in the incoming one.
func (c *Conn) Poke(r Ring, cursor uint64, state uint32) error {
	at := c.Descriptor().Header + uint64(r)
	if r == Incoming {
		at += 64
	}
	word(c.guest.Window, at).Store(cursor)
	half(c.guest.Window, at+8).Store(state)
	if r == Incoming {
		return c.guest.Table.NotifyWrite(c.ID())
	}
	return c.guest.Table.NotifyRead(c.ID())
}
