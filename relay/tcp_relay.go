package relay

import (
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// past is a deadline that wakes who waits in a socket.
var past = time.Unix(1, 0)

// link is a ring pair and a socket that map one to one. A goroutine for each direction moves bytes; the end of one direction leaves the other
// alone. A reset, wherever it comes from, ends both.
type link struct {
	stream *Stream
	conn   Conn
	to     sending
	from   receiving

	mu      sync.Mutex
	cause   error         // of the abort, nil before
	aborted chan struct{} // closed by the abort
}

// relayConn relays until both directions have ended, and closes conn. It returns an error if the link was reset.
func relayConn(ctx context.Context, s *Stream, conn Conn) error {
	l := &link{stream: s, conn: conn, aborted: make(chan struct{})}
	l.to = sending{socket{conn: conn, moved: &s.fromGuest}}
	l.from = receiving{socket{conn: conn, moved: &s.toGuest}}
	stop := context.AfterFunc(ctx, func() { l.abort(unix.ECONNRESET) })
	// The goroutine in the socket's Read isn't looking at the ring.
	s.Pipe.OnWriteError(func() { _ = conn.SetReadDeadline(past) })

	var outgoing sync.WaitGroup
	outgoing.Go(l.relayOutgoing)
	l.relayIncoming()
	outgoing.Wait()

	if !stop() {
		<-l.aborted
	}
	_ = conn.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cause
}

// abort resets both sides. The guest gets the errno in cause, the peer an RST when both directions have ended and the socket is closed.
func (l *link) abort(cause error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	first := l.cause == nil
	// A broken ring may be heard of as a reset first.
	if first || errors.Is(cause, unix.EPROTO) {
		l.cause = cause
	}
	if !first {
		return
	}
	_ = l.stream.Pipe.Reset(errnoOf(cause))
	resetOnClose(l.conn)
	_ = l.conn.SetDeadline(past)
	close(l.aborted)
}

// relayOutgoing moves bytes from the guest to the peer.
func (l *link) relayOutgoing() {
	pipe := l.stream.Pipe
	_, err := pipe.WriteTo(&l.to)
	if errors.Is(err, unix.EPIPE) && !pipe.Caused(err) {
		// The peer's reset came after its FIN, or the other direction has taken its errno.
		if other := l.from.failure(); isErrno(other) {
			err = other
		}
	}
	switch {
	case err == nil:
		// After a reset by the peer this fails; the other direction has the errno.
		_ = l.conn.CloseWrite()
	case pipe.Caused(err):
		l.abort(resetBy(err))
	case errors.Is(err, os.ErrDeadlineExceeded):
		// Aborted.
	case errors.Is(err, unix.EPIPE):
		// The peer has sent all that it had to say and takes no more. What it said may be on its way to the guest still: the other
		// direction ends by itself.
		pipe.OnReadError(nil)
		_ = pipe.CloseRead()
	default:
		l.abort(err)
	}
}

// relayIncoming moves bytes from the peer to the guest.
func (l *link) relayIncoming() {
	pipe := l.stream.Pipe
	_, err := pipe.ReadFrom(&l.from)
	if err == nil && isClosed(l.conn) {
		// That was the peer's FIN, or a reset whose errno the other direction has taken. Its Write, if it is in one, returns soon.
		if other := l.to.failure(); isErrno(other) && !errors.Is(other, unix.EPIPE) {
			err = other
		}
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		// Woken because the pipe takes no more: ask it why.
		_, _, err = pipe.ReserveWrite(1)
	}
	switch {
	case err == nil:
		_ = pipe.CloseWrite()
	case pipe.Caused(err) && errors.Is(err, unix.EPIPE):
		// The guest doesn't read any more. The socket's buffer fills up and its window closes.
	case pipe.Caused(err):
		l.abort(resetBy(err))
	default:
		l.abort(err)
	}
}

// resetBy is the cause of an abort because of the pipe: the guest's protocol error, or else its reset.
func resetBy(err error) error {
	if errors.Is(err, unix.EPROTO) {
		return err
	}
	return unix.ECONNRESET
}

// socket is what one direction needs of a connection, and nothing else: so nobody finds a detour through a buffer. The kernel tells a reset's
// errno to one caller only, whichever comes first; the others see an end of file or EPIPE. So each direction keeps what it was told.
type socket struct {
	conn  Conn
	moved *atomic.Uint64

	mu  sync.Mutex // held during a system call
	err error      // of the last one
}

type (
	sending   struct{ socket }
	receiving struct{ socket }
)

func (s *receiving) Read(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.conn.Read(b)
	s.moved.Add(uint64(n))
	s.err = err
	return n, err
}

func (s *sending) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.conn.Write(b)
	s.moved.Add(uint64(n))
	s.err = err
	return n, err
}

// failure returns the error of the last Read or Write. It waits for one that is under way: for use on a closed socket only, where none
// takes long.
func (s *socket) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func isErrno(err error) bool {
	var errno unix.Errno
	return errors.As(err, &errno)
}

// isClosed reports whether a TCP connection has ended in both directions, by FINs or by a reset.
func isClosed(conn Conn) bool {
	tcp := asTCP(conn)
	if tcp == nil {
		return false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return false
	}
	closed := false
	err = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		closed = err == nil && info.State == unix.BPF_TCP_CLOSE
	})
	return err == nil && closed
}
