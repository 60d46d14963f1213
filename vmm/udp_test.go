package vmm_test

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/vmm/vmmtest"
)

// boundTo waits until the guest says where its socket is bound.
func boundTo(t *testing.T, g *vmmtest.Guest) netip.AddrPort {
	t.Helper()
	g.WaitLog("bound to ")
	found := regexp.MustCompile(`bound to ([^ "]+)`).FindStringSubmatch(g.Log())
	addr, err := netip.ParseAddrPort(found[1])
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

func udpSocket(t *testing.T, on string) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(on)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestUDPEcho(t *testing.T) {
	t.Parallel()
	for family, addr := range loopbacks(t) {
		t.Run(family, func(t *testing.T) {
			t.Parallel()
			g := boot(t, "udp", "echo", addr)
			to := boundTo(t, g)
			c := udpSocket(t, addr)
			buf := make([]byte, 1<<16)
			for _, n := range []int{0, 1, 1472, 8000, 65507, 3} {
				data := content(uint64(n), n)
				if _, err := c.WriteToUDPAddrPort(data, to); err != nil {
					t.Fatal(err)
				}
				got, from, err := c.ReadFromUDPAddrPort(buf)
				if err != nil || from != to || !bytes.Equal(buf[:got], data) {
					t.Fatalf("%d bytes from %v for %d to %v, %v; or they differ", got, from, n, to, err)
				}
			}
			g.VM.Stop()
			if code, err := g.Wait(); code != 0 || err != nil {
				t.Errorf("the guest ended with %d, %v", code, err)
			}
		})
	}
}

func TestUDPSend(t *testing.T) {
	t.Parallel()
	for family, addr := range loopbacks(t) {
		t.Run(family, func(t *testing.T) {
			t.Parallel()
			c := udpSocket(t, addr)
			g := boot(t, "udp", "send", c.LocalAddr().String(), "first", "second")
			buf := make([]byte, 100)
			for _, want := range []string{"first", "second"} {
				n, from, err := c.ReadFromUDPAddrPort(buf)
				if err != nil || string(buf[:n]) != want {
					t.Fatalf("got %q, %v, want %q", buf[:n], err, want)
				}
				if _, err := c.WriteToUDPAddrPort([]byte("the "+want), from); err != nil {
					t.Fatal(err)
				}
			}
			code, err := g.Wait()
			if want := "the first\nthe second\n"; code != 0 || err != nil || g.Console() != want {
				t.Errorf("the guest ended with %d, %v, and printed %q, want %q", code, err, g.Console(), want)
			}
		})
	}
}

// The guest learns that nobody is there.
func TestUDPRefused(t *testing.T) {
	t.Parallel()
	// A socket that is connected elsewhere keeps the port closed.
	peer := udpSocket(t, "127.0.0.1:0")
	closed, err := net.DialUDP("udp", nil, peer.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer closed.Close()
	g := boot(t, "udp", "send", closed.LocalAddr().String(), "anyone?")
	if code, err := g.Wait(); code != 1 || err != nil {
		t.Errorf("the guest ended with %d, %v; want 1", code, err)
	}
	if want := fmt.Sprintf("error %d", unix.ECONNREFUSED); !strings.Contains(g.Log(), want) {
		t.Errorf("the log doesn't say %q:\n%s", want, g.Log())
	}
}
