package relay_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/pipes/pipestest"
	"github.com/fix-project/arcavm/relay"
	"github.com/fix-project/arcavm/wire"
)

func TestNewStreamErrors(t *testing.T) {
	t.Parallel()
	m := start(t, setup{streams: 4, window: 4 << 20})
	for _, c := range []struct {
		outgoing, incoming, cpu uint32
		want                    error
	}{
		{4097, 4096, 0, unix.EINVAL},
		{2048, 4096, 0, unix.EINVAL},
		{0, 0, 0, unix.EINVAL},
		{4096, 128 << 20, 0, unix.EINVAL},
		{4096, 4096, 1, unix.EINVAL},
		{4096, 4096, 0xffffffff, unix.EINVAL},
		{64 << 20, 64 << 20, 0, unix.ENOMEM},
		{4096, 4096, 0, nil},
		{4096, 4096, 0, nil},
		{4096, 4096, 0, nil},
		{4096, 4096, 0, unix.EMFILE},
	} {
		if _, err := m.tryPipe(c.outgoing, c.incoming, c.cpu); !errors.Is(err, c.want) {
			t.Errorf("%+v: got %v", c, err)
		}
	}
}

func TestUnknownProtocol(t *testing.T) {
	t.Parallel()
	m := start(t, setup{})
	c := m.pipe()
	if _, err := open(c, 0x7fff, []byte("x")); !errors.Is(err, unix.EPROTONOSUPPORT) {
		t.Errorf("got %v", err)
	}
	wantEOF(t, c)
	c.Close()
	m.wantFree()
	if s := m.server.Stats(); s.Refused != 1 || len(s.Opened) != 0 {
		t.Errorf("%d refused, opened %v: a guest makes the counters grow", s.Refused, s.Opened)
	}
}

func TestPrivateProtocol(t *testing.T) {
	t.Parallel()
	ended := make(chan error, 1)
	m := start(t, setup{handlers: map[uint16]relay.Handler{
		wire.ProtocolPrivate: relay.HandlerFunc(func(ctx context.Context, s *relay.Stream) error {
			if err := s.Opened(0, s.Payload); err != nil {
				return err
			}
			<-ctx.Done()
			ended <- ctx.Err()
			return nil
		}),
	}})
	c := m.pipe()
	if p, err := open(c, wire.ProtocolPrivate, []byte("hello")); err != nil || string(p) != "hello" {
		t.Errorf("%q, %v", p, err)
	}
	c.Reset(unix.ECANCELED)
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the handler's context ended with %v", err)
	}
	m.wantFree()
	if n := m.server.Stats().Opened[wire.ProtocolPrivate]; n != 1 {
		t.Errorf("%d streams", n)
	}
}

// A handler of an embedding program relays to a connection of that program:
// each end by itself, and a reset.
func TestPrivateRelay(t *testing.T) {
	t.Parallel()
	inside := make(chan network.Conn, 1)
	m := start(t, setup{handlers: map[uint16]relay.Handler{
		wire.ProtocolPrivate: relay.HandlerFunc(func(_ context.Context, s *relay.Stream) error {
			conn := <-inside
			if err := s.Opened(0, []byte("ready")); err != nil {
				return err
			}
			s.Logger().Info("relaying")
			s.Relay(conn)
			return errors.New("nobody cares")
		}),
	}})
	connect := func() (*pipestest.GuestConn, *net.UnixConn) {
		a, b := socketPair(t)
		inside <- a
		c := m.pipe()
		if p, err := open(c, wire.ProtocolPrivate, nil); err != nil || string(p) != "ready" {
			t.Fatalf("%q, %v", p, err)
		}
		return c, b
	}
	c, outside := connect()
	c.Write([]byte("question"))
	c.CloseWrite()
	wantAll(t, outside, []byte("question"))
	outside.Write([]byte("the answer"))
	outside.Close()
	wantAll(t, c, []byte("the answer"))
	c.Close()
	m.wantFree()
	if s := m.server.Stats(); s.FromGuest != 8 || s.ToGuest != 10 || m.log.count("relaying") != 1 {
		t.Errorf("%+v", s)
	}
	c, outside = connect()
	c.Reset(unix.ECANCELED)
	wantEOF(t, outside)
	m.wantFree()
}

