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

// Pipe is one end of a pipe: the monitor's, made by [Table.New], or that of a guest written in Go, made by [Attach]. What is said here
// is said from this end's view: it reads the ring whose consumer it is and writes the other.
//
// All methods may be called by several goroutines at once. Reads take turns, as writes do; reading and writing don't disturb each other. Errors
// are [*net.OpError]; their cause is
//   - [io.EOF] (bare, reading only): the other end closed its writer, and all bytes were read,
//   - [unix.EPIPE] (writing only): the other end closed its reader,
//   - the errno that the other end reset this ring with, ECONNRESET if it named none,
//   - [unix.EPROTO]: the other end broke the rules of the ring; both rings are reset,
//   - [os.ErrDeadlineExceeded],
//   - [net.ErrClosed]: this end closed or reset this direction, or the table was closed.
//
// The monitor's end frees the pipe when both ends have closed or reset both rings and no operation of this end is under way. Nobody waits for that.
type Pipe struct {
	descriptor Descriptor
	home       int

	table  *Table   // monitor's end; nil at the guest's
	notify Notifier // guest's end

	life    sync.Mutex // orders close, reset and free
	over    bool       // freed, or nothing left to say: the memory isn't ours
	suspect bool       // the watchdog's last look found that nothing is left but to free it

	rd half
	_  [64]byte
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

// Attach returns the guest's end of a pipe in the window, and is how a guest in Go, in the monitor's own process, stands in for a real one.
// It trusts the descriptor. The guest's interrupt handler calls WakeReader and WakeWriter.
func Attach(window []byte, d Descriptor, n Notifier) (*Pipe, error) {
	w := uint64(len(window))
	if d.Header%HeaderSize != 0 || d.Header > w-HeaderSize ||
		d.Outgoing > w || uint64(d.OutgoingSize) > w-d.Outgoing || d.Incoming > w || uint64(d.IncomingSize) > w-d.Incoming ||
		!validRing(d.OutgoingSize) || !validRing(d.IncomingSize) {
		return nil, fmt.Errorf("attach to pipe %v: %w", d.ID, unix.EINVAL)
	}
	p := &Pipe{descriptor: d, notify: n}
	h := headerAt(window, d.Header)
	p.rd.init(p, false, h.incoming.consumer.cursor.Load(), ring(window, d.Incoming, d.IncomingSize), &h.incoming.consumer, &h.incoming.producer)
	p.wr.init(p, true, h.outgoing.producer.cursor.Load(), ring(window, d.Outgoing, d.OutgoingSize), &h.outgoing.producer, &h.outgoing.consumer)
	return p, nil
}

func ring(window []byte, off uint64, size uint32) []byte {
	return window[off : off+uint64(size) : off+uint64(size)]
}

func validRing(size uint32) bool {
	return size >= MinRingSize && size <= MaxRingSize && size&(size-1) == 0
}

// signal tells the other end that this one moved, or changed state, in a ring. The caller may hold life.
func (p *Pipe) signal(h *half) {
	if p.table != nil {
		p.table.raise(p.home, p.event(h), p.table.o.Doorbell)
		return
	}
	p.notifyOf(h)
}

// signalUnlocked is signal for callers that hold no lock.
func (p *Pipe) signalUnlocked(h *half) {
	if p.table != nil {
		p.table.raise(p.home, p.event(h), p.table.o.Interrupt)
		return
	}
	p.notifyOf(h)
}

// event is a half's bit in the pending bitmap.
func (p *Pipe) event(h *half) uint64 {
	event := 2 * uint64(p.descriptor.ID.Slot())
	if !h.producer {
		event++
	}
	return event
}

func (p *Pipe) notifyOf(h *half) {
	// A refused call means that the pipe is free already; PROTOCOL.md section 12: it means nothing.
	if h.producer {
		_ = p.notify.NotifyRead(p.descriptor.ID)
	} else {
		_ = p.notify.NotifyWrite(p.descriptor.ID)
	}
}

// WakeReader tells this end that its incoming bytes, or their writer's state, changed. A guest's interrupt handler calls it.
func (p *Pipe) WakeReader() { p.rd.wake(true) }

// WakeWriter tells this end that its room, or its reader's state, changed. A guest's interrupt handler calls it.
func (p *Pipe) WakeWriter() { p.wr.wake(true) }

// ID returns the pipe's id.
func (p *Pipe) ID() ID { return p.descriptor.ID }

// Descriptor returns what a guest needs to know to use the pipe.
func (p *Pipe) Descriptor() Descriptor { return p.descriptor }

// LocalAddr returns an [Addr] that names this end.
func (p *Pipe) LocalAddr() net.Addr { return p.end(p.table == nil) }

// RemoteAddr returns an [Addr] that names the other end.
func (p *Pipe) RemoteAddr() net.Addr { return p.end(p.table != nil) }

func (p *Pipe) end(guest bool) Addr {
	if guest {
		return Addr{p.descriptor.ID, "guest"}
	}
	return Addr{p.descriptor.ID, "monitor"}
}

// ReadableLen returns the number of bytes that can be read without waiting, 0 after a close or an error.
func (p *Pipe) ReadableLen() int { return p.rd.available() }

// WritableLen returns the number of bytes that can be written without waiting, 0 after a close or an error.
func (p *Pipe) WritableLen() int { return p.wr.available() }

// WriterEnded reports whether the other end has closed or reset its writer,
// even if there are bytes to read yet.
func (p *Pipe) WriterEnded() bool {
	h := &p.rd
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.detached || h.theirs.state.Load() != stateOpen
}

// fail wraps an error of this pipe, once.
func (p *Pipe) fail(op string, err error) error {
	if err == nil || err == io.EOF || err == errLater {
		return err
	}
	return &net.OpError{Op: op, Net: "pipe", Source: p.LocalAddr(), Addr: p.RemoteAddr(), Err: err}
}

// Caused reports whether err came from an operation on this end of this pipe, and not from the reader or writer that [Pipe.ReadFrom] or
// [Pipe.WriteTo] was given.
func (p *Pipe) Caused(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Source == p.LocalAddr()
}

// Read copies bytes that have arrived, at least one. It waits for them, at most until the read deadline.
func (p *Pipe) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	x, y, err := p.rd.begin(1, nil)
	if err != nil {
		return 0, p.fail("read", err)
	}
	n := copy(b, x)
	n += copy(b[n:], y)
	_ = p.rd.end(n) // closed meanwhile or not, the bytes are read
	return n, nil
}

