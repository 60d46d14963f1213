package relay

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/wire"
)

// TLS is what the monitor trusts, and shows, where it does TLS for a guest.
// Versions are 1.2 and 1.3.
type TLS struct {
	// RootCAs are the authorities of servers that the guest connects to. nil:
	// the host's.
	RootCAs *x509.CertPool
	// Certificates are the guest's as a server, with their keys. Each client is
	// shown the first one that suits it. Without any the guest can't be a
	// server.
	Certificates []tls.Certificate
}

// tlsConfig is the part of a configuration that client and server share.
func tlsConfig(alpn []byte) *tls.Config {
	return &tls.Config{NextProtos: wire.ALPNNames(alpn), MinVersion: tls.VersionTLS12}
}

// tlsConn is a TLS connection for a link, on the connection raw. Deadlines are
// raw's. Close only closes raw: CloseWrite has told the peer of an end in good
// order, and any other end must not look like one, nor wait.
type tlsConn struct {
	*tls.Conn
	raw   network.Conn
	below *tlsTransport
}

// newTLSConn returns one end of a connection. side is [tls.Client] or
// [tls.Server].
func newTLSConn(raw network.Conn, cfg *tls.Config, side func(net.Conn, *tls.Config) *tls.Conn) *tlsConn {
	below := &tlsTransport{Conn: raw, greeting: maxGreeting}
	return &tlsConn{side(below, cfg), raw, below}
}

// How many handshakes are under way at once in a virtual machine, and how many
// of them with one peer. Others wait for their turn. A handshake takes up to
// half a MiB where a server sends all that it may, and some 50 KiB where a
// client does.
const (
	maxGreetings     = 256
	maxPeerGreetings = 64
	maxGreeted       = 1024
	maxPeerGreeted   = 256
)

// turns are places for handshakes. A peer may have a part of them.
type turns struct {
	all  chan struct{} // holds a token for each in use
	part int

	mu    sync.Mutex
	peers map[netip.Prefix]*peerTurns // that have some, or wait for some
}

type peerTurns struct {
	taken chan struct{} // holds a token for each in use, or that waits for one of all
	users int
}

func newTurns(all, part int) *turns {
	return &turns{all: make(chan struct{}, all), part: part, peers: make(map[netip.Prefix]*peerTurns)}
}

// take waits for a place. After success the caller calls give.
func (t *turns) take(ctx context.Context, peer netip.Prefix) (give func(), err error) {
	t.mu.Lock()
	p := t.peers[peer]
	if p == nil {
		p = &peerTurns{taken: make(chan struct{}, t.part)}
		t.peers[peer] = p
	}
	p.users++
	t.mu.Unlock()
	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if p.users--; p.users == 0 {
			delete(t.peers, peer)
		}
	}
	select {
	case p.taken <- struct{}{}:
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
	select {
	case t.all <- struct{}{}:
	case <-ctx.Done():
		<-p.taken
		leave()
		return nil, ctx.Err()
	}
	return func() {
		<-t.all
		<-p.taken
		leave()
	}, nil
}

// handshake does the handshake, when there is a place for it. It closes the
// connection if it fails, or if ctx ends meanwhile.
func (c *tlsConn) handshake(ctx context.Context, places *turns) error {
	give, err := places.take(ctx, peerOf(c.raw.RemoteAddr()))
	if err == nil {
		err = c.HandshakeContext(ctx)
		give()
	}
	if err != nil {
		_ = c.raw.Close()
	}
	c.below.greeted = true
	c.forgetCertificates()
	return tlsError(err)
}

// forgetCertificates drops the peer's certificates, whose parsed form takes
// many times the bytes that were sent. crypto/tls returns its own slice and
// asks callers not to change it. But without renegotiation and a cache of
// sessions it doesn't read the slice after the handshake, and nothing else has
// it.
func (c *tlsConn) forgetCertificates() {
	state := c.ConnectionState()
	clear(state.PeerCertificates)
	clear(state.VerifiedChains)
}

