package client

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/fix-project/arcavm/pipes/guest"
	"github.com/fix-project/arcavm/wire"
)

// PacketConn is a UDP socket: a [net.PacketConn], and a [net.Conn] if it is
// connected. All methods may be called by several goroutines at once.
type PacketConn struct {
	pipe        *guest.Conn
	local, peer wire.Endpoint

	writing sync.Mutex // guards request and frame
	request uint64
	frame   []byte // room for the next frame to send
}

var (
	_ net.PacketConn = (*PacketConn)(nil)
	_ net.Conn       = (*PacketConn)(nil)
)

// ListenPacket binds a UDP socket. The network is "udp", the address
// ADDRESS:PORT, port 0 for any.
func (c *Client) ListenPacket(ctx context.Context, network, address string) (*PacketConn, error) {
	e, err := packetEndpoint(network, address)
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Err: err}
	}
	return c.OpenUDP(ctx, wire.UDPSocket{Local: e})
}

// DialPacket connects a UDP socket to ADDRESS:PORT: it sends there, and hears
// nothing from elsewhere. The network is "udp".
func (c *Client) DialPacket(ctx context.Context, network, address string) (*PacketConn, error) {
	e, err := packetEndpoint(network, address)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	return c.OpenUDP(ctx, wire.UDPSocket{Peer: e})
}

func packetEndpoint(network, address string) (wire.Endpoint, error) {
	if network != "udp" {
		return wire.Endpoint{}, net.UnknownNetworkError(network)
	}
	return parseEndpoint(address)
}

// OpenUDP opens a UDP socket with all that its Open can say: that datagrams
// tell their local address, for instance.
func (c *Client) OpenUDP(ctx context.Context, m wire.UDPSocket) (*PacketConn, error) {
	p, answer, err := c.open(ctx, wire.ProtocolUDP, wire.AppendUDPSocket(nil, m))
	var opened wire.UDPSocket
	if err == nil {
		if opened, err = wire.DecodeUDPSocket(answer); err != nil {
			_ = p.Reset(syscall.EPROTO)
		}
	}
	if err != nil {
		op := &net.OpError{Op: "listen", Net: "udp", Addr: udpAddr(m.Local), Err: err}
		if m.Peer.Addr.IsValid() {
			op.Op, op.Addr = "dial", udpAddr(m.Peer)
		}
		return nil, op
	}
	return &PacketConn{pipe: p, local: opened.Local, peer: opened.Peer}, nil
}

func udpAddr(e wire.Endpoint) net.Addr { return net.UDPAddrFromAddrPort(e.AddrPort()) }

// Receive waits for a datagram and copies its data into b, as much as has room.
// Local of the result is set if the socket was opened so.
//
// An errno is that of a datagram sent before, in a [*net.OpError] whose address
// says where that was to go; the socket goes on.
func (c *PacketConn) Receive(b []byte) (wire.ReceivedDatagramAt, error) {
	m, err := c.receive(b)
	var op *net.OpError
	if err != nil && !errors.As(err, &op) {
		err = c.fail("read", c.peer, err)
	}
	return m, err
}

func (c *PacketConn) receive(b []byte) (m wire.ReceivedDatagramAt, err error) {
	h, x, y, err := peekFrame(c.pipe)
	if err != nil {
		return m, err
	}
	defer c.pipe.CommitRead(wire.HeaderSize + int(h.Length))
	prefix := wire.ReceivedDatagramPrefixSize
	switch h.Kind {
	case wire.KindReceivedDatagram:
	case wire.KindReceivedDatagramAt:
		prefix = wire.ReceivedDatagramAtPrefixSize
	case wire.KindDatagramError:
		prefix = int(h.Length)
	default:
		return m, unexpected(h)
	}
	// What describes the datagram is copied before it is looked at.
	var head [wire.ReceivedDatagramAtPrefixSize]byte
	n := copy(head[:prefix], x)
	n += copy(head[n:prefix], y)
	if h.Kind == wire.KindDatagramError {
		return m, c.bounced(head[:n])
	}
	if h.Kind == wire.KindReceivedDatagramAt {
		m, err = wire.DecodeReceivedDatagramAt(head[:n])
	} else {
		m.ReceivedDatagram, err = wire.DecodeReceivedDatagram(head[:n])
	}
	if len(x) < n {
		x, y = y[n-len(x):], nil
	} else {
		x = x[n:]
	}
	k := copy(b, x)
	m.Data = b[:k+copy(b[k:], y)]
	return m, err
}

