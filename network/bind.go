package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Listen is [net.ListenConfig.Listen] for UNIX sockets. A TCP address is an IP
// address and a port. An IPv6 socket serves IPv6 only. The socket is bound to
// exactly that address. Errors: EADDRNOTAVAIL for an address that many machines
// have (multicast, broadcast), EINVAL for a scope on an address that has none,
// EAFNOSUPPORT for an address of the other family.
func (Host) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	lc := net.ListenConfig{KeepAlive: -1}
	// Go's default is MPTCP, which resets and half-closes differently.
	lc.SetMultipathTCP(false)
	if network == "unix" {
		return lc.Listen(ctx, network, address)
	}
	at, err := hostAddress("tcp", network, address)
	if err != nil {
		return nil, err
	}
	lc.Control = func(_, _ string, raw syscall.RawConn) error { return control(raw, keepAlive) }
	ln, err := lc.Listen(ctx, Name("tcp", at), at.String())
	if err != nil {
		return nil, err
	}
	if err := checkSocket(ln.(*net.TCPListener), at); err != nil {
		_ = ln.Close()
		return nil, bindError(network, at, err)
	}
	return ln, nil
}

// ListenPacket binds a UDP socket, which may send to broadcast addresses, and
// gets no datagrams of multicast groups that other programs of the machine have
// joined. Addresses and errors are those of [Host.Listen].
//
// The socket is made here, as package net would bind one for a multicast
// address to all addresses, beside other sockets.
func (Host) ListenPacket(_ context.Context, network, address string) (PacketConn, error) {
	at, err := hostAddress("udp", network, address)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(familyOf(at.Addr()), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, bindError(network, at, os.NewSyscallError("socket", err))
	}
	socket := os.NewFile(uintptr(fd), "udp")
	defer socket.Close()
	if err := setBound(fd, at.Addr()); err != nil {
		return nil, bindError(network, at, err)
	}
	to, err := sockaddr(at)
	if err != nil {
		return nil, bindError(network, at, err)
	}
	if err := unix.Bind(fd, to); err != nil {
		return nil, bindError(network, at, os.NewSyscallError("bind", err))
	}
	conn, err := net.FilePacketConn(socket)
	if err != nil {
		return nil, bindError(network, at, err)
	}
	if err := checkSocket(conn.(*net.UDPConn), at); err != nil {
		_ = conn.Close()
		return nil, bindError(network, at, err)
	}
	return conn.(*net.UDPConn), nil
}

// InUse reports whether a socket of this machine holds a port at an address:
// for "tcp" a listening one, for "udp" any. It tries to bind one there, and
// closes it.
func (Host) InUse(protocol string, at netip.AddrPort) bool {
	kind := unix.SOCK_DGRAM
	if protocol == "tcp" {
		kind = unix.SOCK_STREAM
	}
	fd, err := unix.Socket(familyOf(at.Addr()), kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	if protocol == "tcp" {
		// Connections that were closed a short time ago don't count.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	if at.Addr().Is6() {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	to, err := sockaddr(at)
	return err == nil && unix.Bind(fd, to) == unix.EADDRINUSE
}

// hostAddress reads an address to bind to, and refuses those that no guest's
// socket gets.
func hostAddress(protocol, network, address string) (netip.AddrPort, error) {
	kind, version, err := splitNetwork(network)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if kind != protocol {
		return netip.AddrPort{}, &net.OpError{Op: "listen", Net: network, Err: net.UnknownNetworkError(network)}
	}
	at, err := bindAddress(address)
	if err != nil {
		return netip.AddrPort{}, &net.OpError{Op: "listen", Net: network, Err: err}
	}
	if version != "" && (version == "6") != at.Addr().Is6() {
		return at, bindError(network, at, unix.EAFNOSUPPORT)
	}
	if at.Addr().Is4() && isBroadcast(at) {
		return at, bindError(network, at, unix.EADDRNOTAVAIL)
	}
	return at, nil
}

// bindAddress reads an IP address and a port. An IPv4-mapped address becomes
// IPv4.
func bindAddress(address string) (netip.AddrPort, error) {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return at, &net.AddrError{Err: "no IP address and port", Addr: address}
	}
	zoned := at.Addr().Zone() != ""
	at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	switch a := at.Addr(); {
	case a.IsMulticast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return at, fmt.Errorf("bind %v: %w", at, unix.EADDRNOTAVAIL)
	case zoned && !a.IsLinkLocalUnicast():
		return at, fmt.Errorf("bind %v: a scope on an address that has none: %w", at, unix.EINVAL)
	}
	return at, nil
}

// isBroadcast reports whether an IPv4 address is a broadcast address. Sockets
// may be bound to one. A connect is refused with EACCES, unless the socket has
// been made for broadcasts, so the kernel is asked by a connect.
func isBroadcast(at netip.AddrPort) bool {
	if at.Addr().IsUnspecified() {
		return false
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	// The port doesn't matter: a connect of UDP sends nothing.
	return unix.Connect(fd, &unix.SockaddrInet4{Port: 9, Addr: at.Addr().As4()}) == unix.EACCES
}

// Local reports whether a is an address of this machine, by binding a socket
// there. A link-local IPv6 address counts always, as its link isn't known.
func (Host) Local(a netip.Addr) bool {
	if a.IsLinkLocalUnicast() && a.Is6() {
		return true
	}
	fd, err := unix.Socket(familyOf(a), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	to, err := sockaddr(netip.AddrPortFrom(a, 0))
	return err == nil && unix.Bind(fd, to) == nil
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func sockaddr(at netip.AddrPort) (unix.Sockaddr, error) {
	if at.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}, nil
	}
	scope, err := scopeOf(at.Addr().Zone())
	return &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16(), ZoneId: scope}, err
}

// scopeOf returns the index of the interface that a zone names, 0 for no zone.
// A number is an index, even if an interface has that name.
func scopeOf(zone string) (uint32, error) {
	if zone == "" {
		return 0, nil
	}
	if index, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(index), nil
	}
	i, err := net.InterfaceByName(zone)
	if err != nil {
		return 0, err
	}
	return uint32(i.Index), nil
}

