package relay_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/network/networktest"
	"github.com/fix-project/arcavm/pipes/pipestest"
	"github.com/fix-project/arcavm/relay"
)

// tight is a network whose sockets have room for little before their peer
// reads.
type tight struct{ network.Host }

func (n tight) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := n.Host.DialContext(ctx, network, address)
	if tcp, ok := c.(*net.TCPConn); ok {
		err = tcp.SetWriteBuffer(4096)
	}
	return c, err
}

// unixPair is a UNIX connection. The relay's end, near, has room for little
// before far is read.
func unixPair(t *testing.T) (near, far *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = c.(*net.UnixConn)
	}
	if err := ends[0].SetWriteBuffer(4096); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ends[1].Close() })
	return ends[0], ends[1]
}

// lingerCases are the kinds of relayed connections: the guest's end, the
// peer's, and the error of a peer that is given up.
var lingerCases = map[string]func(t *testing.T) (*machine, *pipestest.GuestConn, net.Conn, error){
	"TCP": func(t *testing.T) (*machine, *pipestest.GuestConn, net.Conn, error) {
		m := start(t, setup{network: tight{}})
		l, to := hostListener(t, "127.0.0.1:0")
		setReceiveBuffer(t, l)
		return m, m.connect(to), accepted(t, l), unix.ECONNRESET
	},
	"TLS": func(t *testing.T) (*machine, *pipestest.GuestConn, net.Conn, error) {
		a := networktest.NewAuthority(t)
		m := start(t, setup{network: tight{}, tls: relay.TLS{RootCAs: a.Pool}})
		g, p := tlsConnected(t, m, a, tls.VersionTLS13)
		if err := p.tcp.SetReadBuffer(4096); err != nil {
			t.Fatal(err)
		}
		return m, g, p, unix.ECONNRESET
	},
	"UNIX": func(t *testing.T) (*machine, *pipestest.GuestConn, net.Conn, error) {
		near, far := unixPair(t)
		m := start(t, setup{handlers: map[uint16]relay.Handler{
			0x8000: relay.HandlerFunc(func(_ context.Context, s *relay.Stream) error {
				err := s.Opened(0, nil)
				s.Relay(near)
				return err
			}),
		}})
		g := m.pipe()
		if _, err := open(g, 0x8000, nil); err != nil {
			t.Fatal(err)
		}
		return m, g, far, io.EOF
	},
}

func setReceiveBuffer(t *testing.T, l *net.TCPListener) {
	t.Helper()
	raw, err := l.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4096)
	}); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A peer that takes nothing keeps a stream that its guest has closed for a
// minute. One that takes a little keeps it as long as it does.
func TestLinger(t *testing.T) {
	t.Parallel()
	for name, connected := range lingerCases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, g, peer, want := connected(t)
			fillRing(t, g)
			g.Close()

			now := time.Now()
			look := func(after time.Duration, given uint64) {
				t.Helper()
				now = now.Add(after)
				m.server.LookAtLingering(now)
				if n := m.server.Stats().PeersStalled; n != given {
					t.Fatalf("%d streams given up, want %d", n, given)
				}
			}
			look(0, 0)
			look(relay.LingerTimeout-1, 0)
			before := m.server.Stats().FromGuest
			for m.server.Stats().FromGuest == before {
				if _, err := peer.Read(make([]byte, 1024)); err != nil {
					t.Fatal(err)
				}
			}
			look(1, 0)
			look(relay.LingerTimeout-1, 0)
			// The relay may have sent more since the peer's last read.
			for range 10 {
				now = now.Add(relay.LingerTimeout)
				m.server.LookAtLingering(now)
			}
			if n := m.server.Stats().PeersStalled; n != 1 {
				t.Fatalf("%d streams given up, want 1", n)
			}
			m.wantFree()
			if _, err := io.Copy(io.Discard, peer); want != io.EOF && !errors.Is(err, want) || want == io.EOF && err != nil {
				t.Errorf("the peer reads %v, want %v", err, want)
			}
		})
	}
}

// fillRing writes more than the sockets have room for before the peer reads.
func fillRing(t *testing.T, g *pipestest.GuestConn) {
	t.Helper()
	if _, err := g.Write(make([]byte, g.Descriptor().OutgoingSize)); err != nil {
		t.Fatal(err)
	}
}

// A stream that its guest has closed one way stays.
func TestLingerHalfClosed(t *testing.T) {
	t.Parallel()
	for name, close := range map[string]func(*pipestest.GuestConn) error{
		"writer": func(g *pipestest.GuestConn) error { return g.CloseWrite() },
		"reader": func(g *pipestest.GuestConn) error { return g.CloseRead() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, g, _, _ := lingerCases["TCP"](t)
			fillRing(t, g)
			if err := close(g); err != nil {
				t.Fatal(err)
			}
			for i := range 3 {
				m.server.LookAtLingering(time.Now().Add(time.Duration(i) * 2 * relay.LingerTimeout))
			}
			if n := m.server.Stats().PeersStalled; n != 0 {
				t.Errorf("%d streams given up", n)
			}
		})
	}
}
