package relay_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/wire"
)

// udpClient is a connected socket outside of the guest. It receives only from
// the address that it is connected to.
func udpClient(t testing.TB, to netip.AddrPort) (*net.UDPConn, netip.AddrPort) {
	t.Helper()
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	deadline(t, c)
	return c, c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// wantRead reads a datagram of a connected socket.
func wantRead(t testing.TB, c *net.UDPConn, want []byte) {
	t.Helper()
	b := make([]byte, len(want)+1)
	if n, err := c.Read(b); err != nil || !bytes.Equal(b[:n], want) {
		t.Errorf("%v asked %v, and got %q, %v; want %q", c.LocalAddr(), c.RemoteAddr(), b[:n], err, want)
	}
}

// addressed opens a guest's socket that asks for local addresses.
func (m *machine) addressed(on string) *udpSocket {
	m.t.Helper()
	u, err := m.tryUDP(64<<10, 64<<10, wire.UDPSocket{Local: at(netip.MustParseAddrPort(on)), Addressed: true})
	if err != nil {
		m.t.Fatal(err)
	}
	return u
}

// receiveAt is receive for such a socket.
func (u *udpSocket) receiveAt() wire.ReceivedDatagramAt {
	u.t.Helper()
	h, p, err := receive(u)
	if err != nil {
		u.t.Fatal(err)
	}
	d, err := wire.DecodeReceivedDatagramAt(p)
	if h.Kind != wire.KindReceivedDatagramAt || err != nil {
		u.t.Fatalf("got %v % x, %v", h.Kind, p, err)
	}
	return d
}

func (u *udpSocket) sendFrom(request uint64, to, from wire.Endpoint, data []byte) {
	u.t.Helper()
	m := wire.SendDatagramFrom{SendDatagram: wire.SendDatagram{To: to, Data: data}, From: from}
	if _, err := u.Write(wire.AppendSendDatagramFrom(nil, request, m)); err != nil {
		u.t.Fatal(err)
	}
}

// A guest that doesn't know of local addresses answers from the one that was
// asked, in whatever way its socket is bound to all of them.
func TestUDPAnswersFromWhereAsked(t *testing.T) {
	t.Parallel()
	addresses := map[string][]string{"0.0.0.0": {"127.0.0.1", "127.0.0.2", "127.9.8.7"}, "::": {"::1"}}
	families(t)
	for host, asked := range addresses {
		for _, published := range []bool{false, true} {
			t.Run(fmt.Sprint(host, " published ", published), func(t *testing.T) {
				t.Parallel()
				var list []network.Publish
				to := make(chan netip.AddrPort, 1)
				all := netip.AddrPortFrom(netip.MustParseAddr(host), 0)
				if published {
					list = []network.Publish{{Protocol: "udp", Host: all, Guest: 53}}
				}
				policy := network.NewPolicy(network.Host{}, nil, list)
				policy.OnPublish = func(_ network.Publish, host netip.AddrPort) { to <- host }
				m := start(t, setup{network: policy})
				var u *udpSocket
				if published {
					u = m.udpBound(64<<10, netip.AddrPortFrom(all.Addr(), 53).String())
				} else {
					u = m.udpBound(64<<10, all.String())
					to <- u.local
				}
				port := (<-to).Port()
				type client struct {
					*net.UDPConn
					addr netip.AddrPort
				}
				var clients []client
				for _, a := range asked {
					for range 3 {
						c, addr := udpClient(t, netip.AddrPortFrom(netip.MustParseAddr(a), port))
						clients = append(clients, client{c, addr})
					}
				}
				for round := range 5 {
					for i, c := range clients {
						if _, err := c.Write(pattern(100*round+i, 50)); err != nil {
							t.Fatal(err)
						}
						u.wantDatagram(c.addr, pattern(100*round+i, 50))
					}
					for i, c := range clients {
						u.send(1, c.addr, pattern(i, 30))
						wantRead(t, c.UDPConn, pattern(i, 30))
					}
				}
			})
		}
	}
}

// A peer that asks at another address is answered from there.
func TestUDPAnswersAfterChange(t *testing.T) {
	t.Parallel()
	m := start(t, setup{})
	u := m.udpBound(64<<10, "0.0.0.0:0")
	peer, from := hostUDP(t, "127.0.0.1:0")
	for i := range 20 {
		asked := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, byte(1 + i%3)}), u.local.Port())
		sendTo(t, peer, asked, pattern(i, 10))
		u.wantDatagram(from, pattern(i, 10))
		u.send(1, from, pattern(i, 20))
		if answered := wantReceived(t, peer, pattern(i, 20)); answered != asked {
			t.Errorf("asked %v, answered from %v", asked, answered)
		}
	}
}