// Write copies all of b into the ring. It waits for room, at most until the write deadline. With an error it says how many bytes went before.
func (p *Pipe) Write(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	total := 0
	x, y, err := p.wr.begin(1, nil)
	for err == nil {
		n := copy(x, b[total:])
		n += copy(y, b[total+n:])
		if total+n == len(b) {
			if err = p.wr.end(n); err == nil {
				total += n
			}
			break
		}
		total += n
		x, y, err = p.wr.next(n, 1, nil)
	}
	return total, p.fail("write", err)
}

// Bounds of what ReadFrom and WriteTo move at most between two cursor moves, in bytes.
const (
	minChunk = 64 << 10
	maxChunk = 256 << 10
)

// chunk is the most that ReadFrom and WriteTo move between two cursor moves: a system call's worth. An eighth of a ring is small enough for the other
// end to be at work meanwhile, so that a lap of the ring is many chunks and still about one signal each way.
func (h *half) chunk() int { return int(min(maxChunk, max(minChunk, h.size/8))) }

// cut shortens what is there to at most n bytes.
func cut(a, b []byte, n int) (x, y []byte) {
	if n <= len(a) {
		return a[:n], nil
	}
	return a, b[:min(len(b), n-len(a))]
}

// VectorReader is a reader that [Pipe.ReadFrom] makes better use of: a socket, for instance.
type VectorReader interface {
	io.Reader
	// ReadVector reads into a, and if that is full into b, which may be empty. It calls wait before it waits, and need not if it doesn't.
	ReadVector(a, b []byte, wait func()) (n int, err error)
}

// VectorWriter is a writer that [Pipe.WriteTo] makes better use of.
type VectorWriter interface {
	io.Writer
	// WriteVector writes all of a, then of b.
	WriteVector(a, b []byte) (n int, err error)
}

