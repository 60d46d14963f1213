package relay_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/wire"
)

// inNamespace runs the test that calls it in a process of its own, all of whose
// threads are in a new network namespace, and returns true there. A thread
// alone wouldn't do: the server's goroutines run on others.
func inNamespace(t *testing.T) bool {
	t.Helper()
	const inside = "ARCAVM_TEST_NAMESPACE"
	if os.Getenv(inside) == t.Name() {
		return true
	}
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=2m")
	cmd.Env = append(os.Environ(), inside+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	switch {
	case errors.Is(err, unix.EPERM):
		t.Skipf("making a network namespace: %v; run as root", err)
	case strings.Contains(string(out), "--- SKIP: "+t.Name()+" "):
		t.Skipf("in a network namespace:\n%s", out)
	case err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()+" "):
		t.Errorf("in a network namespace: %v\n%s", err, out)
	}
	return false
}

func try(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func parseNet(text string) *net.IPNet {
	_, n, err := net.ParseCIDR(text)
	if err != nil {
		panic(err)
	}
	return n
}

// hostWithRoutes gives this namespace a loopback, an interface with addresses,
// and routes of every kind. It returns the interface.
func hostWithRoutes(t *testing.T) netlink.Link {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	try(t, err)
	try(t, netlink.LinkSetUp(lo))
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "near"}, PeerName: "far"}); err != nil {
		t.Skip("making a pair of interfaces:", err)
	}
	far, err := netlink.LinkByName("far")
	try(t, err)
	try(t, netlink.LinkSetUp(far))
	near, err := netlink.LinkByName("near")
	try(t, err)
	// A router has an anycast address in each of its networks.
	forwarding, err := os.OpenFile("/proc/sys/net/ipv6/conf/all/forwarding", os.O_WRONLY, 0)
	try(t, err)
	_, err = forwarding.WriteString("1")
	try(t, errors.Join(err, forwarding.Close()))
	try(t, netlink.LinkSetUp(near))
	addAddress(t, near, "10.9.0.1/24")
	addAddress(t, near, "2001:db8:9::1/64")
	index := lo.Attrs().Index
	for _, r := range []netlink.Route{
		{LinkIndex: index, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST, Dst: parseNet("10.77.0.0/16")},
		{LinkIndex: index, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST, Dst: parseNet("10.78.0.0/16"), Src: net.IPv4(10, 9, 0, 1)},
		{LinkIndex: index, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Dst: parseNet("2001:db8:77::/48")},
		{LinkIndex: index, Type: unix.RTN_LOCAL, Table: 100, Scope: netlink.SCOPE_HOST, Dst: parseNet("10.80.0.0/16"), Src: net.IPv4(10, 9, 0, 1)},
		{Type: unix.RTN_BLACKHOLE, Dst: parseNet("10.66.0.0/16")},
		{Type: unix.RTN_UNREACHABLE, Dst: parseNet("10.67.0.0/16")},
		{LinkIndex: near.Attrs().Index, Dst: parseNet("10.80.0.0/16"), Gw: net.IPv4(10, 9, 0, 2)},
	} {
		try(t, netlink.RouteAdd(&r))
	}
	rule := netlink.NewRule()
	rule.Table, rule.IPProto, rule.Dport, rule.Priority = 100, unix.IPPROTO_TCP, netlink.NewRulePortRange(routedPort, routedPort), 99
	try(t, netlink.RuleAdd(rule))
	return near
}

// waitUp waits until these links carry packets: what is sent on a link before,
// though it has been set up, is lost.
func waitUp(t *testing.T, names ...string) {
	t.Helper()
	updates, done := make(chan netlink.LinkUpdate), make(chan struct{})
	try(t, netlink.LinkSubscribeWithOptions(updates, done, netlink.LinkSubscribeOptions{ListExisting: true}))
	defer func() {
		close(done)
		for range updates {
		}
	}()
	down := map[string]bool{}
	for _, name := range names {
		down[name] = true
	}
	for limit := time.After(time.Minute); len(down) > 0; {
		select {
		case u := <-updates:
			if u.Link.Attrs().OperState == netlink.OperUp {
				delete(down, u.Link.Attrs().Name)
			}
		case <-limit:
			t.Fatal("links stay down: ", down)
		}
	}
}

// routedPort is one whose packets a rule sends elsewhere.
const routedPort = 8099

