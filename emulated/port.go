package emulated

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
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

func (p Port) protocol() string {
	if p.UDP {
		return "udp"
	}
	return "tcp"
}
