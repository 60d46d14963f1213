package relay_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/wire"
)

// socketPair is a connection that isn't TCP.
func socketPair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		deadline(t, c)
		ends[i] = c.(*net.UnixConn)
	}
	return ends[0], ends[1]
}

// oneConn is a network on which every connect gets the same connection.
type oneConn struct {
	network.Host
	conn    net.Conn
	address chan string
}

func (n oneConn) DialContext(_ context.Context, _, address string) (net.Conn, error) {
	n.address <- address
	return n.conn, nil
}

// A connection that isn't TCP is relayed and half-closed.
func TestConnOfAnotherKind(t *testing.T) {
	t.Parallel()
	inside, outside := socketPair(t)
	network := oneConn{conn: inside, address: make(chan string, 1)}
	m := start(t, setup{network: network})
	g := m.pipe()
	to := wire.Connect{Endpoint: wire.Endpoint{Port: 80}, Name: []byte("server.test")}
	if _, err := open(g, wire.ProtocolTCPConnection, wire.AppendConnect(nil, to)); err != nil {
		t.Fatal(err)
	}
	if got := <-network.address; got != "server.test:80" {
		t.Errorf("the network was asked for %q", got)
	}
	const size = 1 << 20
	request, answer := pattern(1, size), pattern(2, size)
	go func() {
		g.Write(request)
		g.CloseWrite()
	}()
	wantAll(t, outside, request)
	go func() {
		outside.Write(answer)
		outside.CloseWrite()
	}()
	wantAll(t, g, answer)
	g.Close()
	m.wantFree()
}

// The guest's reset ends a connection without RST.
func TestConnOfAnotherKindReset(t *testing.T) {
	t.Parallel()
	inside, outside := socketPair(t)
	m := start(t, setup{network: oneConn{conn: inside, address: make(chan string, 1)}})
	g := m.pipe()
	to := wire.Connect{Endpoint: wire.Endpoint{Port: 80}, Name: []byte("server.test")}
	if _, err := open(g, wire.ProtocolTCPConnection, wire.AppendConnect(nil, to)); err != nil {
		t.Fatal(err)
	}
	g.Reset(unix.ECONNABORTED)
	wantEOF(t, outside)
	m.wantFree()
}

// The guest is told at once of a peer that reads no more, which TCP can't say,
// though the peer goes on sending.
func TestConnOfAnotherKindReadsNoMore(t *testing.T) {
	t.Parallel()
	inside, outside := socketPair(t)
	m := start(t, setup{network: oneConn{conn: inside, address: make(chan string, 1)}})
	g := m.pipe()
	to := wire.Connect{Endpoint: wire.Endpoint{Port: 80}, Name: []byte("server.test")}
	_, err := open(g, wire.ProtocolTCPConnection, wire.AppendConnect(nil, to))
	if err != nil {
		t.Fatal(err)
	}
	if err := outside.CloseRead(); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = g.Write(make([]byte, 1024))
	}
	if !errors.Is(err, unix.EPIPE) {
		t.Fatalf("writing to a peer that reads no more: %v", err)
	}
	sent := pattern(1, 1<<20)
	go func() {
		outside.Write(sent)
		outside.CloseWrite()
	}()
	wantAll(t, g, sent)
	g.Close()
	m.wantFree()
}

// A connection without half-close isn't relayed, and isn't leaked.
func TestConnWithoutHalfClose(t *testing.T) {
	t.Parallel()
	inside, outside := net.Pipe()
	t.Cleanup(func() { outside.Close() })
	deadline(t, outside)
	m := start(t, setup{network: oneConn{conn: inside, address: make(chan string, 1)}})
	to := wire.Connect{Endpoint: wire.Endpoint{Port: 80}, Name: []byte("server.test")}
	if _, err := open(m.pipe(), wire.ProtocolTCPConnection, wire.AppendConnect(nil, to)); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("got %v, want EOPNOTSUPP", err)
	}
	wantEOF(t, outside)
}

// A refusal is EACCES for the guest, a record that names the stream, and a
// counter.
func TestDenied(t *testing.T) {
	t.Parallel()
	rule, err := network.ParseRule(false, "in:*")
	if err != nil {
		t.Fatal(err)
	}
	m := start(t, setup{network: network.NewPolicy(network.Host{}, []network.Rule{rule}, nil)})
	loopback := netip.MustParseAddrPort("127.0.0.1:1")
	for protocol, payload := range map[uint16][]byte{
		wire.ProtocolTCPConnection: connectTo(loopback),
		wire.ProtocolTCPListener:   wire.AppendListen(nil, wire.Listen{Endpoint: at(loopback)}),
	} {
		g := m.pipe()
		if _, err := open(g, protocol, payload); !errors.Is(err, unix.EACCES) {
			t.Errorf("protocol %d: %v, want EACCES", protocol, err)
		}
		wantEOF(t, g)
		g.Close()
	}
	m.wantFree()
	if s := m.server.Stats(); s.Denied != 2 {
		t.Errorf("%+v", s)
	}
	m.log.mu.Lock()
	defer m.log.mu.Unlock()
	warnings := 0
	for _, r := range m.log.records {
		if r.Level != slog.LevelWarn {
			continue
		}
		warnings++
		r.Attrs(func(a slog.Attr) bool {
			if a.Key == "err" && !strings.Contains(a.Value.String(), "tcp:127.0.0.1:1 is denied by policy") {
				t.Errorf("the record says %v", a)
			}
			return true
		})
	}
	if warnings != 2 {
		t.Errorf("%d warnings, want 2", warnings)
	}
}

