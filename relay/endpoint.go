package relay

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/wire"
)

// endpoint is a TCP or UDP address as the wire carries it, and family 0 for others.
func endpoint(a net.Addr) wire.Endpoint {
	tcp, ok := a.(interface{ AddrPort() netip.AddrPort })
	if !ok {
		return wire.Endpoint{}
	}
	return endpointAt(tcp.AddrPort())
}

// unmapped is the address of an endpoint that a guest gave. One with a scope
// stays mapped, for the policy to refuse.
func unmapped(e wire.Endpoint) netip.Addr {
	if e.Scope != 0 {
		return e.Addr
	}
	return e.Addr.Unmap()
}

// endpointAt is an address and a port as the wire carries them. Its zone becomes an interface index.
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

// localAddress is what a guest wants to bind to. IPv4 inside IPv6 is IPv4, and
// has no scope.
func localAddress(e wire.Endpoint) (netip.AddrPort, error) {
	if e.Scope != 0 && e.Addr.Is4In6() {
		return netip.AddrPort{}, fmt.Errorf("bind %v: a scope on an address that has none: %w", e.Addr, unix.EINVAL)
	}
	e.Addr = e.Addr.Unmap()
	return e.AddrPort(), nil
}
