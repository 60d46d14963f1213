package relay

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/wire"
)

// How long a listener waits after a failed accept. The kernel would fail again
// at once, for lack of descriptors or memory.
const (
	minBackoff = 5 * time.Millisecond
	maxBackoff = time.Second
)

// serveListener answers the Open of s with payload. Then it relays each
// connection of ln on the pipe that an AcceptConnection names, as a stream of
// the given protocol. It returns when the guest has closed s, or ctx ends. It
// closes ln in any case.
func serveListener(ctx context.Context, s *Stream, ln net.Listener, payload []byte, protocol uint16) error {
	s.log(slog.LevelDebug, "listening", slog.Any("local", ln.Addr()))
	if err := s.Opened(0, payload); err != nil {
		ln.Close()
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l := &listener{stream: s, ln: ln, protocol: protocol, ctx: ctx, asked: make(chan struct{}, 1)}
	l.deadline, _ = asSocket(ln).(deadline)
	closed := make(chan struct{})
	context.AfterFunc(ctx, func() {
		_ = ln.Close()
		close(closed)
	})
	// A guest that takes no answers can't be told of connections.
	s.Pipe.OnWriteError(cancel)

	var accepting sync.WaitGroup
	accepting.Go(l.accept)
	err := l.readRequests()
	cancel()
	accepting.Wait()
	// The socket is closed when the first Close has returned: a second one
	// returns at once.
	<-closed
	l.release()
	return err
}

// listenOn listens with a backlog, 0 for the network's own. kind is "tcp4",
// "tcp6" or "unix".
func listenOn(ctx context.Context, from network.Network, kind, address string, backlog uint32) (net.Listener, error) {
	ln, err := network.Check(from.Listen(ctx, kind, address))
	if err != nil {
		return nil, err
	}
	if socket := asSocket(ln); socket != nil && backlog != 0 {
		if err := setBacklog(socket, backlog); err != nil {
			ln.Close()
			return nil, err
		}
	}
	return ln, nil
}

// asSocket returns the socket that ln wraps, or is; nil if there is none.
func asSocket(ln net.Listener) syscall.Conn {
	for {
		switch x := ln.(type) {
		case syscall.Conn:
			return x
		case interface{ NetListener() net.Listener }:
			ln = x.NetListener()
		default:
			return nil
		}
	}
}

// setBacklog calls listen again: Linux takes the new backlog, at most
// net.core.somaxconn.
func setBacklog(ln syscall.Conn, backlog uint32) error {
	raw, err := ln.SyscallConn()
	if err != nil {
		return err
	}
	var lerr error
	if err := raw.Control(func(fd uintptr) {
		lerr = unix.Listen(int(fd), int(min(backlog, math.MaxInt32)))
	}); err != nil {
		return err
	}
	if lerr != nil {
		return fmt.Errorf("listen with backlog %d: %w", backlog, lerr)
	}
	return nil
}

// listener is a listening socket and the accepts that wait at it.
type listener struct {
	stream   *Stream
	ln       net.Listener
	protocol uint16 // of the connections' streams
	ctx      context.Context
	asked    chan struct{} // holds a token when waiting may have become longer

	mu       sync.Mutex
	waiting  list.List // of *accept, oldest first; no more than there are pipes, as each claims one
	deadline deadline  // of ln's Accept; nil where it can't be ended by one
	recalled bool      // the deadline has passed, as no accept waits
}

type deadline interface{ SetDeadline(time.Time) error }

type accept struct {
	request   uint64
	stream    *Stream
	place     *list.Element // in waiting; nil: not in it; guarded by listener.mu
	withdrawn bool          // or taken by next; guarded by listener.mu
}

// readRequests takes AcceptConnections until the guest closes the pipe.
func (l *listener) readRequests() error {
	in := frames{pipe: l.stream.Pipe}
	for {
		request, payload, err := in.next(wire.KindAcceptConnection)
		if err != nil {
			return err
		}
		m, err := wire.DecodeAcceptConnection(payload)
		if err != nil {
			return ProtocolError(err)
		}
		st, status := l.claim(pipes.ID(m.Pipe))
		if status != 0 {
			if err := l.answer(request, wire.IncomingConnection{Status: uint32(status)}); err != nil {
				return err
			}
			continue
		}
		l.enqueue(&accept{request: request, stream: st})
	}
}

// claim takes the pipe that an accept names, and a place among the accepts that
// wait.
func (l *listener) claim(id pipes.ID) (*Stream, unix.Errno) {
	server := l.stream.server
	if !l.stream.operation() {
		return nil, unix.EAGAIN
	}
	st, status := server.claim(id)
	if status != 0 {
		server.count.acceptsRefused.Add(1)
		l.stream.warn(server.logs.acceptRefuse, "guest can't accept on this pipe", slog.Any("pipe", id), slog.Any("err", status))
		return nil, status
	}
	if server.accepts.Add(1) > int64(server.limits.Accepts) {
		server.accepts.Add(-1)
		server.unclaim(st)
		server.reached(limitAccepts, l.stream.Pipe.ID())
		return nil, unix.EAGAIN
	}
	return st, 0
}

// enqueue puts a into the queue. A guest that closes or resets the pipe
// withdraws its request.
func (l *listener) enqueue(a *accept) {
	// The hooks are set first: once a is in the queue, its connection may set
	// its own.
	withdraw := func() { l.withdraw(a) }
	a.stream.Pipe.OnReadError(withdraw)
	a.stream.Pipe.OnWriteError(withdraw)
	l.mu.Lock()
	if !a.withdrawn {
		a.place = l.waiting.PushBack(a)
	}
	l.mu.Unlock()
	select {
	case l.asked <- struct{}{}:
	default:
	}
}

// withdraw runs on a virtual CPU's thread. The answer, which may wait for room,
// gets a goroutine.
func (l *listener) withdraw(a *accept) {
	l.mu.Lock()
	first := !a.withdrawn
	a.withdrawn = true
	if a.place != nil {
		l.waiting.Remove(a.place)
		a.place = nil
		if l.waiting.Len() == 0 {
			l.recall(true)
		}
	}
	l.mu.Unlock()
	server := l.stream.server
	if first {
		server.accepts.Add(-1)
		server.start(func() {
			// The pipe is freed after the answer, so that a guest which reads
			// no answers runs out of pipes, and not its host out of goroutines.
			_ = l.answer(a.request, wire.IncomingConnection{Status: uint32(unix.ECANCELED)})
			server.finish(a.stream, nil)
		})
	}
}

// next takes the oldest accept, which can't be withdrawn then; nil if there is
// none.
func (l *listener) next() *accept {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.waiting.Front()
	if e == nil {
		return nil
	}
	a := l.waiting.Remove(e).(*accept)
	a.place, a.withdrawn = nil, true
	l.stream.server.accepts.Add(-1)
	return a
}

// recall ends an Accept under way and those that follow (yes), or lets them
// wait again. mu is held.
func (l *listener) recall(yes bool) {
	if l.deadline == nil || l.recalled == yes {
		return
	}
	var at time.Time
	if yes {
		at = past
	}
	// It fails only on a closed socket, which Accept reports.
	_ = l.deadline.SetDeadline(at)
	l.recalled = yes
}

func (l *listener) isRecalled() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.recalled
}

