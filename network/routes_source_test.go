package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/internal/netns"
)

// asks counts how often routes ask the kernel.
type asks struct {
	Host
	routes  *kernelRoutes
	counted int // connects and datagrams
}

func newAsks(t *testing.T) *asks {
	t.Helper()
	r, err := Host{}.Routes()
	if err != nil {
		t.Fatal(err)
	}
	return &asks{routes: r.(*kernelRoutes)}
}

func (a *asks) Routes() (Routes, error) { return a.routes, nil }

// want runs do, which may ask the kernel atMost times. The run doesn't count if
// something has changed meanwhile, as interfaces do for some seconds after
// their start: a change costs one more round trip.
func (a *asks) want(t *testing.T, what string, atMost uint32, do func()) {
	t.Helper()
	a.routes.look()
	before, version := a.routes.sequence, a.routes.version.Load()
	do()
	a.routes.look()
	if a.routes.version.Load() != version {
		return
	}
	a.counted++
	if n := a.routes.sequence - before; n > atMost {
		t.Errorf("%s asked for %d routes, want at most %d", what, n, atMost)
	}
}

// dial connects by a policy, which may ask the kernel atMost times.
func (a *asks) dial(t *testing.T, p *Policy, kind, to string, atMost uint32) {
	t.Helper()
	a.want(t, kind+" to "+to, atMost, func() {
		c, err := p.DialContext(t.Context(), kind, to)
		if err != nil {
			t.Errorf("%s to %s: %v", kind, to, err)
			return
		}
		c.Close()
	})
}

