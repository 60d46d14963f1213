package relay_test

import (
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/network/networktest"
	"github.com/fix-project/arcavm/relay"
	"github.com/fix-project/arcavm/wire"
)

func ruleList(t testing.TB, allow bool, texts ...string) (list []network.Rule) {
	t.Helper()
	for _, text := range texts {
		r, err := network.ParseRule(allow, text)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, r)
	}
	return list
}

// wireEndpoint is an endpoint with a numeric zone as the wire carries it.
func wireEndpoint(t testing.TB, text string, scope uint32) wire.Endpoint {
	t.Helper()
	e := at(netip.MustParseAddrPort(text))
	e.Scope = scope
	return e
}

// bindings binds by each way in which a guest can.
func bindings(m *machine, e wire.Endpoint) map[string]error {
	errs := make(map[string]error)
	_, errs["UDP"] = m.tryUDP(4096, 4096, wire.UDPSocket{Local: e})
	_, errs["TCP"] = open(m.pipe(), wire.ProtocolTCPListener, wire.AppendListen(nil, wire.Listen{Endpoint: e}))
	_, errs["TLS"] = open(m.pipe(), wire.ProtocolTLSListener, wire.AppendTLSListen(nil, wire.TLSListen{Listen: wire.Listen{Endpoint: e}}))
	return errs
}

// An address that isn't one machine's can't be bound, whatever the rules; nor
// can one with a scope that has none.
func TestBindRefused(t *testing.T) {
	t.Parallel()
	a := networktest.NewAuthority(t)
	for name, network := range map[string]network.Network{
		"host":   network.Host{},
		"policy": network.NewPolicy(network.Host{}, ruleList(t, true, "*"), nil),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := start(t, setup{network: network, tls: relay.TLS{Certificates: []tls.Certificate{a.Issue(t, nil)}}})
			for _, c := range []struct {
				at    string
				scope uint32
				want  unix.Errno
			}{
				{"224.0.0.251:0", 0, unix.EADDRNOTAVAIL},
				{"239.1.2.3:0", 0, unix.EADDRNOTAVAIL},
				{"255.255.255.255:0", 0, unix.EADDRNOTAVAIL},
				{"127.255.255.255:0", 0, unix.EADDRNOTAVAIL},
				{"[::ffff:224.0.0.251]:0", 0, unix.EADDRNOTAVAIL},
				{"[::ffff:127.255.255.255]:0", 0, unix.EADDRNOTAVAIL},
				{"[ff02::fb]:0", 1, unix.EADDRNOTAVAIL},
				{"[ff02::fb]:0", 0, unix.EADDRNOTAVAIL},
				{"[ff01::1]:0", 1, unix.EADDRNOTAVAIL},
				{"[ff0e::1]:0", 0, unix.EADDRNOTAVAIL},
				{"192.0.2.77:0", 0, unix.EADDRNOTAVAIL},
				{"[::1]:0", 1, unix.EINVAL},
				{"[::]:0", 1, unix.EINVAL},
				{"[2001:db8::1]:0", 1, unix.EINVAL},
				{"[::ffff:127.0.0.1]:0", 1, unix.EINVAL},
			} {
				for by, err := range bindings(m, wireEndpoint(t, c.at, c.scope)) {
					if !errors.Is(err, c.want) {
						t.Errorf("%s at %s, scope %d: %v, want %v", by, c.at, c.scope, err, c.want)
					}
				}
			}
		})
	}
}

// published are a TCP and a UDP port of the guest at these addresses.
func published(t testing.TB, hosts ...string) (list []network.Publish) {
	t.Helper()
	for _, protocol := range []string{"tcp", "udp"} {
		for _, host := range hosts {
			list = append(list, network.Publish{Protocol: protocol, Host: netip.MustParseAddrPort(host), Guest: 80})
		}
	}
	return list
}

