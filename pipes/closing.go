package pipes

import (
	"net"

	"golang.org/x/sys/unix"
)

// Close closes both directions in good order: the other end reads what was
// written, then end of file, and its writes fail with EPIPE. Operations under
// way fail with [net.ErrClosed]. It doesn't wait. It returns net.ErrClosed if
// both directions were closed before.
func (p *Pipe) Close() error {
	return p.fail("close", p.shut(stateClosed, stateClosed))
}

// CloseWrite closes the direction in which this end writes. The other end reads
// what was written, then end of file. Otherwise as [Pipe.Close].
func (p *Pipe) CloseWrite() error {
	return p.fail("close", p.shut(stateOpen, stateClosed))
}

// CloseRead closes the direction in which this end reads. The other end's
// writes fail with EPIPE. Otherwise as [Pipe.Close].
func (p *Pipe) CloseRead() error {
	return p.fail("close", p.shut(stateClosed, stateOpen))
}

// Reset resets both directions: the other end drops what is unread and fails
// with errno. Operations under way fail with [net.ErrClosed]. It resets also
// what was closed before in good order. It doesn't wait. Errno 0 stands for
// ECONNRESET.
func (p *Pipe) Reset(errno unix.Errno) error {
	if errno == 0 {
		errno = unix.ECONNRESET
	}
	return p.fail("reset", p.shut(resetState(errno), resetState(errno)))
}

// shut closes or resets the directions whose new state isn't open.
func (p *Pipe) shut(read, write uint32) error {
	p.life.Lock()
	done := p.shutLocked(read, write, net.ErrClosed)
	p.life.Unlock()
	p.rd.changed()
	p.wr.changed()
	if !done {
		return net.ErrClosed
	}
	return nil
}

// shutLocked reports whether one of the directions was open. The writer goes
// first, so that a peer that learns of both finds its end of file. life is
// held.
func (p *Pipe) shutLocked(read, write uint32, cause error) (done bool) {
	for _, s := range []struct {
		h, other *half
		state    uint32
	}{{&p.wr, &p.rd, write}, {&p.rd, &p.wr, read}} {
		if s.state == stateOpen {
			continue
		}
		done = done || !s.h.isClosed()
		deferred := p.end.defersLast() && s.other.isClosed()
		if s.h.shut(s.state, cause, deferred) {
			p.end.signalState(s.h)
		}
	}
	return done
}

// shut sets this end's state in the ring, in private only if deferred is set,
// and lets operations fail with cause. It reports whether the other end is to
// be told. A closed state may still become reset, no other may change.
// Pipe.life is held, mu isn't.
func (h *half) shut(state uint32, cause error, deferred bool) (tell bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	own := h.states.own
	if own == state || own&0xffff == stateReset || own != stateOpen && state == stateClosed {
		return false
	}
	h.turn.close(cause)
	h.states.own = state
	if h.detached() || deferred {
		return false
	}
	return h.publish()
}

// publish stores this end's state for the other end to see, and reports whether
// that is to be told.
func (h *half) publish() (tell bool) {
	h.shared.mine.state.Store(h.states.own)
	h.states.stored = h.states.own
	tell = h.pipe.end.hearsState(h)
	if tell {
		h.stats.Signals++
	}
	return tell
}

// settle resets a broken pipe, and ends one that both ends are finished with.
// No lock is held.
func (p *Pipe) settle() {
	p.life.Lock()
	broken := p.finish()
	if broken {
		// Its other end broke the rules: it gets nothing more.
		p.end.broke(p)
		state := resetState(unix.EPROTO)
		p.shutLocked(state, state, unix.EPROTO)
		p.finish()
	}
	p.life.Unlock()
	if broken {
		p.rd.changed()
		p.wr.changed()
	}
}

// finish ends the pipe if nothing can happen in it any more. It reports whether
// the pipe is broken, and is to be reset. life is held.
func (p *Pipe) finish() (broken bool) {
	if p.over {
		return false
	}
	p.rd.mu.Lock()
	p.wr.mu.Lock()
	broken = (p.rd.states.broken || p.wr.states.broken) && (p.rd.open() || p.wr.open())
	quiet := p.quiet()
	var tell [2]*half
	if quiet {
		p.over = true
		tell = p.end.leave(p)
		p.rd.shared, p.wr.shared = shared{}, shared{}
	}
	p.wr.mu.Unlock()
	p.rd.mu.Unlock()
	if !quiet {
		return broken
	}
	for _, h := range tell {
		if h != nil {
			p.end.signalState(h)
		}
	}
	p.end.left(p)
	return false
}

// quiet reports whether nothing can happen in a pipe that isn't over: at this
// end, and for the monitor at the guest's too. life and mu of both halves are
// held.
func (p *Pipe) quiet() bool {
	if p.rd.open() || p.wr.open() || p.rd.turn.busy || p.wr.turn.busy {
		return false
	}
	return p.end.otherQuiet(p)
}

func (p *Pipe) halves() [2]*half { return [2]*half{&p.rd, &p.wr} }

// isClosed is !open, without mu.
func (h *half) isClosed() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.open()
}
