package client

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/fix-project/arcavm/pipes/guest"
	"github.com/fix-project/arcavm/wire"
)

// Listener is a listener of the guest's: a [net.Listener] with a deadline. All
// methods may be called by several goroutines at once.
type Listener struct {
	// Ahead is how many connections the listener asks for at once, beyond those
	// that further calls of Accept wait for: with 2 or more the monitor has a
	// pipe ready while the last connection is being served. 0 counts as 1. It
	// must not change after the first Accept.
	Ahead int

	client  *Client // makes the pipes of connections
	pipe    *guest.Conn
	network string
	addr    net.Addr

	turn sync.Mutex // held by the Accept that waits for an answer

	mu      sync.Mutex // orders requests; not held while waiting for an answer
	calls   int        // of Accept, under way
	request uint64
	waiting map[uint64]*guest.Conn // pipes for connections, by request; nil if closed
}

var _ net.Listener = (*Listener)(nil)

// Listen listens by a network of "tcp", "tls" or "unix". A TCP or TLS address
// is ADDRESS:PORT, port 0 for any; a UNIX address is the path of the socket to
// make. The monitor does TLS, with the user's certificate. Connections have the
// client's rings. A refusal keeps its errno: EADDRINUSE, EADDRNOTAVAIL, EACCES
// for what policy forbids, ENOKEY without a certificate, and others of
// PROTOCOL.md section 10.
func (c *Client) Listen(ctx context.Context, network, address string) (*Listener, error) {
	switch network {
	case "tcp", "tls":
	case "unix":
		return c.ListenUnix(ctx, wire.UnixListen{Path: []byte(address)})
	default:
		return nil, &net.OpError{Op: "listen", Net: network, Err: net.UnknownNetworkError(network)}
	}
	e, err := parseEndpoint(address)
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Err: err}
	}
	if network == "tls" {
		return c.ListenTLS(ctx, wire.TLSListen{Listen: wire.Listen{Endpoint: e}})
	}
	return c.ListenTCP(ctx, wire.Listen{Endpoint: e})
}

// ListenTCP is [Client.Listen] with all that a TCP listener's Open can say: the
// backlog and socket options.
func (c *Client) ListenTCP(ctx context.Context, m wire.Listen) (*Listener, error) {
	return c.listen(ctx, wire.ProtocolTCPListener, "tcp", m.Endpoint, wire.AppendListen(nil, m))
}

// ListenTLS is [Client.Listen] with all that a TLS listener's Open can say: the
// backlog and ALPN names.
func (c *Client) ListenTLS(ctx context.Context, m wire.TLSListen) (*Listener, error) {
	return c.listen(ctx, wire.ProtocolTLSListener, "tls", m.Endpoint, wire.AppendTLSListen(nil, m))
}

// ListenUnix is [Client.Listen] with all that a UNIX listener's Open can say:
// the backlog.
func (c *Client) ListenUnix(ctx context.Context, m wire.UnixListen) (*Listener, error) {
	addr := &net.UnixAddr{Net: "unix", Name: string(m.Path)}
	p, _, err := c.open(ctx, wire.ProtocolUnixListener, wire.AppendUnixListen(nil, m))
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: "unix", Addr: addr, Err: err}
	}
	return c.listener(p, "unix", addr), nil
}

// listen opens a listener at an endpoint, and learns which it is bound to.
func (c *Client) listen(ctx context.Context, protocol uint16, network string, at wire.Endpoint, payload []byte) (*Listener, error) {
	p, answer, err := c.open(ctx, protocol, payload)
	if err == nil {
		if at, err = wire.DecodeEndpoint(answer); err != nil {
			_ = p.Reset(syscall.EPROTO)
		}
	}
	addr := net.TCPAddrFromAddrPort(at.AddrPort())
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Addr: addr, Err: err}
	}
	return c.listener(p, network, addr), nil
}

func (c *Client) listener(p *guest.Conn, network string, addr net.Addr) *Listener {
	return &Listener{client: c, pipe: p, network: network, addr: addr, waiting: make(map[uint64]*guest.Conn)}
}

