// Package network is what a guest may reach of the network, for every ABI:
// names and addresses go in, and sockets come out. [Network] is the interface,
// [Host] is this machine's network, and [Policy] lets a guest have a part of
// another Network. [Limits] are how much a guest may use of its host.
//
// What moves bytes is elsewhere: a handler of package relay or rpc asks a
// Network once for each connection, listener or socket, and uses what it was
// given by itself.
package network

import (
	"context"
	"io"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Network is where protocols get their sockets and addresses from. [Host] is this machine's; a test may give a guest one in memory. Its methods
// may be called concurrently. Their arguments and errors are those of package net; a guest is told the errno in an error, or the one
// that fits best, or else EIO.
//
// Methods return soon after their context ends, and what waits in a socket soon after its Close or a deadline that has passed: a server waits for
// them before it ends. Close doesn't wait. Deadlines may be an error, where a connection can't have any.
type Network interface {
	// DialContext connects. The network is "tcp", "tcp4", "tcp6", "udp", "udp4", "udp6" or "unix". A connection to relay
	// a byte stream on is a [Conn]. *[net.TCPConn] is relayed without a copy, and with the errno of each end. The address of a UNIX socket is
	// /proc/self/fd/N, where descriptor N is the open file (O_PATH) of the socket that the guest named. It means that until the call returns.
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
	// Listen listens on "tcp4", "tcp6" or "unix". The connections that it accepts are each a [Conn]. The address of a UNIX socket is
	// /proc/self/fd/N/NAME, where descriptor N is the open folder in which the guest wants one of that name; it means that until the call returns. Whoever
	// listens leaves the socket's file alone after that.
	Listen(ctx context.Context, network, address string) (net.Listener, error)
	// ListenPacket binds "udp4" or "udp6".
	ListenPacket(ctx context.Context, network, address string) (PacketConn, error)
	// LookupNetIP returns the addresses of a host on "ip", "ip4" or "ip6".
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
	// LookupAddr returns the names of an address.
	LookupAddr(ctx context.Context, address string) ([]string, error)
}

// Conn is a connection each of whose directions ends by itself.
type Conn interface {
	net.Conn
	CloseWrite() error
}

// PacketConn is a datagram socket. *[net.UDPConn] is one.
type PacketConn interface {
	net.PacketConn
	ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error)
	WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error)
}

// PacketFilter is a [PacketConn] that does nothing but judge what goes through another one. With these methods it lets datagrams be moved
// between ring and *[net.UDPConn] without passing through its own.
type PacketFilter interface {
	// NetPacketConn returns the PacketConn below.
	NetPacketConn() PacketConn
	DatagramFilter
}

// DatagramFilter judges datagrams of a socket, bound or connected.
type DatagramFilter interface {
	// MaySend says whether a datagram may go to an address: nil, or why not. It
	// goes from an address that the guest names, or the zero Addr.
	MaySend(from netip.Addr, to netip.AddrPort) error
	// Received is told where each datagram came from.
	Received(from netip.AddrPort)
}

// CheckConn refuses what can't be half-closed: a network of an embedding program that breaks its contract.
func CheckConn(conn net.Conn, err error) (Conn, error) {
	if err != nil {
		return nil, err
	}
	c, ok := conn.(Conn)
	if !ok {
		if conn != nil {
			_ = conn.Close()
		}
		return nil, unix.EOPNOTSUPP
	}
	return c, nil
}

// Check refuses nothing without an error: a network of an embedding program that breaks its contract.
func Check[T io.Closer](x T, err error) (T, error) {
	if err == nil && any(x) == nil {
		err = unix.EOPNOTSUPP
	}
	return x, err
}

// closeOnPanic is deferred where an embedding program is told of what it then doesn't get to close.
func closeOnPanic(c io.Closer) {
	if cause := recover(); cause != nil {
		_ = c.Close()
		panic(cause)
	}
}

// AsTCP returns the TCP connection below c, nil if there is none.
func AsTCP(c net.Conn) *net.TCPConn {
	for {
		switch x := c.(type) {
		case *net.TCPConn:
			return x
		case interface{ NetConn() net.Conn }:
			c = x.NetConn()
		default:
			return nil
		}
	}
}

// AsUDP returns the UDP socket below c, nil if there is none.
func AsUDP(c net.Conn) *net.UDPConn {
	for {
		switch x := c.(type) {
		case *net.UDPConn:
			return x
		case interface{ NetConn() net.Conn }:
			c = x.NetConn()
		default:
			return nil
		}
	}
}

// Abandon closes a connection that nobody takes with a reset, as the kernel does with those left in a backlog.
func Abandon(conn net.Conn) {
	if tcp := AsTCP(conn); tcp != nil {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}

// PeerOf returns what counts as one peer: an IPv4 address, or the network of 64
// bits that an IPv6 address is in, which is what one machine usually has.
func PeerOf(a netip.Addr) netip.Prefix {
	a = a.Unmap()
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	peer, err := a.WithZone("").Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return peer
}

// DeniedError is what a guest asked for and may not have. It is an EACCES.
type DeniedError struct {
	What string // such as "out:tcp:127.0.0.1:22"
}

func (e *DeniedError) Error() string { return e.What + " is denied by policy" }

// Unwrap makes it the errno.
func (e *DeniedError) Unwrap() error { return unix.EACCES }
