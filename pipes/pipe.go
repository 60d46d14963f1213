package pipes

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Pipe is one end of a pipe: the monitor's, made by [Table.New], or that of a
// guest written in Go, made by [Attach]. What is said here is said from this
// end's view: it reads the ring whose consumer it is and writes the other.
//
// All methods may be called by several goroutines at once. Reads take turns, as
// writes do; reading and writing don't disturb each other. Errors are
// [*net.OpError]; their cause is
//   - [io.EOF] (bare, reading only): the other end closed its writer, and all
//     bytes were read,
//   - [unix.EPIPE] (writing only): the other end closed its reader,
//   - the errno that the other end reset this ring with, ECONNRESET if it named
//     none,
//   - [unix.EPROTO]: the other end broke the rules of the ring; both rings are
//     reset,
//   - [os.ErrDeadlineExceeded],
//   - [net.ErrClosed]: this end closed or reset this direction, or the table
//     was closed.
//
// The monitor's end frees the pipe when both ends have closed or reset both
// rings and no operation of this end is under way. No caller waits for that.
type Pipe struct {
	descriptor Descriptor
	end        end

	life    sync.Mutex // orders close, reset and free
	over    bool       // freed, or nothing left to say: the memory isn't ours
	suspect bool       // by the watchdog: only the guest's last signal is missing

	rd half
	_  [64]byte // the two directions share no cache line
	wr half
}

var _ net.Conn = (*Pipe)(nil)

// Notifier is what a guest calls its monitor with; [Table] is one.
type Notifier interface {
	NotifyRead(ID) error
	NotifyWrite(ID) error
}

// Addr names an end of a pipe.
type Addr struct {
	ID  ID
	End string // "guest" or "monitor"
}

// Network returns "pipe".
func (Addr) Network() string { return "pipe" }

// String is such as "1.0 guest".
func (a Addr) String() string { return a.ID.String() + " " + a.End }

// Attach returns the guest's end of a pipe in the window, and is how a guest in
// Go, in the monitor's own process, stands in for a real one. It trusts the
// descriptor. The guest's interrupt handler calls WakeReader and WakeWriter.
// EINVAL: the descriptor names what doesn't lie in the window.
func Attach(window []byte, d Descriptor, n Notifier) (*Pipe, error) {
	w := uint64(len(window))
	if d.Header%HeaderSize != 0 || d.Header > w-HeaderSize ||
		d.Outgoing > w || uint64(d.OutgoingSize) > w-d.Outgoing ||
		d.Incoming > w || uint64(d.IncomingSize) > w-d.Incoming ||
		!validRing(d.OutgoingSize) || !validRing(d.IncomingSize) {
		return nil, fmt.Errorf("attach to pipe %v: %w", d.ID, unix.EINVAL)
	}
	g := &guestPipe{end: guestEnd{n}}
	p := &g.pipe
	p.descriptor, p.end = d, &g.end
	h := headerAt(window, d.Header)
	in := shared{ring(window, d.Incoming, d.IncomingSize), &h.incoming.consumer, &h.incoming.producer}
	out := shared{ring(window, d.Outgoing, d.OutgoingSize), &h.outgoing.producer, &h.outgoing.consumer}
	p.rd.init(p, false, in.mine.cursor.Load(), in)
	p.wr.init(p, true, out.mine.cursor.Load(), out)
	return p, nil
}

func ring(window []byte, off uint64, size uint32) []byte {
	return window[off : off+uint64(size) : off+uint64(size)]
}

func validRing(size uint32) bool {
	return size >= MinRingSize && size <= MaxRingSize && size&(size-1) == 0
}

// WakeReader tells this end that its incoming bytes, or their writer's state,
// changed. A guest's interrupt handler calls it. It doesn't wait, and runs
// hooks.
func (p *Pipe) WakeReader() { p.rd.signalled() }

// WakeWriter tells this end that its room, or its reader's state, changed. A
// guest's interrupt handler calls it. It doesn't wait, and runs hooks.
func (p *Pipe) WakeWriter() { p.wr.signalled() }

// ID returns the pipe's id.
func (p *Pipe) ID() ID { return p.descriptor.ID }

// Descriptor returns what a guest needs to know to use the pipe.
func (p *Pipe) Descriptor() Descriptor { return p.descriptor }

// LocalAddr returns an [Addr] that names this end.
func (p *Pipe) LocalAddr() net.Addr {
	local, _ := p.end.names()
	return Addr{p.descriptor.ID, local}
}

// RemoteAddr returns an [Addr] that names the other end.
func (p *Pipe) RemoteAddr() net.Addr {
	_, remote := p.end.names()
	return Addr{p.descriptor.ID, remote}
}

// ReadableLen returns the number of bytes that can be read without waiting, 0
// after a close or an error.
func (p *Pipe) ReadableLen() int { return p.rd.available() }

// WritableLen returns the number of bytes that can be written without waiting,
// 0 after a close or an error.
func (p *Pipe) WritableLen() int { return p.wr.available() }

// WriterEnded reports whether the other end has closed or reset its writer,
// even if there are bytes to read yet.
func (p *Pipe) WriterEnded() bool {
	h := &p.rd
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.detached() || h.shared.theirs.state.Load() != stateOpen
}

// fail wraps an error of this pipe, once.
func (p *Pipe) fail(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return &net.OpError{Op: op, Net: "pipe", Source: p.LocalAddr(), Addr: p.RemoteAddr(), Err: err}
}

