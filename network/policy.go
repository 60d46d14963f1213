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
)

// Policy is a [Network] that lets a guest have what rules allow of another one.
// The first rule that matches decides. If none does:
//
//   - a guest may connect and send to every address that isn't special. Special
//     are the addresses of the host, of its links and of groups: loopback,
//     unspecified, link-local (169.254.0.0/16 and fe80::/10), broadcast and
//     multicast, the metadata services of clouds, and those that the routes of
//     the network below don't send to one other machine (if it has a method
//     Routes, as [Host] has);
//   - it may listen on every address.
//
// An address is judged by what the kernel makes of it. The unspecified address
// is localhost. A scope is refused but on a link-local address. An IPv6 address
// that holds an IPv4 address (mapped, NAT64, 6to4, Teredo, ISATAP, SIIT) is
// denied if that is. What netfilter does to packets later isn't known here.
//
// A name is looked up first. The rules then judge each of its addresses, and
// only these addresses are connected to, so a name that changes its address
// meanwhile gains nothing. A rule that allows a name doesn't allow special
// addresses. An address is judged again after the connect. A refusal is a
// [DeniedError].
//
// Datagrams may go to a peer that has sent one to the same socket.
type Policy struct {
	// OnPublish, if not nil, is told where on the host a published port is
	// bound, each time that a guest binds it, before the guest is told. It must
	// not block, and is set before the policy is used.
	OnPublish func(p Publish, host netip.AddrPort)
	// NAT64 are prefixes by which the network reaches IPv4 hosts, as
	// [ParseNAT64] returns them, beside 64:ff9b::/96 and those within
	// 64:ff9b:1::/48. It is set before the policy is used.
	NAT64 []netip.Prefix

	// Own are further addresses that count as this machine's: those by which a
	// program in an emulated machine reaches the machine outside. It is set
	// before the policy is used.
	Own []netip.Prefix

	network Network
	rules   []Rule
	bound   *bindings
	looking chan struct{} // holds a token for each look-up of a connect that is under way

	opened  atomic.Pointer[Routes] // of network; nil: not yet
	opening sync.Mutex             // held while they are opened
}

// NewPolicy returns a policy for network. Rules are looked at in their order.
func NewPolicy(network Network, rules []Rule, published []Publish) *Policy {
	return &Policy{network: network, rules: rules, bound: newBindings(published), looking: make(chan struct{}, maxLooking)}
}

// maxLooking is how many look-ups of connects by name are under way at once,
// two for each connect; further ones wait. Each costs some 30 KiB, and often a
// descriptor, as long as no name server answers.
const maxLooking = 1024

// PublishForm is the text that [ParsePublish] reads.
const PublishForm = "[ADDRESS:]HOSTPORT:PORT[/tcp|/udp]"

// ParsePublish reads a [Publish] in [PublishForm]. The default address is
// 127.0.0.1.
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

// String is the text that [ParsePublish] reads p from.
func (p Publish) String() string {
	return fmt.Sprintf("%v:%d/%s", p.Host, p.Guest, p.Protocol)
}

// check judges a request, whose address is canonical. An address that something
// goes out to must be allowed itself, and so must all that it may reach.
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

// decide judges an address alone.
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

// special reports whether q goes to a special address, which only a rule for
// the address allows. Where the network can't tell, it counts as one, and the
// error says why.
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

// routes returns the network's, nil if it has none. They are opened at their
// first use, when the caller is in the network namespace that it works in.
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

// checkLookup refuses to look up a name, or an address, if one rule refuses
// every connection to it: a look-up tells the name to others.
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

// LookupNetIP looks a name up, unless the rules refuse every connection to it.
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

// LookupAddr looks up the names of an address, unless the rules refuse every
// connection to it.
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

// DialContext connects to the first address that answers of those that are
// allowed. It refuses networks whose addresses the rules can't judge. UNIX
// sockets are passed on: shares decide about files.
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
	// Package net takes a zone for the name of an interface first, and for a
	// number only if there is no such interface.
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
		// Rules of the kernel may look at the source. The port is left out: it
		// is a new one each time, so no answer would be good for a second
		// connection.
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

// allowed returns which of addrs, one at least, q may reach, or why it may
// reach none.
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
