package relay_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/relay"
	"github.com/fix-project/arcavm/wire"
)

// poorHost is a network whose listeners can't accept.
type poorHost struct{ network.Host }

type poorListener struct{ net.Listener }

func (h poorHost) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	ln, err := h.Host.Listen(ctx, network, address)
	return poorListener{ln}, err
}

func (poorListener) Accept() (net.Conn, error) {
	return nil, fmt.Errorf("accept4: %w", unix.EMFILE)
}

// A failure is an errno for the guest, a record that names the stream, and a
// counter.
func TestDiagnostics(t *testing.T) {
	t.Parallel()
	_, busyAt := hostListener(t, "127.0.0.1:0")
	for name, c := range map[string]struct {
		network network.Network
		do      func(t *testing.T, m *machine) (stream pipes.ID)
		record  string
		counter func(relay.Stats) uint64
	}{
		"a ring of an odd size": {
			do: func(t *testing.T, m *machine) pipes.ID {
				_, err := m.tryPipe(4097, 4096, 0)
				wantErrno(t, "pipe", err, unix.EINVAL)
				return m.control.ID()
			},
			record: "no new pipe", counter: func(s relay.Stats) uint64 { return s.PipesRefused },
		},
		"a protocol that nobody handles": {
			do: func(t *testing.T, m *machine) pipes.ID {
				c := m.pipe()
				_, err := open(c, 0x7FFF, nil)
				wantErrno(t, "open", err, unix.EPROTONOSUPPORT)
				return c.ID()
			},
			record: "guest asked for a protocol that nobody handles", counter: func(s relay.Stats) uint64 { return s.Refused },
		},
		"an accept on a pipe that doesn't exist": {
			do: func(t *testing.T, m *machine) pipes.ID {
				l := m.listen("127.0.0.1:0", 0)
				l.ask(1, 12345)
				_, answer := l.answer()
				wantErrno(t, "accept", status(answer.Status), unix.ENOENT)
				return l.ID()
			},
			record: "guest can't accept on this pipe", counter: func(s relay.Stats) uint64 { return s.AcceptsRefused },
		},
		"an accept on a pipe in use": {
			do: func(t *testing.T, m *machine) pipes.ID {
				l := m.listen("127.0.0.1:0", 0)
				l.ask(1, l.ID())
				_, answer := l.answer()
				wantErrno(t, "accept", status(answer.Status), unix.EBUSY)
				return l.ID()
			},
			record: "guest can't accept on this pipe", counter: func(s relay.Stats) uint64 { return s.AcceptsRefused },
		},
		"a host without descriptors": {
			network: poorHost{},
			do: func(t *testing.T, m *machine) pipes.ID {
				l := m.listen("127.0.0.1:0", 0)
				l.ask(1, m.pipe().ID())
				_, answer := l.answer()
				wantErrno(t, "accept", status(answer.Status), unix.EMFILE)
				return l.ID()
			},
			record: "accept failed", counter: func(s relay.Stats) uint64 { return s.AcceptsFailed },
		},
		"a port in use": {
			do: func(t *testing.T, m *machine) pipes.ID {
				c := m.pipe()
				_, err := open(c, wire.ProtocolTCPListener, wire.AppendListen(nil, wire.Listen{Endpoint: at(busyAt)}))
				wantErrno(t, "listen", err, unix.EADDRINUSE)
				return c.ID()
			},
			record: "listen failed", counter: func(s relay.Stats) uint64 { return s.BindsFailed },
		},
		"a UDP socket at another's address": {
			do: func(t *testing.T, m *machine) pipes.ID {
				c := m.pipe()
				elsewhere := wire.UDPSocket{Local: at(netip.MustParseAddrPort("192.0.2.1:1"))}
				_, err := open(c, wire.ProtocolUDP, wire.AppendUDPSocket(nil, elsewhere))
				wantErrno(t, "bind", err, unix.EADDRNOTAVAIL)
				return c.ID()
			},
			record: "UDP socket failed", counter: func(s relay.Stats) uint64 { return s.BindsFailed },
		},
		"a malformed frame": {
			do: func(t *testing.T, m *machine) pipes.ID {
				c := m.pipe()
				c.Write(wire.AppendSyncRequest(nil, 1, wire.SyncRequest{}))
				wantReadError(t, c, unix.EPROTO)
				return c.ID()
			},
			record: "guest broke the stream protocol", counter: func(s relay.Stats) uint64 { return s.ProtocolErrors },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := start(t, setup{network: c.network})
			stream := c.do(t, m)
			m.wait("there is no record", func() bool { return len(m.records(c.record)) > 0 })
			got := m.records(c.record)[0]
			if got["level"] != "WARN" || got["stream"] != stream.String() || !strings.Contains(got["stream"], ".") {
				t.Errorf("record %v; want a warning about stream %v", got, stream)
			}
			if n := c.counter(m.server.Stats()); n != 1 {
				t.Errorf("counted %d times", n)
			}
		})
	}
}

