package emulated

import (
	"net/netip"
	"testing"
)

func TestParsePort(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		text string
		want Port
		ok   bool
	}{
		{"8080:80", Port{Host: netip.MustParseAddrPort("127.0.0.1:8080"), Guest: 80}, true},
		{"0:80", Port{Host: netip.MustParseAddrPort("127.0.0.1:0"), Guest: 80}, true},
		{"0.0.0.0:8080:80", Port{Host: netip.MustParseAddrPort("0.0.0.0:8080"), Guest: 80}, true},
		{"5353:53/udp", Port{Host: netip.MustParseAddrPort("127.0.0.1:5353"), Guest: 53, UDP: true}, true},
		{"8080:80/tcp", Port{Host: netip.MustParseAddrPort("127.0.0.1:8080"), Guest: 80}, true},
		{"8080:80/sctp", Port{}, false},
		{"80", Port{}, false},
		{"", Port{}, false},
		{":80", Port{}, false},
		{"8080:", Port{}, false},
		{"8080:65536", Port{}, false},
		{"8080:-1", Port{}, false},
		{"host:8080:80", Port{}, false},
		{"70000:80", Port{}, false},
	} {
		got, err := ParsePort(c.text)
		if (err == nil) != c.ok || got != c.want {
			t.Errorf("ParsePort(%q) = %v, %v", c.text, got, err)
		}
	}
}
