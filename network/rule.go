package network

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Direction is what a [Rule] looks at: where a guest connects and sends to, or
// where it listens.
type Direction uint8

// The directions. The zero value is both.
const (
	Both Direction = iota
	Out
	In
)

func (d Direction) String() string { return [...]string{"", "out:", "in:"}[d] }

// RuleForm is the text that [ParseRule] reads.
const RuleForm = "[in:|out:][tcp:|udp:]HOST[:PORT[-PORT]]"

// Rule allows or denies the requests that match it. The zero value of a field
// matches everything.
type Rule struct {
	Allow     bool
	Direction Direction
	Protocol  string // "tcp" or "udp"
	// Prefixes are ranges of addresses: of the peer (Out), or of the listening
	// socket (In).
	Prefixes []netip.Prefix
	// Zone is the number of the interface that a link-local address is on.
	Zone string
	// Name is the name of a host that the guest connects to, or *.NAME for all
	// names below NAME. It matches only if the guest has asked for the name.
	Name string
	// Ports from First to Last match. Both 0 is all ports.
	First, Last uint16
}

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

// ParseRule reads a rule in [RuleForm]. HOST is * (any), an address, a range of
// addresses such as 10.0.0.0/8, an IPv6 address or range in brackets, a name,
// *.NAME, or localhost, which is every loopback address. Parts that are left
// out match everything.
func ParseRule(allow bool, text string) (Rule, error) {
	r := Rule{Allow: allow}
	rest := text
	for direction, prefix := range map[Direction]string{Out: "out:", In: "in:"} {
		if after, ok := strings.CutPrefix(rest, prefix); ok {
			r.Direction, rest = direction, after
			break
		}
	}
	for _, protocol := range []string{"tcp", "udp"} {
		if after, ok := strings.CutPrefix(rest, protocol+":"); ok {
			r.Protocol, rest = protocol, after
			break
		}
	}
	if isBareIPv6(rest) {
		return Rule{}, ruleError(text, errors.New("an IPv6 address or range is written in brackets, such as [::1], [::1]:80 or [fd00::/8]"))
	}
	host, ports := splitPorts(rest)
	if err := r.setHost(host); err != nil {
		return Rule{}, ruleError(text, err)
	}
	err := r.setPorts(ports)
	if r.Name != "" && strings.HasSuffix(rest, ":*") {
		// This would be a rule for a host named like a mistyped protocol, and
		// match nothing, unnoticed.
		err = fmt.Errorf("%q is no direction and no protocol, and a name needs no port", host+":")
	}
	if err != nil {
		return Rule{}, ruleError(text, err)
	}
	return r, nil
}

// ruleError adds the rule's text, unless err quotes it already, and the form.
func ruleError(text string, err error) error {
	if strings.Contains(err.Error(), strconv.Quote(text)) {
		return fmt.Errorf("%w; the form is %s", err, RuleForm)
	}
	return fmt.Errorf("%q: %w; the form is %s", text, err, RuleForm)
}

// isBareIPv6 reports whether s is an IPv6 address or range without brackets,
// whose colons can't be told from the one before a port.
func isBareIPv6(s string) bool {
	if addr, err := netip.ParseAddr(s); err == nil {
		return addr.Is6()
	}
	prefix, err := netip.ParsePrefix(s)
	return err == nil && prefix.Addr().Is6()
}

// splitPorts cuts at the colon after the host. An IPv6 host is in brackets.
func splitPorts(s string) (host, ports string) {
	if end := strings.LastIndexByte(s, ']'); end >= 0 {
		if rest, ok := strings.CutPrefix(s[end+1:], ":"); ok {
			return s[:end+1], rest
		}
		return s, "*"
	}
	if host, ports, ok := strings.Cut(s, ":"); ok {
		return host, ports
	}
	return s, "*"
}

