package vmm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/vmm"
	"github.com/fix-project/arcavm/vmm/vmmtest"
)

// tcpGuest boots the program tcp and returns the other end of its connection.
// The guest connects, or accepts.
func tcpGuest(t *testing.T, accepts bool, addr string, network network.Network, steps ...string) (*vmmtest.Guest, *net.TCPConn) {
	t.Helper()
	cfg := vmm.Config{Image: vmmtest.Image(t, "tcp"), Network: network}
	if accepts {
		cfg.Args = append([]string{"accept", addr}, steps...)
		g := vmmtest.Boot(t, cfg)
		return g, dial(t, g.Addr().String())
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg.Args = append([]string{"connect", l.Addr().String()}, steps...)
	g := vmmtest.Boot(t, cfg)
	return g, acceptOne(t, l)
}

func acceptOne(t *testing.T, l net.Listener) *net.TCPConn {
	t.Helper()
	if err := l.(*net.TCPListener).SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

// eachWay runs a test for a guest that connects and for one that accepts.
func eachWay(t *testing.T, test func(t *testing.T, accepts bool)) {
	t.Helper()
	for name, accepts := range map[string]bool{"guest connects": false, "guest accepts": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, accepts)
		})
	}
}

// A guest is told both ends of its connections.
func TestTCPEnds(t *testing.T) {
	t.Parallel()
	for family, addr := range loopbacks(t) {
		t.Run(family, func(t *testing.T) {
			t.Parallel()
			eachWay(t, func(t *testing.T, accepts bool) {
				g, c := tcpGuest(t, accepts, addr, nil, "read")
				g.WaitLog(fmt.Sprintf("local %v peer %v", c.RemoteAddr(), c.LocalAddr()))
				c.Close()
				if code, err := g.Wait(); code != 0 || err != nil {
					t.Errorf("the guest ended with %d, %v", code, err)
				}
			})
		})
	}
}

// filled is what the step fill=n sends.
func filled(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i)
	}
	return b
}

// Connections end in every order, and by resets. What was sent before an end in
// good order arrives.
func TestTCPEndings(t *testing.T) {
	t.Parallel()
	const much = 300_000
	wantRead := func(t *testing.T, c *net.TCPConn, want []byte) {
		t.Helper()
		if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, want) {
			t.Errorf("the guest sent %d bytes, %v; want %d", len(got), err, len(want))
		}
	}
	send := func(t *testing.T, c *net.TCPConn, b []byte) {
		t.Helper()
		if _, err := c.Write(b); err != nil {
			t.Error(err)
		}
	}
	for _, c := range []struct {
		name    string
		steps   string
		peer    func(t *testing.T, c *net.TCPConn)
		console string
		log     string // what it must say; an errno that it doesn't want is an error
	}{
		{
			name: "guest first", steps: "send=hello close-write read", console: "bye",
			peer: func(t *testing.T, c *net.TCPConn) {
				wantRead(t, c, []byte("hello"))
				send(t, c, []byte("bye"))
				c.Close()
			},
		},
		{
			name: "peer first", steps: "read send=bye", console: "hello",
			peer: func(t *testing.T, c *net.TCPConn) {
				send(t, c, []byte("hello"))
				c.CloseWrite()
				wantRead(t, c, []byte("bye"))
			},
		},
		{
			name: "both at once", steps: "send=hello close-write read", console: "bye",
			peer: func(t *testing.T, c *net.TCPConn) {
				send(t, c, []byte("bye"))
				c.CloseWrite()
				wantRead(t, c, []byte("hello"))
			},
		},
		{
			name: "guest's reader first", steps: "close-read send=hello",
			peer: func(t *testing.T, c *net.TCPConn) { wantRead(t, c, []byte("hello")) },
		},
		{
			name: "guest resets", steps: "take=1 reset", console: "x",
			peer: func(t *testing.T, c *net.TCPConn) {
				send(t, c, []byte("x"))
				if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
					t.Errorf("the peer's read ends with %v, want ECONNRESET", err)
				}
			},
		},
		{
			name: "peer resets a guest that reads", steps: "send=x read", log: fmt.Sprintf("read: error %d", unix.ECONNRESET),
			peer: func(t *testing.T, c *net.TCPConn) {
				io.ReadFull(c, make([]byte, 1))
				c.SetLinger(0)
				c.Close()
			},
		},
		{
			name: "peer resets a guest that writes", steps: "flood", log: fmt.Sprintf("write: error %d", unix.ECONNRESET),
			peer: func(t *testing.T, c *net.TCPConn) {
				io.ReadFull(c, make([]byte, 100_000))
				c.SetLinger(0)
				c.Close()
			},
		},
		{
			name: "guest's last data", steps: fmt.Sprint("fill=", much),
			peer: func(t *testing.T, c *net.TCPConn) { wantRead(t, c, filled(much)) },
		},
		{
			name: "peer's last data", steps: "count", log: fmt.Sprintf("read %d bytes", much),
			peer: func(t *testing.T, c *net.TCPConn) {
				send(t, c, make([]byte, much))
				c.Close()
			},
		},
		{
			name: "last data of both", steps: fmt.Sprintf("fill=%d close-write count", much), log: fmt.Sprintf("read %d bytes", much),
			peer: func(t *testing.T, c *net.TCPConn) {
				var sending sync.WaitGroup
				sending.Go(func() {
					send(t, c, make([]byte, much))
					c.CloseWrite()
				})
				wantRead(t, c, filled(much))
				sending.Wait()
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			eachWay(t, func(t *testing.T, accepts bool) {
				g, conn := tcpGuest(t, accepts, "127.0.0.1:0", nil, strings.Fields(c.steps)...)
				c.peer(t, conn)
				if code, err := g.Wait(); code != 0 || err != nil || g.Console() != c.console {
					t.Errorf("the guest ended with %d, %v, and printed %q; want 0 and %q", code, err, g.Console(), c.console)
				}
				if !strings.Contains(g.Log(), c.log) || !strings.Contains(c.log, "error") && strings.Contains(g.Log(), ": error ") {
					t.Errorf("the log should say %q:\n%s", c.log, g.Log())
				}
			})
		})
	}
}