// addrPortOf is a kernel's address of a socket, with the interface's index as
// its zone.
func addrPortOf(a unix.Sockaddr) netip.AddrPort {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(scoped(netip.AddrFrom16(a.Addr), a.ZoneId), uint16(a.Port))
	default:
		return netip.AddrPort{}
	}
}

// checkSocket refuses a socket with EADDRNOTAVAIL if the kernel hasn't bound it
// where it was meant to be. Port 0 is any.
func checkSocket(socket syscall.Conn, at netip.AddrPort) error {
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	want, err := sockaddr(at)
	if err != nil {
		return err
	}
	return control(raw, func(fd int) error {
		got, err := unix.Getsockname(fd)
		if err != nil {
			return os.NewSyscallError("getsockname", err)
		}
		is, meant := addrPortOf(got), addrPortOf(want)
		if at.Port() == 0 {
			is = netip.AddrPortFrom(is.Addr(), 0)
		}
		if is != meant {
			return fmt.Errorf("bound to %v: %w", is, unix.EADDRNOTAVAIL)
		}
		return nil
	})
}

// setBound sets the options that package net sets for a UDP socket, and keeps
// other programs' multicast groups away. It comes before the bind: the kernel
// tells the local address only of datagrams that arrive after it was asked to.
func setBound(fd int, at netip.Addr) error {
	err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
	if at.Is6() {
		err = errors.Join(err,
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_ALL, 0),
		)
	} else {
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_ALL, 0))
	}
	if at.IsUnspecified() {
		err = errors.Join(err, tellLocal(fd, at.Is6()))
	}
	if err != nil {
		return fmt.Errorf("set options of a UDP socket: %w", err)
	}
	return nil
}

// tellLocal has the kernel tell the local address of each datagram.
func tellLocal(fd int, ipv6 bool) error {
	level, option := unix.SOL_IP, unix.IP_PKTINFO
	if ipv6 {
		level, option = unix.SOL_IPV6, unix.IPV6_RECVPKTINFO
	}
	if err := unix.SetsockoptInt(fd, level, option, 1); err != nil {
		return fmt.Errorf("ask for the local address of datagrams: %w", err)
	}
	return nil
}

// keepAlive sets for a listener what Go sets for each connection
// ([net.KeepAliveConfig]). Connections inherit it, which saves four system
// calls for each.
func keepAlive(fd int) error {
	err := errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15),
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15),
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 9),
	)
	if err != nil {
		return fmt.Errorf("keep connections of a listener alive: %w", err)
	}
	return nil
}

// control calls do with a socket's descriptor.
func control(raw syscall.RawConn, do func(fd int) error) error {
	var derr error
	if err := raw.Control(func(fd uintptr) { derr = do(int(fd)) }); err != nil {
		return err
	}
	return derr
}

// bindError is an error of binding a socket, in the form of package net.
func bindError(network string, at netip.AddrPort, err error) error {
	var addr net.Addr = net.TCPAddrFromAddrPort(at)
	if protocol, _, _ := splitNetwork(network); protocol == "udp" {
		addr = net.UDPAddrFromAddrPort(at)
	}
	return &net.OpError{Op: "listen", Net: network, Addr: addr, Err: err}
}
