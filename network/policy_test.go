package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

func rules(t testing.TB, lines ...string) []Rule {
	t.Helper()
	var list []Rule
	for _, line := range lines {
		verb, text, _ := strings.Cut(line, " ")
		r, err := ParseRule(verb == "allow", text)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, r)
	}
	return list
}

func TestParseRule(t *testing.T) {
	t.Parallel()
	prefixes := func(texts ...string) (list []netip.Prefix) {
		for _, s := range texts {
			list = append(list, netip.MustParsePrefix(s))
		}
		return list
	}
	for text, want := range map[string]Rule{
		"*":                           {},
		"in:*":                        {Direction: In},
		"out:*:25":                    {Direction: Out, First: 25, Last: 25},
		"udp:*":                       {Protocol: "udp"},
		"in:tcp:127.0.0.1:8000-9000":  {Direction: In, Protocol: "tcp", Prefixes: prefixes("127.0.0.1/32"), First: 8000, Last: 9000},
		"10.1.2.3/8":                  {Prefixes: prefixes("10.0.0.0/8")},
		"10.0.0.0/8:*":                {Prefixes: prefixes("10.0.0.0/8")},
		"[::1]:80":                    {Prefixes: prefixes("::1/128"), First: 80, Last: 80},
		"[fd00::/8]":                  {Prefixes: prefixes("fd00::/8")},
		"localhost:5432":              {Prefixes: loopback, First: 5432, Last: 5432},
		"Example.COM.":                {Direction: Out, Name: "example.com"},
		"out:tcp:*.example.com:1-443": {Direction: Out, Protocol: "tcp", Name: "*.example.com", First: 1, Last: 443},
		"4.example":                   {Direction: Out, Name: "4.example"},
		"[fe80::1%lo]:80":             {Prefixes: prefixes("fe80::1/128"), Zone: "1", First: 80, Last: 80},
	} {
		got, err := ParseRule(false, text)
		if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %+v, %v; want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", ":80", "*:", "*:0", "*:70000", "*:9-8", "*:http", "*:1-2-3", "::1", "::1:80", "[::1", "[::1]80", "[127.0.0.1]", "[::ffff:127.0.0.1]:80", "[x]",
		"10.0.0", "1.2.3.4-1.2.3.9", "10.x.x.x", "0x7f.1", "0x7f000001", "host.1", "--cpus", "host-", "-host.example", "10.0.0.0/33", "10.0.0.0/8/9", "1.2.3.4.5", "a..b", "*", "*.", "a*b", "*.*.x", "in:example.com", "tcp:in:*", "out:in:*", "a b", "tcp:80",
		"[::%1]", "[::1%lo]", "[2001:db8::1%1]", "[fe80::1%no-such]", "[fe80::1%0]", "[fe80::1%999999]", "[fe80::%lo/64]", "[::ffff:1.2.3.4%lo]",
		"icmp:*", "out:icmp:*", "TCP:*", "UDP:80", "Out:*", "example.com:*",
	} {
		if text == "*" {
			continue
		}
		if r, err := ParseRule(true, text); err == nil || !strings.Contains(err.Error(), RuleForm) {
			t.Errorf("%q is %+v, %v", text, r, err)
		}
	}
}

// A message says what is wrong with which part, and quotes the text once.
func TestRuleAndPublishMessages(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"10.0.0":       `"10.0.0" is no address, range of addresses or name; the form is ` + RuleForm,
		"10.0.0:80":    `"10.0.0:80": "10.0.0" is no address, range of addresses or name; the form is ` + RuleForm,
		"":             `"": the host is missing; the form is ` + RuleForm,
		"out::80":      `"out::80": the host is missing; the form is ` + RuleForm,
		"::1":          `"::1": an IPv6 address or range is written in brackets, such as [::1], [::1]:80 or [fd00::/8]; the form is ` + RuleForm,
		"out:fd00::/8": `"out:fd00::/8": an IPv6 address or range is written in brackets, such as [::1], [::1]:80 or [fd00::/8]; the form is ` + RuleForm,
	} {
		if _, err := ParseRule(true, text); err == nil || err.Error() != want {
			t.Errorf("rule %q: %v\nwant %s", text, err, want)
		}
	}
	const form = "; the form is " + PublishForm + ", where ADDRESS is an IP address"
	for text, want := range map[string]string{
		"":                  `"" is not of the form ` + PublishForm,
		"localhost:8080:80": `"localhost:8080:80": "localhost" is no IP address` + form,
		"70000:80":          `"70000:80": "70000" is no port from 0 to 65535` + form,
		"8080:70000":        `"8080:70000": "70000" is no port from 1 to 65535` + form,
		"8080:0":            `"8080:0": "0" is no port from 1 to 65535` + form,
		"::1:8080:80":       `"::1:8080:80": "::1" is an IPv6 address; write [::1]` + form,
		"80:80/sctp":        `"80:80/sctp": "sctp" is neither tcp nor udp` + form,
	} {
		if _, err := ParsePublish(text); err == nil || err.Error() != want {
			t.Errorf("publish %q: %v\nwant %s", text, err, want)
		}
	}
}

