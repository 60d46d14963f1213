package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Publish says that what a guest listens on at a port is bound at another
// address and port of the host. No rule is needed for it, and none refuses it.
//
// A port may be published once for each family of host addresses. A guest that
// listens on both families finds each at the host address of that family. A
// guest that listens on one family is found at both host addresses, as long as
// it doesn't listen on the other. Where a guest listens on both, and the port
// is published by one family only, the first listener is bound there, and the
// second at a free port of the host's loopback address, which no client is told
// of.
type Publish struct {
	Protocol string         // "tcp" or "udp"
	Host     netip.AddrPort // port 0: a free one
	Guest    uint16
}

type publication struct {
	protocol string
	port     uint16
}

// publishedPort is a port of the guest and the sockets that are bound by it.
// Its arrays are indexed by family.
type publishedPort struct {
	hosts  [2]netip.AddrPort // the zero AddrPort: not published by this family
	users  [2]int            // sockets that are bound at each
	spares [2]*spare         // of them, the one that gives way
	guests []netip.Addr      // where the guest believes that it is bound
}

// spare is a socket at the host address of the family that the guest doesn't
// listen on. It gives way when the guest does listen on it.
type spare struct {
	mu     sync.Mutex
	socket io.Closer // nil: not bound yet
	gone   bool
}

// is makes socket the spare. It reports false if the spare has given way.
func (s *spare) is(socket io.Closer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.socket = socket
	return !s.gone
}

// giveWay closes the socket, before it returns if there is one already.
func (s *spare) giveWay() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone = true
	if s.socket != nil {
		_ = s.socket.Close()
	}
}

// family is 0 for IPv4, 1 for IPv6: an index.
func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// loopbackOf is the address of localhost, by family.
var loopbackOf = [2]netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}

// bindings are the sockets that a guest has bound. They are bound one at a
// time.
type bindings struct {
	published map[publication]*publishedPort // doesn't change; what it points to does

	binding sync.Mutex // held while a socket is bound

	// mu guards the published ports and localhost. It may be taken while
	// binding is held.
	mu        sync.Mutex
	localhost map[localhostPort]int // how many sockets each has
}

// localhostPort is a port of localhost in one family, where clients arrive that
// connect to localhost by that family.
type localhostPort struct {
	protocol string
	family   int
	port     uint16
}

func newBindings(published []Publish) *bindings {
	b := &bindings{published: make(map[publication]*publishedPort), localhost: make(map[localhostPort]int)}
	for _, m := range published {
		key := publication{m.Protocol, m.Guest}
		if b.published[key] == nil {
			b.published[key] = &publishedPort{}
		}
		at := netip.AddrPortFrom(m.Host.Addr().Unmap(), m.Host.Port())
		b.published[key].hosts[family(at.Addr())] = at
	}
	return b
}

// binding is the place of a socket: where the guest wants it, and where on the
// host it is.
type binding struct {
	protocol string
	guest    netip.AddrPort // where the guest asked for it
	host     netip.AddrPort // where it is to be bound
	port     *publishedPort // nil: the port isn't published
	slot     int            // of port.hosts that host is, -1: none
	spare    *spare         // nil: it isn't one
	arrives  localhostPort  // once bound; the zero value if no client of localhost arrives
}

// Listen listens, at the published address if there is one.
func (p *Policy) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	if network == "unix" {
		return p.network.Listen(ctx, network, address)
	}
	b, err := p.place(network, address)
	if err != nil {
		return nil, err
	}
	var ln net.Listener
	if err := p.bind(b, func(network, address string) (_ io.Closer, _ net.Addr, err error) {
		if ln, err = Check(p.network.Listen(ctx, network, address)); err != nil {
			return nil, nil, err
		}
		return ln, ln.Addr(), nil
	}); err != nil {
		return nil, err
	}
	held := p.hold(b, ln)
	if b.port == nil {
		return held, nil
	}
	return p.listenSpare(ctx, publishedListener{held, net.TCPAddrFromAddrPort(b.guest)}, b)
}