// session is the result of the handshake.
func (c *tlsConn) session() wire.TLSSession {
	state := c.ConnectionState()
	return wire.TLSSession{Version: state.Version, ALPN: []byte(state.NegotiatedProtocol)}
}

func (c *tlsConn) NetConn() net.Conn                  { return c.raw }
func (c *tlsConn) Close() error                       { return c.raw.Close() }
func (c *tlsConn) SetDeadline(t time.Time) error      { return c.raw.SetDeadline(t) }
func (c *tlsConn) SetReadDeadline(t time.Time) error  { return c.raw.SetReadDeadline(t) }
func (c *tlsConn) SetWriteDeadline(t time.Time) error { return c.raw.SetWriteDeadline(t) }

func (c *tlsConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	return n, tlsError(err)
}

func (c *tlsConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	return n, tlsError(err)
}

// CloseWrite sends a close_notify, then a FIN. It waits for room as Write does,
// until the deadline.
func (c *tlsConn) CloseWrite() error {
	if err := c.Conn.CloseWrite(); err != nil {
		return tlsError(err)
	}
	return c.raw.CloseWrite()
}

// tlsTransport is the connection below, as crypto/tls sees it. Its end of file
// is no close_notify: crypto/tls would take one between two records for that.
// It ignores crypto/tls's deadlines: a close_notify would get five seconds,
// even where an abort allows none, or where a slow peer needs longer.
type tlsTransport struct {
	network.Conn
	greeting int  // bytes that the peer may send yet until the handshake is done
	greeted  bool // the handshake is done; nothing reads meanwhile
}

// maxGreeting is how many bytes a peer may send until its handshake is done.
// crypto/tls takes more, and keeps buffers for them, and all certificates, as
// long as the connection lasts. A server's chain has a few KiB.
const maxGreeting = 32 << 10

var errGreeting = fmt.Errorf("%w: the peer's part of the handshake is larger than %d bytes", unix.ECONNABORTED, maxGreeting)

func (t *tlsTransport) Read(b []byte) (int, error) {
	if !t.greeted {
		if t.greeting == 0 {
			return 0, errGreeting
		}
		b = b[:min(len(b), t.greeting)]
	}
	n, err := t.Conn.Read(b)
	if !t.greeted {
		t.greeting -= n
	}
	if err == io.EOF {
		if n > 0 {
			return n, nil
		}
		err = errTruncated
	}
	return n, err
}

func (*tlsTransport) SetWriteDeadline(time.Time) error { return nil }

// errTruncated is an end of the connection below without a close_notify. Any
// machine on the way could have made it.
var errTruncated = fmt.Errorf("%w: the connection ended without a close_notify", unix.ECONNRESET)

// tlsError gives the errors of TLS and of certificates an errno. It returns
// errors of the connection below as they are.
func tlsError(err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	var errno unix.Errno
	var timeout interface{ Timeout() bool }
	var certificate *tls.CertificateVerificationError
	switch {
	case errors.As(err, &certificate):
		return fmt.Errorf("%w: %w", certificateErrno(certificate.Err), err)
	case errors.As(err, &errno), errors.Is(err, net.ErrClosed), errors.Is(err, context.Canceled),
		errors.As(err, &timeout) && timeout.Timeout():
		return err
	}
	return fmt.Errorf("%w: %w", unix.ECONNABORTED, err)
}

// certificateErrno is the errno for an error of a server's certificate.
func certificateErrno(err error) unix.Errno {
	var authority x509.UnknownAuthorityError
	var roots x509.SystemRootsError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &authority), errors.As(err, &roots):
		return unix.ENOKEY
	case errors.As(err, &name):
		return unix.EKEYREJECTED
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return unix.EKEYEXPIRED
	default:
		return unix.EBADMSG
	}
}
