package emulated

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCheckPorts(t *testing.T) {
	t.Parallel()
	tcp, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	must(t, err)
	defer tcp.Close()
	udp, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	must(t, err)
	defer udp.Close()
	takenTCP, takenUDP := tcp.Addr().(*net.TCPAddr).AddrPort(), udp.LocalAddr().(*net.UDPAddr).AddrPort()
	all := netip.AddrPortFrom(netip.IPv4Unspecified(), takenTCP.Port())
	free := netip.MustParseAddrPort("127.0.0.1:0")
	for _, test := range []struct {
		name  string
		ports []Port
		want  error
	}{
		{"free", []Port{{Host: free, Guest: 1}, {Host: free, Guest: 2}, {Host: free, Guest: 1, UDP: true}}, nil},
		{"TCP port in use", []Port{{Host: takenTCP, Guest: 1}}, unix.EADDRINUSE},
		{"TCP port in use at one address", []Port{{Host: all, Guest: 1}}, unix.EADDRINUSE},
		{"multicast", []Port{{Host: netip.MustParseAddrPort("224.0.0.251:0"), Guest: 1, UDP: true}}, unix.EADDRNOTAVAIL},
		{"broadcast", []Port{{Host: netip.MustParseAddrPort("255.255.255.255:0"), Guest: 1, UDP: true}}, unix.EADDRNOTAVAIL},
		{"UDP port in use", []Port{{Host: takenUDP, Guest: 1, UDP: true}}, unix.EADDRINUSE},
		{"not this machine's", []Port{{Host: netip.MustParseAddrPort("192.0.2.1:0"), Guest: 1}}, unix.EADDRNOTAVAIL},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := checkPorts(Config{Publish: test.ports, Outbound: true}); !errors.Is(err, test.want) {
				t.Errorf("%v, want %v", err, test.want)
			}
		})
	}
	must(t, tcp.Close())
	twice := Config{Publish: []Port{{Host: takenTCP, Guest: 1}, {Host: takenTCP, Guest: 2}}}
	if err := checkPorts(twice); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("one port twice: %v", err)
	}
	if err := checkPorts(Config{Publish: []Port{{Host: netip.MustParseAddrPort("[::1]:0"), Guest: 1}}}); err == nil {
		t.Error("an IPv6 address was taken")
	}
}