// hold returns ln, which is bound as b, as a listener whose Close releases b.
// It reports a published one.
func (p *Policy) hold(b *binding, ln net.Listener) *heldListener {
	held := &heldListener{Listener: ln, release: sync.OnceFunc(func() { p.release(b) })}
	p.tellPublished(b, ln.Addr(), held)
	return held
}

// listenSpare adds a listener at the host address of the other family to ln,
// which is bound as b, if the port is published by that family, too, and the
// guest doesn't listen on it. It closes ln on errors.
func (p *Policy) listenSpare(ctx context.Context, ln publishedListener, b *binding) (net.Listener, error) {
	other := p.placeSpare(b)
	if other == nil {
		return ln, nil
	}
	var second net.Listener
	if err := p.bind(other, func(network, address string) (_ io.Closer, _ net.Addr, err error) {
		if second, err = Check(p.network.Listen(ctx, network, address)); err != nil {
			return nil, nil, err
		}
		return second, second.Addr(), nil
	}); err != nil {
		_ = ln.Close()
		return nil, err
	}
	defer closeOnPanic(ln)
	held := p.hold(other, second)
	joined := join(ln.heldListener, held)
	if !other.spare.is(held) {
		_ = held.Close()
	}
	return publishedListener{&heldListener{Listener: joined, release: func() {}}, ln.guest}, nil
}

// ListenPacket binds a socket, at the published address if there is one.
func (p *Policy) ListenPacket(ctx context.Context, network, address string) (PacketConn, error) {
	b, err := p.place(network, address)
	if err != nil {
		return nil, err
	}
	first, err := p.openPacket(ctx, b)
	if err != nil {
		return nil, err
	}
	other := p.placeSpare(b)
	if other == nil {
		return first, nil
	}
	defer closeOnPanic(first)
	second, err := p.openPacket(ctx, other)
	if err != nil {
		_ = first.Close()
		return nil, err
	}
	if !other.spare.is(second) {
		_ = second.Close()
	}
	return &joinedPacketConn{first, second}, nil
}

// openPacket binds a socket as b, and reports a published one.
func (p *Policy) openPacket(ctx context.Context, b *binding) (*policedPacketConn, error) {
	var c PacketConn
	if err := p.bind(b, func(network, address string) (_ io.Closer, _ net.Addr, err error) {
		if c, err = Check(p.network.ListenPacket(ctx, network, address)); err != nil {
			return nil, nil, err
		}
		return c, c.LocalAddr(), nil
	}); err != nil {
		return nil, err
	}
	policed := &policedPacketConn{
		PacketConn: c, policy: p, bound: c.LocalAddr(), host: addrPort(c.LocalAddr()),
		release: sync.OnceFunc(func() { p.release(b) }),
	}
	if b.port != nil {
		policed.bound = net.UDPAddrFromAddrPort(b.guest)
	}
	p.tellPublished(b, c.LocalAddr(), policed)
	return policed, nil
}

// joinedPacketConn is bound at the host addresses of both families. A user that
// doesn't know SecondPacketConn gets the first socket's datagrams only.
type joinedPacketConn struct {
	*policedPacketConn
	second *policedPacketConn
}

// SecondPacketConn is the socket of the other family.
func (c *joinedPacketConn) SecondPacketConn() PacketConn { return c.second }

// SetDeadline sets the deadline of both.
func (c *joinedPacketConn) SetDeadline(t time.Time) error {
	// The second socket may be closed before the first.
	_ = c.second.SetDeadline(t)
	return c.policedPacketConn.SetDeadline(t)
}

// Close closes both.
func (c *joinedPacketConn) Close() error {
	_ = c.second.Close()
	return c.policedPacketConn.Close()
}

func (p *Policy) tellPublished(b *binding, host net.Addr, socket io.Closer) {
	if p.OnPublish != nil && b.slot >= 0 {
		defer closeOnPanic(socket)
		asked := Publish{Protocol: b.protocol, Host: b.port.hosts[b.slot], Guest: b.guest.Port()}
		p.OnPublish(asked, addrPort(host))
	}
}

