package main

import (
	"net/netip"
	"testing"

	"github.com/fix-project/arcavm/emulated"
)

func TestParsePort(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		text string
		want emulated.Port
		ok   bool
	}{
		{"8080:80", emulated.Port{Host: netip.MustParseAddrPort("127.0.0.1:8080"), Guest: 80}, true},
		{"0:80", emulated.Port{Host: netip.MustParseAddrPort("127.0.0.1:0"), Guest: 80}, true},
		{"0.0.0.0:8080:80", emulated.Port{Host: netip.MustParseAddrPort("0.0.0.0:8080"), Guest: 80}, true},
		{"5353:53/udp", emulated.Port{Host: netip.MustParseAddrPort("127.0.0.1:5353"), Guest: 53, UDP: true}, true},
		{"8080:80/tcp", emulated.Port{Host: netip.MustParseAddrPort("127.0.0.1:8080"), Guest: 80}, true},
		{"8080:80/sctp", emulated.Port{}, false},
		{"80", emulated.Port{}, false},
		{"", emulated.Port{}, false},
		{":80", emulated.Port{}, false},
		{"8080:", emulated.Port{}, false},
		{"8080:65536", emulated.Port{}, false},
		{"8080:-1", emulated.Port{}, false},
		{"host:8080:80", emulated.Port{}, false},
		{"70000:80", emulated.Port{}, false},
	} {
		got, err := parsePort(c.text)
		if (err == nil) != c.ok || got != c.want {
			t.Errorf("parsePort(%q) = %v, %v", c.text, got, err)
		}
	}
}
