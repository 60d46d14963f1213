package relay

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
)

// past is a deadline that ends what waits in a socket.
var past = time.Unix(1, 0)

// link is a stream and a connection that map one to one. The end of one
// direction leaves the other alone. A reset of either ends both.
//
// The direction from the peer is a goroutine that waits in the socket. The
// direction to the peer has none while the guest's ring is empty: the ring's
// hook, readable, sends a little by itself, and starts the goroutine send for
// more, or if it would have to wait. Either the hook or the goroutine runs,
// never both.
type link struct {
	stream *Stream
	conn   network.Conn
	to     sending
	from   receiving
	eager  *eager // nil if conn is no socket, or its bytes are limited
	source io.Reader
	sink   io.Writer
	pace   *pace // nil if bytes aren't limited

	onReadable, onMore func() // readable and send, made once

	mu    sync.Mutex
	cause error // of the abort, nil before
	parts int   // which have not ended: directions, and an abort under way
	sent  bool  // the direction to the peer has ended
}

// Relay relays the bytes of the stream and of conn until both directions have
// ended. The end of file of one closes the other's writer, and a reset of one
// resets the other, as PROTOCOL.md has it for connections. Then it closes conn
// and ends the stream. The handler answers the Open before. If conn wraps a
// *[net.TCPConn] (NetConn), resets go out as RST and come in with their errno;
// any other connection is closed instead of reset.
//
// Relay returns at once and owns conn and the stream from then on. The handler
// returns without using them; its error is ignored.
func (s *Stream) Relay(conn network.Conn) { relayConn(s, conn) }

func relayConn(s *Stream, conn network.Conn) {
	l := &link{stream: s, conn: conn, parts: 2}
	l.to = sending{socket: socket{conn: conn, moved: &s.fromGuest}}
	l.from = receiving{socket: socket{conn: conn, moved: &s.toGuest}}
	l.from.raw = rawConn(conn)
	l.to.raw = l.from.raw
	l.from.try, l.to.try = l.from.readv, l.to.writev
	l.eager, l.source, l.sink = newEager(conn, &l.to), &l.from, &l.to
	if s.server.bytes != nil {
		// Waiting for the rate needs a goroutine, so the hook sends nothing.
		l.pace, l.eager = newPace(s), nil
		l.source, l.sink = pacedReader{&l.from, l.pace}, pacedWriter{&l.to, l.pace}
	}
	l.onReadable, l.onMore = l.readable, l.send

	s.relayed = true
	s.Payload, s.frame = nil, nil
	s.server.running.Add(1) // the caller's goroutine is counted there too
	s.Pipe.OnReadError(l.guestReset)
	s.Pipe.OnWriteError(l.guestTakesNoMore)
	go l.receive()
	s.Pipe.OnReadable(l.onReadable)
}

// guestReset is a hook. [Server.Serve] causes it, too, when it resets the pipe.
func (l *link) guestReset() {
	if l.beginAbort(unix.ECONNRESET) {
		go l.finishAbort()
	}
}

// guestTakesNoMore is a hook. It ends the Read of the goroutine in the socket,
// which doesn't look at the ring meanwhile.
func (l *link) guestTakesNoMore() {
	_ = l.conn.SetReadDeadline(past)
	l.pace.endReading()
	l.mu.Lock()
	sent := l.sent
	l.mu.Unlock()
	if !sent {
		l.stream.server.lingering.add(l)
	}
}

// abort resets both sides. The guest gets the errno in cause; the peer gets an
// RST when both directions have ended and the socket is closed.
func (l *link) abort(cause error) {
	if l.beginAbort(cause) {
		l.finishAbort()
	}
}

// beginAbort reports whether finishAbort has to follow.
func (l *link) beginAbort(cause error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.parts == 0 {
		return false
	}
	first := l.cause == nil
	// A broken ring may show as a reset first.
	if first || isBreach(l.stream.Pipe, cause) {
		l.cause = cause
	}
	if first {
		l.parts++
		l.pace.end()
	}
	return first
}

// finishAbort runs the pipe's hooks, so mu isn't held.
func (l *link) finishAbort() {
	l.mu.Lock()
	cause := l.cause
	l.mu.Unlock()
	_ = l.stream.Pipe.Reset(network.Errno(cause))
	resetOnClose(l.conn)
	interrupt(l.conn)
	if l.leave() {
		l.close()
	}
}

