// Package netns is for tests: a network namespace of a test's own, with
// interfaces and routes of every kind.
package netns

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Inside runs the test that calls it in a process of its own, all of whose
// threads are in a new network namespace, and returns true there. A namespace
// of one thread wouldn't do, as the server's goroutines run on others. It skips
// the test where no namespace can be made.
func Inside(t *testing.T) bool {
	t.Helper()
	const inside = "ARCAVM_TEST_NAMESPACE"
	if os.Getenv(inside) == t.Name() {
		return true
	}
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=2m")
	cmd.Env = append(os.Environ(), inside+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	switch {
	case errors.Is(err, unix.EPERM):
		t.Skipf("making a network namespace: %v; run as root", err)
	case strings.Contains(string(out), "--- SKIP: "+t.Name()+" "):
		t.Skipf("in a network namespace:\n%s", out)
	case err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()+" "):
		t.Errorf("in a network namespace: %v\n%s", err, out)
	}
	return false
}

// Net reads a range of addresses.
func Net(text string) *net.IPNet {
	_, n, err := net.ParseCIDR(text)
	if err != nil {
		panic(err)
	}
	return n
}

// NewHost gives this namespace a loopback interface, one named near with
// addresses, whose peer is far, and routes of every kind. It returns near. The
// test is skipped where no interfaces can be made.
func NewHost(t *testing.T) netlink.Link {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	try(t, err)
	try(t, netlink.LinkSetUp(lo))
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "near"}, PeerName: "far"}); err != nil {
		t.Skip("making a pair of interfaces:", err)
	}
	far, err := netlink.LinkByName("far")
	try(t, err)
	try(t, netlink.LinkSetUp(far))
	near, err := netlink.LinkByName("near")
	try(t, err)
	// Only a router has anycast addresses, one in each of its networks.
	forwarding, err := os.OpenFile("/proc/sys/net/ipv6/conf/all/forwarding", os.O_WRONLY, 0)
	try(t, err)
	_, err = forwarding.WriteString("1")
	try(t, errors.Join(err, forwarding.Close()))
	try(t, netlink.LinkSetUp(near))
	AddAddress(t, near, "10.9.0.1/24")
	AddAddress(t, near, "2001:db8:9::1/64")
	index := lo.Attrs().Index
	for _, r := range []netlink.Route{
		{LinkIndex: index, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST, Dst: Net("10.77.0.0/16")},
		{LinkIndex: index, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST, Dst: Net("10.78.0.0/16"), Src: net.IPv4(10, 9, 0, 1)},
		{LinkIndex: index, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Dst: Net("2001:db8:77::/48")},
		{LinkIndex: index, Type: unix.RTN_LOCAL, Table: 100, Scope: netlink.SCOPE_HOST, Dst: Net("10.80.0.0/16"), Src: net.IPv4(10, 9, 0, 1)},
		{Type: unix.RTN_BLACKHOLE, Dst: Net("10.66.0.0/16")},
		{Type: unix.RTN_UNREACHABLE, Dst: Net("10.67.0.0/16")},
		{LinkIndex: near.Attrs().Index, Dst: Net("10.80.0.0/16"), Gw: net.IPv4(10, 9, 0, 2)},
	} {
		try(t, netlink.RouteAdd(&r))
	}
	rule := netlink.NewRule()
	rule.Table, rule.IPProto, rule.Dport, rule.Priority = 100, unix.IPPROTO_TCP, netlink.NewRulePortRange(RoutedPort, RoutedPort), 99
	try(t, netlink.RuleAdd(rule))
	return near
}

// WaitUp waits until links carry packets. A packet that is sent before is lost.
func WaitUp(t *testing.T, names ...string) {
	t.Helper()
	updates, done := make(chan netlink.LinkUpdate), make(chan struct{})
	try(t, netlink.LinkSubscribeWithOptions(updates, done, netlink.LinkSubscribeOptions{ListExisting: true}))
	defer func() {
		close(done)
		for range updates {
		}
	}()
	down := map[string]bool{}
	for _, name := range names {
		down[name] = true
	}
	for limit := time.After(time.Minute); len(down) > 0; {
		select {
		case u := <-updates:
			if u.Link.Attrs().OperState == netlink.OperUp {
				delete(down, u.Link.Attrs().Name)
			}
		case <-limit:
			t.Fatal("links stay down: ", down)
		}
	}
}

// RoutedPort is a TCP port whose packets go by a routing table of their own.
const RoutedPort = 8099

// AddAddress gives a link an address, which may be used at once.
func AddAddress(t *testing.T, link netlink.Link, text string) {
	t.Helper()
	a, err := netlink.ParseAddr(text)
	try(t, err)
	a.Flags = unix.IFA_F_NODAD
	try(t, netlink.AddrAdd(link, a))
}

func try(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