func addAddress(t *testing.T, link netlink.Link, text string) {
	t.Helper()
	a, err := netlink.ParseAddr(text)
	try(t, err)
	a.Flags = unix.IFA_F_NODAD
	try(t, netlink.AddrAdd(link, a))
}

// network are all ways by which a guest, or an embedding program, gets at an
// address, on one machine. Each returns an error if it is refused.
func waysOut(m *machine, policy *network.Policy) map[string]func(e wire.Endpoint) error {
	bound := map[bool]*udpSocket{false: m.udpBound(4096, "0.0.0.0:0"), true: m.udpBound(4096, "[::]:0")}
	stream := func(protocol uint16, payload []byte) error {
		g := m.pipe()
		defer g.Close()
		_, err := open(g, protocol, payload)
		return err
	}
	dial := func(network string, e wire.Endpoint) error {
		ctx, cancel := context.WithTimeout(m.t.Context(), patience)
		defer cancel()
		c, err := policy.DialContext(ctx, network, e.AddrPort().String())
		if err == nil {
			c.Close()
		}
		return err
	}
	return map[string]func(e wire.Endpoint) error{
		"TCP": func(e wire.Endpoint) error {
			return stream(wire.ProtocolTCPConnection, wire.AppendConnect(nil, wire.Connect{Endpoint: e}))
		},
		"name": func(e wire.Endpoint) error {
			name := []byte(e.AddrPort().Addr().String())
			return stream(wire.ProtocolTCPConnection, wire.AppendConnect(nil, wire.Connect{Endpoint: wire.Endpoint{Port: e.Port}, Name: name}))
		},
		"TLS": func(e wire.Endpoint) error {
			return stream(wire.ProtocolTLSConnection, wire.AppendTLSConnect(nil, wire.TLSConnect{Connect: wire.Connect{Endpoint: e}}))
		},
		"UDP socket, connected": func(e wire.Endpoint) error {
			return stream(wire.ProtocolUDP, wire.AppendUDPSocket(nil, wire.UDPSocket{Peer: e}))
		},
		"UDP socket, bound": func(e wire.Endpoint) error {
			u := bound[e.Addr.Is6() && (!e.Addr.Is4In6() || e.Scope != 0)]
			if _, err := u.Write(wire.AppendSendDatagram(nil, 1, wire.SendDatagram{To: e, Data: []byte("to the host")})); err != nil {
				return err
			}
			// What went well isn't answered: the next one's error is.
			if _, err := u.Write(wire.AppendSendDatagram(nil, 2, wire.SendDatagram{Data: []byte("nowhere")})); err != nil {
				return err
			}
			for {
				h, p, err := receive(u)
				if err != nil {
					return err
				}
				d, err := wire.DecodeDatagramError(p)
				if err != nil || h.RequestID == 2 {
					return err
				}
				if h.RequestID == 1 {
					_, _, err = receive(u)
					return errors.Join(unix.Errno(d.Status), err)
				}
			}
		},
		// As the older ABI does, and embedding programs.
		"dial tcp": func(e wire.Endpoint) error { return dial("tcp", e) },
		"dial udp": func(e wire.Endpoint) error { return dial("udp", e) },
		"packet": func(e wire.Endpoint) error {
			network, on := "udp4", "0.0.0.0:0"
			if e.Addr.Is6() && (!e.Addr.Is4In6() || e.Scope != 0) {
				network, on = "udp6", "[::]:0"
			}
			c, err := policy.ListenPacket(m.t.Context(), network, on)
			if err != nil {
				return err
			}
			defer c.Close()
			to := e.AddrPort()
			if e.Scope == 0 {
				to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
			}
			_, err = c.WriteToUDPAddrPort([]byte("to the host"), to)
			return err
		},
	}
}

