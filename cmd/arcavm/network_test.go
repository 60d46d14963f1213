package main

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// after returns what follows text in a line, up to a space or a quote.
func after(t *testing.T, line, text string) string {
	t.Helper()
	_, rest, ok := strings.Cut(line, text)
	if !ok {
		t.Fatalf("%q doesn't say %q", line, text)
	}
	if end := strings.IndexAny(rest, ` "`); end >= 0 {
		rest = rest[:end]
	}
	return rest
}

func dialed(t *testing.T, network, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c
}

// A published port is reached where the command says, whatever the rules. The
// guest knows only the port that it asked for.
func TestPublishTCP(t *testing.T) {
	t.Parallel()
	needKVM(t)
	for _, format := range []string{"text", "json"} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			r := start(t, false, "run", "--log-format", format, "--deny", "*", "--publish", "0:80",
				imageFile(t, "tcp"), "accept", "0.0.0.0:80", "send=hello", "close-write", "read")
			c := dialed(t, "tcp", after(t, r.line("TCP port 80 of the guest is at "), "TCP port 80 of the guest is at "))
			if got, err := io.ReadAll(c); err != nil || string(got) != "hello" {
				t.Errorf("the guest said %q, %v", got, err)
			}
			r.line(fmt.Sprintf("local 0.0.0.0:80 peer %v", c.LocalAddr()))
			c.Close()
			if code := r.exitCode(); code != 0 {
				t.Errorf("code %d", code)
			}
		})
	}
}

func TestPublishUDP(t *testing.T) {
	t.Parallel()
	needKVM(t)
	r := start(t, false, "run", "--deny", "*", "--publish", "0:53/udp", imageFile(t, "udp"), "echo", "0.0.0.0:53")
	c := dialed(t, "udp", after(t, r.line("UDP port 53 of the guest is at "), "UDP port 53 of the guest is at "))
	r.line("bound to 0.0.0.0:53")
	buf := make([]byte, 100)
	for _, text := range []string{"first", "", "third"} {
		if _, err := c.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(buf); err != nil || string(buf[:n]) != text {
			t.Errorf("got %q, %v, want %q", buf[:n], err, text)
		}
	}
	r.signal(syscall.SIGINT)
	if code := r.exitCode(); code != 0 {
		t.Errorf("code %d", code)
	}
}

// A port that is published by an address of each family is reached by both.
// Answers come from the address that was asked.
func TestPublishBothFamilies(t *testing.T) {
	t.Parallel()
	needKVM(t)
	for _, c := range []struct{ protocol, image, args string }{
		{"tcp", "echo", "0.0.0.0:80"},
		{"udp", "udp", "echo 0.0.0.0:80"},
		{"udp", "udp", "echo [::]:80"},
	} {
		t.Run(c.protocol+" "+c.args, func(t *testing.T) {
			t.Parallel()
			words := []string{"run", "--deny", "*", "--publish", "0.0.0.0:0:80/" + c.protocol, "--publish", "[::]:0:80/" + c.protocol, imageFile(t, c.image)}
			r := start(t, false, append(words, strings.Fields(c.args)...)...)
			told := strings.ToUpper(c.protocol) + " port 80 of the guest is at "
			var asked []string
			for range 2 {
				_, port, err := net.SplitHostPort(after(t, r.line(told), told))
				if err != nil {
					t.Fatal(err)
				}
				asked = append(asked, port)
			}
			if c.args == "echo [::]:80" {
				asked[0], asked[1] = asked[1], asked[0]
			}
			for _, at := range []string{"127.0.0.1:" + asked[0], "127.0.0.2:" + asked[0], "[::1]:" + asked[1]} {
				conn := dialed(t, c.protocol, at)
				buf := make([]byte, 100)
				for _, text := range []string{"first", "second"} {
					if _, err := conn.Write([]byte(text)); err != nil {
						t.Fatal(err)
					}
					if n, err := conn.Read(buf); err != nil || string(buf[:n]) != text {
						t.Errorf("asked %s, and got %q, %v, want %q", at, buf[:n], err, text)
					}
				}
				conn.Close()
			}
			r.signal(syscall.SIGINT)
			if code := r.exitCode(); code != 0 {
				t.Errorf("code %d", code)
			}
		})
	}
}

