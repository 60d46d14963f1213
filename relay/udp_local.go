package relay

import (
	"fmt"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/wire"
)

// A socket that is bound to all addresses of the host gets datagrams at any of
// them, and an answer must come from the address that was asked. The kernel
// tells that address with each datagram. How an answer gets it:
//
//	the guest asked for it (Addressed)   it names the address in its answer
//	the guest didn't                     it is remembered for each peer
//	the socket's port is published       it is remembered: the guest has an
//	                                     address of its own
//
// A socket that is bound to one address has no choice.

// maxRemembered is for how many peers a socket remembers the local address.
const maxRemembered = 200

// localAddrs knows at which of a socket's local addresses datagrams arrive, and
// from which they go.
type localAddrs struct {
	guest    wire.Endpoint // where the guest believes that it is bound
	host     netip.Addr    // where the socket is bound; the zero Addr: the kernel isn't asked
	any      bool          // the socket is bound to all addresses of the host
	nameable bool          // any, also as the guest sees it
	told     bool          // nameable, and the guest asked to be told

	// Only the goroutine that receives uses these two: most datagrams come from
	// and to the same addresses as the one before, so that there is nothing to
	// remember.
	lastPeer  wire.Endpoint
	lastLocal netip.Addr

	mu    sync.Mutex
	known map[peerKey]uint8 // an index of peers
	peers []rememberedPeer  // at most maxRemembered
	now   uint32            // grows with each use of remember
}

// peerKey is a wire.Endpoint in less memory.
type peerKey struct {
	addr  [16]byte
	scope uint32
	port  uint16
}

func keyOf(e wire.Endpoint) peerKey { return peerKey{e.Addr.As16(), e.Scope, e.Port} }

// rememberedPeer is a peer and the local address at which it sends.
type rememberedPeer struct {
	peer  peerKey
	local [16]byte // IPv4 inside IPv6
	heard uint32   // when it was last heard of, by now
}

// newLocalAddrs is for a socket that is bound at host, which the guest sees at
// guest.
func newLocalAddrs(guest, host wire.Endpoint, addressed bool) *localAddrs {
	l := &localAddrs{guest: guest, host: host.Addr, any: host.Addr.IsUnspecified()}
	l.nameable = l.any && guest == host
	l.told = l.nameable && addressed
	return l
}

// received takes the local address of each datagram, and returns what the guest
// is told of it.
func (l *localAddrs) received(peer wire.Endpoint, local wire.Endpoint) wire.Endpoint {
	if !l.any || !local.Addr.IsValid() || local.Addr.IsUnspecified() || local.Addr.IsMulticast() {
		return l.guest
	}
	if l.told {
		local.Port = l.guest.Port
		return local
	}
	if peer != l.lastPeer || local.Addr != l.lastLocal {
		l.remember(peer, local.Addr)
		l.lastPeer, l.lastLocal = peer, local.Addr
	}
	return l.guest
}

// remember remembers a peer's local address. When there are too many peers, it
// forgets the one that has been silent for longest.
func (l *localAddrs) remember(from wire.Endpoint, local netip.Addr) {
	peer := keyOf(from)
	l.mu.Lock()
	defer l.mu.Unlock()
	i, ok := l.known[peer]
	switch {
	case ok:
	case len(l.peers) < maxRemembered:
		if l.known == nil {
			l.known = make(map[peerKey]uint8)
		}
		i = uint8(len(l.peers))
		l.peers = append(l.peers, rememberedPeer{})
	default:
		for j := range l.peers {
			if l.peers[j].heard < l.peers[i].heard {
				i = uint8(j)
			}
		}
		delete(l.known, l.peers[i].peer)
	}
	l.now++
	l.known[peer] = i
	l.peers[i] = rememberedPeer{peer, local.As16(), l.now}
}

// source returns the address from which a datagram goes; the zero Addr leaves
// it to the kernel. from is the address that the guest names, if any.
func (l *localAddrs) source(to, from wire.Endpoint) (netip.Addr, error) {
	from.Addr = from.Addr.Unmap()
	wrong := from.Port != 0 && from.Port != l.guest.Port || from.Scope != 0 && !from.Addr.IsLinkLocalUnicast()
	switch {
	case !from.Addr.IsValid(), from.Addr.IsUnspecified() && !wrong:
	case wrong, !l.nameable && from.Addr != l.guest.Addr, from.Addr.IsMulticast(), from.Addr.Is4() != l.guest.Addr.Is4():
		return netip.Addr{}, fmt.Errorf("send from %v: %w", from.AddrPort(), unix.EADDRNOTAVAIL)
	case l.nameable:
		return from.Addr, nil
	}
	if !l.any || l.told {
		return netip.Addr{}, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	// A datagram without a destination is one of a connected socket, which has
	// one source.
	if i, ok := l.known[keyOf(to)]; ok && to.Addr.IsValid() {
		return netip.AddrFrom16(l.peers[i].local).Unmap(), nil
	}
	return netip.Addr{}, nil
}
