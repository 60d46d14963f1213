package pipes

import (
	"log/slog"

	"golang.org/x/sys/unix"
)

// end is what the two ends of a pipe do differently: a [monitorEnd] or a
// [guestEnd]. Pipe.life is held in all methods but names and the signals.
type end interface {
	// names are this end's and the other's.
	names() (local, remote string)

	// signalMove tells the other end that this one's cursor has moved in a
	// ring. The caller holds no lock, so hooks may run.
	signalMove(h *half)

	// signalState tells the other end that this one's state has changed in a
	// ring, or makes up for a signal. The caller may hold locks.
	signalState(h *half)

	// hearsState reports whether the other end is to be told of a state.
	hearsState(h *half) bool

	// defersLast reports whether the state that closes the second direction is
	// stored only when no operation touches the pipe any more.
	defersLast() bool

	// otherQuiet reports whether the other end does nothing more in the pipe.
	// mu of both halves is held.
	otherQuiet(p *Pipe) bool

	// broke is called when the other end has broken the rules of a ring.
	broke(p *Pipe)

	// leave does what remains to be done in shared memory, once nothing happens
	// in the pipe any more, and returns the halves that are to be signalled,
	// nil for none. mu of both halves is held.
	leave(p *Pipe) (tell [2]*half)

	// left is called after leave, once the memory isn't touched any more.
	left(p *Pipe)
}

// monitorEnd is the monitor's end of those of a table's pipes whose signals go
// to one CPU.
type monitorEnd struct {
	table *Table
	home  int
}

func (m *monitorEnd) names() (local, remote string) { return "monitor", "guest" }

func (m *monitorEnd) signalMove(h *half) {
	m.table.raise(m.home, eventOf(h), m.table.o.Interrupt)
}

func (m *monitorEnd) signalState(h *half) {
	m.table.raise(m.home, eventOf(h), m.table.o.Doorbell)
}

// eventOf is a half's bit in the pending bitmap.
func eventOf(h *half) uint64 {
	event := 2 * uint64(h.pipe.descriptor.ID.Slot())
	if !h.producer {
		event++
	}
	return event
}

// hearsState is false where the guest's own state isn't open any more: nothing
// in the guest waits there.
func (m *monitorEnd) hearsState(h *half) bool {
	return h.shared.theirs.state.Load() == stateOpen
}

func (m *monitorEnd) defersLast() bool { return false }

// otherQuiet: the guest has closed or reset both rings, or the table is closing
// and the guest's part doesn't count.
func (m *monitorEnd) otherQuiet(p *Pipe) bool {
	return m.table.closing.Load() ||
		p.rd.shared.theirs.state.Load() != stateOpen && p.wr.shared.theirs.state.Load() != stateOpen
}

func (m *monitorEnd) broke(p *Pipe) {
	t := m.table
	t.broken.Add(1)
	t.brokenLog.Log(t.o.Logger, slog.LevelWarn, "guest broke a ring; its pipe is reset",
		slog.Any("stream", p.descriptor.ID), slog.Any("err", unix.EPROTO))
}

// leave counts a wake-up that the watchdog made up for, before the cursors that
// tell so are gone.
func (m *monitorEnd) leave(p *Pipe) (tell [2]*half) {
	for _, h := range p.halves() {
		if h.wentOn() {
			m.table.watchdog.monitorForgot(h)
		}
	}
	return tell
}

func (m *monitorEnd) left(p *Pipe) { m.table.free(p) }

// guestEnd is the end of a guest written in Go, in the monitor's own process.
type guestEnd struct {
	notifier Notifier
}

func (g *guestEnd) names() (local, remote string) { return "guest", "monitor" }

// guestPipe is a guest's Pipe in one allocation.
type guestPipe struct {
	pipe Pipe
	end  guestEnd
}

// signalMove makes the hypercall. A refused one means that the pipe is free
// already, and nothing (PROTOCOL.md section 12).
func (g *guestEnd) signalMove(h *half) {
	if h.producer {
		_ = g.notifier.NotifyRead(h.pipe.descriptor.ID)
	} else {
		_ = g.notifier.NotifyWrite(h.pipe.descriptor.ID)
	}
}

func (g *guestEnd) signalState(h *half) { g.signalMove(h) }

func (g *guestEnd) hearsState(*half) bool { return true }

// defersLast is true: after the guest's last store the monitor may give the
// memory to another pipe.
func (g *guestEnd) defersLast() bool { return true }

func (g *guestEnd) otherQuiet(*Pipe) bool { return true }

func (g *guestEnd) broke(*Pipe) {}

// leave stores the states that were deferred, first in the ring where the
// monitor knows this end to be closed: the other is the last store.
func (g *guestEnd) leave(p *Pipe) (tell [2]*half) {
	first, last := &p.wr, &p.rd
	if first.states.stored == stateOpen {
		first, last = last, first
	}
	for i, h := range [2]*half{first, last} {
		if h.states.stored != h.states.own {
			h.publish()
			tell[i] = h
		}
	}
	return tell
}

func (g *guestEnd) left(*Pipe) {}
