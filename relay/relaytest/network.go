// Package relaytest gives a guest in a test a network that exists in memory only.
package relaytest

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/relay"
)

// Network is a network on which only those meet who were given it: the guest, as its [relay.Network], and the test. It has TCP and names, and
// refuses datagrams with EOPNOTSUPP. Anybody may listen on any address. The zero value is ready; its methods may be called concurrently.
type Network struct {
	// Hosts are the names that can be looked up. It must not change once the network is in use.
	Hosts map[string]netip.Addr

	mu        sync.Mutex
	listeners map[netip.AddrPort]*listener
	next      uint16
}

var _ relay.Network = (*Network)(nil)

// backlog is how many connections may wait at a listener.
const backlog = 128

// firstPort is the first port that is given to who asks for none.
const firstPort = 32768

// endpoint reads HOST:PORT.
func (n *Network) endpoint(network, address string) (netip.AddrPort, error) {
	switch network {
	case "tcp", "tcp4", "tcp6":
	default:
		return netip.AddrPort{}, unix.EOPNOTSUPP
	}
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

// Listen listens. ctx isn't looked at.
func (n *Network) Listen(_ context.Context, network, address string) (net.Listener, error) {
	at, err := n.endpoint(network, address)
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Err: err}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if at.Port() == 0 {
		at = netip.AddrPortFrom(at.Addr(), n.port())
	}
	if n.listeners[at] != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Addr: net.TCPAddrFromAddrPort(at), Err: unix.EADDRINUSE}
	}
	if n.listeners == nil {
		n.listeners = make(map[netip.AddrPort]*listener)
	}
	l := &listener{network: n, at: at, arrived: make(chan *conn, backlog), closed: make(chan struct{})}
	n.listeners[at] = l
	return l, nil
}

// port returns another port at each call. mu is held.
func (n *Network) port() uint16 {
	n.next = max(n.next+1, firstPort)
	return n.next
}

// DialContext connects, if somebody listens there, or on the unspecified address. It never waits.
func (n *Network) DialContext(_ context.Context, network, address string) (net.Conn, error) {
	to, err := n.endpoint(network, address)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.listeners[to]
	if l == nil {
		l = n.listeners[netip.AddrPortFrom(netip.IPv4Unspecified(), to.Port())]
	}
	if l == nil || len(l.arrived) == backlog {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: net.TCPAddrFromAddrPort(to), Err: unix.ECONNREFUSED}
	}
	from := netip.AddrPortFrom(netip.MustParseAddr("198.18.0.1"), n.port())
	near, far, err := pair(from, to)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: net.TCPAddrFromAddrPort(to), Err: err}
	}
	l.arrived <- far
	return near, nil
}

// ListenPacket refuses.
func (n *Network) ListenPacket(_ context.Context, network, _ string) (relay.PacketConn, error) {
	return nil, &net.OpError{Op: "listen", Net: network, Err: unix.EOPNOTSUPP}
}

// LookupNetIP knows Hosts, and addresses.
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

// LookupAddr knows Hosts.
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
	at      netip.AddrPort
	arrived chan *conn // sent to under network.mu, while the listener is in network.listeners
	closed  chan struct{}
}

func (l *listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.at) }

func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.closed:
	case c := <-l.arrived:
		return c, nil
	}
	return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
}

// Close ends the connections that nobody has accepted.
func (l *listener) Close() error {
	l.network.mu.Lock()
	defer l.network.mu.Unlock()
	if l.network.listeners[l.at] != l {
		return net.ErrClosed
	}
	delete(l.network.listeners, l.at)
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

// conn is an end of a pair of sockets that calls itself TCP.
type conn struct {
	*net.UnixConn
	local, remote net.Addr
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

func pair(a, b netip.AddrPort) (near, far *conn, err error) {
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
	at, to := net.TCPAddrFromAddrPort(a), net.TCPAddrFromAddrPort(b)
	return &conn{x, at, to}, &conn{y, to, at}, nil
}

func socket(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}
