package network

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Policy is a [Network] that lets a guest have what rules allow of another one.
// The first rule that matches decides. If none does:
//
//   - a guest may connect and send to every address but the host's own, its
//     link's and groups': loopback, unspecified, link-local (169.254.0.0/16 and
//     fe80::/10), broadcast and multicast, the metadata services of clouds, and
//     all that the routes of the network below, if it has a method Routes as
//     [Host] has, don't send to a single other machine;
//   - it may listen on every address.
//
// What is judged is what the kernel makes of an address. The unspecified one is
// localhost. A scope is refused but for link-local addresses. An IPv6 address
// that holds an IPv4 address (mapped, NAT64, 6to4, Teredo, ISATAP, SIIT) is
// denied if that is. What netfilter makes of packets later isn't known here.
//
// A name is looked up first. The rules then judge each address that it has, and
// only these addresses are connected to: a name that changes its address in
// between gains nothing. A rule that allows a name doesn't allow the addresses
// that are denied above. An address is judged again when its connection has
// come about. A refusal is a [DeniedError].
//
// Datagrams to who has sent one to the same socket are allowed.
type Policy struct {
	// OnPublish, if not nil, is told where on the host a published port is bound, each time a guest binds it, before the guest learns of it. It must
	// not block, and must be set before the policy is in use.
	OnPublish func(p Publish, host netip.AddrPort)
	// NAT64 are prefixes by which the network reaches IPv4 hosts, as
	// [ParseNAT64] returns them, beside 64:ff9b::/96 and what is in
	// 64:ff9b:1::/48. It must be set before the policy is in use.
	NAT64 []netip.Prefix

	// Own are addresses that count as this machine's, beside what the network's
	// routes say: those by which a program in an emulated machine reaches the
	// machine outside. It must be set before the policy is in use.
	Own []netip.Prefix

	network Network
	rules   []Rule
	bound   *bindings
	looking chan struct{} // holds a token for each look-up of a connect that is under way

	opened  atomic.Pointer[Routes] // of network; nil: not yet
	opening sync.Mutex             // held while they are opened
}

// NewPolicy returns a policy for network.
func NewPolicy(network Network, rules []Rule, published []Publish) *Policy {
	return &Policy{network: network, rules: rules, bound: newBindings(published), looking: make(chan struct{}, maxLooking)}
}

// maxLooking is how many look-ups of connects by name are under way at once, of
// which each connect has two: others wait. Each costs some 30 KiB, and often a
// descriptor, for as long as no name server answers.
const maxLooking = 1024

// PublishForm is the text that [ParsePublish] reads.
const PublishForm = "[ADDRESS:]HOSTPORT:PORT[/tcp|/udp]"

// ParsePublish reads a [Publish] in [PublishForm]. Without an address it is 127.0.0.1.
func ParsePublish(text string) (Publish, error) {
	rest, protocol, ok := strings.Cut(text, "/")
	if !ok {
		protocol = "tcp"
	}
	bad := func(part, problem string) (Publish, error) {
		return Publish{}, fmt.Errorf("%q: %q is %s; the form is %s, where ADDRESS is an IP address", text, part, problem, PublishForm)
	}
	if protocol != "tcp" && protocol != "udp" {
		return bad(protocol, "neither tcp nor udp")
	}
	colon := strings.LastIndexByte(rest, ':')
	if colon < 0 {
		return Publish{}, fmt.Errorf("%q is not of the form %s", text, PublishForm)
	}
	host, guestPort := rest[:colon], rest[colon+1:]
	address, hostPort := "127.0.0.1", host
	if colon = strings.LastIndexByte(host, ':'); colon >= 0 {
		address, hostPort = host[:colon], host[colon+1:]
	}
	guest, err := strconv.ParseUint(guestPort, 10, 16)
	if err != nil || guest == 0 {
		return bad(guestPort, "no port from 1 to 65535")
	}
	if _, err := strconv.ParseUint(hostPort, 10, 16); err != nil {
		return bad(hostPort, "no port from 0 to 65535")
	}
	at, err := netip.ParseAddrPort(address + ":" + hostPort)
	if err != nil {
		if isBareIPv6(address) {
			return bad(address, "an IPv6 address; write ["+address+"]")
		}
		return bad(address, "no IP address")
	}
	if _, err := bindAddress(at.String()); err != nil {
		return bad(address, "no address that a socket is bound to")
	}
	addr, err := configuredScope(at.Addr().Unmap())
	if err != nil {
		return Publish{}, fmt.Errorf("%q: %w", text, err)
	}
	return Publish{Protocol: protocol, Host: netip.AddrPortFrom(addr, at.Port()), Guest: uint16(guest)}, nil
}

