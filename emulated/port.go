package emulated

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ParsePort reads a port to publish, [ADDRESS:]HOSTPORT:PORT[/tcp|/udp]. Without an
// address it is 127.0.0.1.
func ParsePort(s string) (Port, error) {
	bad := func(cause error) (Port, error) {
		return Port{}, fmt.Errorf("%s: not of the form [ADDRESS:]HOSTPORT:PORT[/tcp|/udp]: %w", s, cause)
	}
	text, protocol, _ := strings.Cut(s, "/")
	if protocol != "" && protocol != "tcp" && protocol != "udp" {
		return bad(fmt.Errorf("no protocol %q", protocol))
	}
	i := strings.LastIndexByte(text, ':')
	if i < 0 {
		return bad(errors.New("no colon"))
	}
	host, guest := text[:i], text[i+1:]
	if !strings.Contains(host, ":") {
		host = "127.0.0.1:" + host
	}
	address, err := netip.ParseAddrPort(host)
	if err != nil {
		return bad(err)
	}
	number, err := strconv.ParseUint(guest, 10, 16)
	if err != nil {
		return bad(err)
	}
	return Port{Host: address, Guest: uint16(number), UDP: protocol == "udp"}, nil
}

// checkPorts finds out what QEMU would end over, by listening at all the ports for a moment.
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