// Bytes that a handler has moved by itself are counted when it reports them.
func TestCount(t *testing.T) {
	t.Parallel()
	m := start(t, setup{handlers: map[uint16]relay.Handler{
		wire.ProtocolPrivate: relay.HandlerFunc(func(_ context.Context, s *relay.Stream) error {
			s.Count(3, 4)
			return s.Opened(0, nil)
		}),
	}})
	c := m.pipe()
	if _, err := open(c, wire.ProtocolPrivate, nil); err != nil {
		t.Fatal(err)
	}
	c.Close()
	m.wantFree()
	if s := m.server.Stats(); s.ToGuest != 3 || s.FromGuest != 4 {
		t.Errorf("%+v", s)
	}
}

// A pipe that is closed before it is used is freed.
func TestUnusedPipe(t *testing.T) {
	t.Parallel()
	m := start(t, setup{})
	m.pipe().Close()
	m.wantFree()
	m.pipe().Reset(unix.ECANCELED)
	m.wantFree()
	if s := m.server.Stats(); s.ProtocolErrors != 0 || s.Streams != 0 {
		t.Errorf("%+v", s)
	}
}

// A breach of the protocol costs a guest the pipe, and nothing else.
func TestProtocolErrors(t *testing.T) {
	t.Parallel()
	raw := func(c *pipestest.GuestConn, b []byte) { c.Write(b) }
	send := func(b []byte) func(*machine, *pipestest.GuestConn) {
		return func(_ *machine, c *pipestest.GuestConn) { raw(c, b) }
	}
	header := func(h wire.Header) []byte { return wire.AppendHeader(nil, h) }
	openThen := func(protocol uint16, payload, then []byte) func(*machine, *pipestest.GuestConn) {
		return func(m *machine, c *pipestest.GuestConn) {
			if _, err := open(c, protocol, payload); err != nil {
				m.t.Error(err)
			}
			raw(c, then)
		}
	}
	anywhere := wire.AppendListen(nil, wire.Listen{Endpoint: at(netip.MustParseAddrPort("127.0.0.1:0"))})
	connectRequest := connectTo(netip.MustParseAddrPort("127.0.0.1:1"))
	newStream := wire.AppendNewStreamRequest(nil, 1, wire.NewStreamRequest{OutgoingSize: 4096, IncomingSize: 4096})
	for name, offend := range map[string]func(*machine, *pipestest.GuestConn){
		"unknown kind":        send(header(wire.Header{Kind: 0x7777})),
		"another pipe's kind": send(newStream),
		"the monitor's kind":  send(wire.AppendOpened(nil, 1, wire.Opened{})),
		"absurd length":       send(header(wire.Header{Kind: wire.KindOpen, Length: 0xffffffff})),
		"undefined flag":      send(header(wire.Header{Kind: wire.KindOpen, Length: 8, Flags: 2})),
		"reserved field":      send(append(header(wire.Header{Kind: wire.KindOpen, Length: 8}), 0, 0, 1, 0, 0, 0, 0, 0)),
		"closed in a header": func(_ *machine, c *pipestest.GuestConn) {
			raw(c, newStream[:5])
			c.CloseWrite()
		},
		"closed after a header": func(_ *machine, c *pipestest.GuestConn) {
			raw(c, header(wire.Header{Kind: wire.KindOpen, Length: 8}))
			c.CloseWrite()
		},
		"listener without endpoint": send(wire.AppendOpen(nil, 1, wire.Open{Protocol: wire.ProtocolTCPListener})),
		"connection to nowhere":     send(wire.AppendOpen(nil, 1, wire.Open{Protocol: wire.ProtocolTCPConnection})),
		"connection with address and name": send(wire.AppendOpen(nil, 1, wire.Open{
			Protocol: wire.ProtocolTCPConnection, Payload: append(connectRequest, "name"...),
		})),
		"second Open": openThen(wire.ProtocolFileSystem, nil, wire.AppendOpen(nil, 1, wire.Open{})),
		"undefined flag of Open file": openThen(wire.ProtocolFileSystem, nil,
			wire.AppendOpenFileRequest(nil, 1, wire.OpenFileRequest{Flags: 1 << 6, Path: []byte("a")})),
		"answer about a file": openThen(wire.ProtocolFileSystem, nil, wire.AppendFileDone(nil, 1, wire.FileDone{})),
		"closed in a Write": func(m *machine, c *pipestest.GuestConn) {
			if _, err := open(c, wire.ProtocolFileSystem, nil); err != nil {
				m.t.Error(err)
			}
			b := wire.AppendWriteRequest(nil, 1, wire.WriteRequest{Handle: 1, Data: make([]byte, 100)})
			raw(c, b[:len(b)-1])
			c.CloseWrite()
		},
		"listener asked for a file": openThen(wire.ProtocolTCPListener, anywhere,
			wire.AppendReadFileRequest(nil, 1, wire.ReadFileRequest{Path: []byte("a")})),
		"broken ring": func(m *machine, c *pipestest.GuestConn) {
			if err := c.Poke(pipestest.Outgoing, 1<<40, 0); err != nil {
				m.t.Error(err)
			}
		},
		"state that doesn't exist": func(m *machine, c *pipestest.GuestConn) {
			if err := c.Poke(pipestest.Outgoing, 0, 7); err != nil {
				m.t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := start(t, setup{})
			other, peer := m.connected()
			c := m.pipe()
			offend(m, c)
			wantReadError(t, c, unix.EPROTO)
			m.wait("not counted", func() bool { return m.server.Stats().ProtocolErrors == 1 })
			echo(t, other, peer)
			echoNew(t, m)
			c.Close()
			if name != "broken ring" && name != "state that doesn't exist" {
				m.wantFree()
			}
		})
	}
}