// watched is the host's network, whose sockets the test sees, too.
type watched struct {
	network.Host
	sockets chan syscall.Conn
}

func (w watched) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := w.Host.DialContext(ctx, network, address)
	if err == nil {
		w.sockets <- c.(*net.TCPConn)
	}
	return c, err
}

func (w watched) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	l, err := w.Host.Listen(ctx, network, address)
	if err != nil {
		return nil, err
	}
	w.sockets <- l.(*net.TCPListener)
	return watchedListener{l.(*net.TCPListener), w.sockets}, nil
}

type watchedListener struct {
	*net.TCPListener
	sockets chan syscall.Conn
}

func (l watchedListener) Accept() (net.Conn, error) {
	c, err := l.TCPListener.Accept()
	if err == nil {
		l.sockets <- c.(*net.TCPConn)
	}
	return c, err
}

// withSocket calls f with the descriptor.
func withSocket(t *testing.T, c syscall.Conn, f func(fd int) error) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var ferr error
	if err := errors.Join(raw.Control(func(fd uintptr) { ferr = f(int(fd)) }), ferr); err != nil {
		t.Error(err)
	}
}

func wantOption(t *testing.T, c syscall.Conn, level, option, want int) {
	t.Helper()
	withSocket(t, c, func(fd int) error {
		if got, err := unix.GetsockoptInt(fd, level, option); err != nil || got != want {
			return fmt.Errorf("option %d of level %d is %d, %w; want %d", option, level, got, err, want)
		}
		return nil
	})
}

// What a guest chooses of its sockets the host's kernel has.
func TestTCPSocketOptions(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, steps            string
		noDelay, keepAlive, on int
	}{
		{"defaults", "read", 1, 15, 1},
		{"chosen", "delay keep-alive=77 read", 0, 77, 1},
		{"no keep-alive", "keep-alive=65535 read", 1, 15, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			eachWay(t, func(t *testing.T, accepts bool) {
				network := watched{sockets: make(chan syscall.Conn, 2)}
				steps := append([]string{"backlog=7"}, strings.Fields(c.steps)...)
				g, conn := tcpGuest(t, accepts, "127.0.0.1:0", network, steps...)
				g.WaitLog("local ")
				if accepts {
					withSocket(t, <-network.sockets, func(fd int) error {
						// A listening socket's info has its backlog in this
						// field.
						if info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO); err != nil || info.Sacked != 7 {
							return fmt.Errorf("the backlog is %d, %w; want 7", info.Sacked, err)
						}
						return nil
					})
				}
				socket := <-network.sockets
				wantOption(t, socket, unix.IPPROTO_TCP, unix.TCP_NODELAY, c.noDelay)
				wantOption(t, socket, unix.SOL_SOCKET, unix.SO_KEEPALIVE, c.on)
				wantOption(t, socket, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, c.keepAlive)
				wantOption(t, socket, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, c.keepAlive)
				conn.Close()
				if code, err := g.Wait(); code != 0 || err != nil {
					t.Errorf("the guest ended with %d, %v", code, err)
				}
			})
		})
	}
}

// greeted reads what the program tcp says to each connection until the program
// ends it, and then ends the connection, too.
func greeted(t *testing.T, addr string) {
	t.Helper()
	c := dial(t, addr)
	if got, err := io.ReadAll(c); err != nil || string(got) != "hello\n" {
		t.Errorf("the guest said %q, %v", got, err)
	}
	c.Close()
}

// An accept that is taken back says so, and the listener goes on.
func TestAcceptTakenBack(t *testing.T) {
	t.Parallel()
	g := boot(t, "tcp", "cancel", "127.0.0.1:0")
	addr := g.Addr().String()
	g.WaitLog(fmt.Sprintf("accept: error %d", unix.ECANCELED))
	greeted(t, addr)
	if code, err := g.Wait(); code != 0 || err != nil {
		t.Errorf("the guest ended with %d, %v", code, err)
	}
}

// A listener that is closed tells the peers that wait at it. Its port can be
// listened on again at once, although its last connection lingers there.
func TestListenAgain(t *testing.T) {
	t.Parallel()
	g := boot(t, "tcp", "again", "127.0.0.1:0")
	first := g.Addr()
	greeted(t, first.String())
	second := g.Addr()
	if first != second {
		t.Errorf("the guest listens on %v first and on %v then", first, second)
	}
	greeted(t, second.String())
	if code, err := g.Wait(); code != 0 || err != nil {
		t.Errorf("the guest ended with %d, %v", code, err)
	}
	if n := strings.Count(g.Log(), fmt.Sprintf("accept: error %d", unix.ECONNRESET)); n != 6 {
		t.Errorf("%d accepts were told that the listener is gone, want 6:\n%s", n, g.Log())
	}
}