func (r *Rule) setHost(host string) error {
	inner, bracketed := strings.CutPrefix(host, "[")
	if bracketed {
		inner, bracketed = strings.CutSuffix(inner, "]")
		if !bracketed {
			return fmt.Errorf("%q lacks a bracket", host)
		}
	}
	prefix, perr := netip.ParsePrefix(inner)
	var scope error
	if addr, err := netip.ParseAddr(inner); err == nil {
		addr, scope = configuredScope(addr)
		r.Zone = addr.Zone()
		prefix, perr = netip.PrefixFrom(addr.WithZone(""), addr.BitLen()), nil
	}
	switch {
	case scope != nil:
		return scope
	case host == "":
		return errors.New("the host is missing")
	case host == "in", host == "out", host == "tcp", host == "udp":
		return fmt.Errorf("%q comes too late", host+":")
	case slices.Contains([]string{"in", "out", "tcp", "udp"}, strings.ToLower(host)):
		return fmt.Errorf("%q is written in small letters", host+":")
	case perr == nil && prefix.Addr().Is4In6():
		return fmt.Errorf("write %q as an IPv4 address", host)
	case perr == nil && prefix.Addr().Is4() == bracketed:
		return fmt.Errorf("brackets are for IPv6 addresses")
	case perr == nil:
		r.Prefixes = []netip.Prefix{prefix.Masked()}
		return nil
	case bracketed:
		return fmt.Errorf("%q is no IPv6 address or range", inner)
	case host == "*":
		return nil
	case strings.EqualFold(host, "localhost"):
		r.Prefixes = loopback
		return nil
	}
	name := canonicalName(host)
	if !validName(strings.TrimPrefix(name, "*.")) {
		return fmt.Errorf("%q is no address, range of addresses or name", host)
	}
	if r.Direction == In {
		return fmt.Errorf("a guest listens on addresses, not on names")
	}
	r.Direction, r.Name = Out, name
	return nil
}

// validName reports whether a host may have this name. It refuses mistyped
// addresses and ranges, whose rules would never match: no top-level domain is a
// number, or has fewer than two letters.
func validName(name string) bool {
	labels := strings.Split(name, ".")
	for _, label := range labels {
		if !validLabel(label) {
			return false
		}
	}
	last := labels[len(labels)-1]
	number := strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x")
	return !number && (len(labels) == 1 || len(last) > 1)
}

func validLabel(label string) bool {
	if label == "" || len(label) > 63 || strings.HasPrefix(label, "-") || strings.HasSuffix(label, "-") {
		return false
	}
	return !strings.ContainsFunc(label, func(c rune) bool {
		return (c < 'a' || 'z' < c) && (c < '0' || '9' < c) && c != '-' && c != '_' && c <= 0x7F
	})
}

// canonicalName is the form in which names are compared.
func canonicalName(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

func (r *Rule) setPorts(text string) error {
	if text == "*" {
		return nil
	}
	first, last, isRange := strings.Cut(text, "-")
	if !isRange {
		last = first
	}
	a, err1 := strconv.ParseUint(first, 10, 16)
	b, err2 := strconv.ParseUint(last, 10, 16)
	if err1 != nil || err2 != nil || a > b || b == 0 {
		return fmt.Errorf("%q is no port from 1 to 65535 and no range of ports", text)
	}
	r.First, r.Last = uint16(a), uint16(b)
	return nil
}

// request is something that a guest wants of the network.
type request struct {
	direction Direction
	protocol  string
	name      string // that the guest gave, in canonical form, or ""
	at        netip.AddrPort
	from      netip.AddrPort // where what goes out comes from, as far as that is known
	same      netip.Addr     // another address for the same place, or none
	own       bool           // at is known to be the host's own
}

func (q request) String() string {
	text := q.direction.String() + q.protocol + ":" + q.at.String()
	if q.name != "" {
		text += fmt.Sprintf(" (%.100q)", q.name)
	}
	return text
}

// matches reports whether r is about q, whose address is canonical.
func (r *Rule) matches(q request) bool {
	switch {
	case r.Direction != Both && r.Direction != q.direction,
		r.Protocol != "" && r.Protocol != q.protocol,
		r.Last != 0 && (q.at.Port() < r.First || q.at.Port() > r.Last):
		return false
	case r.Name != "":
		return r.matchesName(q.name)
	}
	return r.matchesAddr(q)
}

func (r *Rule) matchesAddr(q request) bool {
	if len(r.Prefixes) == 0 {
		return true
	}
	addr := q.at.Addr().WithZone("")
	// A socket that listens on all addresses listens on those that are denied,
	// too.
	all := q.direction == In && addr.IsUnspecified() && !r.Allow
	zone := q.at.Addr().Zone()
	// Without a scope the kernel chooses the link: any may be the one.
	anyLink := zone == "" && !r.Allow
	if r.Zone != "" && r.Zone != zone && !all && !anyLink {
		return false
	}
	for _, p := range r.Prefixes {
		if p.Contains(addr) || all && p.Addr().Is4() == addr.Is4() || q.same.IsValid() && p.Contains(q.same) {
			return true
		}
	}
	return false
}

func (r *Rule) matchesName(name string) bool {
	if below, ok := strings.CutPrefix(r.Name, "*"); ok {
		return len(name) > len(below) && strings.HasSuffix(name, below)
	}
	return name != "" && name == r.Name
}