// leave ends a part of the link. After the last one the caller closes the link.
func (l *link) leave() (last bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.parts--
	return l.parts == 0
}

// leaveOutgoing is leave for the direction to the peer.
func (l *link) leaveOutgoing() (last bool) {
	l.mu.Lock()
	l.sent = true
	l.mu.Unlock()
	return l.leave()
}

func (l *link) close() {
	_ = l.conn.Close()
	server := l.stream.server
	server.lingering.remove(l)
	server.finish(l.stream, l.cause)
	server.running.Done()
}

// readable is the hook for a ring that has become non-empty, or has ended. It
// often runs on a virtual CPU's thread, so it must not wait.
func (l *link) readable() {
	if l.eager == nil {
		go l.onMore()
		return
	}
	l.eager.left = maxEager
	switch err := l.drain(l.eager); err {
	case nil:
	case errNotNow:
		go l.onMore()
	case io.EOF:
		// This fails after a reset by the peer, whose errno the other direction
		// has.
		_ = l.conn.CloseWrite()
		if l.leaveOutgoing() {
			go l.close()
		}
	default:
		go l.endOutgoing(err)
	}
}

// send moves bytes from the guest to the peer until the ring is empty.
func (l *link) send() {
	if err := l.drain(l.sink); err != nil {
		l.endOutgoing(err)
	}
}

// drain moves bytes from the guest to w until the ring is empty. When it
// returns nil, readable is called at the next byte, or runs already.
func (l *link) drain(w io.Writer) error {
	for {
		_, err := l.stream.Pipe.WriteAvailable(w)
		if err != nil || l.stream.Pipe.SubscribeReadable(l.onReadable) {
			return err
		}
	}
}

// endOutgoing ends the direction to the peer because of err.
func (l *link) endOutgoing(err error) {
	pipe := l.stream.Pipe
	if errors.Is(err, unix.EPIPE) && !pipe.Caused(err) && isClosed(l.conn) {
		// The peer has reset the connection after its FIN, or the other
		// direction has the errno of its reset. A Read under way returns soon.
		if other := l.from.failure(); isErrno(other) && !errors.Is(other, errTruncated) {
			err = other
		}
	}
	switch {
	case err == io.EOF:
		// This fails after a reset by the peer, whose errno the other direction
		// has.
		_ = l.conn.CloseWrite()
	case pipe.Caused(err):
		l.abort(resetBy(err))
	case errors.Is(err, os.ErrDeadlineExceeded):
		// The link was aborted.
	case errors.Is(err, unix.EPIPE):
		// The peer takes no more. Its own bytes may still be on their way to
		// the guest, and a peer that isn't TCP may go on sending: the other
		// direction ends by itself.
		pipe.OnReadError(nil)
		_ = pipe.CloseRead()
	default:
		l.abort(err)
	}
	if l.leaveOutgoing() {
		l.close()
	}
}

// receive moves bytes from the peer to the guest until that direction ends.
func (l *link) receive() {
	_, err := l.stream.Pipe.ReadFrom(l.source)
	l.endIncoming(err)
}

// endIncoming ends the direction to the guest because of err, or, if that is
// nil, of the peer's end of file.
func (l *link) endIncoming(err error) {
	pipe := l.stream.Pipe
	if err == nil && isClosed(l.conn) {
		// This was the peer's FIN, or a reset whose errno the other direction
		// has. A Write under way returns soon.
		if other := l.to.failure(); isErrno(other) && !errors.Is(other, unix.EPIPE) {
			err = other
		}
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		// The deadline ended the Read because the pipe takes no more. The pipe
		// knows why.
		_, _, err = pipe.ReserveWrite(1)
	}
	// A peer that closes a UNIX socket before it has read everything doesn't
	// take back what it has sent.
	_, isUnix := l.conn.(*net.UnixConn)
	if errors.Is(err, errTruncated) || isUnix && errors.Is(err, unix.ECONNRESET) && !pipe.Caused(err) {
		err = l.afterAll(err)
	}
	switch {
	case err == nil:
		_ = pipe.CloseWrite()
	case pipe.Caused(err) && errors.Is(err, unix.EPIPE):
		// The guest takes no more. The socket's buffer fills up and its window
		// closes.
	case pipe.Caused(err):
		l.abort(resetBy(err))
	default:
		l.abort(err)
	}
	if l.leave() {
		l.close()
	}
}

