package relay_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/network/networktest"
	"github.com/fix-project/arcavm/pipes/pipestest"
	"github.com/fix-project/arcavm/relay"
	"github.com/fix-project/arcavm/wire"
)

// lookups is a network whose look-ups are functions.
type lookups struct {
	network.Host
	addrs func(ctx context.Context, network, host string) ([]netip.Addr, error)
	names func(ctx context.Context, address string) ([]string, error)
}

func (l lookups) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	return l.addrs(ctx, network, host)
}

func (l lookups) LookupAddr(ctx context.Context, address string) ([]string, error) {
	return l.names(ctx, address)
}

func notFound(name string) error {
	return &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
}

// resolverGuest is a guest's stream of look-ups.
type resolverGuest struct {
	*pipestest.GuestConn
	t testing.TB
}

func (m *machine) resolver(protocol uint16) *resolverGuest {
	m.t.Helper()
	c, err := m.tryPipe(4096, 4096, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	if _, err := open(c, protocol, nil); err != nil {
		m.t.Fatal(err)
	}
	return &resolverGuest{c, m.t}
}

func (g *resolverGuest) ask(request uint64, family uint8, name string) {
	g.t.Helper()
	if _, err := g.Write(wire.AppendResolveName(nil, request, wire.ResolveName{Family: family, Name: []byte(name)})); err != nil {
		g.t.Fatal(err)
	}
}

func (g *resolverGuest) askNames(request uint64, address netip.Addr, scope uint32) {
	g.t.Helper()
	m := wire.ResolveAddress{Address: wire.Endpoint{Addr: address, Scope: scope}}
	if _, err := g.Write(wire.AppendResolveAddress(nil, request, m)); err != nil {
		g.t.Fatal(err)
	}
}

// answer returns the next answer: its entries, separated by spaces, or its
// status as an error.
func (g *resolverGuest) answer() (request uint64, text string, err error) {
	g.t.Helper()
	h, p, err := receive(g)
	if err != nil {
		g.t.Fatal(err)
	}
	var all []string
	switch h.Kind {
	case wire.KindAddresses:
		m, err := wire.DecodeAddresses(p)
		if err != nil {
			g.t.Fatal(err)
		}
		for e := range m.All() {
			all = append(all, e.AddrPort().Addr().String())
		}
		return h.RequestID, strings.Join(all, " "), status(m.Status)
	case wire.KindNames:
		m, err := wire.DecodeNames(p)
		if err != nil {
			g.t.Fatal(err)
		}
		for name := range m.All() {
			all = append(all, string(name))
		}
		return h.RequestID, strings.Join(all, " "), status(m.Status)
	}
	g.t.Fatalf("got %+v", h)
	return 0, "", nil
}

func (g *resolverGuest) want(request uint64, text string, err error) {
	g.t.Helper()
	gotRequest, got, gotErr := g.answer()
	if gotRequest != request || got != text || !errors.Is(gotErr, err) {
		g.t.Errorf("request %d: %q, %v; want %d: %q, %v", gotRequest, got, gotErr, request, text, err)
	}
}

func parseAddrs(text string) (addrs []netip.Addr) {
	for s := range strings.FieldsSeq(text) {
		addrs = append(addrs, netip.MustParseAddr(s))
	}
	return addrs
}

func TestResolveName(t *testing.T) {
	t.Parallel()
	var many []string
	for i := range 100 {
		many = append(many, fmt.Sprintf("192.0.2.%d", i))
	}
	// For a name with addresses of one family, package net's answer depends on
	// where it has found them.
	table := map[string]map[string]any{
		"both.test":   {"ip": "2001:db8::1 192.0.2.1", "ip4": "192.0.2.1", "ip6": "2001:db8::1"},
		"four.test":   {"ip": "192.0.2.4", "ip4": "192.0.2.4", "ip6": notFound("four.test")},
		"hosts.test":  {"ip": "192.0.2.5", "ip4": "192.0.2.5", "ip6": &net.AddrError{Err: "no suitable address found", Addr: "hosts.test"}},
		"mixed.test":  {"ip4": "2001:db8::1 192.0.2.1", "ip6": "::ffff:192.0.2.1"},
		"mapped.test": {"ip": "::ffff:192.0.2.1"},
		"local.test":  {"ip": "fe80::1%7"},
		"many.test":   {"ip": strings.Join(many, " ")},
		"flaky.test":  {"ip4": notFound("flaky.test"), "ip": &net.DNSError{Err: "server misbehaving", IsTemporary: true}},
		"none.test":   {"ip": ""},
		"again.test":  {"ip": &net.DNSError{Err: "server misbehaving", IsTemporary: true}},
		"late.test":   {"ip": &net.DNSError{Err: "i/o timeout", IsTimeout: true}},
		"later.test":  {"ip4": context.DeadlineExceeded},
		"denied.test": {"ip": &network.DeniedError{What: "lookup"}},
	}
	m := start(t, setup{network: lookups{addrs: func(_ context.Context, network, host string) ([]netip.Addr, error) {
		switch found := table[host][network].(type) {
		case string:
			return parseAddrs(found), nil
		case error:
			return nil, found
		}
		return nil, notFound(host)
	}}})
	g := m.resolver(wire.ProtocolResolver)
	for i, c := range []struct {
		name   string
		family uint8
		want   string
		err    error
	}{
		{"both.test", 0, "2001:db8::1 192.0.2.1", nil},
		{"both.test", 4, "192.0.2.1", nil},
		{"both.test", 6, "2001:db8::1", nil},
		{"four.test", 4, "192.0.2.4", nil},
		{"four.test", 6, "", unix.ENODATA},
		{"hosts.test", 6, "", unix.ENODATA},
		{"mixed.test", 4, "192.0.2.1", nil},
		{"mixed.test", 6, "", unix.ENODATA},
		{"mapped.test", 0, "192.0.2.1", nil},
		{"local.test", 0, "fe80::1%7", nil},
		{"many.test", 0, strings.Join(many[:wire.MaxAddresses], " "), nil},
		{"flaky.test", 4, "", unix.EAGAIN},
		{"none.test", 0, "", unix.ENODATA},
		{"nowhere.test", 0, "", unix.ENOENT},
		{"nowhere.test", 4, "", unix.ENOENT},
		{"again.test", 0, "", unix.EAGAIN},
		{"late.test", 0, "", unix.ETIMEDOUT},
		{"later.test", 4, "", unix.ETIMEDOUT},
		{"denied.test", 0, "", unix.EACCES},
	} {
		g.ask(uint64(i), c.family, c.name)
		g.want(uint64(i), c.want, c.err)
	}
	if n := m.server.Stats().Denied; n != 1 {
		t.Errorf("%d counted as denied, want 1", n)
	}
	g.Close()
	m.wantFree()
}

func TestResolveAddress(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 200)
	m := start(t, setup{network: lookups{names: func(_ context.Context, address string) ([]string, error) {
		switch address {
		case "192.0.2.1":
			return []string{"one.test.", "two.test"}, nil
		case "fe80::1%3":
			return []string{"scoped.test."}, nil
		case "192.0.2.2":
			return []string{"", ".", strings.Repeat("b", 254), "nul\x00.test", "good.test."}, &net.DNSError{Err: "malformed records"}
		case "192.0.2.3":
			return slices.Repeat([]string{long}, 100), nil
		case "192.0.2.4":
			return nil, nil
		case "192.0.2.5":
			return nil, &net.DNSError{Err: "i/o timeout", IsTimeout: true}
		}
		return nil, notFound(address)
	}}})
	g := m.resolver(wire.ProtocolResolver)
	for i, c := range []struct {
		address string
		scope   uint32
		want    string
		err     error
	}{
		{"192.0.2.1", 0, "one.test two.test", nil},
		{"::ffff:192.0.2.1", 0, "one.test two.test", nil},
		{"fe80::1", 3, "scoped.test", nil},
		{"192.0.2.2", 0, "good.test", nil},
		{"192.0.2.3", 0, strings.TrimSuffix(strings.Repeat(long+" ", wire.MaxNameBytes/201), " "), nil},
		{"192.0.2.4", 0, "", unix.ENOENT},
		{"192.0.2.5", 0, "", unix.ETIMEDOUT},
		{"2001:db8::1", 0, "", unix.ENOENT},
	} {
		g.askNames(uint64(i), netip.MustParseAddr(c.address), c.scope)
		g.want(uint64(i), c.want, c.err)
	}
}

