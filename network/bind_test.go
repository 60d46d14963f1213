package network_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
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

// elsewhere is a network that binds at other addresses than it is asked to.
type elsewhere struct {
	network.Host
	to string
}

func (n elsewhere) Listen(ctx context.Context, network, _ string) (net.Listener, error) {
	return n.Host.Listen(ctx, network, n.to)
}

func (n elsewhere) ListenPacket(ctx context.Context, network, _ string) (network.PacketConn, error) {
	return n.Host.ListenPacket(ctx, network, n.to)
}

// The rules judge where a socket is bound in the end.
func TestBoundIsJudged(t *testing.T) {
	t.Parallel()
	rules := append(ruleList(t, true, "in:127.0.0.1"), ruleList(t, false, "in:*")...)
	publish := []network.Publish{
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
		p := network.NewPolicy(elsewhere{to: c.bound}, rules, publish)
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
	c, err := network.Host{}.ListenPacket(t.Context(), "udp4", "0.0.0.0:0")
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
		l, err := net.Listen("tcp", on)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return hostAddr(l)
	}
	c, err := net.ListenPacket("udp", on)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return hostAddr(c)
}

func bindBy(p *network.Policy, protocol, at string) (interface{ Close() error }, error) {
	if protocol == "tcp" {
		return p.Listen(context.Background(), "tcp", at)
	}
	return p.ListenPacket(context.Background(), "udp", at)
}

// A guest doesn't get the clients of localhost that another program has in the
// other family, unless a rule allows the bind. The guest's own sockets don't
// count as another program's.
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
				var rules []network.Rule
				if c.allow != "" {
					rules = ruleList(t, true, c.allow)
				}
				s, err := bindBy(network.NewPolicy(network.Host{}, rules, nil), protocol, guest+":"+port)
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

// A guest may have localhost in both families, one after the other and again.
func TestLocalhostOfOneGuest(t *testing.T) {
	t.Parallel()
	families(t)
	for _, protocol := range []string{"tcp", "udp"} {
		p := network.NewPolicy(network.Host{}, nil, nil)
		// The port is free in both families, as a policy chose it.
		first, err := bindBy(p, protocol, "[::1]:0")
		if err != nil {
			t.Fatal(err)
		}
		var port string
		switch s := first.(type) {
		case net.Listener:
			_, port, _ = net.SplitHostPort(s.Addr().String())
		case network.PacketConn:
			_, port, _ = net.SplitHostPort(s.LocalAddr().String())
		}
		for range 3 {
			second, err := bindBy(p, protocol, "127.0.0.1:"+port)
			if err != nil {
				t.Fatalf("%s: beside its own at [::1]:%s: %v", protocol, port, err)
			}
			if s, err := bindBy(network.NewPolicy(network.Host{}, nil, nil), protocol, "0.0.0.0:"+port); !errors.Is(err, unix.EADDRINUSE) {
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
	network.Host
	asked *[]uint16
}

func (n crowded) InUse(_ string, at netip.AddrPort) bool {
	*n.asked = append(*n.asked, at.Port())
	return len(*n.asked) < 5 || len(*n.asked) > 10
}

// A port that the host chooses isn't another program's in the other family.
func TestLocalhostFreePort(t *testing.T) {
	t.Parallel()
	for _, protocol := range []string{"tcp", "udp"} {
		var asked []uint16
		p := network.NewPolicy(crowded{asked: &asked}, nil, nil)
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
func published(t testing.TB, hosts ...string) (list []network.Publish) {
	t.Helper()
	for _, protocol := range []string{"tcp", "udp"} {
		for _, host := range hosts {
			list = append(list, network.Publish{Protocol: protocol, Host: netip.MustParseAddrPort(host), Guest: 80})
		}
	}
	return list
}

// A guest listens on both families of a port that is published for one, in
// either order, and again. The first listener is found there.
func TestPublishedBothFamilies(t *testing.T) {
	t.Parallel()
	families(t)
	for _, protocol := range []string{"tcp", "udp"} {
		for _, host := range []string{"127.0.0.1:0", "[::1]:0"} {
			for _, guest := range [][]string{
				{"0.0.0.0:80", "[::]:80"}, {"[::]:80", "0.0.0.0:80"}, {"127.0.0.1:80", "127.0.0.2:80"},
			} {
				// A port of the host that is free.
				free, err := bindBy(network.NewPolicy(network.Host{}, nil, nil), protocol, host)
				if err != nil {
					t.Fatal(err)
				}
				at := hostAddr(free)
				free.Close()
				p := network.NewPolicy(network.Host{}, ruleList(t, false, "*"), published(t, at.String()))
				var told []netip.AddrPort
				p.OnPublish = func(_ network.Publish, host netip.AddrPort) { told = append(told, host) }
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
	case interface{ NetPacketConn() network.PacketConn }:
		return hostAddr(s.NetPacketConn())
	default:
		return s.(net.PacketConn).LocalAddr().(interface{ AddrPort() netip.AddrPort }).AddrPort()
	}
}

// A port that is published by both families is found at each, as the guest's
// socket of that family.
func TestPublishedByBothFamilies(t *testing.T) {
	t.Parallel()
	families(t)
	for _, protocol := range []string{"tcp", "udp"} {
		p := network.NewPolicy(network.Host{}, ruleList(t, false, "*"), published(t, "127.0.0.1:0", "[::1]:0"))
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

// A host address that another program has fails the whole bind.
func TestPublishedTwiceTaken(t *testing.T) {
	t.Parallel()
	families(t)
	taken := localhostTaken(t, "tcp", "[::1]:0")
	p := network.NewPolicy(network.Host{}, nil, published(t, "127.0.0.1:0", taken.String()))
	for range 2 {
		if ln, err := p.Listen(t.Context(), "tcp4", "0.0.0.0:80"); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("%v, %v", ln, err)
		}
	}
}

// families skips the test on a machine without IPv6.
func families(t testing.TB) {
	t.Helper()
	c, err := net.ListenPacket("udp6", "[::1]:0")
	if err != nil {
		t.Skip("this machine has no IPv6: ", err)
	}
	c.Close()
}
