package main

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
)

// networkFlags say what of the network a guest may reach.
type networkFlags struct {
	rules   []ruleText
	publish []network.Publish
	nat64   []netip.Prefix
	own     []netip.Prefix // of the machine outside an emulated one
}

// ruleText is a rule with its text.
type ruleText struct {
	network.Rule
	text string
}

// flag is the rule as a word of the command line.
func (r ruleText) flag() string {
	if r.Allow {
		return "--allow=" + r.text
	}
	return "--deny=" + r.text
}

func (n *networkFlags) add(f *pflag.FlagSet) {
	f.Var(&ruleFlag{n, true}, "allow", "let the guest connect to, or listen on, what matches")
	f.Var(&ruleFlag{n, false}, "deny", "keep the guest from it: EACCES")
	f.Var(&publishFlag{n}, "publish", "bind what the guest listens on at PORT to HOSTPORT of this machine;\n0 is a free one; the address is 127.0.0.1 unless given")
	f.Var(&nat64Flag{n}, "nat64", "judge an address in this range as the IPv4 address in it (RFC 6052);\n64:ff9b::/96 needs no flag")
	f.Var(&ownAddresses{n}, ownFlag, "")
	f.Lookup(ownFlag).Hidden = true
}

func (n *networkFlags) policy() *network.Policy {
	rules := make([]network.Rule, 0, len(n.rules))
	for _, r := range n.rules {
		rules = append(rules, r.Rule)
	}
	p := network.NewPolicy(network.Host{}, rules, n.publish)
	p.NAT64, p.Own = n.nat64, n.own
	return p
}

// ownFlag is by which --emulated tells the program inside what addresses lead
// to the machine outside. It is hidden.
const ownFlag = "own-addresses"

// ownAddresses appends a range of addresses.
type ownAddresses struct{ to *networkFlags }

func (o *ownAddresses) Set(text string) error {
	p, err := netip.ParsePrefix(text)
	if err == nil {
		o.to.own = append(o.to.own, p.Masked())
	}
	return err
}

func (o *ownAddresses) String() string { return "" }
func (o *ownAddresses) Type() string   { return "PREFIX" }

// localIPv4 are the IPv4 addresses of this machine, as its local routes have
// them, but for its loopback ones.
func localIPv4() ([]netip.Prefix, error) {
	dump, err := syscall.NetlinkRIB(unix.RTM_GETROUTE, unix.AF_INET)
	if err != nil {
		return nil, fmt.Errorf("ask for this machine's addresses: %w", os.NewSyscallError("netlink", err))
	}
	messages, err := syscall.ParseNetlinkMessage(dump)
	if err != nil {
		return nil, fmt.Errorf("ask for this machine's addresses: %w", err)
	}
	var local []netip.Prefix
	for _, m := range messages {
		if m.Header.Type != unix.RTM_NEWROUTE || len(m.Data) < unix.SizeofRtMsg {
			continue
		}
		// struct rtmsg: the length of the destination, the table, the kind of
		// route.
		bits, table, kind := int(m.Data[1]), m.Data[4], m.Data[7]
		attributes, err := syscall.ParseNetlinkRouteAttr(&m)
		if err != nil {
			return nil, fmt.Errorf("ask for this machine's addresses: %w", err)
		}
		for _, a := range attributes {
			addr, ok := netip.AddrFromSlice(a.Value)
			if table == unix.RT_TABLE_LOCAL && kind == unix.RTN_LOCAL && a.Attr.Type == unix.RTA_DST && ok && addr.Is4() && !addr.IsLoopback() {
				local = append(local, netip.PrefixFrom(addr, bits))
			}
		}
	}
	return local, nil
}

// nat64Flag appends a prefix of the network's NAT64.
type nat64Flag struct{ to *networkFlags }

func (n *nat64Flag) Set(text string) error {
	p, err := network.ParseNAT64(text)
	if err == nil {
		n.to.nat64 = append(n.to.nat64, p)
	}
	return err
}

func (n *nat64Flag) String() string { return "" }
func (n *nat64Flag) Type() string   { return network.NAT64Form }

// ruleFlag appends a rule to the list that --allow and --deny share, whose order counts.
type ruleFlag struct {
	to    *networkFlags
	allow bool
}

func (r *ruleFlag) Set(text string) error {
	rule, err := network.ParseRule(r.allow, text)
	if err == nil {
		r.to.rules = append(r.to.rules, ruleText{rule, text})
	}
	return err
}

func (r *ruleFlag) String() string { return "" }
func (r *ruleFlag) Type() string   { return "RULE" }

// publishFlag appends a published port.
type publishFlag struct{ to *networkFlags }

func (p *publishFlag) Set(text string) error {
	m, err := network.ParsePublish(text)
	if err != nil {
		return err
	}
	for _, other := range p.to.publish {
		if other.Guest == m.Guest && other.Protocol == m.Protocol && other.Host.Addr().Is4() == m.Host.Addr().Is4() {
			return fmt.Errorf("port %d of the guest is published twice by addresses of one family", m.Guest)
		}
		if other.Host == m.Host && other.Protocol == m.Protocol && m.Host.Port() != 0 {
			return fmt.Errorf("%s is given to two ports of the guest: %d and %d", m.Host, other.Guest, m.Guest)
		}
	}
	p.to.publish = append(p.to.publish, m)
	return nil
}

func (p *publishFlag) String() string { return "" }
func (p *publishFlag) Type() string {
	return strings.ReplaceAll(network.PublishForm, "[/tcp|/udp]", "[/udp]")
}
