package emulated

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// ParsePort reads a port to publish, [ADDRESS:]HOSTPORT:PORT. Without an
// address it is 127.0.0.1.
func ParsePort(s string) (Port, error) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return Port{}, fmt.Errorf("%s: not of the form [ADDRESS:]HOSTPORT:PORT", s)
	}
	host, guest := s[:i], s[i+1:]
	if !strings.Contains(host, ":") {
		host = "127.0.0.1:" + host
	}
	address, err := netip.ParseAddrPort(host)
	if err != nil {
		return Port{}, fmt.Errorf("%s: not of the form [ADDRESS:]HOSTPORT:PORT: %w", s, err)
	}
	number, err := strconv.ParseUint(guest, 10, 16)
	if err != nil {
		return Port{}, fmt.Errorf("%s: not of the form [ADDRESS:]HOSTPORT:PORT: %w", s, err)
	}
	return Port{Host: address, Guest: uint16(number)}, nil
}