// Whatever the kernel brings to this machine is refused, by every way, and what
// it doesn't isn't. With a rule that allows all, the same targets are reached:
// so they are what they are said to be.
func TestHostIsOutOfReach(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	near := hostWithRoutes(t)
	tcp, err := net.Listen("tcp", ":0")
	try(t, err)
	defer tcp.Close()
	go func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	port := uint16(tcp.Addr().(*net.TCPAddr).Port)
	routed, err := net.Listen("tcp", fmt.Sprint(":", routedPort))
	try(t, err)
	defer routed.Close()
	udp, err := net.ListenPacket("udp", fmt.Sprint(":", port))
	try(t, err)
	defer udp.Close()

	allow, err := network.ParseRule(true, "*")
	try(t, err)
	deny, err := network.ParseRule(false, "out:localhost")
	try(t, err)
	policies := map[string]*network.Policy{
		"no rules":                           network.NewPolicy(network.Host{}, nil, nil),
		"deny out:localhost":                 network.NewPolicy(network.Host{}, []network.Rule{deny}, nil),
		"deny out:localhost, then allow all": network.NewPolicy(network.Host{}, []network.Rule{deny, allow}, nil),
		"allow all":                          network.NewPolicy(network.Host{}, []network.Rule{allow}, nil),
	}
	ways := make(map[string]map[string]func(wire.Endpoint) error)
	for name, p := range policies {
		ways[name] = waysOut(start(t, setup{network: p, connectTimeout: time.Second}), p)
	}
	const (
		all       = iota // reached if all is allowed
		tcpOnly          // only TCP, to one port, is the host's; it doesn't answer
		udpOnly          // the kernel takes no TCP there
		localhost        // denied by "deny localhost", too
		scoped           // never to be had
	)
	for _, c := range []struct {
		to    string
		scope uint32
		kind  int
	}{
		{"::1", 0, localhost},
		{"127.0.0.1", 0, localhost},
		{"127.5.5.5", 0, localhost},
		{"::ffff:127.0.0.1", 0, localhost},
		{"0.0.0.0", 0, localhost},
		{"::", 0, localhost},
		{"::ffff:0.0.0.0", 0, localhost},
		{"::", 1, scoped},
		{"::", 7777, scoped},
		{"::1", 1, scoped},
		{"::ffff:127.0.0.1", 1, scoped},
		{"2001:db8:9::1", 1, scoped},
		{"10.9.0.1", 0, all},
		{"::ffff:10.9.0.1", 0, all},
		{"2001:db8:9::1", 0, all},
		{"10.77.1.2", 0, all},
		{"10.78.1.2", 0, all}, // has another source address
		{"2001:db8:77:1::2", 0, all},
		{"2001:db8:9::", 0, udpOnly}, // anycast
		{"10.80.1.2", 0, tcpOnly},    // by a table of its own
	} {
		at := wire.Endpoint{Addr: netip.MustParseAddr(c.to), Scope: c.scope, Port: port}
		for policy, byWay := range ways {
			for way, reach := range byWay {
				isTCP := !slices.Contains([]string{"UDP socket, connected", "UDP socket, bound", "dial udp", "packet"}, way)
				if c.kind == tcpOnly {
					if at.Port = routedPort; !isTCP {
						continue
					}
				}
				if (c.kind == udpOnly || c.kind == tcpOnly) && isTCP && strings.Contains(policy, "allow") {
					continue
				}
				err := reach(at)
				denied := errors.Is(err, unix.EACCES)
				want := policy != "allow all" || c.kind == scoped
				if policy == "deny out:localhost, then allow all" {
					want = c.kind == localhost || c.kind == scoped
				}
				// A server that doesn't do TLS was reached if it ends the
				// connection.
				reached := err == nil || way == "TLS" && (errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.ECONNABORTED) || errors.Is(err, unix.ETIMEDOUT))
				refused := denied || c.kind == scoped && err != nil && !reached
				if want && !refused || !want && !reached {
					t.Errorf("%s: %s to %v: %v; want it denied: %v", policy, way, at.AddrPort(), err, want)
				}
			}
		}
	}

	// Broadcast, multicast, and IPv4 in IPv6 are refused before anything is
	// sent.
	for _, to := range []string{
		"10.9.0.255", "255.255.255.255", "224.0.0.251", "239.1.2.3", "ff05::2", "ff08::1", "ff0e::1", "0.1.2.3",
		"64:ff9b::10.9.0.1", "64:ff9b:1::10.77.1.2", "::10.9.0.1", "::ffff:0:10.9.0.1", "2002:a09:1::1", "2001:0:a09:1::1",
		"2001:0:808:808:0:0:f5f6:fffe", "2001:db8:9::5efe:a09:1", "64:ff9b::a9fe:a9fe", "168.63.129.16", "100.100.100.200", "fd20:ce::254",
	} {
		at := wire.Endpoint{Addr: netip.MustParseAddr(to), Port: port}
		for way, reach := range ways["no rules"] {
			if err := reach(at); !errors.Is(err, unix.EACCES) {
				t.Errorf("%s to %v: %v", way, at.AddrPort(), err)
			}
		}
	}

	// Where nothing leads, the kernel says so.
	for to, want := range map[string]unix.Errno{"10.66.1.1": unix.EINVAL, "10.67.1.1": unix.EHOSTUNREACH, "172.16.1.1": unix.ENETUNREACH} {
		at := wire.Endpoint{Addr: netip.MustParseAddr(to), Port: port}
		for way, reach := range ways["no rules"] {
			if err := reach(at); !errors.Is(err, want) {
				t.Errorf("%s to %v: %v, want %v", way, at.AddrPort(), err, want)
			}
		}
	}

	// Addresses come and go. A datagram to a machine of the network may be
	// sent; as soon as the address is the host's own it isn't, and the other
	// way round.
	late := wire.Endpoint{Addr: netip.MustParseAddr("10.9.0.50"), Port: port}
	connected, err := policies["no rules"].DialContext(t.Context(), "udp", late.AddrPort().String())
	try(t, err)
	defer connected.Close()
	guest := start(t, setup{network: policies["no rules"]}).udpConnected(4096, late.AddrPort())
	address, err := netlink.ParseAddr("10.9.0.50/24")
	try(t, err)
	for range 20 {
		for _, way := range []string{"UDP socket, connected", "UDP socket, bound", "dial udp", "packet"} {
			if err := ways["no rules"][way](late); err != nil {
				t.Errorf("%s to another machine: %v", way, err)
			}
		}
		if _, err := connected.Write([]byte("first")); err != nil {
			t.Errorf("connected before: %v", err)
		}
		try(t, netlink.AddrAdd(near, address))
		for way, reach := range ways["no rules"] {
			if err := reach(late); !errors.Is(err, unix.EACCES) {
				t.Errorf("%s to a new address of the host: %v", way, err)
			}
		}
		if _, err := connected.Write([]byte("second")); !errors.Is(err, unix.EACCES) {
			t.Errorf("connected before: %v, want EACCES", err)
		}
		guest.send(7, netip.AddrPort{}, []byte("second"))
		guest.wantError(7, unix.EACCES, netip.AddrPort{})
		try(t, netlink.AddrDel(near, address))
	}
}

