package rpc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/fix-project/arcavm/rpc/message"
)

const (
	minBackoff = 5 * time.Millisecond
	maxBackoff = time.Second
)

// listener is a listening socket on a pipe of its own. It takes a connection
// from the kernel only when the guest asks for one, so that the kernel's
// backlog holds the others.
type listener struct {
	server *Server
	ln     net.Listener // nil if listening has failed
}

func (l *listener) serve(ctx context.Context, p *pipe) error {
	defer closeWith(ctx, l.close)()
	return serveRequests(p, message.DecodeListenerRequest, func(op message.ListenerOp) (last bool, err error) {
		switch op {
		case message.ListenerAccept:
			return false, l.accept(ctx, p)
		case message.ListenerClose:
			l.close()
			p.respond(message.AppendListenerAck(p.buf[:0]))
			return true, nil
		}
		return false, nil
	})
}

// accept answers with the next connection. errStopped: ctx is done.
func (l *listener) accept(ctx context.Context, p *pipe) error {
	if l.ln == nil {
		<-ctx.Done()
		return errStopped
	}
	return l.server.accept(ctx, l.ln, func(conn *net.TCPConn) error { return l.hand(ctx, p, conn) })
}

// accept hands on the next connection. One that hand has no memory for is
// refused, and the next one tried; io.EOF from hand ends it. errStopped: wanted
// is done, or the listener closed.
func (h *host) accept(wanted context.Context, ln net.Listener, hand func(*net.TCPConn) error) error {
	for backoff := minBackoff; ; backoff = min(2*backoff, maxBackoff) {
		conn, err := asTCP(ln.Accept())
		if err == nil {
			if err = hand(conn); err == nil || err == io.EOF {
				return err
			}
			// As the kernel does with those that find no place in its backlog.
			_ = conn.SetLinger(0)
			_ = conn.Close()
		}
		if errors.Is(err, net.ErrClosed) {
			return errStopped
		}
		h.warn("accept failed", "local", ln.Addr(), "err", err)
		if err := pause(wanted, backoff); err != nil {
			return err
		}
	}
}

// hand gives the guest a pipe for a connection. io.EOF: it doesn't want one any
// more, and the connection has been closed.
func (l *listener) hand(ctx context.Context, p *pipe, conn *net.TCPConn) error {
	s := l.server
	if p.abandoned() {
		_ = conn.Close()
		return io.EOF
	}
	sp, err := s.newPipe(streamBlock, streamBlock, streamShare)
	if err != nil {
		return err
	}
	if p.abandoned() {
		_ = conn.Close()
		return cmp.Or(sp.discard(), io.EOF)
	}
	s.accepted.Add(1)
	p.respond(message.AppendListenerPipe(p.buf[:0], sp.place()))
	st := &stream{server: s.host, conn: conn}
	s.start(ctx, "stream", sp, st.serve)
	return nil
}

// asTCP refuses connections of a network that gives others.
func asTCP(conn net.Conn, err error) (*net.TCPConn, error) {
	if err != nil {
		return nil, err
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		if conn != nil {
			_ = conn.Close()
		}
		return nil, fmt.Errorf("a connection that is a %T", conn)
	}
	return tcp, nil
}

func (l *listener) close() {
	if l.ln != nil {
		_ = l.ln.Close()
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return errStopped
	}
}