func TestParsePublish(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Publish{
		"8080:80":                  {"tcp", netip.MustParseAddrPort("127.0.0.1:8080"), 80},
		"0.0.0.0:0:80/tcp":         {"tcp", netip.MustParseAddrPort("0.0.0.0:0"), 80},
		"[::1]:5353:53/udp":        {"udp", netip.MustParseAddrPort("[::1]:5353"), 53},
		"[::ffff:127.0.0.1]:80:80": {"tcp", netip.MustParseAddrPort("127.0.0.1:80"), 80},
		"192.0.2.1:65535:65535":    {"tcp", netip.MustParseAddrPort("192.0.2.1:65535"), 65535},
	} {
		if got, err := ParsePublish(text); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", text, got, err, want)
		}
		if again, err := ParsePublish(want.String()); err != nil || again != want {
			t.Errorf("%v is read as %v, %v", want, again, err)
		}
	}
	for _, text := range []string{"", "80", "80:", ":80", "80:0", "80:65536", "65536:80", "80:80/sctp", "80:80/", "host:80:80", "::1:80:80", "1.2.3:80:80",
		"224.0.0.1:80:80", "255.255.255.255:80:80/udp", "[ff02::1%1]:80:80", "[::1%1]:80:80",
		"[::1%lo]:80:80", "[::%1]:80:80", "[fe80::1%no-such]:80:80"} {
		if got, err := ParsePublish(text); err == nil {
			t.Errorf("%q is %+v", text, got)
		}
	}
}

// An address that an IPv6 address holds is found wherever the network's prefix
// ends: the examples of RFC 6052, and the other kinds.
func TestReachedBy(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ prefix, address, want string }{
		{"2001:db8::/32", "2001:db8:c000:221::", "192.0.2.33"},
		{"2001:db8:100::/40", "2001:db8:1c0:2:21::", "192.0.2.33"},
		{"2001:db8:122::/48", "2001:db8:122:c000:2:2100::", "192.0.2.33"},
		{"2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::", "192.0.2.33"},
		{"2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100::", "192.0.2.33"},
		{"2001:db8:122:344::/96", "2001:db8:122:344::192.0.2.33", "192.0.2.33"},
		{"", "2001:db8:122:344::192.0.2.33", ""},
		{"", "64:ff9b::192.0.2.33", "192.0.2.33"},
		{"64:ff9b:1::/48", "64:ff9b:1:c000:2:2100::", "192.0.2.33"},
		{"", "64:ff9b:1::192.0.2.33", "192.0.2.33"},
		{"", "64:ff9b:1:c000:2:2100::", "192.0.2.33"},
		{"", "64:ff9b:1:c0:0:221::", "192.0.2.33"},
		{"", "64:ff9b:1:0:c0:2:2100:0", "192.0.2.33"},
		{"", "::192.0.2.33", "192.0.2.33"},
		{"", "::ffff:0:192.0.2.33", "192.0.2.33"},
		{"", "2002:c000:221::1", "192.0.2.33"},
		{"", "2001:0:c000:221::3fff:fdde", "192.0.2.33"},
		{"", "2001:db8::5efe:192.0.2.33", "192.0.2.33"},
		{"", "2001:db8::200:5efe:192.0.2.33", "192.0.2.33"},
		{"", "fe80::5efe:192.0.2.33%1", "192.0.2.33"},
		{"", "0.0.0.0", "127.0.0.1"},
		{"", "::", "::1"},
		{"", "::1", ""},
		{"", "192.0.2.33", ""},
		{"", "2001:db8::1", ""},
	} {
		var prefixes []netip.Prefix
		if c.prefix != "" {
			prefixes = append(prefixes, netip.MustParsePrefix(c.prefix))
		}
		other := reachedBy(netip.MustParseAddr(c.address), prefixes)
		found := c.want == "" && other.n == 0
		for _, a := range other.all() {
			found = found || a.String() == c.want
		}
		if !found {
			t.Errorf("%s in %s: %v, want %s", c.address, c.prefix, other.all(), c.want)
		}
	}
}