// A bounded number of peers is remembered, the latest ones.
func TestUDPRemembersPeers(t *testing.T) {
	t.Parallel()
	m := start(t, setup{})
	u := m.udpBound(64<<10, "0.0.0.0:0")
	asked := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), u.local.Port())
	for range 3 {
		var clients []*net.UDPConn
		var addrs []netip.AddrPort
		for range 200 {
			c, addr := udpClient(t, asked)
			if _, err := c.Write([]byte("question")); err != nil {
				t.Fatal(err)
			}
			u.wantDatagram(addr, []byte("question"))
			clients, addrs = append(clients, c), append(addrs, addr)
		}
		for i, c := range clients {
			u.send(1, addrs[i], []byte("answer"))
			wantRead(t, c, []byte("answer"))
			c.Close()
		}
	}
}

// A guest that asks for it is told the local address of each datagram, and
// names the address that its own go from.
func TestUDPAddressed(t *testing.T) {
	t.Parallel()
	families(t)
	for all, list := range map[string][]string{"0.0.0.0:0": {"127.0.0.1", "127.0.0.2", "127.9.8.7"}, "[::]:0": {"::1"}} {
		m := start(t, setup{})
		u := m.addressed(all)
		for i, a := range list {
			asked := netip.AddrPortFrom(netip.MustParseAddr(a), u.local.Port())
			c, addr := udpClient(t, asked)
			for range 3 {
				if _, err := c.Write(pattern(i, 900)); err != nil {
					t.Fatal(err)
				}
				d := u.receiveAt()
				if d.From.AddrPort() != addr || d.Local.AddrPort() != asked || d.Size != 900 || !bytes.Equal(d.Data, pattern(i, 900)) {
					t.Fatalf("%d bytes from %v to %v, want those from %v to %v", d.Size, d.From.AddrPort(), d.Local.AddrPort(), addr, asked)
				}
				u.sendFrom(1, d.From, d.Local, pattern(i, 700))
				wantRead(t, c, pattern(i, 700))
				d.Local.Port = 0
				u.sendFrom(1, d.From, d.Local, nil)
				wantRead(t, c, nil)
			}
		}
		host, to := hostUDP(t, netip.AddrPortFrom(netip.MustParseAddr(list[0]), 0).String())
		for _, a := range list {
			// The guest sends first.
			from := netip.AddrPortFrom(netip.MustParseAddr(a), u.local.Port())
			u.sendFrom(1, at(to), at(from), []byte("hello"))
			if got := wantReceived(t, host, []byte("hello")); got != from {
				t.Errorf("sent from %v, came from %v", from, got)
			}
		}
		u.sendFrom(1, at(to), wire.Endpoint{}, []byte("any"))
		wantReceived(t, host, []byte("any"))
		u.sendFrom(1, at(to), at(u.local), []byte("any"))
		wantReceived(t, host, []byte("any"))
	}
}

// A socket that is bound to one address, or connected, has that address only,
// and its guest is told that.
func TestUDPAddressedBound(t *testing.T) {
	t.Parallel()
	m := start(t, setup{})
	u := m.addressed("127.0.0.2:0")
	host, to := hostUDP(t, "127.0.0.1:0")
	sendTo(t, host, u.local, []byte("question"))
	if d := u.receiveAt(); d.Local.AddrPort() != u.local || string(d.Data) != "question" {
		t.Errorf("%q came to %v, want %v", d.Data, d.Local.AddrPort(), u.local)
	}
	u.sendFrom(1, at(to), at(u.local), []byte("answer"))
	if from := wantReceived(t, host, []byte("answer")); from != u.local {
		t.Errorf("from %v", from)
	}
	c, err := m.tryUDP(4096, 4096, wire.UDPSocket{Peer: at(to), Addressed: true})
	if err != nil {
		t.Fatal(err)
	}
	sendTo(t, host, c.local, []byte("question"))
	if d := c.receiveAt(); d.Local.AddrPort() != c.local {
		t.Errorf("%q came to %v, want %v", d.Data, d.Local.AddrPort(), c.local)
	}
	c.sendFrom(1, wire.Endpoint{}, at(c.local), []byte("answer"))
	wantReceived(t, host, []byte("answer"))
}

