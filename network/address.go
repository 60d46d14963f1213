package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
)

// canonical returns an address in the form in which it is judged and used: IPv4
// for an IPv4-mapped one, and with the interface's number as its zone. A zone
// is refused where the kernel ignores it: two addresses that the kernel takes
// for the same one would compare unequal.
func canonical(a netip.Addr) (netip.Addr, error) {
	zone := a.Zone()
	if zone == "" {
		return a.Unmap(), nil
	}
	if a.Is4In6() || !hasScope(a) {
		return a, &DeniedError{fmt.Sprintf("the scope of %v, which means nothing there,", a)}
	}
	index, err := strconv.ParseUint(zone, 10, 31)
	if err != nil {
		i, err := net.InterfaceByName(zone)
		if err != nil {
			return a, fmt.Errorf("scope of %v: %w", a, err)
		}
		index = uint64(i.Index)
	}
	if index == 0 {
		return a, &DeniedError{fmt.Sprintf("the scope of %v, which is no interface,", a)}
	}
	return a.WithZone(strconv.FormatUint(index, 10)), nil
}

// addrPort is an address of package net in the canonical form, and the zero
// AddrPort if it isn't one of TCP or UDP. A zone that is no interface is
// dropped.
func addrPort(a net.Addr) netip.AddrPort {
	with, ok := a.(interface{ AddrPort() netip.AddrPort })
	if !ok {
		return netip.AddrPort{}
	}
	at := with.AddrPort()
	scope, err := scopeOf(at.Addr().Zone())
	if err != nil {
		scope = 0
	}
	return netip.AddrPortFrom(scoped(at.Addr().WithZone("").Unmap(), scope), at.Port())
}

// scoped is a with an interface's index as its zone; 0 is none.
func scoped(a netip.Addr, scope uint32) netip.Addr {
	if scope == 0 {
		return a
	}
	return a.WithZone(strconv.FormatUint(uint64(scope), 10))
}

// hasScope reports whether the kernel looks at an address's scope.
func hasScope(a netip.Addr) bool {
	return a.Is6() && (a.IsLinkLocalUnicast() || a.IsLinkLocalMulticast() || a.IsInterfaceLocalMulticast())
}

// configuredScope is canonical for an address that the user has written: its
// interface must exist.
func configuredScope(a netip.Addr) (netip.Addr, error) {
	if a.Zone() == "" {
		return a, nil
	}
	b, err := canonical(a)
	if err != nil {
		return a, fmt.Errorf("only link-local addresses have a scope, and that is an interface: %w", err)
	}
	index, _ := strconv.Atoi(b.Zone())
	if _, err := net.InterfaceByIndex(index); err != nil {
		return a, fmt.Errorf("scope of %v: %w", a, err)
	}
	return b, nil
}