func TestParseNAT64(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"64:ff9b::/96", "2001:db8::/32", "2001:db8:1::/48", "2001:db8:0:1::/64"} {
		if p, err := ParseNAT64(text); err != nil || p.String() != text {
			t.Errorf("%s: %v, %v", text, p, err)
		}
	}
	for _, text := range []string{"", "64:ff9b::", "10.0.0.0/8", "::ffff:0.0.0.0/96", "2001:db8::/33", "2001:db8::/97", "2001:db8::1/64", "2001:db8::100:0:0:0/96"} {
		if p, err := ParseNAT64(text); err == nil || !strings.Contains(err.Error(), NAT64Form) {
			t.Errorf("%q is %v, %v", text, p, err)
		}
	}
}

// fakeNetwork knows names, and records the calls of its methods.
type fakeNetwork struct {
	names map[string][]string
	own   []string
	dial  func(ctx context.Context, address string) error

	mu    sync.Mutex
	calls []string
}

func (n *fakeNetwork) call(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.calls = append(n.calls, fmt.Sprintf(format, args...))
}

func (n *fakeNetwork) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	n.call("dial %s", address)
	if n.dial != nil {
		if err := n.dial(ctx, address); err != nil {
			return nil, err
		}
	}
	conn, other := net.Pipe()
	_ = other.Close()
	return conn, nil
}

func (n *fakeNetwork) Listen(_ context.Context, network, address string) (net.Listener, error) {
	n.call("listen %s %s", network, address)
	at := netip.MustParseAddrPort(address)
	if at.Port() == 0 {
		at = netip.AddrPortFrom(at.Addr(), 40000)
	}
	return fakeListener{at: at}, nil
}

type fakeListener struct {
	net.Listener
	at netip.AddrPort
}

func (l fakeListener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.at) }
func (l fakeListener) Close() error   { return nil }

func (n *fakeNetwork) ListenPacket(ctx context.Context, network, address string) (PacketConn, error) {
	n.call("listen %s %s", network, address)
	return Host{}.ListenPacket(ctx, network, address)
}