// A host's address that comes while a connect to it is under way isn't reached.
func TestAddressDuringConnect(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	near := hostWithRoutes(t)
	ln, err := net.Listen("tcp", ":0")
	try(t, err)
	defer ln.Close()
	port := ln.Addr().(*net.TCPAddr).Port
	address, err := netlink.ParseAddr("10.9.0.60/24")
	try(t, err)
	changing := beforeDial{do: func() { try(t, netlink.AddrAdd(near, address)) }}
	c, err := network.NewPolicy(changing, nil, nil).DialContext(t.Context(), "tcp", fmt.Sprint("10.9.0.60:", port))
	if !errors.Is(err, unix.EACCES) {
		t.Errorf("%v, %v; want EACCES", c, err)
	}
}

// beforeDial does something between the judgement and the connect.
type beforeDial struct {
	network.Host
	do func()
}

func (n beforeDial) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	n.do()
	return n.Host.DialContext(ctx, network, address)
}

// Routes depend on where packets come from, too: on the source address, its
// port, and the link of a socket that is bound to a link-local address.
func TestRoutesBySource(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	near := hostWithRoutes(t)
	lo, err := netlink.LinkByName("lo")
	try(t, err)
	addAddress(t, near, "10.9.0.70/24")
	addAddress(t, near, "2001:db8:9::70/64")
	const port, sourcePort = 8070, 7070
	addAddress(t, near, "fe80::70/64")
	for i, r := range []struct {
		target string // to this machine for what the rule says, to another one else
		rule   func(*netlink.Rule)
	}{
		{"10.81.0.0/16", func(r *netlink.Rule) { r.Src = parseNet("10.9.0.70/32") }},
		{"10.82.0.0/16", func(r *netlink.Rule) { r.Sport = netlink.NewRulePortRange(sourcePort, sourcePort) }},
		{"10.83.0.0/16", func(r *netlink.Rule) { r.Src = parseNet("10.9.0.1/32") }},
		{"2001:db8:81::/48", func(r *netlink.Rule) { r.Src = parseNet("2001:db8:9::70/128") }},
		{"2001:db8:82::/48", func(r *netlink.Rule) { r.Sport = netlink.NewRulePortRange(sourcePort, sourcePort) }},
		{"2001:db8:84::/48", func(r *netlink.Rule) { r.OifName = "near" }},
	} {
		target, via, family, scope := parseNet(r.target), net.IPv4(10, 9, 0, 2), unix.AF_INET, netlink.SCOPE_HOST
		if target.IP.To4() == nil {
			via, family, scope = net.ParseIP("2001:db8:9::2"), unix.AF_INET6, netlink.SCOPE_UNIVERSE
		}
		table := 200 + i
		try(t, netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Type: unix.RTN_LOCAL, Table: table, Scope: scope, Dst: target}))
		try(t, netlink.RouteAdd(&netlink.Route{LinkIndex: near.Attrs().Index, Dst: target, Gw: via}))
		rule := netlink.NewRule()
		rule.Table, rule.Family, rule.Priority = table, family, 50+i
		r.rule(rule)
		try(t, netlink.RuleAdd(rule))
	}
	m := start(t, setup{network: network.NewPolicy(network.Host{}, nil, nil), connectTimeout: time.Second})
	link := wire.Endpoint{Addr: netip.MustParseAddr("fe80::70"), Scope: uint32(near.Attrs().Index)}
	at := func(text string, port uint16) wire.Endpoint {
		return wire.Endpoint{Addr: netip.MustParseAddr(text), Port: port}
	}
	for name, c := range map[string]struct {
		on, from wire.Endpoint
		to       string
		own      bool
	}{
		"bound, IPv4":           {on: at("10.9.0.70", 0), to: "10.81.1.1", own: true},
		"bound elsewhere, IPv4": {on: at("10.9.0.1", 0), to: "10.81.1.1"},
		"named, IPv4":           {on: at("0.0.0.0", 0), from: at("10.9.0.70", 0), to: "10.81.1.1", own: true},
		"all addresses, IPv4":   {on: at("0.0.0.0", 0), to: "10.81.1.1"},
		"port, IPv4":            {on: at("0.0.0.0", sourcePort), to: "10.82.1.1", own: true},
		"other port, IPv4":      {on: at("0.0.0.0", sourcePort+1), to: "10.82.1.1"},
		"bound, IPv6":           {on: at("2001:db8:9::70", 0), to: "2001:db8:81::1", own: true},
		"bound elsewhere, IPv6": {on: at("2001:db8:9::1", 0), to: "2001:db8:81::1"},
		"named, IPv6":           {on: at("::", 0), from: at("2001:db8:9::70", 0), to: "2001:db8:81::1", own: true},
		"port, IPv6":            {on: at("::", sourcePort+2), to: "2001:db8:82::1"},
		"other port, IPv6":      {on: at("::", sourcePort), to: "2001:db8:82::1", own: true},
		"link":                  {on: link, to: "2001:db8:84::1", own: true},
	} {
		u, err := m.tryUDP(4096, 4096, wire.UDPSocket{Local: c.on, Addressed: true})
		try(t, err)
		to := at(c.to, port)
		datagram := wire.AppendSendDatagram(nil, 7, wire.SendDatagram{To: to, Data: []byte("x")})
		if c.from.Addr.IsValid() {
			datagram = wire.AppendSendDatagramFrom(nil, 7, wire.SendDatagramFrom{SendDatagram: wire.SendDatagram{To: to, Data: []byte("x")}, From: c.from})
		}
		_, err = u.Write(append(datagram, wire.AppendSendDatagram(nil, 8, wire.SendDatagram{Data: []byte("nowhere")})...))
		try(t, err)
		h, p, err := receive(u)
		try(t, err)
		if e, err := wire.DecodeDatagramError(p); err != nil || (h.RequestID == 7 && unix.Errno(e.Status) == unix.EACCES) != c.own {
			t.Errorf("%s: request %d: %v; want it denied: %v", name, h.RequestID, unix.Errno(e.Status), c.own)
		}
		try(t, u.Close())
	}
	// A connected socket has a source when it has been connected.
	c, err := network.NewPolicy(network.Host{}, nil, nil).DialContext(t.Context(), "udp", fmt.Sprint("10.83.1.1:", port))
	if !errors.Is(err, unix.EACCES) {
		t.Errorf("connected: %v, %v; want EACCES", c, err)
	}
}

