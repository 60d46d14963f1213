package relay_test

import (
	"context"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/wire"
)

// sighted is the host's network, which also hands its connections to the test.
type sighted struct {
	network.Host
	conns chan *net.TCPConn
}

func (w sighted) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := w.Host.DialContext(ctx, network, address)
	if err == nil {
		w.conns <- c.(*net.TCPConn)
	}
	return c, err
}

func (w sighted) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	l, err := w.Host.Listen(ctx, network, address)
	return sightedListener{l, w.conns}, err
}

type sightedListener struct {
	net.Listener
	conns chan *net.TCPConn
}

func (l sightedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.conns <- c.(*net.TCPConn)
	}
	return c, err
}

// tcpOptions are a socket's options, as the kernel tells them.
type tcpOptions struct{ noDelay, keepAlive, idle, interval, count int }

func optionsOf(t *testing.T, c *net.TCPConn) (o tcpOptions) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		for _, q := range []struct {
			level, option int
			value         *int
		}{
			{unix.IPPROTO_TCP, unix.TCP_NODELAY, &o.noDelay},
			{unix.SOL_SOCKET, unix.SO_KEEPALIVE, &o.keepAlive},
			{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, &o.idle},
			{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, &o.interval},
			{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, &o.count},
		} {
			if *q.value, err = unix.GetsockoptInt(int(fd), q.level, q.option); err != nil {
				t.Error(err)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// The options that a guest chooses for its connections' sockets, whichever side
// has opened them, and the defaults.
func TestTCPOptions(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		options wire.TCPOptions
		want    tcpOptions
	}{
		{"defaults", wire.TCPOptions{}, tcpOptions{1, 1, 15, 15, 9}},
		{"delay", wire.TCPOptions{Flags: wire.TCPDelay}, tcpOptions{0, 1, 15, 15, 9}},
		{"longer keep-alive", wire.TCPOptions{KeepAlive: wire.MaxKeepAlive}, tcpOptions{1, 1, wire.MaxKeepAlive, wire.MaxKeepAlive, 9}},
		{"shorter keep-alive and delay", wire.TCPOptions{Flags: wire.TCPDelay, KeepAlive: 1}, tcpOptions{0, 1, 1, 1, 9}},
		{"no keep-alive", wire.TCPOptions{KeepAlive: wire.KeepAliveOff}, tcpOptions{1, 0, 15, 15, 9}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			network := sighted{conns: make(chan *net.TCPConn, 1)}
			m := start(t, setup{network: network})

			_, to := hostListener(t, "127.0.0.1:0")
			g := m.pipe()
			if _, err := open(g, wire.ProtocolTCPConnection, wire.AppendConnect(nil, wire.Connect{Endpoint: at(to), Options: &c.options})); err != nil {
				t.Fatal(err)
			}
			if got := optionsOf(t, <-network.conns); got != c.want {
				t.Errorf("a connection of the guest's has %+v, want %+v", got, c.want)
			}

			l := &listening{m.pipe(), m, netip.AddrPort{}}
			p, err := open(l.GuestConn, wire.ProtocolTCPListener, wire.AppendListen(nil, wire.Listen{
				Endpoint: at(netip.MustParseAddrPort("127.0.0.1:0")), Options: c.options,
			}))
			if err != nil {
				t.Fatal(err)
			}
			e, err := wire.DecodeEndpoint(p)
			if err != nil {
				t.Fatal(err)
			}
			l.ask(1, m.pipe().ID())
			dialed(t, e.AddrPort())
			if _, a := l.answer(); a.Status != 0 {
				t.Fatalf("%+v", a)
			}
			if got := optionsOf(t, <-network.conns); got != c.want {
				t.Errorf("a connection to the guest has %+v, want %+v", got, c.want)
			}
		})
	}
}