// afterAll returns err when the guest has read all that has arrived, or why it
// won't.
func (l *link) afterAll(err error) error {
	pipe := l.stream.Pipe
	if _, _, perr := pipe.ReserveWrite(int(pipe.Descriptor().IncomingSize)); perr != nil {
		return perr
	}
	pipe.CommitWrite(0)
	return err
}

// resetBy is the cause of an abort because of the pipe: a breach, or the
// guest's reset.
func resetBy(err error) error {
	if errors.Is(err, unix.EPROTO) {
		return err
	}
	return unix.ECONNRESET
}

// socket is what one direction uses of a connection. It has no other methods,
// so that io.Copy finds no way through a buffer. The kernel tells the errno of
// a reset to the first call only; later ones get an end of file or EPIPE. So
// each direction keeps its last error.
type socket struct {
	conn  network.Conn
	moved *atomic.Uint64

	mu  sync.Mutex // held during a system call
	err error      // of the last one
}

var errMiscounted = errors.New("relay: invalid count from Read or Write")

// counted refuses an impossible number of bytes, which a connection of an
// embedding program may return.
func counted(n, size int, err error) (int, error) {
	if n < 0 || n > size {
		return 0, errMiscounted
	}
	return n, err
}

// sending is the direction to the peer.
type sending struct {
	socket
	raw syscall.RawConn       // nil if conn is no socket
	try func(fd uintptr) bool // writev, made once

	parts [2][]byte // both halves of a wrap, as far as they aren't sent
	sent  int
	werr  error
}

// receiving is the direction to the guest.
type receiving struct {
	socket
	raw syscall.RawConn       // nil if conn is no socket
	try func(fd uintptr) bool // readv, made once

	parts [2][]byte // both halves of a wrap
	wait  func()
	n     int
	rerr  error
}

func (s *receiving) Read(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.conn.Read(b)
	n, err = counted(n, len(b), err)
	s.moved.Add(uint64(n))
	s.err = err
	return n, err
}

// ReadVector is of [pipes.VectorReader].
func (s *receiving) ReadVector(a, b []byte, wait func()) (int, error) {
	if s.raw == nil {
		wait()
		return s.Read(a)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.parts, s.wait = [2][]byte{a, b}, wait
	s.n = 0
	err := s.raw.Read(s.try)
	if err == nil {
		err = s.rerr
	}
	s.parts, s.wait = [2][]byte{}, nil
	s.moved.Add(uint64(s.n))
	s.err = err
	return s.n, err
}

// readv returns false if there is nothing to read. RawConn then calls it again
// when there is.
func (s *receiving) readv(fd uintptr) bool {
	for {
		var err error
		if len(s.parts[1]) == 0 {
			s.n, err = unix.Read(int(fd), s.parts[0])
		} else {
			s.n, err = unix.Readv(int(fd), s.parts[:])
		}
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			s.n = 0
			s.wait()
			return false
		case err != nil:
			s.n, s.rerr = 0, os.NewSyscallError("read", err)
		case s.n == 0:
			s.rerr = io.EOF
		default:
			s.rerr = nil
		}
		return true
	}
}

// WriteVector is of [pipes.VectorWriter].
func (s *sending) WriteVector(a, b []byte) (int, error) {
	if s.raw == nil {
		n, err := s.Write(a)
		if err == nil && n == len(a) {
			var more int
			more, err = s.Write(b)
			n += more
		}
		return n, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.parts, s.sent = [2][]byte{a, b}, 0
	err := s.raw.Write(s.try)
	if err == nil {
		err = s.werr
	}
	s.parts = [2][]byte{}
	s.err = err
	return s.sent, err
}

// writev returns false if the socket has no room. RawConn then calls it again
// when there is some. Bytes count as soon as they are sent, so that a peer that
// takes a few at a time isn't taken for a stalled one.
func (s *sending) writev(fd uintptr) bool {
	for {
		var n int
		var err error
		if len(s.parts[1]) == 0 {
			n, err = unix.Write(int(fd), s.parts[0])
		} else {
			n, err = unix.Writev(int(fd), s.parts[:])
		}
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return false
		case err != nil:
			s.werr = os.NewSyscallError("write", err)
			return true
		}
		s.sent += n
		s.moved.Add(uint64(n))
		first := min(n, len(s.parts[0]))
		s.parts[0], s.parts[1] = s.parts[0][first:], s.parts[1][n-first:]
		if len(s.parts[0]) == 0 {
			s.parts[0], s.parts[1] = s.parts[1], nil
		}
		if len(s.parts[0]) == 0 {
			s.werr = nil
			return true
		}
	}
}