// Caused reports whether err came from an operation on this end of this pipe,
// and not from the reader or writer that [Pipe.ReadFrom] or [Pipe.WriteTo] was
// given.
func (p *Pipe) Caused(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Source == p.LocalAddr()
}

// Read copies bytes that have arrived, at least one. It waits for them, at most
// until the read deadline.
func (p *Pipe) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	n, err := p.rd.begin(1)
	if err != nil {
		return 0, p.fail("read", err)
	}
	x, y := p.rd.spans(n)
	n = copy(b, x)
	n += copy(b[n:], y)
	_ = p.rd.commit(n) // closed meanwhile or not, the bytes are read
	return n, nil
}

// Write copies all of b into the ring. It waits for room, at most until the
// write deadline. With an error it says how many bytes went before.
func (p *Pipe) Write(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	total := 0
	n, err := p.wr.begin(1)
	for err == nil {
		x, y := p.wr.spans(n)
		n = copy(x, b[total:])
		n += copy(y, b[total+n:])
		if total+n == len(b) {
			if err = p.wr.commit(n); err == nil {
				total += n
			}
			break
		}
		total += n
		n, err = p.wr.next(n, 1)
	}
	return total, p.fail("write", err)
}

// ReserveWrite waits until at least min bytes of room are there, and returns
// all of it: ring memory, in two parts where it wraps. min is at least 1 and at
// most the ring's size, else EINVAL. After success the caller owns the write
// direction until it calls [Pipe.CommitWrite], once; other writers wait for
// that, as long as it takes. After CommitWrite it must not touch the memory.
func (p *Pipe) ReserveWrite(min int) (a, b []byte, err error) {
	return p.reserve(&p.wr, "write", min)
}

// CommitWrite makes the first n bytes of the reserved room readable for the
// other end and ends the reservation. If this end was closed meanwhile the
// bytes are dropped. n larger than the room is a programming error: panic.
func (p *Pipe) CommitWrite(n int) { _ = p.wr.commit(n) }

// ReserveRead waits until at least min bytes have arrived and returns all that
// have: ring memory, in two parts where it wraps. The other end may be hostile
// and change them at any time. min is at least 1 and at most the ring's size,
// else EINVAL. [io.ErrUnexpectedEOF]: the writer closed after fewer bytes than
// min, but some. After success the caller owns the read direction until it
// calls [Pipe.CommitRead], once; other readers wait for that. After CommitRead
// it must not touch the memory.
func (p *Pipe) ReserveRead(min int) (a, b []byte, err error) {
	return p.reserve(&p.rd, "read", min)
}

// CommitRead gives the first n of the reserved bytes back as room and ends the
// reservation; the rest can be read again. n larger than what was reserved is a
// programming error: panic.
func (p *Pipe) CommitRead(n int) { _ = p.rd.commit(n) }

func (p *Pipe) reserve(h *half, op string, min int) (a, b []byte, err error) {
	if min < 1 || uint64(min) > h.cursor.size {
		return nil, nil, p.fail(op, unix.EINVAL)
	}
	n, err := h.begin(min)
	if err != nil {
		return nil, nil, p.fail(op, err)
	}
	a, b = h.spans(n)
	return a, b, nil
}

// OnReadable has f called once, as soon as Read wouldn't wait: there are bytes,
// or an end of file, or an error; at once if that is so now. f runs on whatever
// goroutine brings the news, a virtual CPU's for instance: it must not wait. A
// second call replaces f; nil removes it, but it may be running already.
func (p *Pipe) OnReadable(f func()) { p.rd.onReady(f) }

// SubscribeReadable is [Pipe.OnReadable] for a caller that has tried to read
// and found nothing. If Read wouldn't wait by now it returns false and f isn't
// called: the caller tries again. If it returns true, f may be running already.
func (p *Pipe) SubscribeReadable(f func()) bool { return p.rd.subscribe(f) }

// OnReadError has f called once, as soon as Read would fail with anything but a
// deadline or an end of file, even with bytes unread: the other end reset the
// ring or broke it, this end closed or reset it, or the table was closed. It
// costs no signals. Otherwise as [Pipe.OnReadable].
func (p *Pipe) OnReadError(f func()) { p.rd.onFailure(f) }

// OnWriteError has f called once, as soon as Write would fail with anything but
// a deadline: the other end closed or reset its reader or broke the ring, this
// end closed or reset the direction, or the table was closed. It costs no
// signals. Otherwise as [Pipe.OnReadable].
//
// It is how a goroutine inside [Pipe.ReadFrom], waiting in a socket's Read, is
// told: f sets that socket's read deadline to the past.
func (p *Pipe) OnWriteError(f func()) { p.wr.onFailure(f) }

// SetDeadline sets both deadlines; see [net.Conn]. It fails with
// [net.ErrClosed] if both directions are closed.
func (p *Pipe) SetDeadline(t time.Time) error {
	err, err2 := p.rd.setDeadline(t), p.wr.setDeadline(t)
	if err != nil && err2 != nil {
		return p.fail("set", err)
	}
	return nil
}

// SetReadDeadline sets the deadline of reads, under way and future; the zero
// time is none.
func (p *Pipe) SetReadDeadline(t time.Time) error { return p.fail("set", p.rd.setDeadline(t)) }

// SetWriteDeadline sets the deadline of writes, under way and future; the zero
// time is none.
func (p *Pipe) SetWriteDeadline(t time.Time) error { return p.fail("set", p.wr.setDeadline(t)) }

func (h *half) setDeadline(t time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.open() {
		return net.ErrClosed
	}
	h.turn.setDeadline(t)
	return nil
}