// A scope is a number for the rules, and for package net the name of an
// interface first: one whose name is another's number isn't reached by that.
func TestScopeIsNoName(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	near := hostWithRoutes(t)
	try(t, netlink.LinkSetDown(near))
	try(t, netlink.LinkSetName(near, "1"))
	try(t, netlink.LinkSetUp(near))
	addAddress(t, near, "fe80::70/64")
	rule, err := network.ParseRule(true, fmt.Sprintf("[fe80::70%%%d]", near.Attrs().Index))
	try(t, err)
	other, err := network.ParseRule(true, "[fe80::70%1]")
	try(t, err)
	server, err := net.ListenPacket("udp6", "[::]:0")
	try(t, err)
	defer server.Close()
	port := server.LocalAddr().(*net.UDPAddr).Port
	policy := network.NewPolicy(network.Host{}, []network.Rule{rule}, nil)
	c, err := policy.DialContext(t.Context(), "udp", fmt.Sprintf("[fe80::70%%%d]:%d", near.Attrs().Index, port))
	try(t, err)
	c.Close()
	for name, policy := range map[string]*network.Policy{"by name": network.NewPolicy(network.Host{}, []network.Rule{other}, nil), "by number": policy} {
		for _, protocol := range []string{"tcp", "udp"} {
			if c, err := policy.DialContext(t.Context(), protocol, fmt.Sprintf("[fe80::70%%1]:%d", port)); !errors.Is(err, unix.EACCES) {
				t.Errorf("%s, %s: %v, %v; want EACCES", name, protocol, c, err)
			}
		}
	}
}