// A guest may listen where its port is published, whatever the rules, and sees
// its own address.
func TestPublished(t *testing.T) {
	t.Parallel()
	rule, err := network.ParseRule(false, "*")
	if err != nil {
		t.Fatal(err)
	}
	heard, told := make(chan netip.AddrPort, 1), make(chan netip.AddrPort, 1)
	publish := network.Publish{Protocol: "tcp", Host: netip.MustParseAddrPort("127.0.0.1:0"), Guest: 80}
	policy := network.NewPolicy(network.Host{}, []network.Rule{rule}, []network.Publish{publish})
	policy.OnPublish = func(p network.Publish, host netip.AddrPort) {
		if p != publish {
			t.Errorf("published is %+v", p)
		}
		told <- host
	}
	m := start(t, setup{onListen: func(a netip.AddrPort) { heard <- a }, network: policy})
	l := m.listen("0.0.0.0:80", 7)
	if l.at != netip.MustParseAddrPort("0.0.0.0:80") {
		t.Errorf("the guest is told %v", l.at)
	}
	g := m.pipe()
	l.ask(1, g.ID())
	host := <-told
	if at := <-heard; at != host {
		t.Errorf("the guest listens at %v on the host, and its port is published at %v", at, host)
	}
	peer := dialed(t, host)
	_, a := l.answer()
	if a.Status != 0 || a.Local.AddrPort() != l.at || a.Peer.AddrPort() != peer.LocalAddr().(*net.TCPAddr).AddrPort() {
		t.Fatalf("%+v", a)
	}
	echo(t, g, peer)
	l.Close()
	m.wantFree()
}

// An address that never answers is ETIMEDOUT.
func TestConnectTimeout(t *testing.T) {
	t.Parallel()
	m := start(t, setup{network: silent{}, connectTimeout: time.Millisecond})
	g := m.pipe()
	if _, err := open(g, wire.ProtocolTCPConnection, connectTo(netip.MustParseAddrPort("192.0.2.1:1"))); !errors.Is(err, unix.ETIMEDOUT) {
		t.Errorf("got %v, want ETIMEDOUT", err)
	}
	g.Close()
	m.wantFree()
}

// silent is a network where no connect is answered.
type silent struct{ network.Host }

func (silent) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// late is a connection whose writes wait until the test lets them go on.
type late struct {
	*net.UnixConn
	goOn chan struct{}
}

func (c late) Write(b []byte) (int, error) {
	<-c.goOn
	return c.UnixConn.Write(b)
}

// fill sends zeros until c takes no more, and returns how many.
func fill(t testing.TB, c *net.UnixConn) (n int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	zeros := make([]byte, 512)
	if err := raw.Control(func(fd uintptr) {
		for err == nil {
			var sent int
			sent, err = unix.SendmsgN(int(fd), zeros, nil, nil, unix.MSG_DONTWAIT)
			n += max(sent, 0)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if err != unix.EAGAIN {
		t.Fatal(err)
	}
	return n
}

// A notification never waits for the network, whatever kind of connection an
// embedding program has made, as a virtual CPU's thread may make it.
func TestNotificationDoesNotWait(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(t *testing.T, c *net.UnixConn, goOn chan struct{}) net.Conn{
		"a connection that waits": func(_ *testing.T, c *net.UnixConn, goOn chan struct{}) net.Conn { return late{c, goOn} },
		"a full socket":           func(_ *testing.T, c *net.UnixConn, _ chan struct{}) net.Conn { return c },
		"a full blocking socket": func(t *testing.T, c *net.UnixConn, _ chan struct{}) net.Conn {
			raw, err := c.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			var set error
			if err := raw.Control(func(fd uintptr) { set = unix.SetNonblock(int(fd), false) }); err != nil || set != nil {
				t.Fatal(err, set)
			}
			return c
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inside, outside := socketPair(t)
			goOn := make(chan struct{})
			m := start(t, setup{network: oneConn{conn: prepare(t, inside, goOn), address: make(chan string, 1)}})
			g := m.pipe()
			to := wire.Connect{Endpoint: wire.Endpoint{Port: 80}, Name: []byte("server.test")}
			if _, err := open(g, wire.ProtocolTCPConnection, wire.AppendConnect(nil, to)); err != nil {
				t.Fatal(err)
			}
			ahead := fill(t, inside)
			ringFull := make(chan int, 1)
			content := pattern(3, 128<<10)
			const piece = 512
			go func() {
				n := 0
				for ; n+piece <= len(content) && g.WritableLen() >= piece; n += piece {
					g.Write(content[n : n+piece])
				}
				ringFull <- n
			}()
			var n int
			select {
			case n = <-ringFull:
			case <-time.After(patience):
				outside.Close()
				t.Fatal("the guest is held up")
			}
			close(goOn)
			g.CloseWrite()
			wantAll(t, outside, append(make([]byte, ahead), content[:n]...))
			outside.CloseWrite()
			g.Close()
			m.wantFree()
		})
	}
}