func (n *fakeNetwork) LookupNetIP(_ context.Context, _, host string) (addrs []netip.Addr, err error) {
	n.mu.Lock()
	// The policy asks for both families, and one of them is recorded.
	if call := "lookup " + host; !slices.Contains(n.calls, call) {
		n.calls = append(n.calls, call)
	}
	n.mu.Unlock()
	for _, a := range n.names[host] {
		addrs = append(addrs, netip.MustParseAddr(a))
	}
	if addrs == nil {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return addrs, nil
}

func (n *fakeNetwork) LookupAddr(_ context.Context, address string) ([]string, error) {
	n.call("reverse %s", address)
	return nil, nil
}

func (n *fakeNetwork) Routes() (Routes, error) { return fakeRoutes(n.own), nil }

// fakeRoutes are the host's own addresses.
type fakeRoutes []string

func (r fakeRoutes) Own(_ string, _, to netip.AddrPort) (bool, error) {
	return slices.Contains(r, to.Addr().String()), nil
}

func newFake() *fakeNetwork {
	return &fakeNetwork{
		own: []string{"198.51.100.7", "198.51.100.0", "198.51.100.255", "203.0.113.9", "fd01::7"},
		names: map[string][]string{
			"good.example":     {"192.0.2.1"},
			"www.good.example": {"192.0.2.2"},
			"rebound.example":  {"127.0.0.1", "::ffff:127.0.0.1", "::1", "169.254.169.254", "198.51.100.7"},
			"mixed.example":    {"127.0.0.1", "192.0.2.3"},
			"localhost":        {"127.0.0.1"},
		},
	}
}

func TestPolicyOut(t *testing.T) {
	t.Parallel()
	const denied = "denied"
	for _, c := range []struct {
		rules string // separated by semicolons
		to    string
		want  string // calls
	}{
		{"", "192.0.2.1:80", "dial 192.0.2.1:80"},
		{"", "[2001:db8::1]:80", "dial [2001:db8::1]:80"},
		{"", "[::ffff:192.0.2.1]:80", "dial 192.0.2.1:80"},
		{"", "127.0.0.1:80", denied},
		{"", "127.255.255.254:80", denied},
		{"", "[::1]:80", denied},
		{"", "[::ffff:127.0.0.1]:80", denied},
		{"", "0.0.0.0:80", denied},
		{"", "0.1.2.3:80", denied},
		{"", "[::]:80", denied},
		{"", "[::ffff:0.0.0.0]:80", denied},
		{"", "169.254.169.254:80", denied},
		{"", "[fe80::1%1]:80", denied},
		{"", "[ff02::1]:80", denied},
		{"", "224.0.0.1:80", denied},
		{"", "255.255.255.255:80", denied},
		{"", "198.51.100.7:80", denied},
		{"", "[fe80::7]:80", denied},
		{"", "[fd01::7]:80", denied},
		{"", "[fd01::8]:80", "dial [fd01::8]:80"},
		{"", "198.51.100.8:80", "dial 198.51.100.8:80"},
		{"", "198.51.100.255:80", denied},
		{"", "198.51.100.0:80", denied},
		{"", "[::ffff:198.51.100.255]:80", denied},
		{"", "203.0.113.8:80", "dial 203.0.113.8:80"},
		{"", "[fd00:ec2::254]:80", denied},
		{"", "[fd00:ec2::254%1]:80", denied},
		{"", "[fd00:ec2::253]:80", "dial [fd00:ec2::253]:80"},
		{"allow 198.51.100.255", "198.51.100.255:80", "dial 198.51.100.255:80"},
		{"", "[::%1]:80", denied},
		{"allow *", "[::%1]:80", denied},
		{"allow *", "[::1%lo]:80", denied},
		{"allow *", "[2001:db8::1%1]:80", denied},
		{"allow *", "[fe80::1%0]:80", denied},
		{"allow *", "[fe80::1%1]:80", "dial [fe80::1%1]:80"},
		{"allow *", "[fe80::1%lo]:80", "dial [fe80::1%1]:80"},
		{"allow *", "[ff02::1%lo]:80", "dial [ff02::1%1]:80"},
		{"allow [fe80::1%lo]", "[fe80::1%1]:80", "dial [fe80::1%1]:80"},
		{"allow [fe80::1%lo]", "[fe80::1%2]:80", denied},
		{"allow [fe80::1%lo]", "[fe80::1]:80", denied},
		{"deny [fe80::1%lo];allow *", "[fe80::1]:80", denied},
		{"deny [fe80::1%lo];allow *", "[fe80::1%2]:80", "dial [fe80::1%2]:80"},
		{"", ":80", "lookup , " + denied},
		{"deny localhost;allow *", "0.0.0.0:80", denied},
		{"deny localhost;allow *", "[::]:80", denied},
		{"deny localhost;allow *", "[::ffff:0.0.0.0]:80", denied},
		{"deny 127.0.0.0/8;allow *", "0.0.0.0:80", denied},
		{"allow localhost;deny *", "0.0.0.0:80", "dial 127.0.0.1:80"},
		{"allow localhost;deny *", "[::]:80", "dial [::1]:80"},
		{"allow 127.0.0.1", "[::]:80", denied},
		{"", "239.255.255.250:80", denied},
		{"", "[ff05::1]:80", denied},
		{"", "[ff0e::1]:80", denied},
		{"allow 239.0.0.0/8", "239.1.1.1:80", "dial 239.1.1.1:80"},
		{"", "168.63.129.16:80", denied},
		{"", "100.100.100.200:80", denied},
		{"", "192.0.0.192:80", denied},
		{"", "[fd20:ce::254]:80", denied},
		{"", "[fd00:c1::a9fe:a9fe]:80", denied},

		{"", "[64:ff9b::c000:201]:80", "dial [64:ff9b::c000:201]:80"},
		{"", "[64:ff9b::7f00:1]:80", denied},
		{"", "[64:ff9b::c633:6407]:80", denied},
		{"", "[64:ff9b::a9fe:a9fe]:80", denied},
		{"allow [64:ff9b::/96]", "[64:ff9b::7f00:1]:80", denied},
		{"allow 127.0.0.1", "[64:ff9b::7f00:1]:80", "dial [64:ff9b::7f00:1]:80"},
		{"deny 192.0.2.0/24", "[64:ff9b::c000:201]:80", denied},
		{"allow 192.0.2.0/24;deny *", "[64:ff9b::c000:201]:80", "dial [64:ff9b::c000:201]:80"},
		{"allow 192.0.2.0/24;deny *", "[64:ff9b::c000:301]:80", denied},
		{"deny [64:ff9b::/96];allow 192.0.2.1", "[64:ff9b::c000:201]:80", denied},
		{"", "[64:ff9b:1::c000:201]:80", "dial [64:ff9b:1::c000:201]:80"},
		{"", "[64:ff9b:1::7f00:1]:80", denied},
		{"", "[64:ff9b:1:7f00:0:100::]:80", denied},
		{"", "[64:ff9b:1:2:7f:0:100:0]:80", denied},
		{"", "[2002:7f00:1::1]:80", denied},
		{"", "[2002:c633:6407::1]:80", denied},
		{"", "[2002:c000:201::1]:80", "dial [2002:c000:201::1]:80"},
		{"allow 192.0.2.0/24;deny *", "[2002:c000:201::1]:80", denied},
		{"", "[::7f00:1]:80", denied},
		{"", "[::ffff:0:7f00:1]:80", denied},
		// Teredo: 128.255.255.254, and 127.0.0.1.
		{"", "[2001:0:c000:201::7f00:1]:80", "dial [2001:0:c000:201::7f00:1]:80"},
		{"", "[2001:0:c000:201::80ff:fffe]:80", denied},
		{"", "[2001:db8::5efe:7f00:1]:80", denied},
		{"", "[2001:db8::200:5efe:7f00:1]:80", denied},
		{"", "[2001:db8:64::7f00:1]:80", denied}, // configured below
		{"", "[2001:db8:65:7f00:0:100::]:80", denied},
		{"allow 192.0.2.1;deny *", "[2001:db8:64::c000:201]:80", "dial [2001:db8:64::c000:201]:80"},
		{"", "good.example:80", "lookup good.example, dial 192.0.2.1:80"},
		{"", "rebound.example:80", "lookup rebound.example, " + denied},
		{"", "mixed.example:80", "lookup mixed.example, dial 192.0.2.3:80"},

		{"allow 127.0.0.1", "127.0.0.1:80", "dial 127.0.0.1:80"},
		{"allow 127.0.0.1", "[::ffff:127.0.0.1]:80", "dial 127.0.0.1:80"},
		{"allow 127.0.0.1", "127.0.0.2:80", denied},
		{"allow 127.0.0.1", "[::1]:80", denied},
		{"allow 127.0.0.1:81-90", "127.0.0.1:80", denied},
		{"allow udp:127.0.0.1", "127.0.0.1:80", denied},
		{"allow in:127.0.0.1", "127.0.0.1:80", denied},
		{"allow [fe80::/10]", "[fe80::1%1]:80", "dial [fe80::1%1]:80"},
		{"allow localhost:80", "127.9.9.9:80", "dial 127.9.9.9:80"},
		{"allow localhost:80", "[::1]:80", "dial [::1]:80"},
		{"allow localhost:80", "localhost:80", "lookup localhost, dial 127.0.0.1:80"},
		{"allow localhost:80", "rebound.example:80", "lookup rebound.example, dial [::1]:80"},
		{"allow *", "169.254.169.254:80", "dial 169.254.169.254:80"},

		{"allow rebound.example", "rebound.example:80", "lookup rebound.example, " + denied},
		{"allow *.example;allow out:127.0.0.0/8:81", "rebound.example:80", "lookup rebound.example, " + denied},
		{"allow good.example;deny *", "good.example:80", "lookup good.example, dial 192.0.2.1:80"},
		// The resolver here doesn't know the name in this form.
		{"allow good.example;deny *", "GOOD.example.:80", "lookup GOOD.example., denied"},
		{"allow good.example;deny *", "www.good.example:80", denied},
		{"allow *.good.example;deny *", "www.good.example:80", "lookup www.good.example, dial 192.0.2.2:80"},
		{"allow *.good.example;deny *", "good.example:80", denied},
		{"allow good.example:443;deny *", "good.example:80", "lookup good.example, " + denied},
		{"allow 192.0.2.0/24;deny *", "good.example:80", "lookup good.example, dial 192.0.2.1:80"},
		{"allow good.example;deny *", "192.0.2.1:80", denied},
		{"deny good.example", "good.example:80", denied},
		{"deny good.example", "192.0.2.1:80", "dial 192.0.2.1:80"},
		{"deny 192.0.2.0/24", "good.example:80", "lookup good.example, " + denied},
		{"deny *:80", "good.example:80", "lookup good.example, " + denied},
		{"deny *:80", "192.0.2.1:81", "dial 192.0.2.1:81"},
		{"allow 192.0.2.1;deny 192.0.2.0/24", "192.0.2.1:80", "dial 192.0.2.1:80"},
		{"deny 192.0.2.0/24;allow 192.0.2.1", "192.0.2.1:80", denied},
		{"deny in:*", "192.0.2.1:80", "dial 192.0.2.1:80"},
	} {
		name := c.rules + " → " + c.to
		n := newFake()
		var list []Rule
		if c.rules != "" {
			list = rules(t, strings.Split(c.rules, ";")...)
		}
		p := NewPolicy(n, list, nil)
		p.NAT64 = []netip.Prefix{netip.MustParsePrefix("2001:db8:64::/96"), netip.MustParsePrefix("2001:db8:65::/48")}
		conn, err := p.DialContext(t.Context(), "tcp", c.to)
		if err == nil {
			conn.Close()
		} else if lookup := (*net.DNSError)(nil); errors.Is(err, unix.EACCES) || errors.As(err, &lookup) {
			n.call(denied)
		}
		if got := strings.Join(n.calls, ", "); got != c.want {
			t.Errorf("%s: %s, %v; want %s", name, got, err, c.want)
		}
	}
}

func TestPolicyIn(t *testing.T) {
	t.Parallel()
	publish := []Publish{
		{"tcp", netip.MustParseAddrPort("127.0.0.1:8080"), 80},
		{"udp", netip.MustParseAddrPort("127.0.0.1:5353"), 53},
	}
	for _, c := range []struct {
		rules string
		at    string
		want  string // address, or nothing if denied
	}{
		{"", "127.0.0.1:81", "127.0.0.1:81"},
		{"", "0.0.0.0:0", "0.0.0.0:40000"},
		{"", "[::]:81", "[::]:81"},
		{"deny out:*", "127.0.0.1:81", "127.0.0.1:81"},
		{"deny udp:*", "127.0.0.1:81", "127.0.0.1:81"},
		{"deny in:*", "127.0.0.1:81", ""},
		{"deny *", "127.0.0.1:81", ""},
		{"allow in:localhost;deny in:*", "127.0.0.1:81", "127.0.0.1:81"},
		{"allow in:localhost;deny in:*", "0.0.0.0:81", ""},
		{"deny in:10.0.0.0/8", "0.0.0.0:81", ""},
		{"deny in:10.0.0.0/8", "[::]:81", "[::]:81"},
		{"deny in:*:1-1023", "0.0.0.0:0", "0.0.0.0:40000"},
		{"deny in:*:1024-65535", "0.0.0.0:0", ""},
		{"allow in:*:40000;deny in:*:1024-65535", "0.0.0.0:0", "0.0.0.0:40000"},
		{"", "0.0.0.0:80", "127.0.0.1:8080"},
		{"deny *", "192.0.2.1:80", "127.0.0.1:8080"},
		{"deny *", "[::]:80", "127.0.0.1:8080"},
		{"deny *", "0.0.0.0:53", ""},
	} {
		var list []Rule
		if c.rules != "" {
			list = rules(t, strings.Split(c.rules, ";")...)
		}
		got := ""
		ln, err := NewPolicy(newFake(), list, publish).Listen(t.Context(), "tcp", c.at)
		if err == nil {
			got = ln.Addr().String()
			if p, ok := ln.(interface{ GuestAddr() net.Addr }); ok && p.GuestAddr().String() != c.at {
				t.Errorf("the guest is told %v, asked for %v", p.GuestAddr(), c.at)
			}
		} else if !errors.Is(err, unix.EACCES) {
			t.Error(err)
		}
		if got != c.want {
			t.Errorf("%s, listening at %s: %q, want %q", c.rules, c.at, got, c.want)
		}
	}
}

// Each datagram is judged. A peer that the rules forbid gets answers only.
func TestPolicyDatagrams(t *testing.T) {
	t.Parallel()
	p := NewPolicy(newFake(), nil, nil)
	c, err := p.ListenPacket(t.Context(), "udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	peer, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	for _, s := range []interface{ SetDeadline(time.Time) error }{c, peer} {
		if err := s.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	to := peer.LocalAddr().(*net.UDPAddr).AddrPort()
	if _, err := c.WriteToUDPAddrPort([]byte("first"), to); !errors.Is(err, unix.EACCES) {
		t.Fatalf("unasked: %v", err)
	}
	if _, err := peer.WriteTo([]byte("question"), c.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	n, from, err := c.ReadFromUDPAddrPort(b)
	if err != nil || string(b[:n]) != "question" || from != to {
		t.Fatalf("%q from %v, %v", b[:n], from, err)
	}
	if _, err := c.WriteTo([]byte("answer"), net.UDPAddrFromAddrPort(from)); err != nil {
		t.Fatal(err)
	}
	if n, _, err := peer.ReadFrom(b); err != nil || string(b[:n]) != "answer" {
		t.Fatalf("%q, %v", b[:n], err)
	}
	if _, err := p.ListenPacket(t.Context(), "udp", "example.com:80"); err == nil {
		t.Error("bound to a name")
	}
}

// A name to which every connection is refused isn't looked up: a look-up tells
// others what the guest puts into the name.
func TestPolicyLookups(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		rules, what string
		allowed     bool
	}{
		{"", "secret.example", true},
		{"deny *", "secret.example", false},
		{"deny out:*", "secret.example", false},
		{"deny in:*", "secret.example", true},
		{"deny tcp:*", "secret.example", true},
		{"deny *.example", "secret.example", false},
		{"allow good.example;deny *", "secret.example", false},
		{"allow good.example;deny *", "good.example", true},
		{"allow 10.0.0.0/8;deny *", "good.example", true},
		{"", "192.0.2.1", true},
		{"deny 192.0.2.0/24", "192.0.2.1", false},
		{"deny 192.0.2.0/24", "192.0.3.1", true},
		{"allow 192.0.2.1;deny *", "192.0.2.1", true},
		{"allow 192.0.2.1;deny *", "192.0.2.2", false},
	} {
		var list []Rule
		if c.rules != "" {
			list = rules(t, strings.Split(c.rules, ";")...)
		}
		n := newFake()
		p := NewPolicy(n, list, nil)
		var err error
		if _, perr := netip.ParseAddr(c.what); perr == nil {
			_, err = p.LookupAddr(t.Context(), c.what)
		} else {
			_, err = p.LookupNetIP(t.Context(), "ip", c.what)
		}
		if allowed := !errors.Is(err, unix.EACCES); allowed != c.allowed || len(n.calls) > 0 != c.allowed {
			t.Errorf("%s, %s: %v, %v; want allowed %v", c.rules, c.what, err, n.calls, c.allowed)
		}
	}
}

// Addresses are tried in turns, on a clock that the test moves.
func TestDialFirst(t *testing.T) {
	hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	for name, c := range map[string]struct {
		dial  func(ctx context.Context, address string) error
		calls int
		after time.Duration
		err   error
	}{
		"the first answers": {func(context.Context, string) error { return nil }, 1, 0, nil},
		"the first hangs": {func(ctx context.Context, a string) error {
			if a == "[2001:db8::1]:80" {
				return hang(ctx)
			}
			return nil
		}, 2, attemptDelay, nil},
		"the first refuses": {func(_ context.Context, a string) error {
			if a == "[2001:db8::1]:80" {
				return unix.ECONNREFUSED
			}
			return nil
		}, 2, 0, nil},
		"only the third answers": {func(ctx context.Context, a string) error {
			if a != "[2001:db8::2]:80" {
				return hang(ctx)
			}
			return nil
		}, 3, 2 * attemptDelay, nil},
		"all refuse": {func(_ context.Context, a string) error {
			if a == "[2001:db8::1]:80" {
				return unix.ECONNREFUSED
			}
			return unix.EHOSTUNREACH
		}, 3, 0, unix.ECONNREFUSED},
		"all hang": {func(ctx context.Context, _ string) error { return hang(ctx) }, 3, 10 * time.Second, context.DeadlineExceeded},
		"two answer at once": {func(ctx context.Context, a string) error {
			if a == "[2001:db8::1]:80" {
				time.Sleep(attemptDelay)
			}
			time.Sleep(attemptDelay / 2)
			return ctx.Err()
		}, 2, 3 * attemptDelay / 2, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := &fakeNetwork{dial: c.dial, names: map[string][]string{"many.example": {"2001:db8::1", "2001:db8::2", "192.0.2.1"}}}
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				start := time.Now()
				conn, err := NewPolicy(n, nil, nil).DialContext(ctx, "tcp", "many.example:80")
				if !errors.Is(err, c.err) || (err == nil) != (conn != nil) {
					t.Errorf("%v, want %v", err, c.err)
				}
				if took := time.Since(start); took != c.after {
					t.Errorf("after %v, want %v", took, c.after)
				}
				if dials := len(n.calls) - 1; dials < c.calls || dials > c.calls+1 {
					t.Errorf("%d connects, want %d: %v", dials, c.calls, n.calls)
				}
			})
		})
	}
}