// A connect to a new destination asks the kernel once, though it is judged
// before and after. A second one, from another port, doesn't ask.
func TestOneRoundTripForEachConnect(t *testing.T) {
	if !netns.Inside(t) {
		return
	}
	netns.NewHost(t)
	a := newAsks(t)
	p := NewPolicy(a, nil, nil)
	// What depends on the source is found out for each family once.
	for _, first := range []string{"10.9.0.2:9", "[2001:db8:9::2]:9"} {
		a.dial(t, p, "udp", first, 1+2)
	}
	for port := range 20 {
		for _, host := range []string{"10.9.0.3", "[2001:db8:9::3]"} {
			to := fmt.Sprintf("%s:%d", host, 100+port)
			a.want(t, "two connects to "+to, 1, func() {
				for range 2 {
					c, err := p.DialContext(t.Context(), "udp", to)
					if err != nil {
						t.Fatal(err)
					}
					c.Close()
				}
			})
		}
	}
	// An address of the host whose connections have another source: a rule for
	// a name isn't enough for it, so that the kernel is asked.
	ln, err := net.Listen("tcp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	named := NewPolicy(a, rules(t, "allow own.test", "allow 10.78.1.2"), nil)
	at := netip.MustParseAddrPort(fmt.Sprint("10.78.1.2:", ln.Addr().(*net.TCPAddr).Port))
	q := request{direction: Out, protocol: "tcp", name: "own.test", at: at}
	for range 2 {
		a.want(t, "a connect to an own address", 1, func() {
			if err := named.check(q); err != nil {
				t.Fatal(err)
			}
			c, err := named.connect(t.Context(), "tcp", q)
			if err != nil {
				t.Fatal(err)
			}
			Abandon(c)
		})
	}
	// Datagrams to one destination from several sockets ask once, too.
	a.want(t, "datagrams to one destination", 1, func() {
		for range 3 {
			c, err := p.ListenPacket(t.Context(), "udp4", "10.9.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.WriteToUDPAddrPort([]byte("x"), netip.MustParseAddrPort("10.9.0.3:9")); err != nil {
				t.Error(err)
			}
			c.Close()
		}
	})
	if a.counted < 20 {
		t.Errorf("only %d were counted: the routes change all the time", a.counted)
	}
}

// A rule of the kernel, or a route, that looks at the source counts from the
// moment in which it is made, and until it is removed: a destination is the
// host's own by it for connections from one of the host's addresses.
func TestSourceMattersLater(t *testing.T) {
	if !netns.Inside(t) {
		return
	}
	near := netns.NewHost(t)
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	const table, sourcePort = 200, 7171
	const to4, to6, to6route = "10.83.1.1:9", "[2001:db8:83::1]:9", "[2001:db8:86::1]:9"
	for _, n := range []string{"10.83.0.0/16", "2001:db8:83::/48"} {
		target := netns.Net(n)
		via, scope := net.IPv4(10, 9, 0, 2), netlink.SCOPE_HOST
		if target.IP.To4() == nil {
			via, scope = net.ParseIP("2001:db8:9::2"), netlink.SCOPE_UNIVERSE
		}
		for _, r := range []netlink.Route{
			{LinkIndex: lo.Attrs().Index, Type: unix.RTN_LOCAL, Table: table, Scope: scope, Dst: target},
			{LinkIndex: near.Attrs().Index, Dst: target, Gw: via},
		} {
			if err := netlink.RouteAdd(&r); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: near.Attrs().Index, Dst: netns.Net("2001:db8:86::/48"), Gw: net.ParseIP("2001:db8:9::2")}); err != nil {
		t.Fatal(err)
	}
	a := newAsks(t)
	p := NewPolicy(a, nil, nil)
	fixed, err := p.ListenPacket(t.Context(), "udp4", fmt.Sprint("0.0.0.0:", sourcePort))
	if err != nil {
		t.Fatal(err)
	}
	defer fixed.Close()
	reach := map[string]func() error{
		"a socket's port": func() error {
			_, err := fixed.WriteToUDPAddrPort([]byte("x"), netip.MustParseAddrPort(to4))
			return err
		},
	}
	for _, to := range []string{to4, to6, to6route} {
		reach[to] = func() error {
			c, err := p.DialContext(t.Context(), "udp", to)
			if err == nil {
				c.Close()
			}
			return err
		}
	}
	rule := func(family int, set func(*netlink.Rule)) *netlink.Rule {
		r := netlink.NewRule()
		r.Table, r.Family, r.Priority = table, family, 60
		set(r)
		return r
	}
	rule4 := rule(unix.AF_INET, func(r *netlink.Rule) { r.Src = netns.Net("10.9.0.1/32") })
	rule6 := rule(unix.AF_INET6, func(r *netlink.Rule) { r.Src = netns.Net("2001:db8:9::1/128") })
	ports := rule(unix.AF_INET, func(r *netlink.Rule) { r.Sport = netlink.NewRulePortRange(sourcePort, sourcePort) })
	route6 := func(add bool) error { return sourceRoute(lo.Attrs().Index, add) }
	for name, c := range map[string]struct {
		make, unmake func() error
		own          string // of reach
	}{
		"an IPv4 rule for an address": {func() error { return netlink.RuleAdd(rule4) }, func() error { return netlink.RuleDel(rule4) }, to4},
		"an IPv6 rule for an address": {func() error { return netlink.RuleAdd(rule6) }, func() error { return netlink.RuleDel(rule6) }, to6},
		"a rule for a port":           {func() error { return netlink.RuleAdd(ports) }, func() error { return netlink.RuleDel(ports) }, "a socket's port"},
		"a route for an address":      {func() error { return route6(true) }, func() error { return route6(false) }, to6route},
	} {
		for range 3 {
			for to, try := range reach {
				if err := try(); err != nil {
					t.Errorf("before %s, %s: %v", name, to, err)
				}
			}
			if err := c.make(); err != nil {
				// Without CONFIG_IPV6_SUBTREES there are no such routes.
				if name != "a route for an address" || !errors.Is(err, unix.EINVAL) {
					t.Fatalf("%s: %v", name, err)
				}
				t.Logf("%s: %v", name, err)
				break
			}
			for to, try := range reach {
				if err := try(); errors.Is(err, unix.EACCES) != (to == c.own) {
					t.Errorf("with %s, %s: %v", name, to, err)
				}
			}
			if err := c.unmake(); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		for to, try := range reach {
			if err := try(); err != nil {
				t.Errorf("after %s, %s: %v", name, to, err)
			}
		}
	}
	// Then one round trip is enough again.
	a.dial(t, p, "udp", "10.9.0.4:4", 1)
	a.dial(t, p, "udp", "[2001:db8:9::4]:4", 1)
}

// sourceRoute adds or removes a route of IPv6, to this machine, for one source.
func sourceRoute(link int, add bool) error {
	kind, flags := unix.RTM_DELROUTE, unix.NLM_F_ACK
	if add {
		kind, flags = unix.RTM_NEWROUTE, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL
	}
	q := nl.NewNetlinkRequest(kind, flags)
	q.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{
		Family: unix.AF_INET6, Dst_len: 48, Src_len: 128, Table: unix.RT_TABLE_LOCAL,
		Protocol: unix.RTPROT_STATIC, Scope: unix.RT_SCOPE_UNIVERSE, Type: unix.RTN_LOCAL,
	}})
	q.AddData(nl.NewRtAttr(unix.RTA_DST, net.ParseIP("2001:db8:86::")))
	q.AddData(nl.NewRtAttr(unix.RTA_SRC, net.ParseIP("2001:db8:9::1")))
	q.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(link))))
	_, err := q.Execute(unix.NETLINK_ROUTE, 0)
	return err
}