// place takes the place that the guest asks for. Without an error the caller
// releases it.
func (p *Policy) place(network, address string) (*binding, error) {
	protocol, _, err := splitNetwork(network)
	if err != nil {
		return nil, err
	}
	at, err := bindAddress(address)
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Err: err}
	}
	b := &binding{protocol: protocol, guest: at, host: at, slot: -1}
	if b.port = p.bound.published[publication{protocol, at.Port()}]; b.port == nil {
		return b, p.check(request{direction: In, protocol: protocol, at: at})
	}
	p.bound.mu.Lock()
	gives, ok := b.port.take(b)
	p.bound.mu.Unlock()
	if !ok {
		return nil, bindError(network, at, unix.EADDRINUSE)
	}
	if gives != nil {
		gives.giveWay()
	}
	return b, nil
}

// take chooses where on the host b is bound, and returns the spare that gives
// way to it, if any. It reports false if the guest has bound a socket there
// already, as the guest sees it.
func (t *publishedPort) take(b *binding) (gives *spare, ok bool) {
	at := b.guest.Addr()
	for _, other := range t.guests {
		if family(at) == family(other) && (at == other || at.IsUnspecified() || other.IsUnspecified()) {
			return nil, false
		}
	}
	t.guests = append(t.guests, at)
	own := family(at)
	b.host = netip.AddrPortFrom(loopbackOf[own], 0)
	for _, slot := range [2]int{own, 1 - own} {
		if !t.hosts[slot].IsValid() {
			continue
		}
		gives = t.spares[slot]
		if gives != nil || t.users[slot] == 0 || t.hosts[slot].Port() == 0 {
			b.slot, b.host = slot, t.hosts[slot]
			t.users[slot]++
			t.spares[slot] = nil
		}
		break
	}
	return gives, true
}

// placeSpare takes a place for a spare beside b. It returns nil if there is
// none.
func (p *Policy) placeSpare(b *binding) *binding {
	p.bound.mu.Lock()
	defer p.bound.mu.Unlock()
	t, slot := b.port, 1-b.slot
	if b.slot < 0 || b.spare != nil || !t.hosts[slot].IsValid() || t.users[slot] > 0 {
		return nil
	}
	t.users[slot]++
	t.spares[slot] = &spare{}
	return &binding{protocol: b.protocol, guest: b.guest, host: t.hosts[slot], port: t, slot: slot, spare: t.spares[slot]}
}

// release gives b's place back when its socket is closed.
func (p *Policy) release(b *binding) {
	p.bound.mu.Lock()
	defer p.bound.mu.Unlock()
	if n := p.bound.localhost[b.arrives]; n > 1 {
		p.bound.localhost[b.arrives] = n - 1
	} else {
		delete(p.bound.localhost, b.arrives)
	}
	if b.port == nil {
		return
	}
	if b.slot >= 0 {
		b.port.users[b.slot]--
	}
	if b.spare != nil {
		if b.port.spares[b.slot] == b.spare {
			b.port.spares[b.slot] = nil
		}
		return
	}
	for i, a := range b.port.guests {
		if a == b.guest.Addr() {
			b.port.guests = append(b.port.guests[:i], b.port.guests[i+1:]...)
			break
		}
	}
}

// maxFreePorts is how many ports of the host's choice are tried until one is
// free in the other family, too.
const maxFreePorts = 32

// errTaken means that another program has this port of localhost in the other
// family.
var errTaken = errors.New("localhost is another program's there by the other family")

// bind binds a socket by try, and closes it again if it isn't bound where it
// may be. On errors b is released.
func (p *Policy) bind(b *binding, try func(network, address string) (io.Closer, net.Addr, error)) error {
	for n := 1; ; n++ {
		err := p.bindOnce(b, try)
		if errors.Is(err, errTaken) && b.host.Port() == 0 && n < maxFreePorts {
			continue
		}
		if err != nil {
			p.release(b)
		}
		return err
	}
}

