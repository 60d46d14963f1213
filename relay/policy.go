package relay

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Policy is a [Network] that lets a guest have what rules allow of another one. The first rule that matches decides. If none does:
//
//   - a guest may connect and send to every address but the host's own and those that are its link's: loopback, unspecified, link-local
//     (169.254.0.0/16 and fe80::/10, where clouds keep their metadata, and fd00:ec2::254, where one does), broadcast, and the addresses of the host's
//     interfaces;
//   - it may listen on every address.
//
// A name is looked up first. The rules then judge each address that it has, and only these addresses are connected to: a name that changes its
// address in between gains nothing. A rule that allows a name doesn't allow the addresses that are denied above. A refusal is a [DeniedError].
//
// Datagrams to who has sent one to the same socket are allowed.
type Policy struct {
	// OnPublish, if not nil, is told where on the host a published port is bound, each time a guest binds it, before the guest learns of it. It must
	// not block, and must be set before the policy is in use.
	OnPublish func(p Publish, host netip.AddrPort)

	network Network
	rules   []Rule
	bound   *bindings

	own     atomic.Pointer[ownAddrs]
	looking sync.Mutex // held by the one that replaces own
}

// ownAddrs is what was known of the host's interfaces at a time: their addresses, and those that reach all of their networks. It doesn't change.
type ownAddrs struct {
	addrs  map[netip.Addr]bool
	looked time.Time
}

// NewPolicy returns a policy for network.
func NewPolicy(network Network, rules []Rule, published []Publish) *Policy {
	return &Policy{network: network, rules: rules, bound: newBindings(published)}
}

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
	at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	return Publish{Protocol: protocol, Host: at, Guest: uint16(guest)}, nil
}

// check decides. The address in q isn't IPv4-mapped.
func (p *Policy) check(q request) error {
	special := q.direction == Out && p.special(q.at.Addr())
	for i := range p.rules {
		if r := &p.rules[i]; r.matches(q, special) {
			if r.Allow {
				return nil
			}
			return &DeniedError{q.String()}
		}
	}
	if special {
		return &DeniedError{q.String()}
	}
	return nil
}

// special reports whether nobody may connect to a without a rule for it.
func (p *Policy) special(a netip.Addr) bool {
	return a.IsLoopback() || a.IsUnspecified() || a.IsLinkLocalUnicast() || a.IsLinkLocalMulticast() || a.IsInterfaceLocalMulticast() ||
		a.Is4() && (a.As4()[0] == 0 || a == netip.AddrFrom4([4]byte{255, 255, 255, 255})) || a.WithZone("") == cloudMetadata || p.isOwn(a)
}

// cloudMetadata is where Amazon's virtual machines get theirs by IPv6.
var cloudMetadata = netip.MustParseAddr("fd00:ec2::254")

// ownAge is how old the knowledge of the host's addresses may be.
const ownAge = time.Second

// isOwn reports whether a is an address of this machine, or a broadcast address of one of its networks, if the network below can tell.
// While one caller looks for changes the others go by what was known.
func (p *Policy) isOwn(a netip.Addr) bool {
	host, ok := p.network.(interface {
		InterfacePrefixes() ([]netip.Prefix, error)
	})
	if !ok {
		return false
	}
	own := p.own.Load()
	if own == nil {
		p.looking.Lock()
		if own = p.own.Load(); own == nil {
			own = p.lookAgain(host.InterfacePrefixes)
		}
		p.looking.Unlock()
	} else if time.Since(own.looked) > ownAge && p.looking.TryLock() {
		own = p.lookAgain(host.InterfacePrefixes)
		p.looking.Unlock()
	}
	// Without any knowledge everything is taken for the host's own.
	return own == nil || own.addrs[a.WithZone("")]
}

// lookAgain returns what is known now. After an error that is what was known before. looking is held.
func (p *Policy) lookAgain(prefixes func() ([]netip.Prefix, error)) *ownAddrs {
	list, err := prefixes()
	own := p.own.Load()
	if err != nil {
		return own
	}
	own = &ownAddrs{addrs: make(map[netip.Addr]bool), looked: time.Now()}
	for _, prefix := range list {
		addr := prefix.Addr().Unmap().WithZone("")
		own.addrs[addr] = true
		if addr.Is4() && prefix.Bits() < 31 {
			first := prefix.Masked().Addr()
			// Older kernels take the first address, too, for one that means all.
			own.addrs[first], own.addrs[broadcast(first, prefix.Bits())] = true, true
		}
	}
	p.own.Store(own)
	return own
}