// Addr returns the address that the listener is bound to, or a UNIX socket's
// path.
func (l *Listener) Addr() net.Addr { return l.addr }

// SetDeadline sets until when Accept waits for a connection; the zero time is
// for ever.
func (l *Listener) SetDeadline(t time.Time) error { return l.pipe.SetReadDeadline(t) }

// Accept is [Listener.AcceptConn], as a [net.Listener] has it.
func (l *Listener) Accept() (net.Conn, error) {
	c, err := l.AcceptConn()
	if err != nil {
		return nil, err
	}
	return c, nil
}

// AcceptConn waits for the next connection. An errno that the monitor answers
// with concerns this call only: EAGAIN, for instance, if too many accepts wait.
// After Close the error is [net.ErrClosed].
func (l *Listener) AcceptConn() (*Conn, error) {
	err := l.ask()
	if err == nil {
		defer l.leave()
		var c *Conn
		if c, err = l.next(); err == nil {
			return c, nil
		}
	}
	return nil, &net.OpError{Op: "accept", Net: l.network, Addr: l.addr, Err: err}
}

// ask sees to it that the monitor has a pipe for this call, and those ahead.
// Any call may take any answer, since connections are all alike to the caller.
func (l *Listener) ask() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.waiting) < l.calls+max(l.Ahead, 1) {
		if l.waiting == nil {
			return net.ErrClosed
		}
		if err := l.askOne(); err != nil && len(l.waiting) <= l.calls {
			return err
		} else if err != nil {
			break
		}
	}
	l.calls++
	return nil
}

func (l *Listener) leave() {
	l.mu.Lock()
	l.calls--
	l.mu.Unlock()
}

// askOne makes a pipe and sends its id to the monitor. mu is held.
func (l *Listener) askOne() error {
	p, err := l.client.control.newPipe(context.Background(), l.client.rings)
	if err != nil {
		return err
	}
	l.request++
	var frame [64]byte
	m := wire.AcceptConnection{Pipe: uint64(p.ID())}
	if err := putFrame(l.pipe, wire.AppendAcceptConnection(frame[:0], l.request, m)); err != nil {
		_ = p.Close()
		return err
	}
	l.waiting[l.request] = p
	return nil
}

// next waits for an answer and returns the connection that it brings.
func (l *Listener) next() (*Conn, error) {
	l.turn.Lock()
	defer l.turn.Unlock()
	h, payload, err := takeFrame(l.pipe, nil)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	p, closed := l.waiting[h.RequestID], l.waiting == nil
	delete(l.waiting, h.RequestID)
	l.mu.Unlock()
	switch {
	case closed:
		return nil, net.ErrClosed
	case h.Kind != wire.KindIncomingConnection || p == nil:
		return nil, unexpected(h)
	}
	c, err := l.incoming(p, payload)
	if err != nil {
		_ = p.Close()
	}
	return c, err
}

// incoming returns the connection on p that an answer tells of.
func (l *Listener) incoming(p *guest.Conn, payload []byte) (*Conn, error) {
	var m wire.IncomingTLSConnection
	var err error
	if l.network == "tls" {
		m, err = wire.DecodeIncomingTLSConnection(payload)
	} else {
		m.IncomingConnection, err = wire.DecodeIncomingConnection(payload)
	}
	if err == nil {
		err = status(m.Status)
	}
	if err == nil && m.Pipe != uint64(p.ID()) {
		err = fmt.Errorf("%w: a connection on a pipe that wasn't offered for it", syscall.EPROTO)
	}
	if err != nil {
		return nil, err
	}
	return &Conn{Conn: p, network: l.network, local: m.Local, peer: m.Peer, session: m.TLS}, nil
}

// Close stops listening. Calls of Accept that wait return [net.ErrClosed].
// Connections that were accepted go on.
func (l *Listener) Close() error {
	err := l.pipe.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.waiting {
		_ = p.Close()
	}
	l.waiting = nil
	return err
}

// parseEndpoint reads ADDRESS:PORT.
func parseEndpoint(address string) (wire.Endpoint, error) {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return wire.Endpoint{}, &net.AddrError{Err: "not an address and a port", Addr: address}
	}
	return Endpoint(at)
}
