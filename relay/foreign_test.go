package relay_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/network/networktest"
	"github.com/fix-project/arcavm/pipes/pipestest"
	"github.com/fix-project/arcavm/relay"
	"github.com/fix-project/arcavm/wire"
)

// foreignNetwork is a network of an embedding program. Functions that aren't
// set are the host's.
type foreignNetwork struct {
	network.Host
	dial   func() (net.Conn, error)
	listen func() (net.Listener, error)
	packet func() (network.PacketConn, error)
}

func (n foreignNetwork) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if n.dial == nil {
		return n.Host.DialContext(ctx, network, address)
	}
	return n.dial()
}

func (n foreignNetwork) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	if n.listen == nil {
		return n.Host.Listen(ctx, network, address)
	}
	return n.listen()
}

func (n foreignNetwork) ListenPacket(ctx context.Context, network, address string) (network.PacketConn, error) {
	if n.packet == nil {
		return n.Host.ListenPacket(ctx, network, address)
	}
	return n.packet()
}

// LookupNetIP returns two addresses, so that there are two attempts.
func (foreignNetwork) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")}, nil
}

// noListener is a listener that returns no connection, and no error either.
type noListener struct{ net.Listener }

func (noListener) Accept() (net.Conn, error) { return nil, nil }

// noTimes is a connection without deadlines, as one through another protocol
// often is.
type noTimes struct{ network.Conn }

func (noTimes) SetDeadline(time.Time) error      { return errors.ErrUnsupported }
func (noTimes) SetReadDeadline(time.Time) error  { return errors.ErrUnsupported }
func (noTimes) SetWriteDeadline(time.Time) error { return errors.ErrUnsupported }

// udpNamed is a connection that claims to be UDP.
type udpNamed struct{ network.Conn }

func (udpNamed) LocalAddr() net.Addr  { return &net.UDPAddr{IP: net.IPv4(192, 0, 2, 2), Port: 1} }
func (udpNamed) RemoteAddr() net.Addr { return &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 80} }

// A network that returns neither a socket nor an error is a refusal.
func TestNetworkThatGivesNothing(t *testing.T) {
	t.Parallel()
	named := wire.AppendConnect(nil, wire.Connect{Endpoint: wire.Endpoint{Port: 80}, Name: []byte("server.test")})
	port := wire.Endpoint{Addr: netip.MustParseAddr("127.0.0.1")}
	nothing := foreignNetwork{
		dial:   func() (net.Conn, error) { return nil, nil },
		listen: func() (net.Listener, error) { return nil, nil },
		packet: func() (network.PacketConn, error) { return nil, nil },
	}
	for _, c := range []struct {
		name     string
		protocol uint16
		payload  []byte
	}{
		{"connect", wire.ProtocolTCPConnection, named},
		{"TLS connect", wire.ProtocolTLSConnection, wire.AppendTLSConnect(nil, wire.TLSConnect{Connect: wire.Connect{Endpoint: wire.Endpoint{Port: 80}, Name: []byte("server.test")}})},
		{"listen", wire.ProtocolTCPListener, wire.AppendListen(nil, wire.Listen{Endpoint: port})},
		{"UDP", wire.ProtocolUDP, wire.AppendUDPSocket(nil, wire.UDPSocket{Local: port})},
		{"UDP connect", wire.ProtocolUDP, wire.AppendUDPSocket(nil, wire.UDPSocket{Peer: wire.Endpoint{Addr: port.Addr, Port: 80}})},
	} {
		for name, network := range map[string]network.Network{
			"": nothing, ", policy": network.NewPolicy(nothing, []network.Rule{{Allow: true}}, nil),
		} {
			t.Run(c.name+name, func(t *testing.T) {
				t.Parallel()
				m := start(t, setup{network: network})
				if _, err := open(m.pipe(), c.protocol, c.payload); !errors.Is(err, unix.EOPNOTSUPP) {
					t.Errorf("got %v, want EOPNOTSUPP", err)
				}
				if s := m.server.Stats(); s.Panics != 0 {
					t.Error("that is a panic")
				}
			})
		}
	}
	t.Run("accept", func(t *testing.T) {
		t.Parallel()
		ln, _ := hostListener(t, "127.0.0.1:0")
		m := start(t, setup{network: foreignNetwork{listen: func() (net.Listener, error) { return noListener{ln}, nil }}})
		l, p := m.listen("127.0.0.1:0", 0), m.pipe()
		l.ask(1, p.ID())
		if _, a := l.answer(); unix.Errno(a.Status) != unix.EOPNOTSUPP {
			t.Errorf("got %v, want EOPNOTSUPP", unix.Errno(a.Status))
		}
	})
}

