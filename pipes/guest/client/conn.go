package client

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"

	"github.com/fix-project/arcavm/pipes/guest"
	"github.com/fix-project/arcavm/wire"
)

// Conn is a stream of bytes: the guest's end of a connection, of standard input
// and output, or of a protocol of an embedding program. Its methods are those
// of the pipe, with CloseWrite, CloseRead and Reset (PROTOCOL.md section 7),
// but for the addresses.
type Conn struct {
	*guest.Conn
	network     string // "" if it is none of package net's
	path        string // of a UNIX socket
	local, peer wire.Endpoint
	session     wire.TLSSession
}

var _ net.Conn = (*Conn)(nil)

// LocalAddr returns the local address of a TCP or TLS connection, as the
// monitor says it, and of another stream the pipe's.
func (c *Conn) LocalAddr() net.Addr { return c.addr(c.local, c.Conn.LocalAddr()) }

// RemoteAddr is LocalAddr for the peer. A connection to a UNIX socket has the
// path.
func (c *Conn) RemoteAddr() net.Addr {
	if c.path != "" {
		return &net.UnixAddr{Net: "unix", Name: c.path}
	}
	return c.addr(c.peer, c.Conn.RemoteAddr())
}

func (c *Conn) addr(e wire.Endpoint, otherwise net.Addr) net.Addr {
	if !e.Addr.IsValid() {
		return otherwise
	}
	return net.TCPAddrFromAddrPort(e.AddrPort())
}

// TLS returns what the handshake of a TLS connection has settled; of another
// stream the zero value.
func (c *Conn) TLS() wire.TLSSession { return c.session }

// Dial connects to an address, by a network of "tcp", "tls" or "unix". A TCP or
// TLS address is HOST:PORT, HOST an address or a name, PORT a number; an IPv6
// address may have a zone, a number. The monitor looks names up, and does TLS.
// A UNIX address is a path. A refusal keeps its errno: ECONNREFUSED, EACCES for
// what policy forbids, ENOENT for a name that doesn't exist, ENOKEY for a
// certificate that isn't trusted, and others of PROTOCOL.md sections 10 and 13.
func (c *Client) Dial(ctx context.Context, network, address string) (*Conn, error) {
	switch network {
	case "tcp", "tls":
	case "unix":
		return c.DialUnix(ctx, address)
	default:
		return nil, &net.OpError{Op: "dial", Net: network, Err: net.UnknownNetworkError(network)}
	}
	m, err := connectTo(address)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	if network == "tls" {
		return c.DialTLS(ctx, wire.TLSConnect{Connect: m})
	}
	return c.DialTCP(ctx, m)
}

// DialTCP is [Client.Dial] with all that a TCP connection's Open can say:
// socket options, for instance.
func (c *Client) DialTCP(ctx context.Context, m wire.Connect) (*Conn, error) {
	if err := checkName(m.Name); err != nil {
		return nil, dialError("tcp", m, err)
	}
	p, answer, err := c.open(ctx, wire.ProtocolTCPConnection, wire.AppendConnect(nil, m))
	if err != nil {
		return nil, dialError("tcp", m, err)
	}
	conn := &Conn{Conn: p, network: "tcp"}
	if len(answer) != 2*wire.EndpointSize {
		err = fmt.Errorf("%w: %d bytes of addresses", syscall.EPROTO, len(answer))
	} else if conn.local, err = wire.DecodeEndpoint(answer[:wire.EndpointSize]); err == nil {
		conn.peer, err = wire.DecodeEndpoint(answer[wire.EndpointSize:])
	}
	if err != nil {
		_ = p.Reset(syscall.EPROTO)
		return nil, dialError("tcp", m, err)
	}
	return conn, nil
}

// DialTLS is [Client.Dial] with all that a TLS connection's Open can say: the
// server's name, for instance, and ALPN names.
func (c *Client) DialTLS(ctx context.Context, m wire.TLSConnect) (*Conn, error) {
	p, answer, err := c.open(ctx, wire.ProtocolTLSConnection, wire.AppendTLSConnect(nil, m))
	if err != nil {
		return nil, dialError("tls", m.Connect, err)
	}
	opened, err := wire.DecodeTLSConnected(answer)
	if err != nil {
		_ = p.Reset(syscall.EPROTO)
		return nil, dialError("tls", m.Connect, err)
	}
	return &Conn{Conn: p, network: "tls", local: opened.Local, peer: opened.Peer, session: opened.TLS}, nil
}

// DialUnix connects to a socket's path, below the folder that the user shares
// for sockets.
func (c *Client) DialUnix(ctx context.Context, path string) (*Conn, error) {
	p, _, err := c.open(ctx, wire.ProtocolUnixConnection, wire.AppendUnixConnect(nil, wire.UnixConnect{Path: []byte(path)}))
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "unix", Addr: &net.UnixAddr{Net: "unix", Name: path}, Err: err}
	}
	return &Conn{Conn: p, network: "unix", path: path}, nil
}

// Stdio opens the monitor's standard input and output. One stream at a time
// has them: another is EBUSY.
func (c *Client) Stdio(ctx context.Context) (*Conn, error) {
	conn, _, err := c.Open(ctx, wire.ProtocolStdio, nil)
	return conn, err
}

// checkName refuses a host name that no frame has room for.
func checkName(name []byte) error {
	if len(name) > wire.MaxName {
		return &net.AddrError{Err: "host name too long", Addr: string(name)}
	}
	return nil
}

// dialError wraps why a connection couldn't be made.
func dialError(network string, m wire.Connect, err error) error {
	op := &net.OpError{Op: "dial", Net: network, Err: err}
	if m.Endpoint.Addr.IsValid() {
		op.Addr = net.TCPAddrFromAddrPort(m.Endpoint.AddrPort())
	} else {
		op.Addr = hostPort{string(m.Name), m.Endpoint.Port}
	}
	return op
}

// hostPort is the address of a host that has a name.
type hostPort struct {
	host string
	port uint16
}

func (hostPort) Network() string  { return "tcp" }
func (a hostPort) String() string { return net.JoinHostPort(a.host, strconv.Itoa(int(a.port))) }

// connectTo reads HOST:PORT, where HOST may be a name.
func connectTo(address string) (wire.Connect, error) {
	if at, err := netip.ParseAddrPort(address); err == nil {
		e, err := Endpoint(at)
		return wire.Connect{Endpoint: e}, err
	}
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return wire.Connect{}, err
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return wire.Connect{}, &net.AddrError{Err: "port isn't a number up to 65535", Addr: address}
	}
	if host == "" {
		return wire.Connect{}, &net.AddrError{Err: "missing host", Addr: address}
	}
	return wire.Connect{Endpoint: wire.Endpoint{Port: uint16(port)}, Name: []byte(host)}, checkName([]byte(host))
}

// Endpoint returns an address as messages carry it. An IPv6 zone must be a
// number, since a guest has no interfaces with names.
func Endpoint(at netip.AddrPort) (wire.Endpoint, error) {
	e := wire.Endpoint{Addr: at.Addr().WithZone(""), Port: at.Port()}
	if zone := at.Addr().Zone(); zone != "" {
		scope, err := strconv.ParseUint(zone, 10, 32)
		if err != nil {
			return e, &net.AddrError{Err: "zone isn't a number", Addr: at.String()}
		}
		e.Scope = uint32(scope)
	}
	return e, nil
}