// ReadFrom reads from r straight into ring memory until r ends. It waits for room, at most until the write deadline. It doesn't close the
// writer at the end. If r is a [VectorReader], it reads into both parts of ring memory where it wraps, and signals the other end less often: while r has more to give.
//
// An error of r is returned as it is; one of this pipe as a *net.OpError that [Pipe.Caused] knows. While r.Read waits, this pipe's end isn't
// noticed: see [Pipe.OnWriteError] for how to get r.Read to return.
func (p *Pipe) ReadFrom(r io.Reader) (int64, error) {
	var total int64
	v, _ := r.(VectorReader)
	flush := p.wr.flush
	inside := false
	defer p.wr.afterPanic(&inside)
	x, y, err := p.wr.begin(1, nil)
	for empty := 0; err == nil; {
		x, y = cut(x, y, p.wr.chunk())
		var n int
		var rerr error
		inside = true
		if v != nil {
			n, rerr = v.ReadVector(x, y, flush)
		} else {
			y = nil
			n, rerr = r.Read(x)
		}
		inside = false
		if n < 0 || n > len(x)+len(y) {
			n, rerr = 0, errInvalidCount
		}
		if n == 0 && rerr == nil {
			if empty++; empty == 100 {
				rerr = io.ErrNoProgress
			}
		} else {
			empty = 0
		}
		if rerr != nil {
			if err = p.wr.end(n); err != nil {
				break
			}
			if rerr == io.EOF {
				rerr = nil
			}
			return total + int64(n), rerr
		}
		total += int64(n)
		if v != nil && n == len(x)+len(y) {
			x, y, err = p.wr.nextOfMore(n, 1)
		} else {
			x, y, err = p.wr.next(n, 1, nil)
		}
	}
	return total, p.fail("write", err)
}

// WriteTo writes to w straight from ring memory until the other end has closed its writer and all bytes are written. It waits for
// bytes, at most until the read deadline. Bytes that w took are read, those that it didn't take stay.
//
// An error of w is returned as it is; one of this pipe as a *net.OpError that [Pipe.Caused] knows. While w.Write waits, a reset by the other end isn't
// noticed: see [Pipe.OnReadError] for how to get w.Write to return.
func (p *Pipe) WriteTo(w io.Writer) (int64, error) {
	n, err := p.writeTo(w, nil)
	if err == io.EOF {
		err = nil
	}
	return n, err
}

// WriteAvailable is [Pipe.WriteTo] for an end that needs no goroutine while nothing is there. Where WriteTo would wait for bytes, WriteAvailable has f
// called later, as [Pipe.OnReadable] does, and returns nil: f may be running by then, and it is f's turn to go on. Unlike
// WriteTo it returns [io.EOF] when the other end has closed its writer and all bytes are written.
func (p *Pipe) WriteAvailable(w io.Writer, f func()) (int64, error) {
	n, err := p.writeTo(w, f)
	if err == errLater {
		err = nil
	}
	return n, err
}

func (p *Pipe) writeTo(w io.Writer, later func()) (int64, error) {
	var total int64
	v, _ := w.(VectorWriter)
	inside := false
	defer p.rd.afterPanic(&inside)
	x, y, err := p.rd.begin(1, later)
	for err == nil {
		x, y = cut(x, y, p.rd.chunk())
		var n int
		var werr error
		inside = true
		if v != nil && len(y) > 0 {
			n, werr = v.WriteVector(x, y)
		} else {
			y = nil
			n, werr = w.Write(x)
		}
		inside = false
		switch want := len(x) + len(y); {
		case n < 0 || n > want:
			n, werr = 0, errInvalidCount
		case n < want && werr == nil:
			werr = io.ErrShortWrite
		}
		total += int64(n)
		if werr != nil {
			_ = p.rd.end(n) // closed meanwhile or not, w's error is what ended this
			return total, werr
		}
		x, y, err = p.rd.next(n, 1, later)
	}
	return total, p.fail("read", err)
}

