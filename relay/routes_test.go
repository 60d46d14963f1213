package relay_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/internal/netns"
	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/wire"
)

func try(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// waysOut are all ways by which a guest, or an embedding program, reaches an
// address. Each returns an error if it is refused.
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
			// A datagram that was sent isn't answered. The error of this one
			// tells that the first one was.
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
		// The older ABI and embedding programs connect like this.
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

// Every address whose packets the kernel keeps with this machine is refused, by
// every way, and no other address is. The same targets are reached with a rule
// that allows all, which shows that they are what they are said to be.
func TestHostIsOutOfReach(t *testing.T) {
	if !netns.Inside(t) {
		return
	}
	near := netns.NewHost(t)
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
	routed, err := net.Listen("tcp", fmt.Sprint(":", netns.RoutedPort))
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
					if at.Port = netns.RoutedPort; !isTCP {
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
				// The server doesn't do TLS. It was reached if it ends the
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

	// The kernel tells of addresses without a route.
	for to, want := range map[string]unix.Errno{"10.66.1.1": unix.EINVAL, "10.67.1.1": unix.EHOSTUNREACH, "172.16.1.1": unix.ENETUNREACH} {
		at := wire.Endpoint{Addr: netip.MustParseAddr(to), Port: port}
		for way, reach := range ways["no rules"] {
			if err := reach(at); !errors.Is(err, want) {
				t.Errorf("%s to %v: %v, want %v", way, at.AddrPort(), err, want)
			}
		}
	}

	// Addresses come and go. A datagram may go to another machine, but not as
	// soon as the address is the host's own, and may again afterwards.
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

// Routes also depend on where packets come from: on the source address, on its
// port, and on the link of a socket that is bound to a link-local address.
func TestRoutesBySource(t *testing.T) {
	if !netns.Inside(t) {
		return
	}
	near := netns.NewHost(t)
	lo, err := netlink.LinkByName("lo")
	try(t, err)
	netns.AddAddress(t, near, "10.9.0.70/24")
	netns.AddAddress(t, near, "2001:db8:9::70/64")
	const port, sourcePort = 8070, 7070
	netns.AddAddress(t, near, "fe80::70/64")
	for i, r := range []struct {
		target string // to this machine for what the rule says, to another one else
		rule   func(*netlink.Rule)
	}{
		{"10.81.0.0/16", func(r *netlink.Rule) { r.Src = netns.Net("10.9.0.70/32") }},
		{"10.82.0.0/16", func(r *netlink.Rule) { r.Sport = netlink.NewRulePortRange(sourcePort, sourcePort) }},
		{"10.83.0.0/16", func(r *netlink.Rule) { r.Src = netns.Net("10.9.0.1/32") }},
		{"2001:db8:81::/48", func(r *netlink.Rule) { r.Src = netns.Net("2001:db8:9::70/128") }},
		{"2001:db8:82::/48", func(r *netlink.Rule) { r.Sport = netlink.NewRulePortRange(sourcePort, sourcePort) }},
		{"2001:db8:84::/48", func(r *netlink.Rule) { r.OifName = "near" }},
	} {
		target, via, family, scope := netns.Net(r.target), net.IPv4(10, 9, 0, 2), unix.AF_INET, netlink.SCOPE_HOST
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
	// A connected socket has a source once it is connected.
	c, err := network.NewPolicy(network.Host{}, nil, nil).DialContext(t.Context(), "udp", fmt.Sprint("10.83.1.1:", port))
	if !errors.Is(err, unix.EACCES) {
		t.Errorf("connected: %v, %v; want EACCES", c, err)
	}
}

// A datagram from the unspecified address, which a neighbour can send, doesn't
// open a way to the host's localhost.
func TestAnswerToUnspecified(t *testing.T) {
	if !netns.Inside(t) {
		return
	}
	near := netns.NewHost(t)
	netns.WaitUp(t, "near", "far")
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

// internetSum is the checksum of RFC 1071. The number of bytes may be odd.
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
