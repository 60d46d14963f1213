package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/wire"
)

const (
	// maxHandshakes is how many connections of one listener may be in a
	// handshake, or wait for an accept after it. Others stay in the kernel's
	// backlog.
	maxHandshakes = 128
	// handshakeGrace is how long a peer's oldest handshake isn't given up for
	// the peer's own next connection. It is longer than a busy host needs for
	// maxHandshakes of them.
	handshakeGrace = time.Second
)

var errNoCertificate = fmt.Errorf("no certificate is given that the guest may show to its clients (arcavm run --tls-cert): %w", unix.ENOKEY)

// TLSListener returns the handler of protocol 9: a [TCPListener] whose
// connections do TLS as the server before the guest gets them.
func TLSListener(t TLS) Handler {
	return HandlerFunc(func(ctx context.Context, s *Stream) error { return serveTLSListener(ctx, s, t) })
}

func serveTLSListener(ctx context.Context, s *Stream, t TLS) error {
	m, err := wire.DecodeTLSListen(s.Payload)
	if err != nil {
		return ProtocolError(err)
	}
	if len(t.Certificates) == 0 {
		s.bindFailed("listen failed", errNoCertificate)
		return s.Opened(unix.ENOKEY, nil)
	}
	ln, err := listen(ctx, s.Network(), m.Listen)
	if err != nil {
		s.bindFailed("listen failed", err)
		return s.Opened(network.Errno(err), nil)
	}
	cfg := tlsConfig(m.ALPN)
	cfg.Certificates = t.Certificates
	bound := wire.AppendEndpoint(nil, boundEndpoint(s, ln))
	return serveListener(ctx, s, newTLSListener(s, ln, cfg), bound, wire.ProtocolTLSConnection)
}

// tlsListener does handshakes side by side, so that a peer that stalls delays
// no other. It accepts from the listener below only while Accept waits. It
// doesn't expose that listener, as nothing else may set deadlines of its
// Accept.
type tlsListener struct {
	net.Listener
	stream *Stream
	cfg    *tls.Config
	ctx    context.Context // ends with Close
	cancel context.CancelFunc

	asked   chan struct{} // unbuffered: a send means that Accept waits
	ready   chan accepted // unbuffered
	freed   chan struct{} // holds a token when there may be a free place again
	running sync.WaitGroup

	mu         sync.Mutex
	handshakes []*handshake // oldest first; at most maxHandshakes
}

// handshake is a connection's place among a listener's handshakes.
type handshake struct {
	peer   netip.Prefix
	since  time.Time
	cancel context.CancelCauseFunc
	given  bool // given up, or given to Accept
}

// accepted is a result of Accept.
type accepted struct {
	conn net.Conn
	err  error
}

func newTLSListener(s *Stream, ln net.Listener, cfg *tls.Config) *tlsListener {
	l := &tlsListener{
		Listener: ln, stream: s, cfg: cfg,
		asked: make(chan struct{}), ready: make(chan accepted), freed: make(chan struct{}, 1),
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

// Close ends the handshakes, too, and waits for them.
func (l *tlsListener) Close() error {
	l.cancel()
	err := l.Listener.Close()
	l.running.Wait()
	return err
}

// run begins a handshake for each connection.
func (l *tlsListener) run() {
	for l.await() {
		raw, err := network.CheckConn(l.Listener.Accept())
		if err != nil {
			if !l.deliver(accepted{err: err}) || errors.Is(err, net.ErrClosed) {
				return
			}
			continue
		}
		ctx, cancel := context.WithCancelCause(l.ctx)
		h := &handshake{peer: peerOf(raw.RemoteAddr()), cancel: cancel}
		if !l.admit(h) {
			cancel(nil)
			network.Abandon(raw)
			return
		}
		l.running.Go(func() {
			defer l.leave(h)
			l.handshake(ctx, h, raw)
		})
	}
}

// await waits for an Accept. It reports false when the listener has closed.
func (l *tlsListener) await() bool {
	select {
	case <-l.asked:
		return true
	case <-l.ctx.Done():
		return false
	}
}

// admit waits for a place for h, and makes one where a peer has more than its
// share. It reports false when the listener has closed.
func (l *tlsListener) admit(h *handshake) bool {
	for {
		wait, ok := l.enter(h, time.Now())
		if ok {
			return true
		}
		timer := time.NewTimer(wait)
		select {
		case <-l.freed:
		case <-timer.C:
		case <-l.ctx.Done():
		}
		timer.Stop()
		if l.ctx.Err() != nil {
			return false
		}
	}
}

// enter gives h a place if one is free. If none is, it gives up a handshake:
// one of the peer that has the most, if that are at least two more than h's
// peer has; or else the oldest of h's own peer, after handshakeGrace. The place
// is free when that handshake has ended. enter returns how long to wait at most
// before the next try.
func (l *tlsListener) enter(h *handshake, now time.Time) (wait time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.handshakes) < maxHandshakes {
		h.since = now
		l.handshakes = append(l.handshakes, h)
		return 0, true
	}
	shares := make(map[netip.Prefix]int)
	var oldest *handshake // the oldest one of the peer with the most
	for _, other := range l.handshakes {
		if !other.given {
			shares[other.peer]++
		}
	}
	for _, other := range l.handshakes {
		if !other.given && (oldest == nil || shares[other.peer] > shares[oldest.peer]) {
			oldest = other
		}
	}
	switch {
	case oldest == nil || shares[oldest.peer] == 1:
		return handshakeGrace, false
	case shares[oldest.peer] < shares[h.peer]+2:
		if wait := handshakeGrace - now.Sub(oldest.since); wait > 0 {
			return wait, false
		}
	}
	oldest.given = true
	oldest.cancel(errCrowded)
	return handshakeGrace, false
}

// errCrowded is why a handshake is given up for another peer's.
var errCrowded = fmt.Errorf("its peer has the most handshakes, and all places were taken: %w", unix.ECONNABORTED)

// leave frees the place of h.
func (l *tlsListener) leave(h *handshake) {
	h.cancel(nil)
	l.mu.Lock()
	i := slices.Index(l.handshakes, h)
	l.handshakes = slices.Delete(l.handshakes, i, i+1)
	l.mu.Unlock()
	select {
	case l.freed <- struct{}{}:
	default:
	}
}

// done reports whether h, whose handshake is done, goes on to Accept.
func (l *tlsListener) done(h *handshake) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h.given {
		return false
	}
	h.given = true
	return true
}

func (l *tlsListener) handshake(ctx context.Context, h *handshake, raw network.Conn) {
	server := l.stream.server
	limited, cancel := context.WithTimeout(ctx, server.patience)
	defer cancel()
	conn := newTLSConn(raw, l.cfg, tls.Server)
	err := conn.handshake(limited, server.greeted)
	if err == nil && !l.done(h) {
		_ = raw.Close()
		err = context.Cause(ctx)
	}
	if err != nil {
		if l.ctx.Err() == nil {
			server.count.handshakesFailed.Add(1)
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			l.stream.failed("handshake failed", err, slog.Any("peer", raw.RemoteAddr()))
		}
		return
	}
	if !l.deliver(accepted{conn: conn}) {
		network.Abandon(conn)
	}
}

// peerOf is [network.PeerOf] for an address of package net.
func peerOf(a net.Addr) netip.Prefix { return network.PeerOf(endpoint(a).Addr) }

// deliver hands a to an Accept, and waits for one. It reports false when the
// listener has closed.
func (l *tlsListener) deliver(a accepted) bool {
	select {
	case l.ready <- a:
		return true
	case <-l.ctx.Done():
		return false
	}
}