// afterPanic ends an operation whose reader or writer, an embedding program's, has panicked: that must not leave the half taken for ever.
func (h *half) afterPanic(inside *bool) {
	if *inside {
		_ = h.end(0)
	}
}

var errInvalidCount = errors.New("pipes: invalid count from Read or Write")

// ReserveWrite waits until at least min bytes of room are there, and returns all of it: ring memory, in two parts where it wraps. min is at least 1 and
// at most the ring's size, else EINVAL. After success the caller owns the write direction until it calls [Pipe.CommitWrite], once; other writers wait
// for that, as long as it takes. After CommitWrite it must not touch the memory.
func (p *Pipe) ReserveWrite(min int) (a, b []byte, err error) {
	return p.reserve(&p.wr, "write", min)
}

// CommitWrite makes the first n bytes of the reserved room readable for the other end and ends the reservation. If this end was closed
// meanwhile the bytes are dropped. n larger than the room is a programming error: panic.
func (p *Pipe) CommitWrite(n int) { _ = p.wr.end(n) }

// ReserveRead waits until at least min bytes have arrived and returns all that have: ring memory, in two parts where it wraps. The other end may be
// hostile and change them at any time. min is at least 1 and at most the ring's size, else EINVAL. [io.ErrUnexpectedEOF]: the
// writer closed after fewer bytes than min, but some. After success the caller owns the read direction until it calls [Pipe.CommitRead], once; other readers
// wait for that. After CommitRead it must not touch the memory.
func (p *Pipe) ReserveRead(min int) (a, b []byte, err error) {
	return p.reserve(&p.rd, "read", min)
}

// CommitRead gives the first n of the reserved bytes back as room and ends the reservation; the rest can be read again. n larger than what
// was reserved is a programming error: panic.
func (p *Pipe) CommitRead(n int) { _ = p.rd.end(n) }

func (p *Pipe) reserve(h *half, op string, min int) (a, b []byte, err error) {
	if min < 1 || uint64(min) > h.size {
		return nil, nil, p.fail(op, unix.EINVAL)
	}
	a, b, err = h.begin(min, nil)
	return a, b, p.fail(op, err)
}

// OnReadable has f called once, as soon as Read wouldn't wait: there are bytes, or an end of file, or an error; at once if that is so now. f runs on
// whatever goroutine brings the news, a virtual CPU's for instance: it must not wait. A second call replaces f; nil removes it, but it may
// be running already.
func (p *Pipe) OnReadable(f func()) { p.rd.hook(&p.rd.onReady, f) }

// OnReadError has f called once, as soon as Read would fail with anything but a deadline or an end of file, even with bytes unread: the other
// end reset the ring or broke it, this end closed or reset it, or the table was closed. It costs no signals. Otherwise as [Pipe.OnReadable].
func (p *Pipe) OnReadError(f func()) { p.rd.hook(&p.rd.onError, f) }

// OnWriteError has f called once, as soon as Write would fail with anything but a deadline: the other end closed or reset its reader or broke the
// ring, this end closed or reset the direction, or the table was closed. It costs no signals. Otherwise as [Pipe.OnReadable].
//
// It is how a goroutine inside [Pipe.ReadFrom], waiting in a socket's Read, is told: f sets that socket's read deadline to the past.
func (p *Pipe) OnWriteError(f func()) { p.wr.hook(&p.wr.onError, f) }

// SetDeadline sets both deadlines; see [net.Conn]. It fails with [net.ErrClosed] if both directions are closed.
func (p *Pipe) SetDeadline(t time.Time) error {
	err, err2 := p.rd.setDeadline(t), p.wr.setDeadline(t)
	if err != nil && err2 != nil {
		return p.fail("set", err)
	}
	return nil
}

// SetReadDeadline sets the deadline of reads, under way and future; the zero time is none.
func (p *Pipe) SetReadDeadline(t time.Time) error { return p.fail("set", p.rd.setDeadline(t)) }

// SetWriteDeadline sets the deadline of writes, under way and future; the zero time is none.
func (p *Pipe) SetWriteDeadline(t time.Time) error { return p.fail("set", p.wr.setDeadline(t)) }

