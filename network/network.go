// Package network is what a guest may reach of the network, for every ABI:
// names and addresses go in, and sockets come out. [Network] is the interface,
// [Host] is this machine's network, and [Policy] lets a guest have a part of
// another Network. [Limits] are how much a guest may use of its host.
//
// What moves bytes is elsewhere: a handler of package relay or rpc asks a
// Network once for each connection, listener or socket, and then uses what it
// was given. So a Network may be in another process, from which descriptors
// come.
//
// Words of this package:
//
//   - host: the machine that the monitor runs on
//   - own: of an address, one by which packets stay with the host, or may
//   - special: of an address, one that a guest reaches only by a rule for it
//   - canonical: of an address, the one form in which it is judged (address.go)
//   - family: 0 for IPv4, 1 for IPv6, an index
//   - publish: bind what a guest listens on at another address of the host
//   - spare: a published socket of the family that the guest doesn't listen on
package network

import (
	"context"
	"io"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Network is where protocols get their sockets and addresses from. [Host] is
// this machine's; a test may give a guest one in memory. Its methods may be
// called concurrently. Their arguments and errors are those of package net. A
// guest is told the errno that [Errno] finds in an error.
//
// A method returns soon after its context has ended. What waits in a socket
// returns soon after the socket's Close, or after a deadline has passed: the
// server that waits for it must be able to end. Close itself doesn't wait.
// Setting a deadline may fail on a connection that can't have any.
type Network interface {
	// DialContext connects. The network is "tcp", "tcp4", "tcp6", "udp",
	// "udp4", "udp6" or "unix". A connection for a byte stream is a [Conn]; a
	// *[net.TCPConn] is relayed without a copy, and with the errno of each end.
	// The address of a UNIX socket is /proc/self/fd/N, where descriptor N is
	// the open file (O_PATH) of the socket that the guest named. It is valid
	// until the call returns.
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
	// Listen listens on "tcp4", "tcp6" or "unix". Each connection that the
	// listener accepts is a [Conn]. The address of a UNIX socket is
	// /proc/self/fd/N/NAME, where descriptor N is the open folder in which the
	// guest wants a socket of that name. It is valid until the call returns, so
	// the listener doesn't remove the socket's file when it is closed.
	Listen(ctx context.Context, network, address string) (net.Listener, error)
	// ListenPacket binds a socket of "udp4" or "udp6".
	ListenPacket(ctx context.Context, network, address string) (PacketConn, error)
	// LookupNetIP returns the addresses of a host: of both families for "ip",
	// of one for "ip4" and "ip6".
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
	// LookupAddr returns the names of an IP address.
	LookupAddr(ctx context.Context, address string) ([]string, error)
}

// Conn is a connection whose two directions end separately: a half-close with
// CloseWrite leaves the other direction open.
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

// PacketFilter is a [PacketConn] that only judges what goes through another
// one. Its methods allow a relay to move datagrams between a ring and the
// *[net.UDPConn] below, and have each judged.
type PacketFilter interface {
	// NetPacketConn returns the PacketConn below.
	NetPacketConn() PacketConn
	DatagramFilter
}

// DatagramFilter judges the datagrams of a socket, bound or connected.
type DatagramFilter interface {
	// MaySend returns why a datagram may not go to an address, nil if it may.
	// from is the source address that the guest names; the zero Addr leaves it
	// to the socket.
	MaySend(from netip.Addr, to netip.AddrPort) error
	// Received is told the source of each datagram that has arrived.
	Received(from netip.AddrPort)
}

// CheckConn checks what a Network's DialContext, or a listener's Accept,
// returned. One that breaks its contract (it gives no connection, or one
// without half-close) is an EOPNOTSUPP.
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

// Check checks what another method of a Network returned: nothing, without an
// error, is an EOPNOTSUPP.
func Check[T io.Closer](x T, err error) (T, error) {
	if err == nil && any(x) == nil {
		err = unix.EOPNOTSUPP
	}
	return x, err
}

// closeOnPanic is deferred around a call of the embedding program's function:
// if that panics, c would be left open.
func closeOnPanic(c io.Closer) {
	if cause := recover(); cause != nil {
		_ = c.Close()
		panic(cause)
	}
}

// AsTCP returns the TCP connection that c wraps, or is; nil if there is none.
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

// AsUDP returns the UDP socket that c wraps, or is; nil if there is none.
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

// Abandon closes a connection with a reset, as the kernel does with those that
// are left in a backlog.
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

// DeniedError is the refusal of what a guest asked for, by policy. It is an
// EACCES.
type DeniedError struct {
	What string // such as "out:tcp:127.0.0.1:22"
}

func (e *DeniedError) Error() string { return e.What + " is denied by policy" }

// Unwrap returns EACCES.
func (e *DeniedError) Unwrap() error { return unix.EACCES }
