package relay_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/relay"
	"github.com/fix-project/arcavm/relay/relaytest"
	"github.com/fix-project/arcavm/wire"
)

func ruleList(t testing.TB, allow bool, texts ...string) (list []relay.Rule) {
	t.Helper()
	for _, text := range texts {
		r, err := relay.ParseRule(allow, text)
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

// bindings are the ways in which a guest binds a socket.
func bindings(m *machine, e wire.Endpoint) map[string]error {
	errs := make(map[string]error)
	_, errs["UDP"] = m.tryUDP(4096, 4096, wire.UDPSocket{Local: e})
	_, errs["TCP"] = open(m.pipe(), wire.ProtocolTCPListener, wire.AppendListen(nil, wire.Listen{Endpoint: e}))
	_, errs["TLS"] = open(m.pipe(), wire.ProtocolTLSListener, wire.AppendTLSListen(nil, wire.TLSListen{Listen: wire.Listen{Endpoint: e}}))
	return errs
}

// An address that isn't one machine's is bound by nothing, whatever the rules;
// and a scope is for addresses that have one.
func TestBindRefused(t *testing.T) {
	t.Parallel()
	a := relaytest.NewAuthority(t)
	for name, network := range map[string]relay.Network{
		"host":   relay.Host{},
		"policy": relay.NewPolicy(relay.Host{}, ruleList(t, true, "*"), nil),
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

// elsewhere is a network that binds at other addresses than it is asked to.
type elsewhere struct {
	relay.Host
	to string
}

func (n elsewhere) Listen(ctx context.Context, network, _ string) (net.Listener, error) {
	return n.Host.Listen(ctx, network, n.to)
}

func (n elsewhere) ListenPacket(ctx context.Context, network, _ string) (relay.PacketConn, error) {
	return n.Host.ListenPacket(ctx, network, n.to)
}

// The rules judge where a socket is bound in the end.
func TestBoundIsJudged(t *testing.T) {
	t.Parallel()
	rules := append(ruleList(t, true, "in:127.0.0.1"), ruleList(t, false, "in:*")...)
	publish := []relay.Publish{
		{Protocol: "tcp", Host: netip.MustParseAddrPort("127.0.0.1:0"), Guest: 80},
		{Protocol: "udp", Host: netip.MustParseAddrPort("127.0.0.1:0"), Guest: 80},
	}
	for _, c := range []struct {
		asked, bound string
		want         error
	}{
		{"127.0.0.1:0", "127.0.0.1:0", nil},
		{"127.0.0.1:0", "0.0.0.0:0", unix.EACCES},
		{"127.0.0.1:0", "127.0.0.2:0", unix.EACCES},
		{"0.0.0.0:80", "127.0.0.1:0", nil},
		{"0.0.0.0:80", "0.0.0.0:0", unix.EADDRNOTAVAIL},
		{"0.0.0.0:80", "127.0.0.2:0", unix.EADDRNOTAVAIL},
	} {
		p := relay.NewPolicy(elsewhere{to: c.bound}, rules, publish)
		ln, err := p.Listen(t.Context(), "tcp4", c.asked)
		if err == nil {
			ln.Close()
		}
		if !errors.Is(err, c.want) {
			t.Errorf("TCP at %s, bound at %s: %v, want %v", c.asked, c.bound, err, c.want)
		}
		u, err := p.ListenPacket(t.Context(), "udp4", c.asked)
		if err == nil {
			u.Close()
		}
		if !errors.Is(err, c.want) {
			t.Errorf("UDP at %s, bound at %s: %v, want %v", c.asked, c.bound, err, c.want)
		}
	}
}

// A guest's UDP socket doesn't hear the multicast groups of other programs.
func TestBindNoForeignMulticast(t *testing.T) {
	t.Parallel()
	c, err := relay.Host{}.ListenPacket(t.Context(), "udp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		if all, err := unix.GetsockoptInt(int(fd), unix.SOL_IP, unix.IP_MULTICAST_ALL); err != nil || all != 0 {
			t.Errorf("IP_MULTICAST_ALL is %d, %v", all, err)
		}
	}); err != nil {
		t.Fatal(err)
	}
}

// localhostTaken binds a port of another program's, at loopback addresses.
func localhostTaken(t testing.TB, protocol, on string) netip.AddrPort {
	t.Helper()
	if protocol == "tcp" {
		_, at := hostListener(t, on)
		return at
	}
	_, at := hostUDP(t, on)
	return at
}

func bindBy(p *relay.Policy, protocol, at string) (interface{ Close() error }, error) {
	if protocol == "tcp" {
		return p.Listen(context.Background(), "tcp", at)
	}
	return p.ListenPacket(context.Background(), "udp", at)
}

// A guest doesn't get the clients of localhost that another program has by
// the other family, unless a rule says so. Its own sockets are no others.
func TestLocalhostOfAnotherFamily(t *testing.T) {
	t.Parallel()
	families(t)
	for _, protocol := range []string{"tcp", "udp"} {
		for _, c := range []struct {
			taken  string
			guest  []string // without a port
			allow  string
			denied bool
		}{
			{"127.0.0.1:0", []string{"[::1]", "[::]"}, "", true},
			{"[::1]:0", []string{"127.0.0.1", "0.0.0.0"}, "", true},
			{"0.0.0.0:0", []string{"[::1]", "[::]"}, "", true},
			{"[::1]:0", []string{"127.0.0.2"}, "", false},
			{"127.0.0.2:0", []string{"[::1]"}, "", false},
			{"127.0.0.1:0", []string{"[::1]"}, "in:[::1]", false},
			{"127.0.0.1:0", []string{"[::]"}, "*", false},
		} {
			taken := localhostTaken(t, protocol, c.taken)
			_, port, _ := net.SplitHostPort(taken.String())
			for _, guest := range c.guest {
				var rules []relay.Rule
				if c.allow != "" {
					rules = ruleList(t, true, c.allow)
				}
				s, err := bindBy(relay.NewPolicy(relay.Host{}, rules, nil), protocol, guest+":"+port)
				if err == nil {
					s.Close()
				}
				if errors.Is(err, unix.EADDRINUSE) != c.denied || !c.denied && err != nil {
					t.Errorf("%s at %s, taken at %v: %v, want refused %v", protocol, guest, taken, err, c.denied)
				}
			}
		}
	}
}

// A guest may have localhost by both families, one after the other and again.
func TestLocalhostOfOneGuest(t *testing.T) {
	t.Parallel()
	families(t)
	for _, protocol := range []string{"tcp", "udp"} {
		p := relay.NewPolicy(relay.Host{}, nil, nil)
		// The port is free in both families, as a policy chose it.
		first, err := bindBy(p, protocol, "[::1]:0")
		if err != nil {
			t.Fatal(err)
		}
		var port string
		switch s := first.(type) {
		case net.Listener:
			_, port, _ = net.SplitHostPort(s.Addr().String())
		case relay.PacketConn:
			_, port, _ = net.SplitHostPort(s.LocalAddr().String())
		}
		for range 3 {
			second, err := bindBy(p, protocol, "127.0.0.1:"+port)
			if err != nil {
				t.Fatalf("%s: beside its own at [::1]:%s: %v", protocol, port, err)
			}
			if s, err := bindBy(relay.NewPolicy(relay.Host{}, nil, nil), protocol, "0.0.0.0:"+port); !errors.Is(err, unix.EADDRINUSE) {
				t.Errorf("%s: another guest beside it: %v", protocol, err)
				s.Close()
			}
			first.Close()
			if first, err = bindBy(p, protocol, "[::1]:"+port); err != nil {
				t.Fatalf("%s: again: %v", protocol, err)
			}
			second.Close()
		}
		first.Close()
	}
}

// crowded is a network where another program has most ports of localhost.
type crowded struct {
	relay.Host
	asked *[]uint16
}

func (n crowded) InUse(_ string, at netip.AddrPort) bool {
	*n.asked = append(*n.asked, at.Port())
	return len(*n.asked) < 5 || len(*n.asked) > 10
}

// A port that the host chooses isn't another program's by the other family.
func TestLocalhostFreePort(t *testing.T) {
	t.Parallel()
	for _, protocol := range []string{"tcp", "udp"} {
		var asked []uint16
		p := relay.NewPolicy(crowded{asked: &asked}, nil, nil)
		s, err := bindBy(p, protocol, "127.0.0.1:0")
		if err != nil || len(asked) != 5 {
			t.Fatalf("%s: %v, after %d ports", protocol, err, len(asked))
		}
		s.Close()
		asked = slices.Repeat([]uint16{0}, 10)
		if _, err := bindBy(p, protocol, "127.0.0.1:0"); !errors.Is(err, unix.EADDRINUSE) || len(asked) > 100 {
			t.Errorf("%s, when no port is free: %v, after %d ports", protocol, err, len(asked)-10)
		}
	}
}

// published are a TCP and a UDP port of the guest at these addresses.
func published(t testing.TB, hosts ...string) (list []relay.Publish) {
	t.Helper()
	for _, protocol := range []string{"tcp", "udp"} {
		for _, host := range hosts {
			list = append(list, relay.Publish{Protocol: protocol, Host: netip.MustParseAddrPort(host), Guest: 80})
		}
	}
	return list
}

// A guest listens on both families of a port that is published for one, in
// either order, and again: the first is found there.
func TestPublishedBothFamilies(t *testing.T) {
	t.Parallel()
	families(t)
	for _, protocol := range []string{"tcp", "udp"} {
		for _, host := range []string{"127.0.0.1:0", "[::1]:0"} {
			for _, guest := range [][]string{
				{"0.0.0.0:80", "[::]:80"}, {"[::]:80", "0.0.0.0:80"}, {"127.0.0.1:80", "127.0.0.2:80"},
			} {
				// A port of the host that is free.
				free, err := bindBy(relay.NewPolicy(relay.Host{}, nil, nil), protocol, host)
				if err != nil {
					t.Fatal(err)
				}
				at := hostAddr(free)
				free.Close()
				p := relay.NewPolicy(relay.Host{}, ruleList(t, false, "*"), published(t, at.String()))
				var told []netip.AddrPort
				p.OnPublish = func(_ relay.Publish, host netip.AddrPort) { told = append(told, host) }
				for round := range 2 {
					first, err := bindBy(p, protocol, guest[0])
					if err != nil {
						t.Fatalf("%s published at %v, guest at %s: %v", protocol, at, guest[0], err)
					}
					if len(told) != round+1 || told[round] != at {
						t.Errorf("published at %v: %v is told", at, told)
					}
					second, err := bindBy(p, protocol, guest[1])
					if err != nil {
						t.Fatalf("%s published at %v, guest at %s, then at %s: %v", protocol, at, guest[0], guest[1], err)
					}
					for _, again := range guest {
						if s, err := bindBy(p, protocol, again); !errors.Is(err, unix.EADDRINUSE) {
							t.Errorf("%s, the guest at %s twice: %v", protocol, again, err)
							if err == nil {
								s.Close()
							}
						}
					}
					first.Close()
					second.Close()
				}
			}
		}
	}
}

// hostAddr is where a socket is bound on the host.
func hostAddr(s any) netip.AddrPort {
	switch s := s.(type) {
	case interface{ Addr() net.Addr }:
		return s.Addr().(interface{ AddrPort() netip.AddrPort }).AddrPort()
	case interface{ NetPacketConn() relay.PacketConn }:
		return hostAddr(s.NetPacketConn())
	default:
		return s.(net.PacketConn).LocalAddr().(interface{ AddrPort() netip.AddrPort }).AddrPort()
	}
}

// A port that is published by both families is found at each, by the guest's
// socket of that family.
func TestPublishedByBothFamilies(t *testing.T) {
	t.Parallel()
	families(t)
	for _, protocol := range []string{"tcp", "udp"} {
		p := relay.NewPolicy(relay.Host{}, ruleList(t, false, "*"), published(t, "127.0.0.1:0", "[::1]:0"))
		for _, guest := range []struct{ at, host string }{{"[::]:80", "::1"}, {"0.0.0.0:80", "127.0.0.1"}} {
			s, err := bindBy(p, protocol, guest.at)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if at := hostAddr(s); at.Addr().String() != guest.host {
				t.Errorf("%s at %s is at %v", protocol, guest.at, at)
			}
		}
	}
}

// A guest that listens on one family of a port is found at each address that it
// is published at, until it listens on the other family, too.
func TestPublishedTwiceForOneListener(t *testing.T) {
	t.Parallel()
	families(t)
	for _, first := range []string{"0.0.0.0:80", "[::]:80"} {
		t.Run(first, func(t *testing.T) {
			t.Parallel()
			hosts := make(chan netip.AddrPort, 4)
			p := relay.NewPolicy(relay.Host{}, ruleList(t, false, "*"), published(t, "127.0.0.1:0", "[::1]:0"))
			p.OnPublish = func(_ relay.Publish, host netip.AddrPort) { hosts <- host }
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

// A host address that is another program's fails the whole bind.
func TestPublishedTwiceTaken(t *testing.T) {
	t.Parallel()
	families(t)
	_, taken := hostListener(t, "[::1]:0")
	p := relay.NewPolicy(relay.Host{}, nil, published(t, "127.0.0.1:0", taken.String()))
	for range 2 {
		if ln, err := p.Listen(t.Context(), "tcp4", "0.0.0.0:80"); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("%v, %v", ln, err)
		}
	}
}

// As for TCP: one UDP socket is found at each address that its port is
// published at.
func TestPublishedTwiceForOneSocket(t *testing.T) {
	t.Parallel()
	families(t)
	for _, first := range []string{"0.0.0.0:80", "[::]:80"} {
		t.Run(first, func(t *testing.T) {
			t.Parallel()
			hosts := make(chan netip.AddrPort, 8)
			p := relay.NewPolicy(relay.Host{}, ruleList(t, false, "*"), published(t, "0.0.0.0:0", "[::]:0"))
			p.OnPublish = func(_ relay.Publish, host netip.AddrPort) { hosts <- host }
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
				// What was the other side isn't this socket's any more.
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