// The network in memory, under a policy.
func TestResolverPolicy(t *testing.T) {
	t.Parallel()
	deny, err := network.ParseRule(false, "*.secret.test")
	if err != nil {
		t.Fatal(err)
	}
	denyAddr, err := network.ParseRule(false, "192.0.2.0/24")
	if err != nil {
		t.Fatal(err)
	}
	hosts := map[string]netip.Addr{"open.test": netip.MustParseAddr("192.0.2.1"), "x.secret.test": netip.MustParseAddr("192.0.2.2")}
	m := start(t, setup{network: network.NewPolicy(&networktest.Network{Hosts: hosts}, []network.Rule{deny, denyAddr}, nil)})
	g := m.resolver(wire.ProtocolResolver)
	g.ask(1, 0, "open.test")
	g.want(1, "192.0.2.1", nil)
	g.ask(2, 6, "open.test")
	g.want(2, "", unix.ENODATA)
	g.ask(3, 6, "X.Secret.Test.")
	g.want(3, "", unix.EACCES)
	g.askNames(4, hosts["open.test"], 0)
	g.want(4, "", unix.EACCES)
	if n := m.server.Stats().Denied; n != 2 {
		t.Errorf("%d counted as denied, want 2", n)
	}
}

// The host's resolver knows localhost without a name server.
func TestResolveLocalhost(t *testing.T) {
	t.Parallel()
	if hosts, err := os.ReadFile("/etc/hosts"); err != nil || !strings.Contains(string(hosts), "localhost") {
		t.Skip("/etc/hosts doesn't name localhost")
	}
	m := start(t, setup{})
	g := m.resolver(wire.ProtocolResolver)
	g.ask(1, 0, "localhost")
	if _, text, err := g.answer(); err != nil || !slices.Contains(strings.Fields(text), "127.0.0.1") {
		t.Errorf("%q, %v", text, err)
	}
}

