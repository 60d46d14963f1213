package relay_test

import (
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/network/networktest"
	"github.com/fix-project/arcavm/relay"
	"github.com/fix-project/arcavm/wire"
)

// soon is less than the five seconds that package net waits for an answer, and
// much more than anything here takes.
const soon = 4 * time.Second

// A question about one family that isn't answered delays nothing.
func TestUnansweredFamily(t *testing.T) {
	t.Parallel()
	host := networktest.NameServer(t)
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