// A datagram whose source is the unspecified address, which a neighbour can
// send, opens no way to the host's localhost.
func TestAnswerToUnspecified(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	near := hostWithRoutes(t)
	waitUp(t, "near", "far")
	far, err := netlink.LinkByName("far")
	try(t, err)
	link, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0)
	try(t, err)
	defer unix.Close(link)
	const from = 6868
	m := start(t, setup{network: network.NewPolicy(network.Host{}, nil, nil)})
	for _, on := range []string{"0.0.0.0:0", "[::]:0"} {
		u := m.udpBound(4096, on)
		header, etherType := ipv4Header, uint16(unix.ETH_P_IP)
		if u.local.Addr().Is6() {
			header, etherType = ipv6Header, unix.ETH_P_IPV6
		}
		packet := header(from, u.local.Port(), []byte("hello"))
		to := &unix.SockaddrLinklayer{Protocol: etherType<<8 | etherType>>8, Ifindex: far.Attrs().Index, Halen: 6}
		copy(to.Addr[:], near.Attrs().HardwareAddr)
		try(t, unix.Sendto(link, packet, 0, to))
		d := u.receive()
		if !d.From.Addr.IsUnspecified() || d.From.Port != from {
			t.Fatalf("a datagram from %v", d.From)
		}
		u.send(7, d.From.AddrPort(), []byte("to localhost"))
		u.wantError(7, unix.EACCES, d.From.AddrPort())
	}
}

// ipv4Header makes a datagram from 0.0.0.0 to all.
func ipv4Header(from, to uint16, data []byte) []byte {
	b := []byte{0x45, 0, 0, byte(28 + len(data)), 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255}
	binary.BigEndian.PutUint16(b[10:], ^internetSum(b))
	return append(udpHeader(b, from, to, 0, data), data...)
}

// ipv6Header makes a datagram from :: to an address of the host.
func ipv6Header(from, to uint16, data []byte) []byte {
	addr := netip.MustParseAddr("2001:db8:9::1").As16()
	length := 8 + len(data)
	b := append([]byte{0x60, 0, 0, 0, 0, byte(length), unix.IPPROTO_UDP, 64}, make([]byte, 16)...)
	b = append(b, addr[:]...)
	sum := append(append([]byte{}, b[8:]...), 0, byte(length), 0, unix.IPPROTO_UDP)
	sum = append(udpHeader(sum, from, to, 0, data), data...)
	return append(udpHeader(b, from, to, ^internetSum(sum), data), data...)
}

func udpHeader(b []byte, from, to, sum uint16, data []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, from)
	b = binary.BigEndian.AppendUint16(b, to)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(data)))
	return binary.BigEndian.AppendUint16(b, sum)
}

// internetSum is that of RFC 1071, of bytes that may be odd in number.
func internetSum(b []byte) uint16 {
	sum := uint32(0)
	for i, x := range b {
		sum += uint32(x) << (8 * (1 - i%2))
	}
	for sum>>16 != 0 {
		sum = sum&0xFFFF + sum>>16
	}
	return uint16(sum)
}