// Refused connects and datagrams are everyday failures: counted, the first of
// each kind logged, the others at debug level.
func TestEverydayFailures(t *testing.T) {
	t.Parallel()
	unknown := lookups{addrs: func(_ context.Context, _, host string) ([]netip.Addr, error) { return nil, notFound(host) }}
	m := start(t, setup{network: unknown, sockets: sockets(t, socketFolder(t), false)})
	for range 3 {
		_, err := m.tryConnect(closedTCPPort(t))
		wantErrno(t, "connect", err, unix.ECONNREFUSED)
		_, err = m.tryUnixConnect("none")
		wantErrno(t, "connect", err, unix.ENOENT)
	}
	u := m.udpBound(4096, "127.0.0.1:0")
	r := m.resolver(wire.ProtocolResolver)
	for i := range uint64(2) {
		u.send(i, netip.AddrPort{}, nil)
		u.wantError(i, unix.EDESTADDRREQ, netip.AddrPort{})
		r.ask(i, 0, "a\xff")
		r.want(i, "", unix.ENOENT)
	}
	if s := m.server.Stats(); s.ConnectsFailed != 6 || s.DatagramsFailed != 2 || s.LookupsFailed != 2 || s.BindsFailed != 0 {
		t.Errorf("%+v", s)
	}
	for protocol, record := range map[string]string{"tcp": "connect failed", "unix": "connect failed", "udp": "datagram not sent", "resolver": "lookup failed"} {
		var levels []string
		for _, r := range m.records(record) {
			if r["protocol"] != protocol {
				continue
			}
			levels = append(levels, r["level"])
			if (r["more"] != "") != (r["level"] == "INFO") {
				t.Errorf("%s of %s: %v", record, protocol, r)
			}
		}
		if want := []string{"INFO", "DEBUG", "DEBUG"}; len(levels) < 2 || !slices.Equal(levels, want[:len(levels)]) {
			t.Errorf("%s of %s: levels %v", record, protocol, levels)
		}
	}
}

// A handler that doesn't answer is logged. One that answers or fails isn't.
func TestUnanswered(t *testing.T) {
	t.Parallel()
	answering := func(_ context.Context, s *relay.Stream) error { return s.Opened(0, nil) }
	for name, c := range map[string]struct {
		handler relay.HandlerFunc
		want    int
	}{
		"forgets": {func(context.Context, *relay.Stream) error { return nil }, 1},
		"answers": {answering, 0},
		"fails":   {func(context.Context, *relay.Stream) error { return unix.EIO }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := start(t, setup{handlers: map[uint16]relay.Handler{wire.ProtocolPrivate: c.handler}})
			_, _ = open(m.pipe(), wire.ProtocolPrivate, nil)
			m.wait("the stream never ended", func() bool { return len(m.records("stream ended")) == 1 })
			got := m.records("handler returned without an answer to the Open")
			if len(got) != c.want || c.want == 1 && (got[0]["level"] != "WARN" || got[0]["protocol"] != "32768") {
				t.Errorf("%v", got)
			}
		})
	}
}

// A guest that looks for files or sockets where nothing is shared gets ENOENT,
// and its user one warning of a bounded length.
func TestNothingShared(t *testing.T) {
	t.Parallel()
	m := start(t, setup{})
	path := strings.Repeat("p", 1000)
	for range 2 {
		files := m.files(4096)
		for range 2 {
			_, _, err := readFile(files, path, 0, 1)
			wantErrno(t, "read", err, unix.ENOENT)
		}
		_, err := m.tryUnixConnect(path)
		wantErrno(t, "connect", err, unix.ENOENT)
		_, err = m.tryUnixListen(path)
		wantErrno(t, "listen", err, unix.ENOENT)
	}
	for msg, want := range map[string]int{
		"no folder is shared with the guest": 1,
		// Connecting and listening have a handler each.
		"no folder with UNIX sockets is shared with the guest": 2,
	} {
		got := m.records(msg)
		if len(got) != want || got[0]["level"] != "WARN" || got[0]["path"] != path[:100] {
			t.Errorf("%s: %d records, %v; want %d", msg, len(got), got, want)
		}
	}
	if s := m.server.Stats(); s.FileErrors != 4 || s.ConnectsFailed != 2 || s.BindsFailed != 2 {
		t.Errorf("%+v", s)
	}
}

// A flood of one kind of warnings is cut, and hides no other kind.
func TestFloodHidesNothing(t *testing.T) {
	t.Parallel()
	m := start(t, setup{network: network.NewPolicy(network.Host{}, nil, nil)})
	const flood = 50
	for range flood {
		c := m.pipe()
		_, err := open(c, wire.ProtocolTCPConnection, connectTo(netip.MustParseAddrPort("127.0.0.1:1")))
		wantErrno(t, "connect", err, unix.EACCES)
		c.Close()
	}
	c := m.pipe()
	c.Write(wire.AppendSyncRequest(nil, 1, wire.SyncRequest{}))
	wantReadError(t, c, unix.EPROTO)
	m.wait("the malformed frame is hidden", func() bool { return len(m.records("guest broke the stream protocol")) == 1 })
	if n := len(m.records("connect failed")); n < 10 || n == flood {
		t.Errorf("%d of %d refusals were logged", n, flood)
	}
	if s := m.server.Stats(); s.Denied != flood {
		t.Errorf("%+v", s)
	}
}

