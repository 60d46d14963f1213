package networktest

import (
	"context"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
)

// maxDatagram is the most data that UDP over IPv4 carries, in bytes.
const maxDatagram = 65507

// maxAddress is the longest text of an address before a datagram, in bytes.
const maxAddress = 64

// packetSocket is a UDP socket: one end of a pair of datagram sockets. A sender
// writes into the other end, with its own address before the data. A datagram
// is lost if the pair has no room for it, or if there is no socket at its
// address.
type packetSocket struct {
	network  *Network
	socket   *net.UnixConn
	other    int            // the other end's descriptor, -1 once closed; guarded by network.mu
	at, peer netip.AddrPort // peer is the zero AddrPort if the socket isn't connected
}

var _ interface {
	network.PacketConn
	net.Conn
} = (*packetSocket)(nil)

// ListenPacket binds a socket. It ignores ctx.
func (n *Network) ListenPacket(_ context.Context, kind, address string) (network.PacketConn, error) {
	fail := func(err error) (network.PacketConn, error) {
		return nil, &net.OpError{Op: "listen", Net: kind, Err: err}
	}
	switch kind {
	case "udp", "udp4", "udp6":
	default:
		return fail(unix.EOPNOTSUPP)
	}
	at, err := n.endpoint(address)
	if err != nil {
		return fail(err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	c, err := n.bind(n.withPort(at), netip.AddrPort{})
	if err != nil {
		return fail(err)
	}
	return c, nil
}

// bind makes a socket. mu is held.
func (n *Network) bind(at, peer netip.AddrPort) (*packetSocket, error) {
	if n.sockets[at] != nil {
		return nil, unix.EADDRINUSE
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	s, err := socket(fds[0])
	if err != nil {
		_ = unix.Close(fds[1])
		return nil, err
	}
	if n.sockets == nil {
		n.sockets = make(map[netip.AddrPort]*packetSocket)
	}
	c := &packetSocket{network: n, socket: s, other: fds[1], at: at, peer: peer}
	n.sockets[at] = c
	return c, nil
}

// receiver returns the socket that gets datagrams between these addresses, nil
// if there is none. mu is held.
func (n *Network) receiver(from, to netip.AddrPort) *packetSocket {
	c := n.sockets[to]
	if c == nil {
		c = n.sockets[everywhere(to)]
	}
	if c == nil || c.peer.IsValid() && c.peer != from {
		return nil
	}
	return c
}

func (c *packetSocket) fail(op string, err error) error {
	return &net.OpError{Op: op, Net: "udp", Source: c.LocalAddr(), Err: err}
}

func (c *packetSocket) send(b []byte, to netip.AddrPort) (int, error) {
	if len(b) > maxDatagram {
		return 0, c.fail("write", unix.EMSGSIZE)
	}
	from := c.at
	if from.Addr().IsUnspecified() {
		from = netip.AddrPortFrom(own(from.Addr()), from.Port())
	}
	address := from.String()
	frame := append(append([]byte{byte(len(address))}, address...), b...)
	n := c.network
	n.mu.Lock()
	defer n.mu.Unlock()
	if c.other < 0 {
		return 0, c.fail("write", net.ErrClosed)
	}
	if r := n.receiver(from, to); r != nil {
		_, err := unix.SendmsgN(r.other, frame, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if err != nil && err != unix.EAGAIN {
			return 0, c.fail("write", err)
		}
	}
	return len(b), nil
}

// ReadFromUDPAddrPort waits for a datagram. The part without room in b is lost.
func (c *packetSocket) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	frame := make([]byte, 1+maxAddress+maxDatagram)
	n, err := c.socket.Read(frame)
	if err != nil {
		return 0, netip.AddrPort{}, err
	}
	data := 1 + int(frame[0])
	from, err := netip.ParseAddrPort(string(frame[1:data]))
	return copy(b, frame[data:n]), from, err
}

// WriteToUDPAddrPort sends a datagram.
func (c *packetSocket) WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error) {
	if c.peer.IsValid() {
		return 0, c.fail("write", net.ErrWriteToConnected)
	}
	return c.send(b, to)
}

// ReadFrom is ReadFromUDPAddrPort.
func (c *packetSocket) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := c.ReadFromUDPAddrPort(b)
	if err != nil {
		return n, nil, err
	}
	return n, net.UDPAddrFromAddrPort(from), nil
}

// WriteTo is WriteToUDPAddrPort.
func (c *packetSocket) WriteTo(b []byte, to net.Addr) (int, error) {
	udp, ok := to.(*net.UDPAddr)
	if !ok {
		return 0, c.fail("write", unix.EINVAL)
	}
	return c.WriteToUDPAddrPort(b, udp.AddrPort())
}

// Read waits for a datagram from the peer.
func (c *packetSocket) Read(b []byte) (int, error) {
	n, _, err := c.ReadFromUDPAddrPort(b)
	return n, err
}

// Write sends a datagram to the peer.
func (c *packetSocket) Write(b []byte) (int, error) {
	if !c.peer.IsValid() {
		return 0, c.fail("write", unix.EDESTADDRREQ)
	}
	return c.send(b, c.peer)
}

// Close closes the socket. A Read that waits returns.
func (c *packetSocket) Close() error {
	n := c.network
	n.mu.Lock()
	defer n.mu.Unlock()
	if c.other < 0 {
		return net.ErrClosed
	}
	delete(n.sockets, c.at)
	_ = unix.Close(c.other)
	c.other = -1
	return c.socket.Close()
}

func (c *packetSocket) LocalAddr() net.Addr                { return net.UDPAddrFromAddrPort(c.at) }
func (c *packetSocket) RemoteAddr() net.Addr               { return net.UDPAddrFromAddrPort(c.peer) }
func (c *packetSocket) SetDeadline(t time.Time) error      { return c.socket.SetDeadline(t) }
func (c *packetSocket) SetReadDeadline(t time.Time) error  { return c.socket.SetReadDeadline(t) }
func (c *packetSocket) SetWriteDeadline(t time.Time) error { return c.socket.SetWriteDeadline(t) }
