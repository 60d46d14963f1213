package spec

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/fix-project/arcavm/network"
)

// Rule allows or denies what a text of the form [network.RuleForm] matches.
type Rule struct {
	Allow bool
	Match string
}

// ParseRule reads "allow MATCH" or "deny MATCH".
func ParseRule(text string) (Rule, error) {
	verdict, match, ok := strings.Cut(text, " ")
	r := Rule{verdict == "allow", strings.TrimLeft(match, " ")}
	if !ok || !r.Allow && verdict != "deny" {
		return Rule{}, fmt.Errorf("%q begins with neither allow nor deny; the form is allow RULE or deny RULE, where RULE is %s", text, network.RuleForm)
	}
	return r, r.Check()
}

// Check returns what is wrong with the text to match.
func (r Rule) Check() error {
	_, err := r.parse()
	return err
}

func (r Rule) parse() (network.Rule, error) { return network.ParseRule(r.Allow, r.Match) }

// String is the text that [ParseRule] reads the rule from.
func (r Rule) String() string {
	if r.Allow {
		return "allow " + r.Match
	}
	return "deny " + r.Match
}

// samePort reports whether two ports can't both be published.
func samePort(a, b network.Publish) bool {
	return a.Guest == b.Guest && a.Protocol == b.Protocol && a.Host.Addr().Is4() == b.Host.Addr().Is4()
}

// CheckPublished returns the index of the first port that can't be published
// beside those before it.
func CheckPublished(ports []network.Publish) (at int, err error) {
	type guest struct {
		protocol string
		port     uint16
		ipv4     bool
	}
	type host struct {
		protocol string
		at       netip.AddrPort
	}
	guests, hosts := make(map[guest]bool), make(map[host]uint16)
	for i, p := range ports {
		g, h := guest{p.Protocol, p.Guest, p.Host.Addr().Is4()}, host{p.Protocol, p.Host}
		if guests[g] {
			return i, fmt.Errorf("port %d of the guest is published twice by addresses of one family", p.Guest)
		}
		if other, taken := hosts[h]; taken && p.Host.Port() != 0 {
			return i, fmt.Errorf("%s is given to two ports of the guest: %d and %d", p.Host, other, p.Guest)
		}
		guests[g], hosts[h] = true, p.Guest
	}
	return 0, nil
}

// parseRange reads a range of addresses.
func parseRange(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return p, fmt.Errorf("%q: no range of addresses, such as 10.0.0.0/8", text)
	}
	return p.Masked(), nil
}

// policy returns the policy that enforces the rules.
func (n Network) policy() (*network.Policy, error) {
	rules := make([]network.Rule, len(n.Rules))
	for i, r := range n.Rules {
		var err error
		if rules[i], err = r.parse(); err != nil {
			return nil, err
		}
	}
	p := network.NewPolicy(network.Host{}, rules, n.Publish)
	p.NAT64, p.Own = n.NAT64, n.Own
	return p, nil
}
