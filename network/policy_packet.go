package network

import (
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"
)

// policedConn is a connected UDP socket, each of whose datagrams is judged, as
// routes change.
type policedConn struct {
	net.Conn
	policy *Policy
	to     request
}

// NetConn returns the connection that c wraps.
func (c *policedConn) NetConn() net.Conn { return c.Conn }

// MaySend judges a datagram to the peer.
func (c *policedConn) MaySend(netip.Addr, netip.AddrPort) error { return c.policy.check(c.to) }

// Received does nothing: there is one peer only, which is known.
func (c *policedConn) Received(netip.AddrPort) {}

func (c *policedConn) Write(b []byte) (int, error) {
	if err := c.MaySend(netip.Addr{}, c.to.at); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

// policedPacketConn lets datagrams go where the policy does, and to peers that
// have sent some.
type policedPacketConn struct {
	PacketConn
	policy  *Policy
	bound   net.Addr
	host    netip.AddrPort // where it is bound
	release func()         // gives its place back

	mu     sync.Mutex
	peers  map[netip.AddrPort]struct{} // that the policy wouldn't let through; at most maxPeers
	shares map[netip.Prefix]int        // how many of peers each machine has
}

const maxPeers = 1024

// LocalAddr is where the guest is bound, as it sees it.
func (c *policedPacketConn) LocalAddr() net.Addr { return c.bound }

// check judges a datagram from an address; the zero Addr is where the socket is
// bound.
func (c *policedPacketConn) check(from netip.Addr, to netip.AddrPort) error {
	addr, err := canonical(to.Addr())
	if err != nil {
		return err
	}
	q := request{direction: Out, protocol: "udp", at: netip.AddrPortFrom(addr, to.Port()), from: c.host}
	if from.IsValid() {
		q.from = netip.AddrPortFrom(from, c.host.Port())
	}
	return c.policy.check(q)
}

func (c *policedPacketConn) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	n, from, err := c.PacketConn.ReadFromUDPAddrPort(b)
	if err == nil {
		c.Received(from)
	}
	return n, from, err
}

func (c *policedPacketConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := c.ReadFromUDPAddrPort(b)
	if err != nil {
		return n, nil, err
	}
	return n, net.UDPAddrFromAddrPort(from), nil
}

// NetPacketConn returns the PacketConn that c wraps.
func (c *policedPacketConn) NetPacketConn() PacketConn { return c.PacketConn }

// Received remembers the source of a datagram, if the policy wouldn't let one
// go there. The unspecified address is left out, which a machine without an
// address of its own sends from: an answer to it would go to localhost.
func (c *policedPacketConn) Received(from netip.AddrPort) {
	if !from.Addr().IsUnspecified() && c.check(netip.Addr{}, from) != nil {
		c.remember(from)
	}
}

// MaySend is nil if the policy lets a datagram go to an address, or if one has
// come from there. The zero from is the address that the socket has, or
// chooses.
func (c *policedPacketConn) MaySend(from netip.Addr, to netip.AddrPort) error {
	err := c.check(from, to)
	if err == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.peers[to]; known {
		return nil
	}
	return err
}

// remember adds a peer. When there are too many, one of the machine with the
// most peers is forgotten, so that no machine can push out all others.
func (c *policedPacketConn) remember(peer netip.AddrPort) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.peers == nil {
		c.peers, c.shares = make(map[netip.AddrPort]struct{}), make(map[netip.Prefix]int)
	}
	if _, known := c.peers[peer]; known {
		return
	}
	if len(c.peers) == maxPeers {
		c.forgetOne()
	}
	c.peers[peer] = struct{}{}
	c.shares[PeerOf(peer.Addr())]++
}

func (c *policedPacketConn) forgetOne() {
	var machine netip.Prefix
	for m, n := range c.shares {
		if n > c.shares[machine] {
			machine = m
		}
	}
	for peer := range c.peers {
		if PeerOf(peer.Addr()) == machine {
			delete(c.peers, peer)
			break
		}
	}
	if c.shares[machine]--; c.shares[machine] == 0 {
		delete(c.shares, machine)
	}
}

func (c *policedPacketConn) WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error) {
	if err := c.MaySend(netip.Addr{}, to); err != nil {
		return 0, err
	}
	return c.PacketConn.WriteToUDPAddrPort(b, Specified(to))
}

func (c *policedPacketConn) WriteTo(b []byte, to net.Addr) (int, error) {
	udp, ok := to.(*net.UDPAddr)
	if !ok {
		return 0, unix.EINVAL
	}
	return c.WriteToUDPAddrPort(b, udp.AddrPort())
}

// Close also releases the place.
func (c *policedPacketConn) Close() error {
	err := c.PacketConn.Close()
	c.release()
	return err
}
