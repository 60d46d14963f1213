package network_test

import (
	"context"
	"errors"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/fix-project/arcavm/network/networktest"
)

// The answer is what is known when the time is over. Nothing goes on after
// that: the sockets of unanswered questions are closed.
func TestLookupHost(t *testing.T) {
	t.Parallel()
	host := networktest.NameServer(t)
	for _, c := range []struct {
		name, network string
		want          []string
	}{
		{"both.test", "ip", []string{"::1", "127.0.0.1"}},
		{"both.test", "ip4", []string{"127.0.0.1"}},
		{"both.test", "ip6", []string{"::1"}},
		{"no6.test", "ip", []string{"127.0.0.1"}},
		{"no4.test", "ip", []string{"::1"}},
		{"only4.test", "ip", []string{"127.0.0.1"}},
		{"127.0.0.9", "ip", []string{"127.0.0.9"}},
		{"none.test", "ip", nil},
	} {
		addrs, err := host.LookupNetIP(t.Context(), c.network, c.name)
		var got []string
		for _, a := range addrs {
			got = append(got, a.Unmap().String())
		}
		slices.Sort(got)
		slices.Sort(c.want)
		if !slices.Equal(got, c.want) || (err == nil) != (c.want != nil) {
			t.Errorf("%s, %s: %v, %v; want %v", c.name, c.network, got, err, c.want)
		}
	}
	var lookup *net.DNSError
	if _, err := host.LookupNetIP(t.Context(), "ip", "none.test"); !errors.As(err, &lookup) || !lookup.IsNotFound {
		t.Errorf("none.test: %v", err)
	}
	// This is shorter than the wait for the second family.
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if addrs, err := host.LookupNetIP(ctx, "ip", "no6.test"); err != nil || len(addrs) != 1 {
		t.Errorf("at the end of the time: %v, %v", addrs, err)
	}
}
