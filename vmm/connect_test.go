package vmm_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/vmm"
	"github.com/fix-project/arcavm/vmm/vmmtest"
)

// unsteady is the host's network, with one name that the policy around it looks
// up. The address silent never answers.
type unsteady struct {
	network.Host
	name    string
	addrs   []netip.Addr
	err     error // of a lookup
	silent  netip.Addr
	givenUp chan netip.Addr // attempts to connect to silent that have ended
}

func (u *unsteady) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	if host != u.name {
		return nil, fmt.Errorf("lookup of %q, want %q", host, u.name)
	}
	return u.addrs, u.err
}

func (u *unsteady) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if to, err := netip.ParseAddrPort(address); err == nil && to.Addr() == u.silent {
		<-ctx.Done()
		u.givenUp <- to.Addr()
		return nil, ctx.Err()
	}
	return u.Host.DialContext(ctx, network, address)
}

func (u *unsteady) policy(t *testing.T) *network.Policy {
	t.Helper()
	allow, err := network.ParseRule(true, "localhost")
	if err != nil {
		t.Fatal(err)
	}
	return network.NewPolicy(u, []network.Rule{allow}, nil)
}

// A guest connects to a name's first address that answers, whatever becomes of
// the others; it waits for none of them.
func TestConnectHappyEyeballs(t *testing.T) {
	t.Parallel()
	silent, local, unused := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")
	for _, c := range []struct {
		name   string
		addrs  []netip.Addr
		silent bool
	}{
		{"one is silent", []netip.Addr{silent, local}, true},
		{"one refuses", []netip.Addr{unused, local}, false},
		{"some refuse and one is silent", []netip.Addr{silent, unused, unused, local}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			network := &unsteady{name: "server.test", addrs: c.addrs, silent: silent, givenUp: make(chan netip.Addr, 1)}
			target := fmt.Sprint("server.test:", l.Addr().(*net.TCPAddr).Port)
			g := vmmtest.Boot(t, vmm.Config{Image: vmmtest.Image(t, "connect"), Args: []string{target, "hello"}, Network: network.policy(t)})
			conn := acceptOne(t, l)
			if got, err := io.ReadAll(conn); err != nil || string(got) != "hello" {
				t.Errorf("the guest sent %q, %v", got, err)
			}
			conn.Close()
			if code, err := g.Wait(); code != 0 || err != nil {
				t.Errorf("the guest ended with %d, %v", code, err)
			}
			if c.silent {
				select {
				case <-network.givenUp:
				case <-time.After(patience):
					t.Error("the attempt at the silent address goes on")
				}
			}
		})
	}
}

// A guest can tell why it doesn't get a connection to a name.
func TestConnectByNameFails(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		addrs []netip.Addr
		err   error
		want  unix.Errno
	}{
		{"no such name", nil, &net.DNSError{Name: "server.test", IsNotFound: true}, unix.ENOENT},
		{"no answer now", nil, &net.DNSError{Name: "server.test", IsTemporary: true}, unix.EAGAIN},
		{"no answer in time", nil, &net.DNSError{Name: "server.test", IsTimeout: true, IsTemporary: true}, unix.ETIMEDOUT},
		{"no listener", []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")}, nil, unix.ECONNREFUSED},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			l.Close()
			target := fmt.Sprint("server.test:", l.Addr().(*net.TCPAddr).Port)
			network := &unsteady{name: "server.test", addrs: c.addrs, err: c.err}
			g := vmmtest.Boot(t, vmm.Config{Image: vmmtest.Image(t, "connect"), Args: []string{target}, Network: network.policy(t)})
			want := fmt.Sprintf("connect: error %d", c.want)
			if code, err := g.Wait(); code != 1 || err != nil || !strings.Contains(g.Log(), want) {
				t.Errorf("the guest ended with %d, %v; want 1 and %q\n%s", code, err, want, g.Log())
			}
		})
	}
}
