package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/wire"
)

// maxHandshakes is how many connections of one listener may be in a handshake, or wait after it for the guest to ask for one. The kernel's backlog holds
// the others.
const maxHandshakes = 128

// TLSListener returns the handler of protocol 9: a [TCPListener] whose connections do TLS as the server before the guest gets them.
func TLSListener(t TLS) Handler {
	return HandlerFunc(func(ctx context.Context, s *Stream) error { return serveTLSListener(ctx, s, t) })
}

func serveTLSListener(ctx context.Context, s *Stream, t TLS) error {
	m, err := wire.DecodeTLSListen(s.Payload)
	if err != nil {
		return ProtocolError(err)
	}
	if len(t.Certificates) == 0 {
		return s.Opened(unix.ENOKEY, nil)
	}
	ln, err := listen(ctx, s.Network(), m.Listen)
	if err != nil {
		s.bindFailed("listen failed", err)
		return s.Opened(errnoOf(err), nil)
	}
	cfg := tlsConfig(m.ALPN)
	cfg.Certificates = t.Certificates
	bound := wire.AppendEndpoint(nil, boundEndpoint(s, ln))
	return serveListener(ctx, s, newTLSListener(s, ln, cfg), bound, wire.ProtocolTLSConnection)
}

// tlsListener does handshakes beside each other, so that a peer that stalls holds up nobody. It takes connections from the listener below only while
// Accept waits, and doesn't give it away: nobody else may set deadlines for its Accept.
type tlsListener struct {
	net.Listener
	stream *Stream
	cfg    *tls.Config
	ctx    context.Context // ends with Close
	cancel context.CancelFunc

	asked   chan struct{} // unbuffered: a send means that Accept waits
	ready   chan accepted // unbuffered
	slots   chan struct{} // holds a token for each of maxHandshakes in use
	running sync.WaitGroup
}

// accepted is what Accept returns.
type accepted struct {
	conn net.Conn
	err  error
}

func newTLSListener(s *Stream, ln net.Listener, cfg *tls.Config) *tlsListener {
	l := &tlsListener{
		Listener: ln, stream: s, cfg: cfg,
		asked: make(chan struct{}), ready: make(chan accepted), slots: make(chan struct{}, maxHandshakes),
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.running.Go(l.run)
	return l
}

// Accept returns the next connection whose handshake is done.
func (l *tlsListener) Accept() (net.Conn, error) {
	for {
		select {
		case a := <-l.ready:
			return a.conn, a.err
		case l.asked <- struct{}{}:
		case <-l.ctx.Done():
			return nil, net.ErrClosed
		}
	}
}

// Close ends the handshakes too, and waits for them.
func (l *tlsListener) Close() error {
	l.cancel()
	err := l.Listener.Close()
	l.running.Wait()
	return err
}

// run begins a handshake for each connection.
func (l *tlsListener) run() {
	for l.take() {
		raw, err := asConn(l.Listener.Accept())
		if err != nil {
			<-l.slots
			if !l.deliver(accepted{err: err}) || errors.Is(err, net.ErrClosed) {
				return
			}
			continue
		}
		l.running.Go(func() {
			defer func() { <-l.slots }()
			l.handshake(raw)
		})
	}
}

// take waits for a free slot, takes it, and waits until Accept waits. It reports false when the listener has closed.
func (l *tlsListener) take() bool {
	select {
	case l.slots <- struct{}{}:
	case <-l.ctx.Done():
		return false
	}
	select {
	case <-l.asked:
		return true
	case <-l.ctx.Done():
		return false
	}
}

func (l *tlsListener) handshake(raw Conn) {
	server := l.stream.server
	ctx, cancel := context.WithTimeout(l.ctx, server.patience)
	defer cancel()
	conn := newTLSConn(raw, l.cfg, tls.Server)
	if err := conn.handshake(ctx); err != nil {
		if l.ctx.Err() == nil {
			server.count.handshakesFailed.Add(1)
			l.stream.log(slog.LevelDebug, "handshake failed", slog.Any("peer", raw.RemoteAddr()), slog.Any("err", err))
		}
		return
	}
	if !l.deliver(accepted{conn: conn}) {
		abandon(conn)
	}
}

// deliver hands a to Accept, and waits for that. It reports false when the listener has closed.
func (l *tlsListener) deliver(a accepted) bool {
	select {
	case l.ready <- a:
		return true
	case <-l.ctx.Done():
		return false
	}
}
