package emulated

import (
	"fmt"
	"io"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// checkPorts refuses ports that QEMU couldn't publish. It listens at each of
// them for a moment.
func checkPorts(cfg Config) error {
	for _, p := range cfg.Publish {
		if p.UDP && !cfg.Outbound {
			return fmt.Errorf("publish UDP port %d: answers can't leave a machine that isn't let out", p.Guest)
		}
		if !p.Host.Addr().Is4() {
			return fmt.Errorf("publish port %d: %v is not an IPv4 address", p.Guest, p.Host.Addr())
		}
		if a := p.Host.Addr(); a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
			// Package net would bind to all addresses instead.
			return fmt.Errorf("publish port %d at %v: %w", p.Guest, a, unix.EADDRNOTAVAIL)
		}
		listener, err := p.listen()
		if err != nil {
			return fmt.Errorf("publish port %d: %w", p.Guest, err)
		}
		defer listener.Close()
	}
	return nil
}

func (p Port) listen() (io.Closer, error) {
	if p.UDP {
		return net.ListenUDP("udp4", net.UDPAddrFromAddrPort(p.Host))
	}
	return net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(p.Host))
}

// Protocol is tcp or udp.
func (p Port) Protocol() string {
	if p.UDP {
		return "udp"
	}
	return "tcp"
}