// failingConn is a connection whose errors are EPROTO.
type failingConn struct{ *net.UnixConn }

func (failingConn) Read([]byte) (int, error) { return 0, fmt.Errorf("read: %w", unix.EPROTO) }

// An EPROTO that doesn't come from the guest isn't the guest's fault.
func TestForeignErrno(t *testing.T) {
	t.Parallel()
	inside, _ := socketPair(t)
	m := start(t, setup{
		network: oneConn{conn: failingConn{inside}, address: make(chan string, 1)},
		handlers: map[uint16]relay.Handler{
			0x8000: relay.HandlerFunc(func(_ context.Context, s *relay.Stream) error {
				return errors.Join(s.Opened(0, nil), fmt.Errorf("ioctl: %w", unix.EPROTO))
			}),
			0x8001: relay.HandlerFunc(func(_ context.Context, s *relay.Stream) error {
				return errors.Join(s.Opened(0, nil), relay.ProtocolError(errors.New("nonsense")))
			}),
		},
	})
	for want, openIt := range []func(io.ReadWriter) error{
		func(c io.ReadWriter) error {
			_, err := c.Write(wire.AppendOpen(nil, 5, wire.Open{Protocol: wire.ProtocolTCPConnection, Payload: connectTo(netip.MustParseAddrPort("192.0.2.1:1"))}))
			return err
		},
		func(c io.ReadWriter) error {
			_, err := c.Write(wire.AppendOpen(nil, 5, wire.Open{Protocol: 0x8000}))
			return err
		},
		func(c io.ReadWriter) error {
			_, err := c.Write(wire.AppendOpen(nil, 5, wire.Open{Protocol: 0x8001}))
			return err
		},
	} {
		c := m.pipe()
		if err := openIt(c); err != nil {
			t.Fatal(err)
		}
		wantReadError(t, c, unix.EPROTO)
		c.Reset(unix.ECANCELED)
		m.wantFree()
		// Only the last of the three is the guest's fault.
		if s := m.server.Stats(); s.ProtocolErrors != uint64(want/2) {
			t.Errorf("case %d: %d counted as the guest's", want, s.ProtocolErrors)
		}
	}
}

// unlucky is a reader and writer that panics.
type unlucky struct{}

func (unlucky) Read([]byte) (int, error)  { panic("bad read") }
func (unlucky) Write([]byte) (int, error) { panic("bad write") }

// A handler that panics ends its stream, with an errno, and no other.
func TestHandlerPanics(t *testing.T) {
	t.Parallel()
	m := start(t, setup{handlers: map[uint16]relay.Handler{
		0x8000: relay.HandlerFunc(func(_ context.Context, s *relay.Stream) error {
			if err := s.Opened(0, nil); err != nil {
				return err
			}
			panic("out of luck")
		}),
		0x8001: relay.HandlerFunc(func(_ context.Context, s *relay.Stream) error {
			_ = s.Opened(0, nil)
			_, err := s.Pipe.ReadFrom(unlucky{}) // panics with a part of the ring in its hands
			return err
		}),
		0x8002: relay.HandlerFunc(func(_ context.Context, s *relay.Stream) error {
			_ = s.Opened(0, nil)
			_, err := s.Pipe.WriteTo(unlucky{})
			return err
		}),
	}})
	g, peer := m.connected()
	for _, protocol := range []uint16{0x8000, 0x8001, 0x8002} {
		c := m.pipe()
		if _, err := c.Write(append(wire.AppendOpen(nil, 5, wire.Open{Protocol: protocol}), "more"...)); err != nil {
			t.Fatal(err)
		}
		wantReadError(t, c, unix.EIO)
		m.wait("no record", func() bool { return len(m.records("handler panicked")) == int(protocol-0x7FFF) })
		got := m.records("handler panicked")[protocol-0x8000]
		if got["level"] != "ERROR" || got["stream"] != c.ID().String() || !strings.Contains(got["stack"], "TestHandlerPanics") {
			t.Errorf("record %v", got)
		}
		c.Reset(unix.ECANCELED)
	}
	if got := m.records("handler panicked")[0]["panic"]; got != "out of luck" {
		t.Errorf("panic %q", got)
	}
	echo(t, g, peer)
	if s := m.server.Stats(); s.Panics != 3 {
		t.Errorf("%d panics counted", s.Panics)
	}
	g.Close()
	peer.Close()
	m.wantFree()
}

// An error about a datagram that was sent doesn't end the socket, nor on a
// network that isn't the kernel's.
func TestUDPRefusedOnAnotherNetwork(t *testing.T) {
	t.Parallel()
	m := start(t, setup{network: memoryNetwork{}})
	to := closedPort(t, "127.0.0.1:0")
	u := m.udpConnected(64<<10, to)
	for range 3 {
		u.send(1, netip.AddrPort{}, []byte("anybody?"))
		u.wantError(0, unix.ECONNREFUSED, to)
	}
	u.Close()
	m.wantFree()
}
