package relay

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Network is where protocols get their sockets and addresses from. [Host] is this machine's; a test may give a guest one in memory. Its methods
// may be called concurrently. Their arguments and errors are those of package net; a guest is told the errno in an error, or the one
// that fits best, or else EIO.
//
// Methods return soon after their context ends, and what waits in a socket soon after its Close or a deadline that has passed: a server waits for
// them before [Server.Serve] returns. Close doesn't wait. Deadlines may be an error, where a connection can't have any.
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

// asConn refuses what can't be half-closed: a network of an embedding program that breaks its contract.
func asConn(conn net.Conn, err error) (Conn, error) {
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

// given refuses nothing without an error: a network of an embedding program that breaks its contract.
func given[T io.Closer](x T, err error) (T, error) {
	if err == nil && any(x) == nil {
		err = unix.EOPNOTSUPP
	}
	return x, err
}

// interrupt ends what waits in conn, and what would. One that has no deadlines, as connections through another protocol often haven't, is closed for that.
func interrupt(conn interface {
	io.Closer
	SetDeadline(t time.Time) error
}) {
	if conn.SetDeadline(past) != nil {
		_ = conn.Close()
	}
}

// closeOnPanic is deferred where an embedding program is told of what it then doesn't get to close.
func closeOnPanic(c io.Closer) {
	if cause := recover(); cause != nil {
		_ = c.Close()
		panic(cause)
	}
}

// asTCP returns the TCP connection below c, nil if there is none.
func asTCP(c net.Conn) *net.TCPConn {
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

// asSocket returns the socket below ln, nil if there is none.
func asSocket(ln net.Listener) syscall.Conn {
	for {
		switch x := ln.(type) {
		case syscall.Conn:
			return x
		case interface{ NetListener() net.Listener }:
			ln = x.NetListener()
		default:
			return nil
		}
	}
}

// resetOnClose makes Close send an RST, where that is possible.
func resetOnClose(c net.Conn) {
	if tcp := asTCP(c); tcp != nil {
		_ = tcp.SetLinger(0)
	}
}

// abandon closes a connection that nobody takes with a reset, as the kernel does with those left in a backlog.
func abandon(conn net.Conn) {
	resetOnClose(conn)
	_ = conn.Close()
}

// DeniedError is what a guest asked for and may not have. It is an EACCES.
type DeniedError struct {
	What string // such as "out:tcp:127.0.0.1:22"
}

func (e *DeniedError) Error() string { return e.What + " is denied by policy" }

// Unwrap makes it the errno.
func (e *DeniedError) Unwrap() error { return unix.EACCES }

// Network is the server's, for handlers.
func (s *Stream) Network() Network { return s.server.network }

// failed logs what the guest couldn't have. What happens every day is shown
// once for each errno, and then at debug level.
func (s *Stream) failed(msg string, err error, attrs ...slog.Attr) {
	if s.denied(msg, err) {
		return
	}
	attrs = append(attrs, slog.Any("err", err))
	level := s.server.logs.levelOf(failure{msg, s.Protocol, errnoOf(err)})
	if level == slog.LevelInfo {
		attrs = append(attrs, slog.String("more", "at level debug"))
	}
	s.log(level, msg, attrs...)
}

// bindFailed logs that a socket couldn't be made, which the guest's user may have to see to.
func (s *Stream) bindFailed(msg string, err error) {
	if !s.denied(msg, err) {
		s.server.count.bindsFailed.Add(1)
		s.warn(s.server.logs.bindFailed, msg, slog.Any("err", err))
	}
}

// denied logs and counts what the guest may not have. It reports whether err is about that.
func (s *Stream) denied(msg string, err error) bool {
	var denied *DeniedError
	if !errors.As(err, &denied) {
		return false
	}
	s.server.count.denied.Add(1)
	s.warn(s.server.logs.denied, msg, slog.Any("err", err))
	return true
}