// check decides. The address in q is canonical. What an address goes out to is
// judged as the address itself and as all that it may reach: each must be
// allowed.
func (p *Policy) check(q request) error {
	if q.direction == In {
		return p.decide(q)
	}
	other := reachedBy(q.at.Addr(), p.NAT64)
	if other.same {
		q.same = other.list[0]
	}
	if err := p.decide(q); err != nil {
		return err
	}
	for _, a := range other.all() {
		inner := q
		inner.at, inner.same, inner.own = netip.AddrPortFrom(a, q.at.Port()), netip.Addr{}, false
		if p.decide(inner) != nil {
			return &DeniedError{fmt.Sprintf("%v, which may reach %v,", q, a)}
		}
	}
	return nil
}

// decide decides about an address alone.
func (p *Policy) decide(q request) error {
	for i := range p.rules {
		r := &p.rules[i]
		if !r.matches(q) {
			continue
		}
		if !r.Allow {
			return &DeniedError{q.String()}
		}
		if r.Name == "" {
			return nil
		}
		// The owner of a name can give it any address.
		if special, _ := p.special(q); !special {
			return nil
		}
	}
	special, err := p.special(q)
	switch {
	case err != nil:
		return &DeniedError{fmt.Sprintf("%v, where the way isn't known (%v),", q, err)}
	case special:
		return &DeniedError{q.String()}
	}
	return nil
}

// special reports whether q goes where a guest gets only by a rule for the
// address. Where the network can't say where q goes, it does: the error is why.
func (p *Policy) special(q request) (bool, error) {
	switch {
	case q.direction == In:
		return false, nil
	case q.own, onlyHost(q.at.Addr().WithZone("")):
		return true, nil
	}
	for _, own := range p.Own {
		if own.Contains(q.at.Addr()) {
			return true, nil
		}
	}
	routes, err := p.routes()
	if err != nil {
		return true, err
	}
	if routes == nil {
		return false, nil
	}
	own, err := routes.Own(q.protocol, q.from, q.at)
	return own || err != nil, err
}

// routes returns the network's, or nil if it has none. They are opened at their
// first use: by then the caller is in the network namespace that it works in.
func (p *Policy) routes() (Routes, error) {
	host, ok := p.network.(interface{ Routes() (Routes, error) })
	if !ok {
		return nil, nil
	}
	if r := p.opened.Load(); r != nil {
		return *r, nil
	}
	p.opening.Lock()
	defer p.opening.Unlock()
	if r := p.opened.Load(); r != nil {
		return *r, nil
	}
	r, err := host.Routes()
	if err != nil {
		return nil, err
	}
	p.opened.Store(&r)
	return r, nil
}

// checkLookup refuses to look up what every connection to would be refused by the same rule: looking up tells the name to others.
func (p *Policy) checkLookup(name string, addr netip.Addr) error {
	for i := range p.rules {
		r := &p.rules[i]
		switch {
		case r.Direction == In:
		case r.Name != "" && !r.matchesName(name):
		case len(r.Prefixes) > 0 && addr.IsValid() && !r.matchesAddr(request{direction: Out, at: netip.AddrPortFrom(addr, 0)}):
		case r.Allow:
			return nil
		case r.Protocol == "" && r.Last == 0 && (len(r.Prefixes) == 0 || addr.IsValid()):
			if addr.IsValid() {
				name = addr.String()
			}
			return &DeniedError{fmt.Sprintf("lookup of %.100q", name)}
		}
	}
	return nil
}

// LookupNetIP looks a name up, if the guest may connect to any address that it might have.
func (p *Policy) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		if _, err := canonical(a); err != nil {
			return nil, err
		}
	} else if err := p.checkLookup(canonicalName(host), netip.Addr{}); err != nil {
		return nil, err
	}
	return p.network.LookupNetIP(ctx, network, host)
}

