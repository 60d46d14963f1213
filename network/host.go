package network

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// Host is this machine's network, all of it. The zero value is ready.
type Host struct {
	// Resolver looks names up. nil is [net.DefaultResolver].
	Resolver *net.Resolver
}

// lookupGrace is how long a look-up of both families waits for the second one
// when the first one has been answered with addresses. It is longer than the
// delay of a connect, which tries late addresses, too: a look-up loses them.
const lookupGrace = 250 * time.Millisecond

// DialContext is [net.Dialer.DialContext], but tries a name's addresses as they
// are found, so that a family that no name server answers for delays nothing.
func (h Host) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	var nd net.Dialer
	_, version, err := splitNetwork(network)
	if err != nil {
		return nd.DialContext(ctx, network, address)
	}
	host, portText, err := net.SplitHostPort(address)
	if err != nil || host == "" {
		return nd.DialContext(ctx, network, address)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if _, aerr := netip.ParseAddr(host); err != nil || aerr == nil {
		return nd.DialContext(ctx, network, address)
	}
	d := dialer{
		name: host,
		lookup: func(ctx context.Context, network string) ([]netip.Addr, error) {
			return h.LookupNetIP(ctx, network, host)
		},
		judge: func(addrs []netip.Addr) (all []netip.AddrPort, err error) {
			for _, a := range addrs {
				all = append(all, netip.AddrPortFrom(a.Unmap(), uint16(port)))
			}
			return all, nil
		},
		dial: func(ctx context.Context, at netip.AddrPort) (net.Conn, error) {
			return nd.DialContext(ctx, network, at.String())
		},
	}
	conn, err := d.connect(ctx, version)
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// LookupNetIP is [net.Resolver.LookupNetIP], but asks for the two families of
// "ip" side by side. When one has been answered with addresses, it waits 250 ms
// more for the other. When ctx ends, it returns what it has found by then.
func (h Host) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	if _, err := netip.ParseAddr(host); err == nil || network != "ip" {
		return h.resolver().LookupNetIP(ctx, network, host)
	}
	ctx, cancel := context.WithCancel(ctx)
	families := familiesOf("")
	answers, asking := lookUp(ctx, families, func(ctx context.Context, network string) ([]netip.Addr, error) {
		return h.resolver().LookupNetIP(ctx, network, host)
	}), len(families)
	defer func() {
		cancel()
		for ; asking > 0; asking-- {
			<-answers
		}
	}()
	var (
		found [2][]netip.Addr // by family
		errs  dialErrors
		late  <-chan time.Time
	)
	for waiting := true; waiting && asking > 0; {
		select {
		case a := <-answers:
			asking--
			if a.panics != nil {
				panic(a.panics)
			}
			found[a.family] = a.addrs
			errs.lookedUp(a.err)
			if len(a.addrs) > 0 {
				late = time.After(lookupGrace)
			}
		case <-late:
			waiting = false
		}
	}
	all := slices.Concat(found[1], found[0])
	if len(found[1]) > 0 && len(found[0]) > 0 && !hasRoute(ctx, found[1][0]) {
		all = slices.Concat(found[0], found[1])
	}
	if len(all) == 0 {
		return nil, errs.lookup
	}
	return all, nil
}

// hasRoute reports whether this machine can send to an address.
func hasRoute(ctx context.Context, a netip.Addr) bool {
	var d net.Dialer
	c, err := d.DialContext(ctx, "udp", netip.AddrPortFrom(a, 9).String())
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}

// LookupAddr is [net.Resolver.LookupAddr].
func (h Host) LookupAddr(ctx context.Context, address string) ([]string, error) {
	return h.resolver().LookupAddr(ctx, address)
}

// resolver returns one whose sockets are closed when their caller's context
// ends. Those of package net wait for seconds more, however many there are.
func (h Host) resolver() *net.Resolver {
	r := h.Resolver
	if r == nil {
		r = net.DefaultResolver
	}
	dial := r.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	return &net.Resolver{PreferGo: r.PreferGo, StrictErrors: r.StrictErrors, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err == nil {
			context.AfterFunc(ctx, func() { _ = c.Close() })
		}
		return c, err
	}}
}