func (p *Policy) bindOnce(b *binding, try func(network, address string) (io.Closer, net.Addr, error)) error {
	host, canTell := p.network.(interface {
		InUse(protocol string, at netip.AddrPort) bool
	})
	if canTell {
		// Between the bind and its entry in localhost, another socket of this
		// guest would be taken for another program's.
		p.bound.binding.Lock()
		defer p.bound.binding.Unlock()
	}
	socket, addr, err := try(Name(b.protocol, b.host), b.host.String())
	if err != nil {
		return err
	}
	at, err := p.judge(b, addr)
	if err == nil && canTell && b.port == nil {
		err = p.checkLocalhost(b, at, host.InUse)
	}
	if err != nil {
		_ = socket.Close()
		return err
	}
	if arrives, ok := asLocalhost(b.protocol, at); ok && canTell {
		p.bound.mu.Lock()
		b.arrives = arrives
		p.bound.localhost[arrives]++
		p.bound.mu.Unlock()
	}
	return nil
}

// judge returns where a socket is bound, if that is allowed. A published socket
// must be where it is published. If another socket isn't bound where the guest
// asked for, the rules judge where it is. A network that can't tell is
// believed.
func (p *Policy) judge(b *binding, addr net.Addr) (netip.AddrPort, error) {
	at := addrPort(addr)
	if !at.IsValid() {
		return b.host, nil
	}
	if b.port != nil {
		if at.Addr().WithZone("") != b.host.Addr().WithZone("") || b.host.Port() != 0 && at.Port() != b.host.Port() {
			return at, bindError(Name(b.protocol, b.host), b.host, fmt.Errorf("bound to %v: %w", at, unix.EADDRNOTAVAIL))
		}
		return at, nil
	}
	if at == b.host {
		return at, nil
	}
	return at, p.check(request{direction: In, protocol: b.protocol, at: at})
}

// asLocalhost reports whether clients of localhost arrive at a socket, and at
// which port.
func asLocalhost(protocol string, at netip.AddrPort) (localhostPort, bool) {
	f := family(at.Addr())
	return localhostPort{protocol, f, at.Port()}, at.Addr().IsUnspecified() || at.Addr() == loopbackOf[f]
}

// checkLocalhost refuses, with EADDRINUSE, a socket that would take clients of
// localhost from another program, which has the same port in the other family.
// A rule that allows the bind allows that, too; the lack of a rule doesn't.
func (p *Policy) checkLocalhost(b *binding, at netip.AddrPort, inUse func(string, netip.AddrPort) bool) error {
	arrives, ok := asLocalhost(b.protocol, at)
	if !ok || p.grants(request{direction: In, protocol: b.protocol, at: at}) {
		return nil
	}
	other := netip.AddrPortFrom(loopbackOf[1-arrives.family], at.Port())
	if !inUse(b.protocol, other) {
		return nil
	}
	arrives.family = 1 - arrives.family
	p.bound.mu.Lock()
	defer p.bound.mu.Unlock()
	if p.bound.localhost[arrives] > 0 {
		return nil
	}
	return bindError(Name(b.protocol, at), at, fmt.Errorf("%v: %w: %w", other, errTaken, unix.EADDRINUSE))
}

// grants reports whether a rule allows q.
func (p *Policy) grants(q request) bool {
	for i := range p.rules {
		if r := &p.rules[i]; r.matches(q) {
			return r.Allow
		}
	}
	return false
}

// heldListener releases its place when it is closed.
type heldListener struct {
	net.Listener
	release func()
}

// NetListener returns the listener that l wraps.
func (l *heldListener) NetListener() net.Listener { return l.Listener }

func (l *heldListener) Close() error {
	err := l.Listener.Close()
	l.release()
	return err
}

// publishedListener is bound elsewhere than where the guest sees it.
type publishedListener struct {
	*heldListener
	guest net.Addr
}

// GuestAddr is where the guest listens, as it sees it.
func (l publishedListener) GuestAddr() net.Addr { return l.guest }
