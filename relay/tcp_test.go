package relay_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/pipes/pipestest"
	"github.com/fix-project/arcavm/wire"
)

func TestConnect(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, listen, host string }{
		{"IPv4", "127.0.0.1:0", ""},
		{"IPv6", "[::1]:0", ""},
		{"name", "127.0.0.1:0", "localhost"},
		{"address as name", "127.0.0.1:0", "127.0.0.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := start(t, setup{})
			l, to := hostListener(t, c.listen)
			target := wire.Connect{Endpoint: at(to)}
			if c.host != "" {
				target = wire.Connect{Endpoint: wire.Endpoint{Port: to.Port()}, Name: []byte(c.host)}
			}
			g := m.pipe()
			p, err := open(g, wire.ProtocolTCPConnection, wire.AppendConnect(nil, target))
			if err != nil {
				t.Fatal(err)
			}
			peer := accepted(t, l)
			local, err1 := wire.DecodeEndpoint(p[:wire.EndpointSize])
			remote, err2 := wire.DecodeEndpoint(p[wire.EndpointSize:])
			if err1 != nil || err2 != nil || remote.AddrPort() != to || local.AddrPort().String() != peer.RemoteAddr().String() {
				t.Errorf("Opened says %v to %v, the peer %v to %v", local, remote, peer.RemoteAddr(), to)
			}
			echo(t, g, peer)
		})
	}
}

// echo sends a megabyte from one end to the other and back, and closes both in
// good order.
func echo(t testing.TB, g *pipestest.GuestConn, peer network.Conn) {
	t.Helper()
	const size = 1 << 20
	there, back := pattern(1, size), pattern(2, size)
	var both sync.WaitGroup
	both.Go(func() {
		g.Write(there)
		g.CloseWrite()
	})
	both.Go(func() {
		peer.Write(back)
		peer.CloseWrite()
	})
	var read sync.WaitGroup
	read.Go(func() {
		wantAll(t, peer, there)
	})
	wantAll(t, g, back)
	read.Wait()
	both.Wait()
	g.Close()
	peer.Close()
}

// wantAll may run on any goroutine.
func wantAll(t testing.TB, r io.Reader, want []byte) {
	t.Helper()
	got, err := io.ReadAll(r)
	if err != nil {
		t.Errorf("after %d of %d bytes: %v", len(got), len(want), err)
	} else if string(got) != string(want) {
		t.Errorf("%d bytes arrived that differ from the %d sent", len(got), len(want))
	}
}

// closedTCPPort is a port of 127.0.0.1 without a listening socket. One is bound
// there that doesn't listen, so that no other program can.
func closedTCPPort(t testing.TB) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(at.(*unix.SockaddrInet4).Port))
}

func TestConnectFails(t *testing.T) {
	t.Parallel()
	closed := closedTCPPort(t)
	for _, c := range []struct {
		name string
		to   wire.Connect
		want unix.Errno
	}{
		{"refused", wire.Connect{Endpoint: at(closed)}, unix.ECONNREFUSED},
		{"refused by name", wire.Connect{Endpoint: wire.Endpoint{Port: closed.Port()}, Name: []byte("127.0.0.1")}, unix.ECONNREFUSED},
		{"no such name", wire.Connect{Endpoint: wire.Endpoint{Port: 1}, Name: []byte("not a host name")}, unix.ENOENT},
		{"no such interface", wire.Connect{Endpoint: wire.Endpoint{Addr: netip.MustParseAddr("fe80::1"), Port: 1, Scope: 1 << 30}}, unix.ENETUNREACH},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := start(t, setup{})
			g := m.pipe()
			if _, err := open(g, wire.ProtocolTCPConnection, wire.AppendConnect(nil, c.to)); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			wantEOF(t, g)
			if _, err := g.Write(make([]byte, 1<<20)); !errors.Is(err, unix.EPIPE) {
				t.Errorf("writing after a failed Open: %v", err)
			}
			g.Close()
			m.wantFree()
			if s := m.server.Stats(); s.ConnectsFailed != 1 {
				t.Errorf("%+v", s)
			}
		})
	}
}