// gate is a network whose look-ups wait until the test lets each go, by its
// name, or until they are cancelled.
type gate struct {
	mu           sync.Mutex
	open         map[string]chan struct{}
	running, top int
	changed      *sync.Cond
}

func newGate() *gate {
	g := &gate{open: make(map[string]chan struct{})}
	g.changed = sync.NewCond(&g.mu)
	return g
}

func (g *gate) channel(name string) chan struct{} {
	if g.open[name] == nil {
		g.open[name] = make(chan struct{})
	}
	return g.open[name]
}

func (g *gate) letGo(name string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.channel(name))
}

func (g *gate) count(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running += n
	g.top = max(g.top, g.running)
	g.changed.Broadcast()
}

// wantRunning waits until n lookups are at work.
func (g *gate) wantRunning(t *testing.T, n int) {
	t.Helper()
	late := time.AfterFunc(patience, func() { panic("the lookups don't come") })
	defer late.Stop()
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.running != n {
		g.changed.Wait()
	}
}

func (g *gate) LookupNetIP(ctx context.Context, host string) ([]netip.Addr, error) {
	g.mu.Lock()
	open := g.channel(host)
	g.mu.Unlock()
	g.count(1)
	defer g.count(-1)
	select {
	case <-open:
		return parseAddrs("192.0.2.1"), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (g *gate) network() network.Network {
	return lookups{addrs: func(ctx context.Context, _, host string) ([]netip.Addr, error) { return g.LookupNetIP(ctx, host) }}
}

// Answers come as soon as they are known.
func TestResolverOutOfOrder(t *testing.T) {
	t.Parallel()
	names := newGate()
	m := start(t, setup{network: names.network()})
	g := m.resolver(wire.ProtocolResolver)
	for i := range uint64(5) {
		g.ask(i, 0, fmt.Sprint(i))
	}
	if err := g.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	names.wantRunning(t, 5)
	for _, i := range []uint64{3, 0, 4, 2, 1} {
		names.letGo(fmt.Sprint(i))
		g.want(i, "192.0.2.1", nil)
	}
	wantEOF(t, g)
}

// A bounded number of look-ups is at work on a stream, and on all streams. The
// others have their turn later.
func TestResolverBounds(t *testing.T) {
	t.Parallel()
	names := newGate()
	m := start(t, setup{network: names.network()})
	all := make([]*resolverGuest, 6)
	each := relay.MaxStreamLookups + 8
	running := 0
	for s := range all {
		all[s] = m.resolver(wire.ProtocolResolver)
		for i := range each {
			all[s].ask(uint64(i), 0, fmt.Sprint("stream", s))
		}
		running = min(running+relay.MaxStreamLookups, relay.MaxLookups)
		names.wantRunning(t, running)
	}
	for s := range all {
		names.letGo(fmt.Sprint("stream", s))
	}
	for _, g := range all {
		for range each {
			if _, text, err := g.answer(); text != "192.0.2.1" || err != nil {
				t.Fatal(text, err)
			}
		}
	}
	if names.top != relay.MaxLookups {
		t.Errorf("%d lookups at once, want %d", names.top, relay.MaxLookups)
	}
}

func TestResolverStreamBound(t *testing.T) {
	t.Parallel()
	names := newGate()
	m := start(t, setup{network: names.network()})
	g := m.resolver(wire.ProtocolResolver)
	for i := range uint64(100) {
		g.ask(i, 0, "first")
	}
	names.wantRunning(t, relay.MaxStreamLookups)
	// Another stream isn't delayed.
	other := m.resolver(wire.ProtocolResolver)
	names.letGo("second")
	for i := range uint64(20) {
		other.ask(i, 0, "second")
		other.want(i, "192.0.2.1", nil)
	}
	names.letGo("first")
	for range 100 {
		g.answer()
	}
	if want := relay.MaxStreamLookups + 1; names.top > want {
		t.Errorf("%d lookups at once, want at most %d", names.top, want)
	}
}

func TestResolverTimeout(t *testing.T) {
	t.Parallel()
	names := newGate()
	m := start(t, setup{network: names.network(), handlers: map[uint16]relay.Handler{wire.ProtocolPrivate: relay.ResolverWithin(time.Millisecond)}})
	g := m.resolver(wire.ProtocolPrivate)
	g.ask(1, 0, "slow")
	g.want(1, "", unix.ETIMEDOUT)
}

// Look-ups are operations, whose number a second is limited.
func TestResolverOperations(t *testing.T) {
	t.Parallel()
	names := newGate()
	names.letGo("name")
	m := start(t, setup{network: names.network(), limits: network.Limits{Operations: 10}})
	g := m.resolver(wire.ProtocolResolver)
	for i := uint64(0); ; i++ {
		if i == 100_000 {
			t.Fatal("no lookup is refused")
		}
		g.ask(i, 0, "name")
		if _, _, err := g.answer(); err != nil {
			if !errors.Is(err, unix.EAGAIN) {
				t.Error(err)
			}
			break
		}
	}
	if m.server.Stats().Reached.Operations == 0 {
		t.Error("not counted")
	}
}

// The end of a stream ends its look-ups, whichever side ends it.
func TestResolverCancelled(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(m *machine, g *resolverGuest){
		"reset":        func(_ *machine, g *resolverGuest) { g.Reset(unix.ECONNRESET) },
		"close":        func(_ *machine, g *resolverGuest) { g.Close() },
		"close reader": func(_ *machine, g *resolverGuest) { g.CloseRead() },
		"malformed":    func(_ *machine, g *resolverGuest) { g.Write(wire.AppendSyncRequest(nil, 1, wire.SyncRequest{})) },
		"the server":   func(m *machine, _ *resolverGuest) { m.stop() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			names := newGate()
			m := start(t, setup{network: names.network()})
			g := m.resolver(wire.ProtocolResolver)
			for i := range uint64(3) {
				g.ask(i, 0, "never")
			}
			names.wantRunning(t, 3)
			end(m, g)
			names.wantRunning(t, 0)
			if name == "malformed" {
				wantReadError(t, g, unix.EPROTO)
			}
			g.Close()
			if name != "the server" {
				m.wantFree()
			}
		})
	}
}

func TestResolverMalformed(t *testing.T) {
	t.Parallel()
	for name, frame := range map[string][]byte{
		"another request": wire.AppendReadFileRequest(nil, 1, wire.ReadFileRequest{Path: []byte("a")}),
		"an answer":       wire.AppendNames(nil, 1, wire.Names{Status: 2}),
		"NUL in the name": wire.AppendResolveName(nil, 1, wire.ResolveName{Name: []byte("a\x00")}),
		"family 5":        wire.AppendResolveName(nil, 1, wire.ResolveName{Family: 5, Name: []byte("a")}),
		"a port":          wire.AppendResolveAddress(nil, 1, wire.ResolveAddress{Address: wire.Endpoint{Addr: netip.MustParseAddr("::1"), Port: 1}}),
		"no address":      wire.AppendResolveAddress(nil, 1, wire.ResolveAddress{}),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := start(t, setup{network: newGate().network()})
			g := m.resolver(wire.ProtocolResolver)
			if _, err := g.Write(frame); err != nil {
				t.Fatal(err)
			}
			wantReadError(t, g, unix.EPROTO)
			g.Close()
			m.wantFree()
			m.wait("not counted", func() bool { return m.server.Stats().ProtocolErrors == 1 })
		})
	}
}

// A stream ends when the guest closes it, whatever the guest sends to the
// resolver.
func FuzzResolverPipe(f *testing.F) {
	name := wire.AppendResolveName(nil, 1, wire.ResolveName{Name: []byte("a.test")})
	address := wire.AppendResolveAddress(nil, 2, wire.ResolveAddress{Address: wire.Endpoint{Addr: netip.MustParseAddr("192.0.2.1")}})
	f.Add(name)
	f.Add(append(slices.Clone(name), address...))
	f.Add(append(slices.Clone(address), name[:20]...))
	f.Add(wire.AppendNames(nil, 3, wire.Names{Status: 2}))
	network := &networktest.Network{Hosts: map[string]netip.Addr{"a.test": netip.MustParseAddr("192.0.2.1")}}
	f.Fuzz(func(t *testing.T, b []byte) {
		m := start(t, setup{network: network, streams: 4, window: 1 << 20, hasty: true})
		g := m.resolver(wire.ProtocolResolver)
		sendAll(t, g.GuestConn, b)
		g.Close()
		m.wantFree()
	})
}