// A guest that listens on one family of a port is found at each address at
// which the port is published, until it listens on the other family, too.
func TestPublishedTwiceForOneListener(t *testing.T) {
	t.Parallel()
	families(t)
	for _, first := range []string{"0.0.0.0:80", "[::]:80"} {
		t.Run(first, func(t *testing.T) {
			t.Parallel()
			hosts := make(chan netip.AddrPort, 4)
			p := network.NewPolicy(network.Host{}, ruleList(t, false, "*"), published(t, "127.0.0.1:0", "[::1]:0"))
			p.OnPublish = func(_ network.Publish, host netip.AddrPort) { hosts <- host }
			m := start(t, setup{network: p})
			l := m.listen(first, 0)
			both := []netip.AddrPort{<-hosts, <-hosts}
			if both[0].Addr().Is4() == both[1].Addr().Is4() {
				t.Fatalf("published at %v", both)
			}
			reach := func(l *listening, host netip.AddrPort) {
				t.Helper()
				g := m.pipe()
				l.ask(1, g.ID())
				peer := dialed(t, host)
				if _, a := l.answer(); a.Status != 0 || a.Local.AddrPort() != l.at || a.Peer.AddrPort() != peer.LocalAddr().(*net.TCPAddr).AddrPort() {
					t.Fatalf("%+v", a)
				}
				echo(t, g, peer)
				g.Close()
			}
			for range 3 {
				reach(l, both[0])
				reach(l, both[1])
			}
			second := "[::]:80"
			if first == second {
				second = "0.0.0.0:80"
			}
			l2 := m.listen(second, 0)
			own := <-hosts
			if own.Addr() != both[1].Addr() {
				t.Errorf("%s is published at %v", second, own)
			}
			reach(l2, own)
			reach(l, both[0])
			if c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(both[1])); err == nil {
				c.Close()
				t.Errorf("%v is still listened on", both[1])
			}
			l.Close()
			l2.Close()
			m.wantFree()
			// All places are free again.
			l = m.listen(first, 0)
			both = []netip.AddrPort{<-hosts, <-hosts}
			reach(l, both[1])
			l.Close()
			m.wantFree()
		})
	}
}

// As for TCP: one UDP socket is found at each address at which its port is
// published.
func TestPublishedTwiceForOneSocket(t *testing.T) {
	t.Parallel()
	families(t)
	for _, first := range []string{"0.0.0.0:80", "[::]:80"} {
		t.Run(first, func(t *testing.T) {
			t.Parallel()
			hosts := make(chan netip.AddrPort, 8)
			p := network.NewPolicy(network.Host{}, ruleList(t, false, "*"), published(t, "0.0.0.0:0", "[::]:0"))
			p.OnPublish = func(_ network.Publish, host netip.AddrPort) { hosts <- host }
			m := start(t, setup{network: p})
			ask := func(u *udpSocket, host netip.AddrPort, at string) {
				t.Helper()
				c, addr := udpClient(t, netip.AddrPortFrom(netip.MustParseAddr(at), host.Port()))
				for i := range 3 {
					if _, err := c.Write(pattern(i, 1000)); err != nil {
						t.Fatal(err)
					}
					u.wantDatagram(addr, pattern(i, 1000))
					u.send(1, addr, pattern(i, 900))
					wantRead(t, c, pattern(i, 900))
				}
				c.Close()
			}
			loopback := func(host netip.AddrPort) []string {
				if host.Addr().Is4() {
					return []string{"127.0.0.1", "127.0.0.2"}
				}
				return []string{"::1"}
			}
			for range 2 {
				u := m.udpBound(64<<10, first)
				both := []netip.AddrPort{<-hosts, <-hosts}
				if u.local.String() != first || both[0].Addr() == both[1].Addr() {
					t.Fatalf("the guest is at %v, published at %v", u.local, both)
				}
				for _, host := range both {
					for _, at := range loopback(host) {
						ask(u, host, at)
					}
				}
				second := "[::]:80"
				if first == second {
					second = "0.0.0.0:80"
				}
				u2 := m.udpBound(64<<10, second)
				own := <-hosts
				ask(u2, own, loopback(own)[0])
				ask(u, both[0], loopback(both[0])[0])
				// This socket has lost the other family.
				to := wire.Endpoint{Addr: netip.MustParseAddr(loopback(own)[0]), Port: 9}
				u.send(7, to.AddrPort(), []byte("x"))
				u.wantError(7, unix.EAFNOSUPPORT, to.AddrPort())
				ask(u, both[0], loopback(both[0])[0])
				u2.Close()
				u.Close()
				m.wantFree()
			}
		})
	}
}