// LookupAddr looks an address up, if the rules let the guest connect to it.
func (p *Policy) LookupAddr(ctx context.Context, address string) ([]string, error) {
	if addr, err := netip.ParseAddr(address); err == nil {
		if addr, err = canonical(addr); err != nil {
			return nil, err
		}
		other := reachedBy(addr, p.NAT64)
		for _, a := range append(other.all(), addr) {
			if err := p.checkLookup("", a); err != nil {
				return nil, err
			}
		}
	}
	return p.network.LookupAddr(ctx, address)
}

// DialContext connects to the first address that answers of those that are allowed. It refuses networks whose addresses the rules can't judge, but for
// UNIX sockets, which are files and as such not its business.
func (p *Policy) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if network == "unix" {
		return p.network.DialContext(ctx, network, address)
	}
	protocol, version, err := splitNetwork(network)
	if err != nil {
		return nil, err
	}
	host, portText, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, &net.AddrError{Err: "invalid port", Addr: portText}
	}
	q := request{direction: Out, protocol: protocol}
	if a, err := netip.ParseAddr(host); err == nil {
		allowed, err := p.allowed(q, []netip.Addr{a}, uint16(port))
		if err != nil {
			return nil, err
		}
		q.at = allowed[0]
		return p.connect(ctx, network, q)
	}
	q.name = canonicalName(host)
	d := dialer{
		name: host,
		lookup: func(ctx context.Context, network string) ([]netip.Addr, error) {
			select {
			case p.looking <- struct{}{}:
				defer func() { <-p.looking }()
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			return p.LookupNetIP(ctx, network, host)
		},
		judge: func(addrs []netip.Addr) ([]netip.AddrPort, error) { return p.allowed(q, addrs, uint16(port)) },
		dial: func(ctx context.Context, at netip.AddrPort) (net.Conn, error) {
			q := q
			q.at = at
			return p.connect(ctx, network, q)
		},
	}
	return d.connect(ctx, version)
}

// connect connects to the address in q, which check has allowed.
func (p *Policy) connect(ctx context.Context, network string, q request) (net.Conn, error) {
	// Package net takes a scope for an interface's name, if there is one of
	// that name, and only then for its number.
	if zone := q.at.Addr().Zone(); zone != "" {
		if named, err := net.InterfaceByName(zone); err == nil && strconv.Itoa(named.Index) != zone {
			return nil, &DeniedError{fmt.Sprintf("%v, whose scope is another interface's name,", q)}
		}
	}
	conn, err := Check(p.network.DialContext(ctx, network, Specified(q.at).String()))
	if err != nil {
		return nil, err
	}
	// The address may have become the host's own since it was judged. A
	// connection within the host most often has the same address at both ends.
	if AsTCP(conn) != nil || AsUDP(conn) != nil {
		local := addrPort(conn.LocalAddr()).Addr()
		q.own = local.WithZone("") == addrPort(conn.RemoteAddr()).Addr().WithZone("")
		// Rules of the kernel may look at the source. Its port, a new one each
		// time, would make each answer good for one connection only.
		q.from = netip.AddrPortFrom(local, 0)
	}
	if err := p.check(q); err != nil {
		Abandon(conn)
		return nil, err
	}
	if q.protocol == "udp" {
		return &policedConn{conn, p, q}, nil
	}
	return conn, nil
}

// policedConn is a connected UDP socket: where its datagrams go is judged anew
// for each, for routes change.
type policedConn struct {
	net.Conn
	policy *Policy
	to     request
}

// NetConn returns the connection that c was made of.
func (c *policedConn) NetConn() net.Conn { return c.Conn }

// MaySend is nil if the policy lets a datagram go to the peer.
func (c *policedConn) MaySend(netip.Addr, netip.AddrPort) error { return c.policy.check(c.to) }

// Received does nothing: the only peer is known.
func (c *policedConn) Received(netip.AddrPort) {}

