package vmm_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/network/networktest"
	"github.com/fix-project/arcavm/vmm"
	"github.com/fix-project/arcavm/vmm/vmmtest"
)

// busyNames is a network whose name server is out of order.
type busyNames struct{ networktest.Network }

func (*busyNames) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	return nil, &net.DNSError{Err: "server misbehaving", Name: host, IsTemporary: true}
}

// A guest looks up names in a network that exists in memory only, and the
// host's localhost.
func TestResolve(t *testing.T) {
	t.Parallel()
	memory := &networktest.Network{Hosts: map[string]netip.Addr{
		"four.test": netip.MustParseAddr("192.0.2.1"),
		"six.test":  netip.MustParseAddr("2001:db8::1:0:1"),
		"also.test": netip.MustParseAddr("192.0.2.1"),
	}}
	deny, err := network.ParseRule(false, "four.test")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, args string
		network    network.Network
		console    string
		failed     map[string]unix.Errno
	}{
		{"names", "four.test six.test 192.0.2.7", memory, "192.0.2.1\n2001:db8::1:0:1\n192.0.2.7\n", nil},
		{"one family", "-4 four.test six.test none.test", memory, "192.0.2.1\n", map[string]unix.Errno{"six.test": unix.ENODATA, "none.test": unix.ENOENT}},
		{"the other", "-6 six.test four.test", memory, "2001:db8::1:0:1\n", map[string]unix.Errno{"four.test": unix.ENODATA}},
		{"addresses", "-x 192.0.2.1 2001:db8::1:0:1 192.0.2.9", memory, "also.test\nfour.test\nsix.test\n", map[string]unix.Errno{"192.0.2.9": unix.ENOENT}},
		{"policy", "also.test four.test", network.NewPolicy(memory, []network.Rule{deny}, nil), "192.0.2.1\n", map[string]unix.Errno{"four.test": unix.EACCES}},
		{"no name server", "four.test", &busyNames{}, "", map[string]unix.Errno{"four.test": unix.EAGAIN}},
		{"localhost", "-4 localhost", network.Host{}, "127.0.0.1\n", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			g := vmmtest.Boot(t, vmm.Config{Image: vmmtest.Image(t, "resolve"), Args: strings.Fields(c.args), Network: c.network})
			code, err := g.Wait()
			want := 0
			if c.failed != nil {
				want = 1
			}
			if code != want || err != nil || g.Console() != c.console {
				t.Errorf("the guest ended with %d, %v, and printed %q; want %d and %q", code, err, g.Console(), want, c.console)
			}
			for name, errno := range c.failed {
				if line := fmt.Sprintf("%s: error %d", name, errno); !strings.Contains(g.Log(), line) {
					t.Errorf("the log doesn't say %q:\n%s", line, g.Log())
				}
			}
		})
	}
}