func TestAccept(t *testing.T) {
	t.Parallel()
	for _, on := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(on, func(t *testing.T) {
			t.Parallel()
			var heard []netip.AddrPort
			m := start(t, setup{onListen: func(a netip.AddrPort) { heard = append(heard, a) }})
			l := m.listen(on, 0)
			if len(heard) != 1 || heard[0] != l.at || l.at.Port() == 0 {
				t.Errorf("OnListen heard %v, the guest %v", heard, l.at)
			}
			g := m.pipe()
			l.ask(3, g.ID())
			peer := dialed(t, l.at)
			request, a := l.answer()
			if request != 3 || a.Status != 0 || a.Pipe != uint64(g.ID()) ||
				a.Peer.AddrPort().String() != peer.LocalAddr().String() || a.Local.AddrPort() != l.at {
				t.Errorf("request %d: %+v", request, a)
			}
			echo(t, g, peer)
			l.Close()
			m.wantFree()
		})
	}
}

// Many accepts wait at once. Each connection gets its own bytes.
func TestAcceptMany(t *testing.T) {
	t.Parallel()
	const n = 100
	m := start(t, setup{window: 32 << 20})
	l := m.listen("127.0.0.1:0", 0)
	waiting := make(map[uint64]*pipestest.GuestConn)
	for i := range uint64(n) {
		c := m.pipe()
		waiting[i] = c
		l.ask(i, c.ID())
	}
	var peers, served sync.WaitGroup
	for i := range n {
		peers.Go(func() {
			c, err := net.DialTimeout("tcp", l.at.String(), patience)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			deadline(t, c)
			want := pattern(i, 10_000)
			c.Write(want)
			c.(*net.TCPConn).CloseWrite()
			wantAll(t, c, want)
		})
	}
	for range n {
		request, a := l.answer()
		c := waiting[request]
		if c == nil || a.Status != 0 || a.Pipe != uint64(c.ID()) {
			t.Fatalf("request %d: %+v", request, a)
		}
		delete(waiting, request)
		served.Go(func() {
			defer c.Close()
			if _, err := io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c}); err != nil {
				t.Error(err)
			}
			c.CloseWrite()
		})
	}
	peers.Wait()
	served.Wait()
	l.Close()
	m.wantFree()
	if s := m.server.Stats(); s.Accepted != n || s.ToGuest != n*10_000 || s.FromGuest != n*10_000 {
		t.Errorf("%+v", s)
	}
}

func TestListenErrors(t *testing.T) {
	t.Parallel()
	m := start(t, setup{})
	l := m.listen("127.0.0.1:0", 0)
	for on, want := range map[netip.AddrPort]unix.Errno{
		l.at:                                    unix.EADDRINUSE,
		netip.MustParseAddrPort("192.0.2.1:80"): unix.EADDRNOTAVAIL,
	} {
		c := m.pipe()
		payload := wire.AppendListen(nil, wire.Listen{Endpoint: at(on)})
		if _, err := open(c, wire.ProtocolTCPListener, payload); !errors.Is(err, want) {
			t.Errorf("listen on %v: %v, want %v", on, err, want)
		}
		wantEOF(t, c)
	}
}

func TestAcceptErrors(t *testing.T) {
	t.Parallel()
	m := start(t, setup{})
	l := m.listen("127.0.0.1:0", 0)
	other, _ := m.connected()
	waiting := m.pipe()
	l.ask(0, waiting.ID())
	for i, c := range []struct {
		id   pipes.ID
		want unix.Errno
	}{
		{other.ID(), unix.EBUSY},
		{waiting.ID(), unix.EBUSY},
		{l.ID(), unix.EBUSY},
		{0, unix.EBUSY}, // the control pipe
		{250, unix.ENOENT},
		{waiting.ID() + 1<<32, unix.ENOENT},
		{1 << 63, unix.ENOENT},
	} {
		l.ask(uint64(i+1), c.id)
		if request, a := l.answer(); request != uint64(i+1) || a.Status != uint32(c.want) {
			t.Errorf("pipe %v: request %d got %+v, want %v", c.id, request, a, c.want)
		}
	}
	// The accept that waits isn't disturbed.
	peer := dialed(t, l.at)
	if request, a := l.answer(); request != 0 || a.Status != 0 {
		t.Fatalf("request %d got %+v", request, a)
	}
	echo(t, waiting, peer)
}

// Closing a listener makes the pipes of its accepts unused again.
func TestListenerCloses(t *testing.T) {
	t.Parallel()
	m := start(t, setup{})
	l := m.listen("127.0.0.1:0", 0)
	c := m.pipe()
	l.ask(1, c.ID())
	l.CloseWrite()
	wantEOF(t, l)
	l.Close()
	if conn, err := net.DialTimeout("tcp", l.at.String(), patience); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("still listening: %v, %v", conn, err)
	}
	host, to := hostListener(t, "127.0.0.1:0")
	if _, err := open(c, wire.ProtocolTCPConnection, wire.AppendConnect(nil, wire.Connect{Endpoint: at(to)})); err != nil {
		t.Fatal(err)
	}
	echo(t, c, accepted(t, host))
	m.wantFree()
}