// Rules for what comes in are about where the guest may listen.
func TestPolicyIn(t *testing.T) {
	t.Parallel()
	needKVM(t)
	for _, c := range []struct {
		flags   string
		allowed bool
	}{
		{"", true},
		{"--deny in:*", false},
		{"--deny *", false},
		{"--deny out:*", true},
		{"--deny in:udp:*", true},
		{"--deny in:tcp:127.0.0.1", false},
		{"--deny in:tcp:10.0.0.0/8", true},
		{"--allow in:tcp:127.0.0.1 --deny *", true},
		{"--deny in:tcp:127.0.0.1:1024-65535", false}, // the port that the host chose
		{"--deny in:tcp:127.0.0.1:1-1023", true},
	} {
		t.Run(c.flags, func(t *testing.T) {
			t.Parallel()
			args := slices.Concat([]string{"run"}, strings.Fields(c.flags), []string{imageFile(t, "tcp"), "accept", "127.0.0.1:0"})
			if !c.allowed {
				got := asProcess(t, args...)
				if got.code != 1 || !strings.Contains(got.err, "listen: error 13") || !strings.Contains(got.err, "denied by policy") {
					t.Errorf("code %d, want 1 and EACCES; stderr:\n%s", got.code, got.err)
				}
				return
			}
			r := start(t, false, args...)
			dialed(t, "tcp", after(t, r.line("listening on "), "listening on "))
			if code := r.exitCode(); code != 0 {
				t.Errorf("code %d", code)
			}
		})
	}
}

// Rules for one protocol leave the other alone.
func TestPolicyUDP(t *testing.T) {
	t.Parallel()
	needKVM(t)
	server, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		buf := make([]byte, 100)
		for {
			n, from, err := server.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = server.WriteToUDPAddrPort(append([]byte("got "), buf[:n]...), from)
		}
	}()
	port := server.LocalAddr().(*net.UDPAddr).Port
	for _, c := range []struct {
		flags   string
		allowed bool
	}{
		{"", false},
		{"--allow tcp:127.0.0.1", false},
		{"--allow udp:127.0.0.1", true},
		{fmt.Sprint("--allow udp:localhost:", port), true},
		{fmt.Sprint("--allow udp:localhost:", port^1), false},
		{"--allow in:udp:127.0.0.1", false},
		{fmt.Sprintf("--deny udp:*:%d --allow localhost", port), false},
	} {
		args := slices.Concat([]string{"run"}, strings.Fields(c.flags), []string{imageFile(t, "udp"), "send", server.LocalAddr().String(), "text"})
		got := asProcess(t, args...)
		want := result{code: 1}
		if c.allowed {
			want = result{out: "got text\n"}
		}
		if got.code != want.code || got.out != want.out || !c.allowed && !strings.Contains(got.err, "error 13") {
			t.Errorf("%q: code %d, stdout %q, want %d and %q; stderr:\n%s", c.flags, got.code, got.out, want.code, want.out, got.err)
		}
	}
	server.Close()
	<-served
}

// A name is judged before it is looked up, and each of its addresses after.
func TestPolicyNames(t *testing.T) {
	t.Parallel()
	needKVM(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "from outside")
			c.Close()
		}
	}()
	local := fmt.Sprint("localhost:", l.Addr().(*net.TCPAddr).Port)
	for _, c := range []struct {
		flags, to string
		denied    string // "": it isn't
	}{
		{"", local, "out:tcp:"},
		{"--allow localhost", local, ""},
		{"--deny * --allow localhost", local, `lookup of \"localhost\" is denied`},
		{"--deny *.invalid", "a.invalid:80", `lookup of \"a.invalid\" is denied`},
		{"--deny *.invalid --allow localhost", local, ""},
	} {
		got := asProcess(t, slices.Concat([]string{"run"}, strings.Fields(c.flags), []string{imageFile(t, "connect"), c.to})...)
		want := result{out: "from outside"}
		if c.denied != "" {
			want = result{code: 1}
		}
		if got.code != want.code || got.out != want.out {
			t.Errorf("%q: code %d, stdout %q, want %d and %q; stderr:\n%s", c.flags, got.code, got.out, want.code, want.out, got.err)
		}
		if c.denied != "" && (!strings.Contains(got.err, c.denied) || !strings.Contains(got.err, "connect: error 13")) {
			t.Errorf("%q: %q isn't in stderr:\n%s", c.flags, c.denied, got.err)
		}
	}
	l.Close()
	<-served
}

// Each IPv4 address of an interface is one of this machine's, and no other is.
func TestLocalIPv4(t *testing.T) {
	t.Parallel()
	local, err := localIPv4()
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	holds := func(a netip.Addr) bool {
		return slices.ContainsFunc(local, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	for _, a := range addrs {
		at := netip.MustParsePrefix(a.String()).Addr()
		if want := at.Is4() && !at.IsLoopback(); holds(at) != want {
			t.Errorf("%v: %v in %v", at, !want, local)
		}
	}
	for _, other := range []string{"127.0.0.1", "255.255.255.255", "198.18.0.1"} {
		if holds(netip.MustParseAddr(other)) {
			t.Errorf("%v is in %v", other, local)
		}
	}
}