// maxPiece is the size of a TLS record in bytes, and the most that one Write of
// a connection that isn't a socket gets. Bytes count after each Write.
const maxPiece = 16 << 10

func (s *sending) Write(b []byte) (int, error) {
	if s.raw != nil {
		return s.WriteVector(b, nil)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	sent := 0
	for {
		piece := b[sent:min(sent+maxPiece, len(b))]
		n, err := s.conn.Write(piece)
		n, err = counted(n, len(piece), err)
		s.moved.Add(uint64(n))
		s.err = err
		sent += n
		if err != nil || n < len(piece) || sent == len(b) {
			return sent, err
		}
	}
}

// maxEager is how many bytes a hook sends before it leaves the rest to a
// goroutine: about as many as a socket takes in the time that waking one takes.
const maxEager = 16 << 10

var errNotNow = errors.New("relay: the socket takes no more at once")

// eager sends what a socket takes at once. Its error errNotNow means that the
// rest needs a goroutine.
type eager struct {
	to   *sending
	raw  syscall.RawConn
	left int // bytes that it may send yet

	try  func(fd uintptr) bool // write, made once
	b    []byte
	sent int
	err  error
}

// rawConn returns nil if conn isn't a socket itself, as a layer above one
// isn't.
func rawConn(conn network.Conn) syscall.RawConn {
	var raw syscall.RawConn
	var err error
	switch c := conn.(type) {
	case *net.TCPConn:
		raw, err = c.SyscallConn()
	case *net.UnixConn:
		raw, err = c.SyscallConn()
	}
	if err != nil {
		return nil
	}
	return raw
}

// newEager returns nil if conn is no socket.
func newEager(conn network.Conn, to *sending) *eager {
	raw := rawConn(conn)
	if raw == nil {
		return nil
	}
	e := &eager{to: to, raw: raw}
	e.try = e.write
	return e
}

func (e *eager) Write(b []byte) (int, error) {
	if len(b) > e.left {
		return 0, errNotNow
	}
	e.left -= len(b)
	e.to.mu.Lock()
	defer e.to.mu.Unlock()
	e.b = b
	err := e.raw.Write(e.try)
	e.b = nil
	switch {
	case err != nil || e.err == unix.EAGAIN || e.err == unix.EINTR:
		// The socket is closed, or its deadline has passed: send deals with
		// that.
		return 0, errNotNow
	case e.err != nil:
		e.to.err = os.NewSyscallError("sendmsg", e.err)
		return 0, e.to.err
	}
	e.to.moved.Add(uint64(e.sent))
	if e.sent < len(b) {
		return e.sent, errNotNow
	}
	return e.sent, nil
}

// write returns true, so that RawConn doesn't wait for room. MSG_DONTWAIT keeps
// the kernel from waiting, too, on a descriptor that was made a blocking one.
func (e *eager) write(fd uintptr) bool {
	e.sent, e.err = unix.SendmsgN(int(fd), e.b, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	return true
}

// failure returns the error of the last Read or Write. It waits for one that is
// under way, and is meant for a closed socket, where none takes long.
func (s *socket) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func isErrno(err error) bool {
	var errno unix.Errno
	return errors.As(err, &errno)
}

// isClosed reports whether a TCP connection has ended in both directions, by
// FINs or by a reset.
func isClosed(conn network.Conn) bool {
	tcp := network.AsTCP(conn)
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

// interrupt ends the calls that wait in conn, and those that would. It closes a
// connection without deadlines, as those through another protocol often are.
func interrupt(conn interface {
	io.Closer
	SetDeadline(t time.Time) error
}) {
	if conn.SetDeadline(past) != nil {
		_ = conn.Close()
	}
}

// resetOnClose makes Close send an RST, if conn is a TCP connection.
func resetOnClose(c net.Conn) {
	if tcp := network.AsTCP(c); tcp != nil {
		_ = tcp.SetLinger(0)
	}
}