// Close closes both directions in good order: the other end reads what was written, then end of file, and its writes fail with EPIPE. Operations under way
// fail with [net.ErrClosed]. It doesn't wait. It returns net.ErrClosed if both directions were closed before.
func (p *Pipe) Close() error {
	return p.fail("close", p.shut(stateClosed, stateClosed))
}

// CloseWrite closes the direction in which this end writes. The other end reads what was written, then end of file.
func (p *Pipe) CloseWrite() error {
	return p.fail("close", p.shut(stateOpen, stateClosed))
}

// CloseRead closes the direction in which this end reads. The other end's writes fail with EPIPE.
func (p *Pipe) CloseRead() error {
	return p.fail("close", p.shut(stateClosed, stateOpen))
}

// Reset resets both directions: the other end drops what is unread and fails with errno. Operations under way fail with [net.ErrClosed]. It resets
// also what was closed before in good order. It doesn't wait. Errno 0 stands for ECONNRESET.
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
	p.rd.wake(false)
	p.wr.wake(false)
	if !done {
		return net.ErrClosed
	}
	return nil
}

// shutLocked reports whether one of the directions was open. The writer goes first, so that a peer that learns of both finds its end of file.
func (p *Pipe) shutLocked(read, write uint32, cause error) (done bool) {
	for _, s := range []struct {
		h, other *half
		state    uint32
	}{{&p.wr, &p.rd, write}, {&p.rd, &p.wr, read}} {
		if s.state == stateOpen {
			continue
		}
		done = done || !s.h.closed()
		// A guest's later state is its last store: settle does it, when no operation touches the pipe any more.
		last := p.table == nil && s.other.closed()
		if s.h.shut(s.state, cause, last) {
			p.signal(s.h)
		}
	}
	return done
}

// settle resets a broken pipe, and ends one that both ends are finished with.
func (p *Pipe) settle() {
	p.life.Lock()
	broken := p.quarantine()
	p.finish()
	p.life.Unlock()
	if broken {
		p.rd.wake(false)
		p.wr.wake(false)
	}
}

// quarantine resets both rings of a pipe whose other end broke the rules. life is held.
func (p *Pipe) quarantine() bool {
	broken := p.rd.isBroken() || p.wr.isBroken()
	if !broken || p.rd.closed() && p.wr.closed() {
		return false
	}
	if p.table != nil {
		p.table.reportBroken(p)
	}
	state := resetState(unix.EPROTO)
	p.shutLocked(state, state, unix.EPROTO)
	return true
}

// finish ends the pipe if nothing can happen in it any more. life is held.
func (p *Pipe) finish() {
	if p.over {
		return
	}
	p.rd.mu.Lock()
	p.wr.mu.Lock()
	quiet := p.quiet()
	var tell []*half
	if quiet && p.table == nil {
		// What was deferred is stored now, the half that the monitor knows to be closed first: the other is the last store.
		first, last := &p.wr, &p.rd
		if first.stored == stateOpen {
			first, last = last, first
		}
		for _, h := range []*half{first, last} {
			if h.stored != h.local {
				h.publish()
				tell = append(tell, h)
			}
		}
	}
	if quiet {
		p.over = true
		for _, h := range []*half{&p.rd, &p.wr} {
			if h.wentOn() {
				p.table.monitorForgot(p, h)
			}
			h.detached = true
			h.data, h.mine, h.theirs = nil, nil, nil
		}
	}
	p.wr.mu.Unlock()
	p.rd.mu.Unlock()
	if !quiet {
		return
	}
	for _, h := range tell {
		p.signal(h)
	}
	if p.table != nil {
		p.table.free(p)
	}
}

// quiet reports whether nothing can happen in a pipe that isn't over: at this end, and for the monitor at the guest's too. life and mu of both halves are held.
func (p *Pipe) quiet() bool {
	if p.rd.local == stateOpen || p.wr.local == stateOpen || p.rd.busy || p.wr.busy {
		return false
	}
	return p.table == nil || p.table.closing.Load() || p.rd.theirs.state.Load() != stateOpen && p.wr.theirs.state.Load() != stateOpen
}

func (h *half) closed() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.local != stateOpen
}

func (h *half) isBroken() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.broken
}