// lostNetwork can't say where its packets go.
type lostNetwork struct {
	*fakeNetwork
	routes Routes
}

func (n lostNetwork) Routes() (Routes, error) {
	if n.routes == nil {
		return nil, unix.EMFILE
	}
	return n.routes, nil
}

// Addresses in Own are judged as those that the network's routes keep with this
// machine, in each form. A rule for a name doesn't open them.
func TestPolicyOwn(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		rules, to string
		allowed   bool
	}{
		{"", "192.0.2.2:80", false},
		{"", "[::ffff:192.0.2.2]:80", false},
		{"", "[64:ff9b::c000:202]:80", false},
		{"", "192.0.2.3:80", true},
		{"", "www.good.example:80", false},
		{"allow www.good.example", "www.good.example:80", false},
		{"allow 192.0.2.2", "www.good.example:80", true},
		{"allow 192.0.2.2", "192.0.2.2:80", true},
		{"allow *", "192.0.2.2:80", true},
	} {
		var list []Rule
		if c.rules != "" {
			list = rules(t, c.rules)
		}
		p := NewPolicy(newFake(), list, nil)
		p.Own = []netip.Prefix{netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("192.0.2.2/32")}
		for _, network := range []string{"tcp", "udp"} {
			conn, err := p.DialContext(t.Context(), network, c.to)
			if err == nil {
				conn.Close()
			}
			if (err == nil) != c.allowed || err != nil && !errors.Is(err, unix.EACCES) {
				t.Errorf("%q, %s to %s: %v; want it allowed: %v", c.rules, network, c.to, err, c.allowed)
			}
		}
	}
}