// A guest that closes the pipe withdraws its accept. The connection goes to the
// next accept.
func TestAcceptWithdrawn(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*pipestest.GuestConn){
		"close": func(c *pipestest.GuestConn) { c.Close() },
		"reset": func(c *pipestest.GuestConn) { c.Reset(unix.ECONNABORTED) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := start(t, setup{})
			l := m.listen("127.0.0.1:0", 0)
			first, second := m.pipe(), m.pipe()
			l.ask(1, first.ID())
			l.ask(2, second.ID())
			// The answer to a third accept tells that both wait.
			l.ask(3, second.ID())
			if request, _ := l.answer(); request != 3 {
				t.Fatalf("answer to request %d", request)
			}
			end(first)
			if request, a := l.answer(); request != 1 || a.Status != uint32(unix.ECANCELED) {
				t.Fatalf("request %d got %+v", request, a)
			}
			peer := dialed(t, l.at)
			if request, a := l.answer(); request != 2 || a.Status != 0 {
				t.Fatalf("request %d got %+v", request, a)
			}
			echo(t, second, peer)
			l.Close()
			m.wantFree()
		})
	}
}

// watchedListener reports the beginning and the end of each Accept.
type watchedListener struct {
	*net.TCPListener
	began chan struct{}
	ended chan error
}

func (l watchedListener) Accept() (net.Conn, error) {
	l.began <- struct{}{}
	c, err := l.TCPListener.Accept()
	l.ended <- err
	return c, err
}

type watchedNetwork struct {
	network.Host
	watch watchedListener
}

func (n watchedNetwork) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	ln, err := n.Host.Listen(ctx, network, address)
	if err != nil {
		return nil, err
	}
	n.watch.TCPListener = ln.(*net.TCPListener)
	return n.watch, nil
}

// When the guest has withdrawn all its accepts, no connection is taken from the
// kernel until there is another accept.
func TestAcceptAllWithdrawn(t *testing.T) {
	t.Parallel()
	watch := watchedListener{began: make(chan struct{}, 8), ended: make(chan error, 8)}
	m := start(t, setup{network: watchedNetwork{watch: watch}})
	l := m.listen("127.0.0.1:0", 0)
	for request := range uint64(3) {
		c := m.pipe()
		l.ask(request, c.ID())
		<-watch.began
		c.Close()
		if got, a := l.answer(); got != request || a.Status != uint32(unix.ECANCELED) {
			t.Fatalf("request %d got %+v", got, a)
		}
		select {
		case err := <-watch.ended:
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal(err)
			}
		case <-time.After(patience):
			t.Fatal("a connection is still waited for")
		}
	}
	peer := dialed(t, l.at)
	c := m.pipe()
	l.ask(9, c.ID())
	if request, a := l.answer(); request != 9 || a.Status != 0 {
		t.Fatalf("request %d got %+v", request, a)
	}
	echo(t, c, peer)
	l.Close()
	m.wantFree()
}

// A guest that writes small pieces to a peer that reads late doesn't wait
// before the ring is full, and loses nothing.
func TestSmallPieces(t *testing.T) {
	t.Parallel()
	m := start(t, setup{})
	g, p := m.connected()
	sent := pattern(11, 16<<20)
	wrote := make(chan int, 1)
	full := make(chan struct{})
	var fill sync.Once
	go func() {
		n := 0
		for ; n < len(sent); n += 700 {
			if g.WritableLen() < 700 {
				fill.Do(func() { close(full) })
			}
			if _, err := g.Write(sent[n:min(n+700, len(sent))]); err != nil {
				t.Error(err)
				break
			}
		}
		g.CloseWrite()
		wrote <- n
	}()
	<-full
	wantAll(t, p, sent)
	<-wrote
	g.Close()
	m.wantFree()
}

// An idle connection has one goroutine, which waits for the peer. Not parallel:
// it counts the process's.
func TestIdleGoroutines(t *testing.T) {
	const streams = 20
	m := start(t, setup{})
	m.pipe() // the server's own goroutines run by now
	before := runtime.NumGoroutine()
	for range streams {
		g, p := m.connected()
		g.Write([]byte("request"))
		wantBytes(t, p, []byte("request"))
		p.Write([]byte("answer"))
		wantBytes(t, g, []byte("answer"))
	}
	settled(t, "goroutines", before+streams, runtime.NumGoroutine)
}
