package vmm_test

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strconv"
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

// A client that is connected hears nothing but what comes from the address that
// it asked.
func TestUDPEchoConnected(t *testing.T) {
	t.Parallel()
	for family, asked := range map[string][]string{"0.0.0.0:0": {"127.0.0.1", "127.0.0.2", "127.0.0.1"}, "[::]:0": {"::1"}} {
		t.Run(family, func(t *testing.T) {
			t.Parallel()
			if _, ok := loopbacks(t)["IPv6"]; family == "[::]:0" && !ok {
				t.Skip("this machine has no IPv6")
			}
			g := boot(t, "udp", "echo", family)
			port := boundTo(t, g).Port()
			buf := make([]byte, 100)
			for _, a := range asked {
				to := netip.AddrPortFrom(netip.MustParseAddr(a), port)
				c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
					t.Fatal(err)
				}
				for _, text := range []string{"first", "second"} {
					if _, err := c.Write([]byte(text)); err != nil {
						t.Fatal(err)
					}
					if n, err := c.Read(buf); err != nil || string(buf[:n]) != text {
						t.Errorf("asked %v, and got %q, %v; want %q", to, buf[:n], err, text)
					}
				}
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

// The guest learns that its peer isn't there.
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

// A guest that is late is told how many datagrams that cost it; and of one for
// which its ring is too small, how long it was.
func TestUDPLost(t *testing.T) {
	t.Parallel()
	const (
		sent = 500
		size = 5000
		fits = 4096 - 72 // in the ring beside the frame's header and the datagram's own
	)
	g := boot(t, "udp", "late", "127.0.0.1:0", "4096")
	to := boundTo(t, g)
	c := udpSocket(t, "127.0.0.1:0")
	for range sent {
		if _, err := c.WriteToUDPAddrPort(make([]byte, size), to); err != nil {
			t.Fatal(err)
		}
	}
	g.VM.Stop()
	// An empty datagram ends the guest. Those that find no room are lost as
	// well, and counted, until the guest has made some.
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		g.Wait()
	}()
	extra := 0
	for done := false; !done; {
		if _, err := c.WriteToUDPAddrPort(nil, to); err != nil {
			t.Fatal(err)
		}
		extra++
		select {
		case <-ended:
			done = true
		case <-time.After(10 * time.Millisecond):
		}
	}
	if code, err := g.Wait(); code != 0 || err != nil {
		t.Fatalf("the guest ended with %d, %v", code, err)
	}
	found := regexp.MustCompile(`received (\d+), (\d+) of (\d+) bytes cut to (\d+), (\d+) dropped`).FindStringSubmatch(g.Log())
	if found == nil {
		t.Fatal("no account of it in the log")
	}
	var n [5]int
	for i := range n {
		n[i], _ = strconv.Atoi(found[i+1])
	}
	received, cut, dropped := n[0], n[1], n[4]
	t.Logf("%s, of %d and %d empty ones", found[0], sent, extra)
	if received == 0 || cut != received || n[2] != size || n[3] != fits {
		t.Errorf("%s, want all of them cut from %d bytes to %d", found[0], size, fits)
	}
	if dropped == 0 || received+dropped < sent || received+dropped > sent+extra {
		t.Errorf("received and dropped are %d together; %d and %d empty ones were sent", received+dropped, sent, extra)
	}
	if got := g.VM.Stats().Relay.DatagramsDropped; got < uint64(dropped) || got > uint64(dropped+extra) {
		t.Errorf("the monitor counts %d dropped, the guest %d", got, dropped)
	}
}
