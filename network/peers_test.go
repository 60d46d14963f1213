package network_test

import (
	"net/netip"
	"testing"

	"github.com/fix-project/arcavm/network"
)

func TestPeerOf(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"192.0.2.1":              "192.0.2.1/32",
		"::ffff:192.0.2.1":       "192.0.2.1/32",
		"2001:db8:1:2:3:4:5:6":   "2001:db8:1:2::/64",
		"fe80::1%1":              "fe80::/64",
		"2001:db8:1:2:ffff::%17": "2001:db8:1:2::/64",
	} {
		if got := network.PeerOf(netip.MustParseAddr(address)).String(); got != want {
			t.Errorf("%s counts as %s, want %s", address, got, want)
		}
	}
	if got := network.PeerOf(netip.Addr{}); got != (netip.Prefix{}) {
		t.Errorf("no address counts as %v", got)
	}
}

// A machine that sends from many ports doesn't make a socket forget another
// machine.
func TestRememberedPeersShared(t *testing.T) {
	t.Parallel()
	conn, err := network.NewPolicy(network.Host{}, nil, nil).ListenPacket(t.Context(), "udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	socket := conn.(interface {
		MaySend(from netip.Addr, to netip.AddrPort) error
		Received(netip.AddrPort)
	})
	first := netip.MustParseAddrPort("127.0.0.9:1")
	if socket.MaySend(netip.Addr{}, first) == nil {
		t.Fatal("allowed before it has sent something")
	}
	socket.Received(first)
	flood := netip.MustParseAddr("127.0.0.2")
	for port := range uint16(60000) {
		socket.Received(netip.AddrPortFrom(flood, port))
	}
	if err := socket.MaySend(netip.Addr{}, first); err != nil {
		t.Error(err)
	}
	if err := socket.MaySend(netip.Addr{}, netip.AddrPortFrom(flood, 59999)); err != nil {
		t.Error(err)
	}
}
