package relay

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/wire"
)

// Bounds of the resolver protocol.
const (
	// maxStreamLookups is how many look-ups of a stream are at work at once.
	// Then the stream isn't read until one is answered.
	maxStreamLookups = 32
	// maxLookups is how many look-ups of a virtual machine are at work at once.
	// As many more, and one for each stream, may have been read and wait.
	maxLookups = 128
	// lookupTimeout is how long a look-up may take from its turn on: ETIMEDOUT.
	lookupTimeout = 15 * time.Second
	// otherFamilyTimeout is how much of that time goes to the question whether
	// a name without an address of the wanted family exists: ETIMEDOUT.
	otherFamilyTimeout = 2 * time.Second
)

// Resolver returns the handler of protocol 6: addresses of names, and names of
// addresses, as the server's network knows them. The handler serves one virtual
// machine.
func Resolver() Handler { return newResolver(lookupTimeout) }

func newResolver(timeout time.Duration) *resolver {
	return &resolver{timeout: timeout, further: further{most: maxLookups}, turns: make(chan struct{}, maxLookups)}
}

type resolver struct {
	timeout time.Duration
	further further
	turns   chan struct{} // holds a value for each lookup that is at work
}

// Serve answers requests, several at once, until the guest closes the pipe.
func (r *resolver) Serve(ctx context.Context, s *Stream) error {
	if err := noPayload(s); err != nil {
		return err
	}
	if err := s.Opened(0, nil); err != nil {
		return err
	}
	// Look-ups end when the guest takes no answers any more, and when the
	// stream ends for a breach.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.Pipe.OnWriteError(cancel)
	rs := &resolverStream{resolver: r, stream: s, ctx: ctx}
	q := requests[lookup]{stream: s, most: maxStreamLookups, further: &r.further, read: rs.read, answer: rs.answer}
	return q.serve()
}

// resolverStream is a stream of the resolver protocol.
type resolverStream struct {
	*resolver
	stream *Stream
	ctx    context.Context
}

// lookup is a request: for the addresses of a name, or, without a name, for the
// names of an address.
type lookup struct {
	request uint64
	name    string
	family  uint8
	address netip.Addr
}

func (r *resolverStream) read(in *frames, l *lookup) error {
	h, err := in.header()
	if err != nil {
		return err
	}
	if h.Kind != wire.KindResolveName && h.Kind != wire.KindResolveAddress {
		return unexpected(h.Kind)
	}
	p, err := in.payload(int(h.Length))
	if err != nil {
		return err
	}
	l.request = h.RequestID
	if h.Kind == wire.KindResolveName {
		var m wire.ResolveName
		if m, err = wire.DecodeResolveName(p); err == nil {
			l.name, l.family = string(m.Name), m.Family
		}
	} else {
		var m wire.ResolveAddress
		if m, err = wire.DecodeResolveAddress(p); err == nil {
			l.address = m.Address.AddrPort().Addr().Unmap()
		}
	}
	if err != nil {
		return ProtocolError(err)
	}
	return nil
}

// answer looks up and answers. Its error is the pipe's: those of look-ups go to
// the guest.
func (r *resolverStream) answer(l *lookup) error {
	var entries []byte
	var failure error = unix.EAGAIN
	if r.stream.operation() {
		entries, failure = r.lookUp(l)
	}
	if failure != nil {
		r.stream.server.count.lookupsFailed.Add(1)
		r.stream.failed("lookup failed", failure)
	}
	status := uint32(network.Errno(failure))
	return r.stream.write(func(b []byte) []byte {
		if l.name != "" {
			return wire.AppendAddresses(b, l.request, wire.Addresses{Status: status, Endpoints: entries})
		}
		return wire.AppendNames(b, l.request, wire.Names{Status: status, Entries: entries})
	})
}

// lookUp waits for its turn and looks up. Without an error there is an entry at
// least.
func (r *resolverStream) lookUp(l *lookup) (entries []byte, err error) {
	select {
	case r.turns <- struct{}{}:
		defer func() { <-r.turns }()
	case <-r.ctx.Done():
		return nil, r.ctx.Err()
	}
	ctx, cancel := context.WithTimeout(r.ctx, r.timeout)
	defer cancel()
	if l.name != "" {
		return r.addresses(ctx, l.name, l.family)
	}
	return r.names(ctx, l.address)
}

// networks are package net's names of families.
var networks = map[uint8]string{0: "ip", 4: "ip4", 6: "ip6"}

func (r *resolverStream) addresses(ctx context.Context, name string, family uint8) (entries []byte, err error) {
	addrs, err := r.stream.Network().LookupNetIP(ctx, networks[family], name)
	if errno := network.Errno(err); family != 0 && (errno == unix.ENOENT || errno == unix.EADDRNOTAVAIL) {
		// Package net has one error for a name that doesn't exist, and for one
		// without an address of this family.
		ctx, cancel := context.WithTimeout(ctx, otherFamilyTimeout)
		defer cancel()
		_, err = r.stream.Network().LookupNetIP(ctx, networks[0], name)
	}
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		a = a.Unmap()
		if len(entries) < wire.MaxAddresses*wire.EndpointSize && (family == 0 || a.Is4() == (family == 4)) {
			entries = wire.AppendEndpoint(entries, endpointAt(netip.AddrPortFrom(a, 0)))
		}
	}
	if len(entries) == 0 {
		return nil, fmt.Errorf("lookup of %q: %w", name, unix.ENODATA)
	}
	return entries, nil
}

func (r *resolverStream) names(ctx context.Context, address netip.Addr) (entries []byte, err error) {
	names, err := r.stream.Network().LookupAddr(ctx, address.String())
	for _, name := range names {
		name = strings.TrimSuffix(name, ".")
		if name == "" || len(name) > wire.MaxName || strings.Contains(name, "\x00") {
			continue
		}
		if len(entries)+1+len(name) > wire.MaxNameBytes {
			break
		}
		entries = wire.AppendHostName(entries, name)
	}
	switch {
	case len(entries) > 0:
		// The error is about other names.
		return entries, nil
	case err == nil:
		err = fmt.Errorf("lookup of %v: %w", address, unix.ENOENT)
	}
	return nil, err
}
