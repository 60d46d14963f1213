// Package networktest is for tests: a guest's network that exists in memory
// only, certificates for TLS servers, and a name server on loopback.
package networktest

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
)

// Network is a network in memory, for a guest, as its [network.Network], and
// the test, which reach only each other on it. It has TCP, UDP, UNIX stream
// sockets whose paths are names and no files, and host names. Both may listen
// on any address. The zero value is ready. Its methods may be called
// concurrently.
type Network struct {
	// Hosts are the names that can be looked up. It must not change once the
	// network is in use.
	Hosts map[string]netip.Addr

	mu        sync.Mutex
	listeners map[string]*listener             // by address or path
	sockets   map[netip.AddrPort]*packetSocket // of UDP
	next      uint16
}

var _ network.Network = (*Network)(nil)

// backlog is how many connections may wait at a listener.
const backlog = 128

// firstPort is the first port that is given to a socket without one.
const firstPort = 32768

// The source addresses of sockets that aren't bound.
var (
	ownIPv4 = netip.MustParseAddr("198.18.0.1")
	ownIPv6 = netip.MustParseAddr("2001:2::1")
)

func own(family netip.Addr) netip.Addr {
	if family.Is4() {
		return ownIPv4
	}
	return ownIPv6
}

// everywhere is the unspecified address of to's family, with its port: a
// listener there is reached by every address.
func everywhere(to netip.AddrPort) netip.AddrPort {
	if to.Addr().Is4() {
		return netip.AddrPortFrom(netip.IPv4Unspecified(), to.Port())
	}
	return netip.AddrPortFrom(netip.IPv6Unspecified(), to.Port())
}

// endpoint reads HOST:PORT.
func (n *Network) endpoint(address string) (netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return netip.AddrPort{}, err
	}
	addrs, err := n.LookupNetIP(context.Background(), "ip", host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.ParseAddrPort(net.JoinHostPort(addrs[0].String(), port))
}

// Listen listens. It ignores ctx.
func (n *Network) Listen(_ context.Context, network, address string) (net.Listener, error) {
	fail := func(err error) (net.Listener, error) { return nil, &net.OpError{Op: "listen", Net: network, Err: err} }
	n.mu.Lock()
	defer n.mu.Unlock()
	var at net.Addr
	switch network {
	case "tcp", "tcp4", "tcp6":
		ap, err := n.endpoint(address)
		if err != nil {
			return fail(err)
		}
		at = net.TCPAddrFromAddrPort(n.withPort(ap))
	case "unix":
		at = &net.UnixAddr{Name: address, Net: network}
	default:
		return fail(unix.EOPNOTSUPP)
	}
	if n.listeners[at.String()] != nil {
		return fail(unix.EADDRINUSE)
	}
	if n.listeners == nil {
		n.listeners = make(map[string]*listener)
	}
	l := &listener{network: n, at: at, arrived: make(chan *conn, backlog), closed: make(chan struct{})}
	n.listeners[at.String()] = l
	return l, nil
}

// withPort returns at, with a new port if it has none. mu is held.
func (n *Network) withPort(at netip.AddrPort) netip.AddrPort {
	if at.Port() != 0 {
		return at
	}
	n.next = max(n.next+1, firstPort)
	return netip.AddrPortFrom(at.Addr(), n.next)
}

// DialContext connects to a listener at the address, or at the unspecified one.
// Over UDP it needs no peer. It never waits.
func (n *Network) DialContext(_ context.Context, network, address string) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) { return nil, &net.OpError{Op: "dial", Net: network, Err: err} }
	n.mu.Lock()
	defer n.mu.Unlock()
	if network == "unix" {
		c, err := n.connect(n.listeners[address], &net.UnixAddr{Net: network}, &net.UnixAddr{Name: address, Net: network})
		if err != nil {
			return fail(err)
		}
		return c, nil
	}
	to, err := n.endpoint(address)
	if err != nil {
		return fail(err)
	}
	from := n.withPort(netip.AddrPortFrom(own(to.Addr()), 0))
	switch network {
	case "tcp", "tcp4", "tcp6":
		l := n.listeners[to.String()]
		if l == nil {
			l = n.listeners[everywhere(to).String()]
		}
		c, err := n.connect(l, net.TCPAddrFromAddrPort(from), net.TCPAddrFromAddrPort(to))
		if err != nil {
			return fail(err)
		}
		return c, nil
	case "udp", "udp4", "udp6":
		c, err := n.bind(from, to)
		if err != nil {
			return fail(err)
		}
		return c, nil
	default:
		return fail(unix.EOPNOTSUPP)
	}
}

// connect puts a connection into l's backlog. nil is no listener. mu is held.
func (n *Network) connect(l *listener, from, to net.Addr) (*conn, error) {
	if l == nil || len(l.arrived) == backlog {
		return nil, unix.ECONNREFUSED
	}
	near, far, err := pair(from, to)
	if err != nil {
		return nil, err
	}
	l.arrived <- far
	return near, nil
}

// LookupNetIP finds the names in Hosts, and addresses.
func (n *Network) LookupNetIP(_ context.Context, network, host string) ([]netip.Addr, error) {
	a, err := netip.ParseAddr(host)
	if err != nil {
		a = n.Hosts[host]
	}
	if !a.IsValid() || network == "ip4" && !a.Is4() || network == "ip6" && !a.Is6() {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return []netip.Addr{a}, nil
}

// LookupAddr finds the addresses in Hosts.
func (n *Network) LookupAddr(_ context.Context, address string) ([]string, error) {
	var names []string
	for name, a := range n.Hosts {
		if a.String() == address {
			names = append(names, name)
		}
	}
	if names == nil {
		return nil, &net.DNSError{Err: "no such host", Name: address, IsNotFound: true}
	}
	slices.Sort(names)
	return names, nil
}

type listener struct {
	network *Network
	at      net.Addr
	arrived chan *conn // sent to under network.mu, while the listener is in network.listeners
	closed  chan struct{}
}

func (l *listener) Addr() net.Addr { return l.at }

func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.closed:
	case c := <-l.arrived:
		return c, nil
	}
	return nil, &net.OpError{Op: "accept", Net: l.at.Network(), Addr: l.at, Err: net.ErrClosed}
}

// Close ends the connections that are still in the backlog.
func (l *listener) Close() error {
	l.network.mu.Lock()
	defer l.network.mu.Unlock()
	if l.network.listeners[l.at.String()] != l {
		return net.ErrClosed
	}
	delete(l.network.listeners, l.at.String())
	close(l.closed)
	for {
		select {
		case c := <-l.arrived:
			_ = c.Close()
		default:
			return nil
		}
	}
}

// conn is an end of a pair of UNIX sockets, with addresses of the network.
type conn struct {
	*net.UnixConn
	local, remote net.Addr
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

func pair(from, to net.Addr) (near, far *conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	x, err1 := socket(fds[0])
	y, err2 := socket(fds[1])
	if err := errors.Join(err1, err2); err != nil {
		for _, s := range []*net.UnixConn{x, y} {
			if s != nil {
				_ = s.Close()
			}
		}
		return nil, nil, err
	}
	return &conn{x, from, to}, &conn{y, to, from}, nil
}

// socket makes a connection of fd, which it owns then.
func socket(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}
