package relay

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/wire"
)

// endpoint is a TCP or UDP address as the wire carries it. Other addresses have
// family 0.
func endpoint(a net.Addr) wire.Endpoint {
	tcp, ok := a.(interface{ AddrPort() netip.AddrPort })
	if !ok {
		return wire.Endpoint{}
	}
	return endpointAt(tcp.AddrPort())
}

// unmapped is the address of an endpoint that a guest gave, IPv4 for an
// IPv4-mapped one. One with a scope stays mapped, so that the policy refuses
// it.
func unmapped(e wire.Endpoint) netip.Addr {
	if e.Scope != 0 {
		return e.Addr
	}
	return e.Addr.Unmap()
}

// endpointAt is an address and a port as the wire carries them. A zone becomes
// an interface's index.
func endpointAt(ap netip.AddrPort) wire.Endpoint {
	e := wire.Endpoint{Addr: ap.Addr().WithZone("").Unmap(), Port: ap.Port()}
	if zone := ap.Addr().Zone(); zone != "" {
		if index, err := strconv.ParseUint(zone, 10, 32); err == nil {
			e.Scope = uint32(index)
		} else if i, err := net.InterfaceByName(zone); err == nil {
			e.Scope = uint32(i.Index)
		}
	}
	return e
}

// localAddress is the address that a guest wants to bind to, IPv4 for an
// IPv4-mapped one, which has no scope.
func localAddress(e wire.Endpoint) (netip.AddrPort, error) {
	if e.Scope != 0 && e.Addr.Is4In6() {
		return netip.AddrPort{}, fmt.Errorf("bind %v: a scope on an address that has none: %w", e.Addr, unix.EINVAL)
	}
	e.Addr = e.Addr.Unmap()
	return e.AddrPort(), nil
}
