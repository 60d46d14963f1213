package relay_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/network/networktest"
	"github.com/fix-project/arcavm/relay"
	"github.com/fix-project/arcavm/wire"
)

// nameServer starts a name server on loopback, and returns a host that asks it.
// Each name has the addresses 127.0.0.1 and ::1, unless a label says otherwise:
// no4 and no6 are questions that aren't answered, only4 and only6 names with
// addresses of one family, none is a name that doesn't exist.
func nameServer(t testing.TB) network.Host {
	t.Helper()
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	try(t, err)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b := make([]byte, 1500)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			if answer := answerTo(b[:n]); answer != nil {
				_, _ = c.WriteTo(answer, from)
			}
		}
	}()
	t.Cleanup(func() {
		c.Close()
		<-ended
	})
	return network.Host{Resolver: &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp4", c.LocalAddr().String())
	}}}
}

func answerTo(question []byte) []byte {
	var m dnsmessage.Message
	if m.Unpack(question) != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	silent := map[dnsmessage.Type]string{dnsmessage.TypeA: "no4", dnsmessage.TypeAAAA: "no6"}
	name := q.Name.String()
	if s := silent[q.Type]; s != "" && strings.Contains(name, s) {
		return nil
	}
	answer := dnsmessage.Message{Header: dnsmessage.Header{ID: m.ID, Response: true, RecursionAvailable: true}, Questions: m.Questions}
	header := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET}
	switch {
	case strings.HasPrefix(name, "none"):
		answer.RCode = dnsmessage.RCodeNameError
	case q.Type == dnsmessage.TypeA && !strings.Contains(name, "only6"):
		answer.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}}}}
	case q.Type == dnsmessage.TypeAAAA && !strings.Contains(name, "only4"):
		answer.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.AAAAResource{AAAA: netip.IPv6Loopback().As16()}}}
	}
	b, err := answer.Pack()
	if err != nil {
		return nil
	}
	return b
}

// soon is less than the five seconds that package net waits for an answer, and
// much more than anything here takes.
const soon = 4 * time.Second

// A question about one family that isn't answered delays nothing.
func TestUnansweredFamily(t *testing.T) {
	t.Parallel()
	host := nameServer(t)
	var rules []network.Rule
	allow, err := network.ParseRule(true, "localhost")
	try(t, err)
	policy := network.NewPolicy(host, append(rules, allow), nil)
	a := networktest.NewAuthority(t)
	cert := a.Issue(t, nil)
	m := start(t, setup{network: policy, tls: relay.TLS{RootCAs: a.Pool}})
	g := m.resolver(wire.ProtocolResolver)
	for on := range families(t) {
		loopback := netip.MustParseAddrPort(on).Addr()
		version, name := uint8(4), "no6.test"
		if loopback.Is6() {
			version, name = 6, "no4.test"
		}
		ln, to := hostListener(t, netip.AddrPortFrom(loopback, 0).String())
		connect := wire.Connect{Endpoint: wire.Endpoint{Port: to.Port()}, Name: []byte(name)}
		for way, reach := range map[string]func() error{
			"TCP": func() error {
				g := m.pipe()
				defer g.Close()
				if _, err := open(g, wire.ProtocolTCPConnection, wire.AppendConnect(nil, connect)); err != nil {
					return err
				}
				return accepted(t, ln).Close()
			},
			"TLS": func() error {
				g := m.pipe()
				defer g.Close()
				done := make(chan error, 1)
				go func() {
					c, err := ln.Accept()
					if err == nil {
						server := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}})
						err = server.HandshakeContext(t.Context())
						_ = c.Close()
					}
					done <- err
				}()
				_, err := open(g, wire.ProtocolTLSConnection, wire.AppendTLSConnect(nil, wire.TLSConnect{Connect: connect, ServerName: []byte("server.test")}))
				return errors.Join(err, <-done)
			},
			"policy, UDP": func() error {
				c, err := policy.DialContext(t.Context(), "udp", net.JoinHostPort(name, "9"))
				if err != nil {
					return err
				}
				return c.Close()
			},
			"host": func() error {
				c, err := host.DialContext(t.Context(), "tcp", net.JoinHostPort(name, netPort(to)))
				if err != nil {
					return err
				}
				return errors.Join(c.Close(), accepted(t, ln).Close())
			},
			"resolver": func() error {
				g.ask(1, 0, name)
				_, text, err := g.answer()
				if err == nil && text != loopback.String() {
					err = errors.New(text)
				}
				return err
			},
			"resolver, one family": func() error {
				g.ask(1, version, name)
				_, text, err := g.answer()
				if err == nil && text != loopback.String() {
					err = errors.New(text)
				}
				return err
			},
			"resolver, no address of this family": func() error {
				// Whether the name has an address of the other family isn't
				// known.
				g.ask(1, version, map[uint8]string{4: "only6.no6.test", 6: "only4.no4.test"}[version])
				if _, text, err := g.answer(); !errors.Is(err, unix.ETIMEDOUT) {
					return errors.Join(errors.New(text), err)
				}
				return nil
			},
		} {
			began := time.Now()
			if err := reach(); err != nil {
				t.Errorf("%s of %s: %v", way, name, err)
			}
			if took := time.Since(began); took > soon {
				t.Errorf("%s of %s took %v", way, name, took)
			}
		}
	}
}

func netPort(at netip.AddrPort) string {
	_, port, _ := net.SplitHostPort(at.String())
	return port
}

// The answer is what is known when the time is over. Nothing goes on after
// that: the sockets of unanswered questions are closed.
func TestLookupHost(t *testing.T) {
	t.Parallel()
	host := nameServer(t)
	for _, c := range []struct {
		name, network string
		want          []string
	}{
		{"both.test", "ip", []string{"::1", "127.0.0.1"}},
		{"both.test", "ip4", []string{"127.0.0.1"}},
		{"both.test", "ip6", []string{"::1"}},
		{"no6.test", "ip", []string{"127.0.0.1"}},
		{"no4.test", "ip", []string{"::1"}},
		{"only4.test", "ip", []string{"127.0.0.1"}},
		{"127.0.0.9", "ip", []string{"127.0.0.9"}},
		{"none.test", "ip", nil},
	} {
		addrs, err := host.LookupNetIP(t.Context(), c.network, c.name)
		var got []string
		for _, a := range addrs {
			got = append(got, a.Unmap().String())
		}
		slices.Sort(got)
		slices.Sort(c.want)
		if !slices.Equal(got, c.want) || (err == nil) != (c.want != nil) {
			t.Errorf("%s, %s: %v, %v; want %v", c.name, c.network, got, err, c.want)
		}
	}
	var lookup *net.DNSError
	if _, err := host.LookupNetIP(t.Context(), "ip", "none.test"); !errors.As(err, &lookup) || !lookup.IsNotFound {
		t.Errorf("none.test: %v", err)
	}
	// This is shorter than the wait for the second family.
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if addrs, err := host.LookupNetIP(ctx, "ip", "no6.test"); err != nil || len(addrs) != 1 {
		t.Errorf("at the end of the time: %v, %v", addrs, err)
	}
}