func (c *policedConn) Write(b []byte) (int, error) {
	if err := c.MaySend(netip.Addr{}, c.to.at); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

// allowed returns what q may reach of addrs, of which there is one at least, or
// why there is nothing.
func (p *Policy) allowed(q request, addrs []netip.Addr, port uint16) (allowed []netip.AddrPort, err error) {
	for _, a := range addrs {
		a, denied := canonical(a)
		if denied == nil {
			q.at = netip.AddrPortFrom(a, port)
			denied = p.check(q)
		}
		if denied == nil {
			allowed = append(allowed, q.at)
		} else if err == nil {
			err = denied
		}
	}
	if len(allowed) > 0 {
		return allowed, nil
	}
	return nil, err
}

// splitNetwork splits "tcp4" into "tcp" and "4".
func splitNetwork(network string) (protocol, version string, err error) {
	switch network {
	case "tcp", "tcp4", "tcp6", "udp", "udp4", "udp6":
		return network[:3], network[3:], nil
	}
	return "", "", &net.OpError{Op: "policy", Net: network, Err: net.UnknownNetworkError(network)}
}

func Name(protocol string, at netip.AddrPort) string {
	if at.Addr().Is4() {
		return protocol + "4"
	}
	return protocol + "6"
}

// policedPacketConn lets datagrams go where the policy does, and to peers that have sent some.
type policedPacketConn struct {
	PacketConn
	policy  *Policy
	bound   net.Addr
	host    netip.AddrPort // where it is bound
	release func()         // gives its place back

	mu     sync.Mutex
	peers  map[netip.AddrPort]struct{} // that the policy wouldn't let through; at most maxPeers
	shares map[netip.Prefix]int        // how many of peers each machine has
}

const maxPeers = 1024

// LocalAddr is where the guest is bound, as it sees it.
func (c *policedPacketConn) LocalAddr() net.Addr { return c.bound }

// check judges a datagram from an address; without one, from where the socket
// is bound.
func (c *policedPacketConn) check(from netip.Addr, to netip.AddrPort) error {
	addr, err := canonical(to.Addr())
	if err != nil {
		return err
	}
	q := request{direction: Out, protocol: "udp", at: netip.AddrPortFrom(addr, to.Port()), from: c.host}
	if from.IsValid() {
		q.from = netip.AddrPortFrom(from, c.host.Port())
	}
	return c.policy.check(q)
}

func (c *policedPacketConn) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	n, from, err := c.PacketConn.ReadFromUDPAddrPort(b)
	if err == nil {
		c.Received(from)
	}
	return n, from, err
}

func (c *policedPacketConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := c.ReadFromUDPAddrPort(b)
	if err != nil {
		return n, nil, err
	}
	return n, net.UDPAddrFromAddrPort(from), nil
}

// NetPacketConn returns the PacketConn that c was made of.
func (c *policedPacketConn) NetPacketConn() PacketConn { return c.PacketConn }

// Received remembers where a datagram came from, if the policy wouldn't let one
// go there. One from the unspecified address, as a machine without an address
// of its own sends them, came from elsewhere than where an answer goes: to
// localhost.
func (c *policedPacketConn) Received(from netip.AddrPort) {
	if !from.Addr().IsUnspecified() && c.check(netip.Addr{}, from) != nil {
		c.remember(from)
	}
}

// MaySend is nil if the policy lets a datagram go to an address, or one has
// come from there. The zero from is the address that the socket has, or
// chooses.
func (c *policedPacketConn) MaySend(from netip.Addr, to netip.AddrPort) error {
	err := c.check(from, to)
	if err == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.peers[to]; known {
		return nil
	}
	return err
}

// remember forgets another peer when there are too many: one of the machine
// that has the most, so that none can make the socket forget all others.
func (c *policedPacketConn) remember(peer netip.AddrPort) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.peers == nil {
		c.peers, c.shares = make(map[netip.AddrPort]struct{}), make(map[netip.Prefix]int)
	}
	if _, known := c.peers[peer]; known {
		return
	}
	if len(c.peers) == maxPeers {
		c.forgetOne()
	}
	c.peers[peer] = struct{}{}
	c.shares[PeerOf(peer.Addr())]++
}

func (c *policedPacketConn) forgetOne() {
	var machine netip.Prefix
	for m, n := range c.shares {
		if n > c.shares[machine] {
			machine = m
		}
	}
	for peer := range c.peers {
		if PeerOf(peer.Addr()) == machine {
			delete(c.peers, peer)
			break
		}
	}
	if c.shares[machine]--; c.shares[machine] == 0 {
		delete(c.shares, machine)
	}
}

func (c *policedPacketConn) WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error) {
	if err := c.MaySend(netip.Addr{}, to); err != nil {
		return 0, err
	}
	return c.PacketConn.WriteToUDPAddrPort(b, Specified(to))
}

func (c *policedPacketConn) WriteTo(b []byte, to net.Addr) (int, error) {
	udp, ok := to.(*net.UDPAddr)
	if !ok {
		return 0, unix.EINVAL
	}
	return c.WriteToUDPAddrPort(b, udp.AddrPort())
}
