package client

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"github.com/fix-project/arcavm/wire"
)

// resolveRequest is the request id of a lookup: a stream of its own has one.
const resolveRequest = 1

// Resolve looks up a host's addresses in the order in which they are to be
// tried. The network is "ip", or "ip4" or "ip6" for one family. An errno is one
// of PROTOCOL.md's resolver: ENOENT for a name that doesn't exist, ENODATA for
// one without an address of the family, EAGAIN, ETIMEDOUT, or EACCES.
func (c *Client) Resolve(ctx context.Context, network, host string) ([]netip.Addr, error) {
	family, ok := map[string]uint8{"ip": 0, "ip4": 4, "ip6": 6}[network]
	switch {
	case !ok:
		return nil, lookupError(host, net.UnknownNetworkError(network))
	case host == "" || len(host) > wire.MaxName:
		return nil, lookupError(host, syscall.ENOENT)
	}
	request := wire.AppendResolveName(nil, resolveRequest, wire.ResolveName{Family: family, Name: []byte(host)})
	payload, err := c.lookup(ctx, wire.KindAddresses, request)
	if err != nil {
		return nil, lookupError(host, err)
	}
	m, err := wire.DecodeAddresses(payload)
	if err == nil {
		err = status(m.Status)
	}
	if err != nil {
		return nil, lookupError(host, err)
	}
	var addrs []netip.Addr
	for e := range m.All() {
		addrs = append(addrs, e.AddrPort().Addr())
	}
	return addrs, nil
}

// ResolveAddr looks up the names of an address. Its errnos are those of
// [Client.Resolve].
func (c *Client) ResolveAddr(ctx context.Context, addr netip.Addr) ([]string, error) {
	e, err := Endpoint(netip.AddrPortFrom(addr, 0))
	if err != nil {
		return nil, lookupError(addr.String(), err)
	}
	payload, err := c.lookup(ctx, wire.KindNames, wire.AppendResolveAddress(nil, resolveRequest, wire.ResolveAddress{Address: e}))
	if err != nil {
		return nil, lookupError(addr.String(), err)
	}
	m, err := wire.DecodeNames(payload)
	if err == nil {
		err = status(m.Status)
	}
	if err != nil {
		return nil, lookupError(addr.String(), err)
	}
	var names []string
	for name := range m.All() {
		names = append(names, string(name))
	}
	return names, nil
}

// lookup opens a stream for one request, sends that, and returns the payload of
// the answer.
func (c *Client) lookup(ctx context.Context, answer wire.Kind, request []byte) ([]byte, error) {
	p, _, err := c.open(ctx, wire.ProtocolResolver, nil)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	stop := interrupt(ctx, p)
	var h wire.Header
	var payload []byte
	if err = putFrame(p, request); err == nil {
		h, payload, err = ReadFrame(p)
	}
	if stop() {
		err = ctx.Err()
	}
	if err == nil && (h.Kind != answer || h.RequestID != resolveRequest) {
		err = unexpected(h)
	}
	return payload, err
}

func lookupError(name string, err error) error {
	return fmt.Errorf("look up %s: %w", name, err)
}