type lostRoutes struct{}

func (lostRoutes) Own(string, netip.AddrPort, netip.AddrPort) (bool, error) {
	return false, unix.ENOBUFS
}

// An address that isn't known to be another machine's is denied, and the reason
// is told.
func TestPolicyWithoutRoutes(t *testing.T) {
	t.Parallel()
	for want, routes := range map[unix.Errno]Routes{unix.EMFILE: nil, unix.ENOBUFS: lostRoutes{}} {
		p := NewPolicy(lostNetwork{newFake(), routes}, rules(t, "allow 192.0.2.9", "allow good.example"), nil)
		for to, allowed := range map[string]bool{"192.0.2.1:80": false, "good.example:80": false, "192.0.2.9:80": true} {
			conn, err := p.DialContext(t.Context(), "tcp", to)
			if err == nil {
				conn.Close()
			}
			if (err == nil) != allowed || !allowed && (!errors.Is(err, unix.EACCES) || !strings.Contains(err.Error(), want.Error())) {
				t.Errorf("%s: %v; want allowed %v, or EACCES and why", to, err, allowed)
			}
		}
	}
}

// BenchmarkPolicyConnect connects to an address of this machine, without and
// with a policy, which judges the route twice for each connect.
func BenchmarkPolicyConnect(b *testing.B) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		b.Fatal(err)
	}
	at := slices.IndexFunc(addrs, func(a net.Addr) bool {
		n, ok := a.(*net.IPNet)
		return ok && n.IP.To4() != nil && !n.IP.IsLoopback()
	})
	if at < 0 {
		b.Skip("this machine has no address but the loopback one")
	}
	ip := addrs[at].(*net.IPNet).IP
	ln, err := net.Listen("tcp", net.JoinHostPort(ip.String(), "0"))
	if err != nil {
		b.Fatal(err)
	}
	accepted := make(chan struct{})
	go func() {
		defer close(accepted)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 1)) // the reset
			_ = c.Close()
		}
	}()
	b.Cleanup(func() {
		ln.Close()
		<-accepted
	})
	// A rule for a name doesn't hold for the host's own address, so that the
	// address is judged by its route.
	policy := NewPolicy(Host{}, rules(b, "allow bench.test", "allow "+ip.String()), nil)
	to := ln.Addr().(*net.TCPAddr).AddrPort()
	q := request{direction: Out, protocol: "tcp", name: "bench.test", at: netip.AddrPortFrom(to.Addr().Unmap(), to.Port())}
	for _, c := range []struct {
		name string
		dial func() (net.Conn, error)
	}{
		{"host", func() (net.Conn, error) { return Host{}.DialContext(b.Context(), "tcp", to.String()) }},
		{"policy", func() (net.Conn, error) {
			if err := policy.check(q); err != nil {
				return nil, err
			}
			return policy.connect(b.Context(), "tcp", q)
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				conn, err := c.dial()
				if err != nil {
					b.Fatal(err)
				}
				Abandon(conn)
			}
		})
	}
	b.Run("judged", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := policy.check(q); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("asked", func(b *testing.B) {
		b.ReportAllocs()
		r, err := Host{}.Routes()
		if err != nil {
			b.Fatal(err)
		}
		for port := uint16(0); b.Loop(); port++ {
			if _, err := r.Own("tcp", netip.AddrPort{}, netip.AddrPortFrom(q.at.Addr(), port)); err != nil {
				b.Fatal(err)
			}
		}
	})
}