// broadcast is the last address of a network whose first is given.
func broadcast(first netip.Addr, bits int) netip.Addr {
	b := first.As4()
	n := binary.BigEndian.Uint32(b[:]) | (1<<(32-bits) - 1)
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, n)))
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
	if _, err := netip.ParseAddr(host); err != nil {
		if err := p.checkLookup(canonicalName(host), netip.Addr{}); err != nil {
			return nil, err
		}
	}
	return p.network.LookupNetIP(ctx, network, host)
}

// LookupAddr looks an address up, if the rules let the guest connect to it.
func (p *Policy) LookupAddr(ctx context.Context, address string) ([]string, error) {
	if addr, err := netip.ParseAddr(address); err == nil {
		if err := p.checkLookup("", addr.Unmap()); err != nil {
			return nil, err
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
	name := ""
	var addrs []netip.Addr
	if a, err := netip.ParseAddr(host); err == nil {
		addrs = []netip.Addr{a}
	} else {
		name = canonicalName(host)
		if addrs, err = p.LookupNetIP(ctx, "ip"+version, host); err != nil {
			return nil, err
		}
	}
	allowed, err := p.allowed(request{direction: Out, protocol: protocol, name: name}, addrs, uint16(port))
	if err != nil {
		return nil, err
	}
	return dialFirst(ctx, p.network, network, allowed)
}

// allowed returns what q may reach of addrs, or why there is nothing.
func (p *Policy) allowed(q request, addrs []netip.Addr, port uint16) (allowed []netip.AddrPort, err error) {
	err = &net.DNSError{Err: "no addresses", Name: q.name, IsNotFound: true}
	for i, a := range addrs {
		q.at = netip.AddrPortFrom(a.Unmap(), port)
		denied := p.check(q)
		if denied == nil {
			allowed = append(allowed, q.at)
		} else if i == 0 {
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

func networkOf(protocol string, at netip.AddrPort) string {
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
	release func() // gives its place back

	mu     sync.Mutex
	peers  map[netip.AddrPort]struct{} // that the policy wouldn't let through; at most maxPeers
	shares map[netip.Prefix]int        // how many of peers each machine has
}

const maxPeers = 1024

// LocalAddr is where the guest is bound, as it sees it.
func (c *policedPacketConn) LocalAddr() net.Addr { return c.bound }

func (c *policedPacketConn) check(to netip.AddrPort) error {
	return c.policy.check(request{direction: Out, protocol: "udp", at: netip.AddrPortFrom(to.Addr().Unmap(), to.Port())})
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

// Received remembers where a datagram came from, if the policy wouldn't let one go there.
func (c *policedPacketConn) Received(from netip.AddrPort) {
	if c.check(from) != nil {
		c.remember(from)
	}
}

// MaySend is nil if the policy lets a datagram go to an address, or one has come from there.
func (c *policedPacketConn) MaySend(to netip.AddrPort) error {
	err := c.check(to)
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

// remember forgets another peer when there are too many: one of the machine that
// has the most, so that none can make the socket forget all others.
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
	c.shares[peerAt(peer.Addr())]++
}

func (c *policedPacketConn) forgetOne() {
	var machine netip.Prefix
	for m, n := range c.shares {
		if n > c.shares[machine] {
			machine = m
		}
	}
	for peer := range c.peers {
		if peerAt(peer.Addr()) == machine {
			delete(c.peers, peer)
			break
		}
	}
	if c.shares[machine]--; c.shares[machine] == 0 {
		delete(c.shares, machine)
	}
}

func (c *policedPacketConn) WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error) {
	if err := c.MaySend(to); err != nil {
		return 0, err
	}
	return c.PacketConn.WriteToUDPAddrPort(b, to)
}

func (c *policedPacketConn) WriteTo(b []byte, to net.Addr) (int, error) {
	udp, ok := to.(*net.UDPAddr)
	if !ok {
		return 0, unix.EINVAL
	}
	return c.WriteToUDPAddrPort(b, udp.AddrPort())
}