// A connection without deadlines ends with the guest's end, and with the
// server.
func TestConnWithoutDeadlines(t *testing.T) {
	t.Parallel()
	for name, leave := range map[string]func(*machine, *pipestest.GuestConn){
		"reset": func(_ *machine, c *pipestest.GuestConn) { c.Reset(unix.ECANCELED) },
		"close": func(_ *machine, c *pipestest.GuestConn) { c.Close() },
		"stop":  func(m *machine, _ *pipestest.GuestConn) { m.stop() },
	} {
		t.Run("TCP, "+name, func(t *testing.T) {
			t.Parallel()
			inside, outside := socketPair(t)
			m := start(t, setup{network: foreignNetwork{dial: func() (net.Conn, error) { return noTimes{inside}, nil }}})
			g := m.connect(netip.MustParseAddrPort("192.0.2.1:80"))
			if _, err := g.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			wantBytes(t, outside, []byte("hello"))
			leave(m, g)
			wantEOF(t, outside)
			m.stop()
		})
		t.Run("UDP, "+name, func(t *testing.T) {
			t.Parallel()
			inside, outside := socketPair(t)
			m := start(t, setup{network: foreignNetwork{dial: func() (net.Conn, error) { return noTimes{udpNamed{inside}}, nil }}})
			u := m.udpConnected(64<<10, netip.MustParseAddrPort("192.0.2.1:80"))
			u.send(1, netip.AddrPort{}, []byte("hello"))
			wantBytes(t, outside, []byte("hello"))
			leave(m, u.GuestConn)
			wantEOF(t, outside)
			m.stop()
		})
	}
}

// miscounting is a connection that claims to have moved another number of bytes
// than it was given.
type miscounting struct {
	network.Conn
	by int
}

func (c miscounting) Read(b []byte) (int, error)  { return len(b) + c.by, nil }
func (c miscounting) Write(b []byte) (int, error) { return len(b) + c.by, nil }

// A connection that counts wrongly ends its stream, and no other.
func TestConnThatMiscounts(t *testing.T) {
	t.Parallel()
	for name, by := range map[string]int{"more": 1, "less than nothing": -1 << 40} {
		t.Run("TCP, "+name, func(t *testing.T) {
			t.Parallel()
			inside, _ := socketPair(t)
			m := start(t, setup{network: foreignNetwork{dial: func() (net.Conn, error) { return miscounting{inside, by}, nil }}})
			g := m.pipe()
			connect := wire.Open{Protocol: wire.ProtocolTCPConnection, Payload: connectTo(netip.MustParseAddrPort("192.0.2.1:80"))}
			if _, err := g.Write(append(wire.AppendOpen(nil, 5, connect), "hello"...)); err != nil {
				t.Fatal(err)
			}
			wantReadError(t, g, unix.EIO)
			g.Reset(unix.ECANCELED)
			m.wantFree()
			if s := m.server.Stats(); s.ToGuest != 0 || s.FromGuest != 0 {
				t.Errorf("%d bytes to the guest, %d from it", s.ToGuest, s.FromGuest)
			}
		})
		t.Run("UDP, "+name, func(t *testing.T) {
			t.Parallel()
			inside, _ := socketPair(t)
			m := start(t, setup{network: foreignNetwork{dial: func() (net.Conn, error) { return miscounting{udpNamed{inside}, by}, nil }}})
			g, err := m.tryPipe(1<<20, 1<<20, 0)
			if err != nil {
				t.Fatal(err)
			}
			connect := wire.UDPSocket{Peer: at(netip.MustParseAddrPort("192.0.2.1:80"))}
			if _, err := g.Write(wire.AppendOpen(nil, 5, wire.Open{Protocol: wire.ProtocolUDP, Payload: wire.AppendUDPSocket(nil, connect)})); err != nil {
				t.Fatal(err)
			}
			wantReadError(t, g, unix.EIO)
			g.Reset(unix.ECANCELED)
			m.wantFree()
		})
	}
}

// closing counts its Closes.
type closing struct {
	net.Listener
	closes *atomic.Int32
}

func (c closing) Close() error {
	c.closes.Add(1)
	return c.Listener.Close()
}

// A listener is closed if the embedding program panics when it is told of it.
func TestOnListenPanics(t *testing.T) {
	t.Parallel()
	for _, protocol := range []uint16{wire.ProtocolTCPListener, wire.ProtocolTLSListener} {
		ln, _ := hostListener(t, "127.0.0.1:0")
		var closes atomic.Int32
		m := start(t, setup{
			network:  foreignNetwork{listen: func() (net.Listener, error) { return closing{ln, &closes}, nil }},
			onListen: func(netip.AddrPort) { panic("out of luck") },
			tls:      relay.TLS{Certificates: []tls.Certificate{networktest.NewAuthority(t).Issue(t, nil)}},
		})
		c := m.pipe()
		listen := wire.Listen{Endpoint: wire.Endpoint{Addr: netip.MustParseAddr("127.0.0.1")}}
		payload := wire.AppendListen(nil, listen)
		if protocol == wire.ProtocolTLSListener {
			payload = wire.AppendTLSListen(nil, wire.TLSListen{Listen: listen})
		}
		if _, err := c.Write(wire.AppendOpen(nil, 5, wire.Open{Protocol: protocol, Payload: payload})); err != nil {
			t.Fatal(err)
		}
		wantReadError(t, c, unix.EIO)
		c.Reset(unix.ECANCELED)
		m.wantFree()
		if closes.Load() == 0 {
			t.Errorf("protocol %d: the listener stays open", protocol)
		}
	}
}