// await waits for an accept. It reports false when the listener ends.
func (l *listener) await() bool {
	for {
		l.mu.Lock()
		n := l.waiting.Len()
		if n > 0 {
			l.recall(false)
		}
		l.mu.Unlock()
		if n > 0 {
			return l.ctx.Err() == nil
		}
		select {
		case <-l.asked:
		case <-l.ctx.Done():
			return false
		}
	}
}

// accept pairs connections with accepts. If the last accept is withdrawn at the
// moment in which a connection arrives, the connection waits for the next
// accept.
func (l *listener) accept() {
	var conn network.Conn
	backoff := minBackoff
	for l.await() {
		if conn == nil {
			var err error
			if conn, err = network.CheckConn(l.ln.Accept()); err != nil {
				if errors.Is(err, net.ErrClosed) {
					break
				}
				if l.isRecalled() {
					continue
				}
				l.refuse(err)
				l.pause(backoff)
				backoff = min(2*backoff, maxBackoff)
				continue
			}
			backoff = minBackoff
		}
		if a := l.next(); a != nil {
			l.serve(a, conn)
			conn = nil
		}
	}
	if conn != nil {
		network.Abandon(conn)
	}
}

// serve announces a connection and relays it.
func (l *listener) serve(a *accept, conn network.Conn) {
	server := l.stream.server
	server.count.accepted.Add(1)
	l.stream.log(slog.LevelDebug, "accepted", slog.Any("peer", conn.RemoteAddr()), slog.Any("pipe", a.stream.Pipe.ID()))
	m := wire.IncomingConnection{
		Pipe: uint64(a.stream.Pipe.ID()),
		Peer: endpoint(conn.RemoteAddr()), Local: guestEndpoint(l.ln, conn.LocalAddr()),
	}
	var err error
	if c, ok := conn.(*tlsConn); ok {
		err = l.answerTLS(a.request, wire.IncomingTLSConnection{IncomingConnection: m, TLS: c.session()})
	} else {
		err = l.answer(a.request, m)
	}
	if err != nil {
		network.Abandon(conn)
		l.giveBack(a)
		return
	}
	a.stream.Protocol = l.protocol
	relayConn(a.stream, conn)
}

// refuse answers the oldest accept with the error of accepting.
func (l *listener) refuse(err error) {
	l.stream.server.count.acceptsFailed.Add(1)
	l.stream.warn(l.stream.server.logs.acceptFailed, "accept failed", slog.Any("err", err))
	if a := l.next(); a != nil {
		l.giveBack(a)
		_ = l.answer(a.request, wire.IncomingConnection{Status: uint32(network.Errno(err))})
	}
}

func (l *listener) pause(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-l.ctx.Done():
	}
}

// release frees the pipes of the accepts that still wait. They get no answer.
func (l *listener) release() {
	for a := l.next(); a != nil; a = l.next() {
		l.giveBack(a)
	}
}

func (l *listener) giveBack(a *accept) {
	a.stream.Pipe.OnReadError(nil)
	a.stream.Pipe.OnWriteError(nil)
	l.stream.server.unclaim(a.stream)
}

func (l *listener) answer(request uint64, m wire.IncomingConnection) error {
	return l.stream.write(func(b []byte) []byte { return wire.AppendIncomingConnection(b, request, m) })
}

func (l *listener) answerTLS(request uint64, m wire.IncomingTLSConnection) error {
	return l.stream.write(func(b []byte) []byte { return wire.AppendIncomingTLSConnection(b, request, m) })
}