// bounced is the error of a datagram that wasn't sent, or came back.
func (c *PacketConn) bounced(payload []byte) error {
	m, err := wire.DecodeDatagramError(payload)
	if err != nil {
		return err
	}
	return c.fail("write", m.To, status(m.Status))
}

func (c *PacketConn) fail(op string, to wire.Endpoint, err error) error {
	e := &net.OpError{Op: op, Net: "udp", Source: c.LocalAddr(), Err: err}
	if to.Addr.IsValid() {
		e.Addr = udpAddr(to)
	}
	return e
}

// Send sends a datagram: from the socket's own address if From is the zero
// value, to the socket's peer if To is. It waits for room in the outgoing ring
// only; what becomes of the datagram Receive says, if that is an error.
func (c *PacketConn) Send(m wire.SendDatagramFrom) error {
	if len(m.Data) > wire.MaxDatagram {
		return c.fail("write", m.To, syscall.EMSGSIZE)
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	c.request++
	if m.From == (wire.Endpoint{}) {
		c.frame = wire.AppendSendDatagram(c.frame[:0], c.request, m.SendDatagram)
	} else {
		c.frame = wire.AppendSendDatagramFrom(c.frame[:0], c.request, m)
	}
	n, err := c.pipe.Write(c.frame)
	if err == nil {
		return nil
	}
	if n > 0 {
		// Half a frame is out, and nothing can follow it.
		_ = c.pipe.Reset(syscall.ECONNABORTED)
	}
	return c.fail("write", m.To, err)
}

// ReadFrom is [PacketConn.Receive] as a [net.PacketConn] has it. Data beyond b
// is lost.
func (c *PacketConn) ReadFrom(b []byte) (int, net.Addr, error) {
	m, err := c.Receive(b)
	if err != nil {
		return 0, nil, err
	}
	return len(m.Data), udpAddr(m.From), nil
}

// WriteTo is [PacketConn.Send] as a [net.PacketConn] has it: to a *net.UDPAddr.
func (c *PacketConn) WriteTo(b []byte, to net.Addr) (int, error) {
	addr, ok := to.(*net.UDPAddr)
	if !ok {
		return 0, c.fail("write", wire.Endpoint{}, syscall.EINVAL)
	}
	at := addr.AddrPort()
	if addr.IP.To4() != nil && addr.Zone == "" {
		at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	}
	e, err := Endpoint(at)
	if err == nil {
		err = c.Send(wire.SendDatagramFrom{SendDatagram: wire.SendDatagram{To: e, Data: b}})
	}
	if err != nil {
		return 0, err
	}
	return len(b), nil
}

// Read reads a datagram's data, as [PacketConn.ReadFrom] does.
func (c *PacketConn) Read(b []byte) (int, error) {
	m, err := c.Receive(b)
	return len(m.Data), err
}

// Write sends a datagram to the socket's peer. A socket without one has
// EDESTADDRREQ for it, which Receive returns.
func (c *PacketConn) Write(b []byte) (int, error) {
	if err := c.Send(wire.SendDatagramFrom{SendDatagram: wire.SendDatagram{Data: b}}); err != nil {
		return 0, err
	}
	return len(b), nil
}

// LocalAddr returns the address that the socket is bound to.
func (c *PacketConn) LocalAddr() net.Addr { return udpAddr(c.local) }

// RemoteAddr returns the peer that the socket is connected to, or nil.
func (c *PacketConn) RemoteAddr() net.Addr {
	if !c.peer.Addr.IsValid() {
		return nil
	}
	return udpAddr(c.peer)
}

// SetDeadline sets until when reads wait for a datagram, and writes for room.
func (c *PacketConn) SetDeadline(t time.Time) error { return c.pipe.SetDeadline(t) }

// SetReadDeadline is [PacketConn.SetDeadline] for reads.
func (c *PacketConn) SetReadDeadline(t time.Time) error { return c.pipe.SetReadDeadline(t) }

// SetWriteDeadline is [PacketConn.SetDeadline] for writes. A write that it cuts
// in the middle of a frame resets the socket.
func (c *PacketConn) SetWriteDeadline(t time.Time) error { return c.pipe.SetWriteDeadline(t) }

// CloseWrite ends sending: what was sent goes out. Receiving goes on until
// Close.
func (c *PacketConn) CloseWrite() error { return c.pipe.CloseWrite() }

// Close ends the socket, after what was sent before has gone out.
func (c *PacketConn) Close() error { return c.pipe.Close() }