func echoNew(t *testing.T, m *machine) {
	t.Helper()
	g, p := m.connected()
	echo(t, g, p)
}

// The guest breaks a cursor of a relayed connection. The peer sees a reset.
func TestBrokenRingOfConnection(t *testing.T) {
	t.Parallel()
	for name, ring := range map[string]pipestest.Ring{"outgoing": pipestest.Outgoing, "incoming": pipestest.Incoming} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := start(t, setup{})
			g, p := m.connected()
			if err := g.Poke(ring, 1<<40, 0); err != nil {
				t.Fatal(err)
			}
			wantReadError(t, g, unix.EPROTO)
			wantReadError(t, p, unix.ECONNRESET)
			m.wait("not counted", func() bool { return m.server.Stats().ProtocolErrors == 1 })
		})
	}
}

func TestProtocolErrorOnControlPipe(t *testing.T) {
	t.Parallel()
	m := start(t, setup{})
	g, p := m.connected()
	l := m.listen("127.0.0.1:0", 0)
	next := m.pipe()
	if _, err := m.control.Write(wire.AppendOpen(nil, 1, wire.Open{})); err != nil {
		t.Fatal(err)
	}
	wantReadError(t, m.control, unix.EPROTO)
	echo(t, g, p)
	l.ask(1, next.ID())
	peer := dialed(t, l.at)
	if _, a := l.answer(); a.Status != 0 {
		t.Errorf("%+v", a)
	}
	echo(t, next, peer)
}

// A guest that breaks the protocol all the time doesn't fill the log.
func TestLogFlood(t *testing.T) {
	t.Parallel()
	m := start(t, setup{})
	const n = 200
	for range n {
		c := m.pipe()
		c.Write(wire.AppendHeader(nil, wire.Header{Kind: 0x7777}))
		wantReadError(t, c, unix.EPROTO)
		c.Close()
	}
	m.wait("not counted", func() bool { return m.server.Stats().ProtocolErrors == n })
	m.stop() // returns after the last stream's warning
	if warnings := m.log.count("guest broke the stream protocol"); warnings < 10 || warnings > n/2 {
		t.Errorf("%d warnings about %d errors", warnings, n)
	}
}

// The first frame of a pipe and an accept that names it race. One of them gets
// the pipe, whole.
func TestClaimRace(t *testing.T) {
	t.Parallel()
	m := start(t, setup{})
	l := m.listen("127.0.0.1:0", 0)
	_, to := hostListener(t, "127.0.0.1:0")
	frame := wire.AppendOpen(nil, 5, wire.Open{Protocol: wire.ProtocolTCPConnection, Payload: connectTo(to)})
	for range 200 {
		c := m.pipe()
		var both sync.WaitGroup
		both.Go(func() { c.Write(frame) })
		both.Go(func() { l.ask(1, c.ID()) })
		both.Wait()
		// The second accept tells which of the two it was: by then the first
		// one has been answered, or waits.
		l.ask(2, c.ID())
		request, a := l.answer()
		if a.Status != uint32(unix.EBUSY) {
			t.Fatalf("request %d got %+v", request, a)
		}
		if request == 1 {
			if request, a := l.answer(); request != 2 || a.Status != uint32(unix.EBUSY) {
				t.Fatalf("request %d got %+v", request, a)
			}
			if h, p, err := receive(c); err != nil || h.Kind != wire.KindOpened || p[0] != 0 {
				t.Fatalf("got %+v, %v", h, err)
			}
			c.Close()
			continue
		}
		peer := dialed(t, l.at)
		if request, a := l.answer(); request != 1 || a.Status != 0 {
			t.Fatalf("request %d got %+v", request, a)
		}
		wantBytes(t, peer, frame)
		c.Close()
	}
	l.Close()
	m.wantFree()
}