// A guest on a published port isn't told the host's address.
func TestUDPAddressedPublished(t *testing.T) {
	t.Parallel()
	policy := network.NewPolicy(network.Host{}, nil, []network.Publish{{Protocol: "udp", Host: netip.MustParseAddrPort("0.0.0.0:0"), Guest: 53}})
	to := make(chan netip.AddrPort, 1)
	policy.OnPublish = func(_ network.Publish, host netip.AddrPort) { to <- host }
	m := start(t, setup{network: policy})
	u := m.addressed("10.1.2.3:53")
	port := (<-to).Port()
	for _, a := range []string{"127.0.0.1", "127.0.0.2", "127.0.0.1"} {
		c, _ := udpClient(t, netip.AddrPortFrom(netip.MustParseAddr(a), port))
		if _, err := c.Write([]byte("question")); err != nil {
			t.Fatal(err)
		}
		d := u.receiveAt()
		if d.Local.AddrPort() != u.local || u.local.String() != "10.1.2.3:53" {
			t.Errorf("the guest is told %v", d.Local.AddrPort())
		}
		u.sendFrom(1, d.From, d.Local, []byte("answer"))
		wantRead(t, c, []byte("answer"))
	}
}

// A datagram from a source that the socket doesn't have is answered with an
// errno.
func TestUDPSourceErrors(t *testing.T) {
	t.Parallel()
	families(t)
	m := start(t, setup{})
	host, to := hostUDP(t, "127.0.0.1:0")
	all, one, six := m.udpBound(64<<10, "0.0.0.0:0"), m.udpBound(64<<10, "127.0.0.1:0"), m.udpBound(64<<10, "[::]:0")
	source := func(a string, port uint16) wire.Endpoint {
		return at(netip.AddrPortFrom(netip.MustParseAddr(a), port))
	}
	scoped := source("::1", 0)
	scoped.Scope = 1
	for i, c := range []struct {
		on   *udpSocket
		from wire.Endpoint
	}{
		{all, source("192.0.2.77", 0)},
		{all, source("224.0.0.1", 0)},
		{all, source("127.0.0.2", all.local.Port()+1)},
		{all, source("0.0.0.0", all.local.Port()+1)},
		{all, source("::1", 0)},
		{one, source("127.0.0.2", 0)},
		{one, source("192.0.2.77", 0)},
		{one, source("::1", 0)},
		{six, source("2001:db8::77", 0)},
		{six, scoped},
		{six, source("127.0.0.1", 0)},
	} {
		dest := to
		if c.on == six {
			dest = netip.MustParseAddrPort("[::1]:9")
		}
		c.on.sendFrom(uint64(10+i), at(dest), c.from, []byte("x"))
		c.on.wantError(uint64(10+i), unix.EADDRNOTAVAIL, dest)
	}
	all.sendFrom(1, at(to), source("127.0.0.3", 0), []byte("still"))
	wantReceived(t, host, []byte("still"))
}

// Moving a datagram doesn't allocate, whatever is remembered of addresses.
func TestUDPLocalNoAllocations(t *testing.T) {
	m := start(t, setup{quiet: true})
	u := m.udpBound(64<<10, "0.0.0.0:0")
	peers := make([]*net.UDPConn, 2)
	addrs := make([]netip.AddrPort, 2)
	for i := range peers {
		peers[i], addrs[i] = udpClient(t, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, byte(i + 1)}), u.local.Port()))
	}
	in := make([]byte, wire.HeaderSize+wire.ReceivedDatagramPrefixSize+1400)
	out := make([]byte, 1400)
	frames := [2][]byte{}
	for i, a := range addrs {
		frames[i] = wire.AppendSendDatagram(nil, 1, wire.SendDatagram{To: at(a), Data: out})
	}
	if n := testing.AllocsPerRun(500, func() {
		for i, c := range peers {
			c.Write(out)
			if _, err := io.ReadFull(u, in); err != nil {
				t.Fatal(err)
			}
			u.Write(frames[i])
			if n, err := c.Read(out); err != nil || n != len(out) {
				t.Fatal(n, err)
			}
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkUDPRoundTripAnyAddress(b *testing.B) {
	m := start(b, setup{quiet: true})
	u := m.udpBound(64<<10, "0.0.0.0:0")
	host, to := hostUDP(b, "127.0.0.1:0")
	u.SetDeadline(time.Time{})
	host.SetDeadline(time.Time{})
	frame := wire.AppendSendDatagram(nil, 1, wire.SendDatagram{To: at(to), Data: make([]byte, 1400)})
	in := make([]byte, wire.HeaderSize+wire.ReceivedDatagramPrefixSize+1400)
	for b.Loop() {
		u.Write(frame)
		n, from, err := host.ReadFromUDPAddrPort(in)
		if err != nil {
			b.Fatal(err)
		}
		host.WriteToUDPAddrPort(in[:n], from)
		if _, err := io.ReadFull(u, in); err != nil {
			b.Fatal(err)
		}
	}
}