// onlyHost reports whether an address is special whatever the host's routes
// are: it is this machine's, its link's or a group's, or one where a cloud
// tells secrets to its machines.
func onlyHost(a netip.Addr) bool {
	return a.IsLoopback() || a.IsUnspecified() || a.IsLinkLocalUnicast() || a.IsMulticast() ||
		a.Is4() && a.As4()[0] == 0 || a == broadcast || slices.Contains(cloudMetadata, a)
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// cloudMetadata are the addresses of metadata services, and of others that give
// credentials, as far as they aren't link-local.
var cloudMetadata = []netip.Addr{
	netip.MustParseAddr("fd00:ec2::254"),      // Amazon EC2
	netip.MustParseAddr("fd00:ec2::23"),       // Amazon EKS, Pod Identity
	netip.MustParseAddr("fd20:ce::254"),       // Google Cloud
	netip.MustParseAddr("168.63.129.16"),      // Azure, WireServer
	netip.MustParseAddr("100.100.100.200"),    // Alibaba Cloud
	netip.MustParseAddr("fd00:100::100:200"),  // Alibaba Cloud
	netip.MustParseAddr("192.0.0.192"),        // Oracle Cloud Classic
	netip.MustParseAddr("fd00:c1::a9fe:a9fe"), // Oracle Cloud
	netip.MustParseAddr("fd00:a9fe:a9fe::1"),  // Akamai (Linode)
	netip.MustParseAddr("fd00:42::42"),        // Scaleway
}

// reached are the other addresses at which packets for an address may arrive:
// the address holds them.
type reached struct {
	list [8]netip.Addr
	n    int
	// same is true if packets arrive at list[0] and nowhere else. Then a rule
	// that allows list[0] allows the address, too. Otherwise such a rule isn't
	// enough: where there is no tunnel of this kind, the packets go elsewhere.
	same bool
}

func (r *reached) all() []netip.Addr { return r.list[:r.n] }

// add adds the IPv4 address whose first byte is a[i]. It skips byte 8, which is
// 0 in the form of RFC 6052.
func (r *reached) add(a *[16]byte, i int) {
	var b [4]byte
	for n := range b {
		if i == 8 {
			i++
		}
		b[n] = a[i]
		i++
	}
	r.addAddr(netip.AddrFrom4(b))
}

func (r *reached) addAddr(a netip.Addr) {
	r.list[r.n] = a
	r.n++
}

// The kinds of IPv6 addresses that hold an IPv4 address.
var (
	compatible = netip.MustParsePrefix("::/96")           // RFC 4291
	translated = netip.MustParsePrefix("::ffff:0:0:0/96") // SIIT, RFC 2765
	nat64      = netip.MustParsePrefix("64:ff9b::/96")    // RFC 6052
	localNAT64 = netip.MustParsePrefix("64:ff9b:1::/48")  // RFC 8215
	sixToFour  = netip.MustParsePrefix("2002::/16")       // RFC 3056
	teredo     = netip.MustParsePrefix("2001::/32")       // RFC 4380
)

// nat64Lengths are the lengths that a NAT64 prefix may have (RFC 6052).
var nat64Lengths = []int{32, 40, 48, 56, 64, 96}

// reachedBy returns what else the canonical address a may reach. prefixes are
// those of the network's NAT64.
func reachedBy(a netip.Addr, prefixes []netip.Prefix) (r reached) {
	// The kernel takes the unspecified address for the loopback one.
	switch {
	case a == netip.IPv4Unspecified():
		r.addAddr(loopbackOf[0])
		r.same = true
		return r
	case a.Is4():
		return r
	case a.IsUnspecified():
		r.addAddr(loopbackOf[1])
		r.same = true
		return r
	case a == loopbackOf[1]:
		return r
	}
	a = a.WithZone("")
	b := a.As16()
	configured := false
	for _, p := range prefixes {
		if p.Contains(a) && !configured && slices.Contains(nat64Lengths, p.Bits()) {
			r.add(&b, p.Bits()/8)
			r.same, configured = true, true
		}
	}
	switch {
	case configured:
	case nat64.Contains(a):
		r.add(&b, 12)
		r.same = true
	case localNAT64.Contains(a):
		// The length of the network's own prefix isn't known, so every reading
		// counts. No host has an IPv4 address that begins with 0.
		for _, bits := range nat64Lengths {
			if bits < localNAT64.Bits() {
				continue
			}
			if r.add(&b, bits/8); r.list[r.n-1].As4()[0] == 0 {
				r.n--
			}
		}
	case compatible.Contains(a), translated.Contains(a):
		r.add(&b, 12)
	case sixToFour.Contains(a):
		r.add(&b, 2)
	case teredo.Contains(a):
		r.add(&b, 4) // the server
		r.addAddr(netip.AddrFrom4([4]byte{^b[12], ^b[13], ^b[14], ^b[15]}))
	}
	if b[8]&^2 == 0 && b[9] == 0 && b[10] == 0x5E && b[11] == 0xFE { // ISATAP, RFC 5214
		r.add(&b, 12)
	}
	return r
}

// Specified returns at, with the loopback address of its family instead of the
// unspecified one. The kernel does the same in a connect; other networks may
// not.
func Specified(at netip.AddrPort) netip.AddrPort {
	switch at.Addr() {
	case netip.IPv4Unspecified():
		return netip.AddrPortFrom(loopbackOf[0], at.Port())
	case netip.IPv6Unspecified():
		return netip.AddrPortFrom(loopbackOf[1], at.Port())
	}
	return at
}

// NAT64Form is the text that [ParseNAT64] reads.
const NAT64Form = "PREFIX/LENGTH"

// ParseNAT64 reads a prefix by which a network reaches IPv4 hosts (RFC 6052).
func ParseNAT64(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	switch {
	case err != nil, !p.Addr().Is6(), p.Addr().Is4In6():
		err = errors.New("no range of IPv6 addresses")
	case !slices.Contains(nat64Lengths, p.Bits()):
		err = errors.New("its length isn't one of 32, 40, 48, 56, 64 and 96")
	case p != p.Masked():
		err = errors.New("it has bits behind its length")
	case p.Addr().As16()[8] != 0:
		err = errors.New("bits 64 to 71 aren't 0")
	default:
		return p, nil
	}
	return netip.Prefix{}, fmt.Errorf("%q: %w; the form is %s, such as 2001:db8:64::/96", text, err, NAT64Form)
}
