package relay_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/pipes/guest/client"
	"github.com/fix-project/arcavm/pipes/pipestest"
	"github.com/fix-project/arcavm/relay"
	shared "github.com/fix-project/arcavm/share"
	"github.com/fix-project/arcavm/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds each wait of a test. A test that passes never waits so long.
const patience = 30 * time.Second

// machine is a server, and a guest in Go that talks to it.
type machine struct {
	t      testing.TB
	guest  *pipestest.Guest
	server *relay.Server
	stop   func() // cancels Serve and waits for it; may be called twice

	log *journal

	client  *client.Client
	control *pipestest.GuestConn

	mu    sync.Mutex
	conns []*pipestest.GuestConn // whose deadlines end with the test
}

// journal is a log handler. Tests wait for its records, as the end of a stream
// is one.
type journal struct {
	mu      sync.Mutex
	changed chan struct{} // closed by the next record
	records []slog.Record
}

func (j *journal) Enabled(context.Context, slog.Level) bool { return true }
func (j *journal) WithAttrs([]slog.Attr) slog.Handler       { return j }
func (j *journal) WithGroup(string) slog.Handler            { return j }

func (j *journal) Handle(_ context.Context, r slog.Record) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.records = append(j.records, r)
	close(j.changed)
	j.changed = make(chan struct{})
	return nil
}

func (j *journal) count(msg string) (n int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, r := range j.records {
		if r.Message == msg {
			n++
		}
	}
	return n
}

// lostWakeups are the watchdog's records.
func (m *machine) lostWakeups() (found []string) {
	m.log.mu.Lock()
	defer m.log.mu.Unlock()
	for _, r := range m.log.records {
		if strings.HasPrefix(r.Message, "lost wake-up") {
			text := r.Time.Format(time.StampMilli) + " " + r.Message
			r.Attrs(func(a slog.Attr) bool { text += " " + a.String(); return true })
			found = append(found, text)
		}
	}
	return found
}

// records returns the attributes and levels of the records with a message, as
// text.
func (m *machine) records(msg string) (found []map[string]string) {
	m.log.mu.Lock()
	defer m.log.mu.Unlock()
	for _, r := range m.log.records {
		if r.Message != msg {
			continue
		}
		attrs := map[string]string{"level": r.Level.String()}
		r.Attrs(func(a slog.Attr) bool {
			attrs[a.Key] = a.Value.Resolve().String()
			return true
		})
		found = append(found, attrs)
	}
	return found
}

// wait waits until a condition holds. It looks again after each record.
func (m *machine) wait(otherwise string, ok func() bool) {
	m.t.Helper()
	late := time.After(patience)
	for {
		m.log.mu.Lock()
		changed := m.log.changed
		m.log.mu.Unlock()
		if ok() {
			return
		}
		select {
		case <-changed:
		case <-late:
			m.t.Fatal(otherwise)
		}
	}
}

type setup struct {
	root           *os.Root // shared to read, if share is nothing
	share          shared.Share
	sockets        shared.Share
	onListen       func(netip.AddrPort)
	handlers       map[uint16]relay.Handler
	network        network.Network
	tls            relay.TLS
	input          io.Reader
	output         io.Writer
	onStdio        func(open bool)
	connectTimeout time.Duration
	streams        int
	window         int
	limits         network.Limits
	ringLimit      int64
	quiet          bool // no log to wait on
	// hasty leaves out the last look for lost wake-ups: a fuzz target would
	// have only a few machines a second.
	hasty bool

	noNetwork bool
}

func start(t testing.TB, o setup) *machine {
	t.Helper()
	if o.streams == 0 {
		o.streams = 256
	}
	if o.window == 0 {
		o.window = 8 << 20
	}
	m := &machine{t: t, log: &journal{changed: make(chan struct{})}}
	var err error
	if m.guest, err = pipestest.NewGuest(o.window, pipes.Options{StreamLimit: o.streams, RingLimit: o.ringLimit, Logger: slog.New(m.log)}); err != nil {
		t.Fatal(err)
	}
	mux := o.mux()
	options := relay.Options{Logger: slog.New(m.log), OnListen: o.onListen, Network: o.network, ConnectTimeout: o.connectTimeout, Limits: o.limits}
	if o.quiet {
		options.Logger = nil
	}
	m.serve(mux, options)
	deadline(t, m.control)
	t.Cleanup(func() {
		m.stop()
		// A deadline's timer would keep the window's memory until it ends.
		for _, c := range m.conns {
			c.SetDeadline(time.Time{})
		}
		end := m.guest.Close
		if o.hasty {
			end = m.guest.CloseAtOnce
		}
		if err := end(); err != nil {
			t.Errorf("%v: %v", err, m.lostWakeups())
		}
	})
	return m
}

// mux has all handlers that the setup asks for.
func (o *setup) mux() *relay.Mux {
	var mux relay.Mux
	if o.share.None() {
		o.share.Root = o.root
	}
	mux.Handle(wire.ProtocolFileSystem, relay.FileSystem(o.share))
	mux.Handle(wire.ProtocolUnixListener, relay.UnixListener(o.sockets))
	mux.Handle(wire.ProtocolUnixConnection, relay.UnixConnection(o.sockets))
	if !o.noNetwork {
		mux.Handle(wire.ProtocolTCPListener, relay.TCPListener())
		mux.Handle(wire.ProtocolTCPConnection, relay.TCPConnection())
		mux.Handle(wire.ProtocolUDP, relay.UDP())
		mux.Handle(wire.ProtocolResolver, relay.Resolver())
		mux.Handle(wire.ProtocolTLSConnection, relay.TLSConnection(o.tls))
		mux.Handle(wire.ProtocolTLSListener, relay.TLSListener(o.tls))
	}
	mux.Handle(wire.ProtocolStdio, relay.Stdio(o.input, o.output, o.onStdio))
	for protocol, h := range o.handlers {
		mux.Handle(protocol, h)
	}
	return &mux
}

// serve starts a server for the guest.
func (m *machine) serve(mux *relay.Mux, o relay.Options) {
	m.t.Helper()
	both, err := client.Start(m.guest, func(control *pipes.Pipe) client.Server {
		m.server = relay.New(m.guest.Table, control, mux, o)
		return m.server
	})
	if err != nil {
		m.t.Fatal(err)
	}
	m.client, m.control = both.Client, both.Control
	m.conns = append(m.conns, m.control)
	m.stop = sync.OnceFunc(func() {
		late := time.AfterFunc(patience, func() { panic("Serve doesn't return") })
		defer late.Stop()
		if err := both.Stop(); err != nil {
			m.t.Errorf("Serve: %v", err)
		}
	})
}

func deadline(t testing.TB, c net.Conn) {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
}

// receive reads one frame, and open opens a protocol on a new pipe.
var (
	receive = client.ReadFrame
	open    = client.OpenPipe
)

// tryPipe asks for a pipe through the control pipe.
func (m *machine) tryPipe(outgoing, incoming, cpu uint32) (*pipestest.GuestConn, error) {
	rings := client.Rings{Outgoing: outgoing, Incoming: incoming, CPU: cpu}
	c, err := m.client.With(rings).Pipe(context.Background())
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	m.conns = append(m.conns, c)
	m.mu.Unlock()
	return c, c.SetDeadline(time.Now().Add(patience))
}

func (m *machine) pipe() *pipestest.GuestConn {
	m.t.Helper()
	c, err := m.tryPipe(64<<10, 64<<10, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	return c
}

func (m *machine) tryConnect(to netip.AddrPort) (*pipestest.GuestConn, error) {
	m.t.Helper()
	c := m.pipe()
	_, err := open(c, wire.ProtocolTCPConnection, connectTo(to))
	return c, err
}

func (m *machine) connect(to netip.AddrPort) *pipestest.GuestConn {
	m.t.Helper()
	c, err := m.tryConnect(to)
	if err != nil {
		m.t.Fatal(err)
	}
	return c
}

func connectTo(a netip.AddrPort) []byte {
	return wire.AppendConnect(nil, wire.Connect{Endpoint: at(a)})
}

func at(a netip.AddrPort) wire.Endpoint { return wire.Endpoint{Addr: a.Addr(), Port: a.Port()} }

// listening is a guest's listener.
type listening struct {
	*pipestest.GuestConn
	m  *machine
	at netip.AddrPort
}

func (m *machine) listen(on string, backlog uint32) *listening {
	m.t.Helper()
	c := m.pipe()
	p, err := open(c, wire.ProtocolTCPListener, wire.AppendListen(nil, wire.Listen{
		Endpoint: at(netip.MustParseAddrPort(on)), Backlog: backlog,
	}))
	if err != nil {
		m.t.Fatal(err)
	}
	e, err := wire.DecodeEndpoint(p)
	if err != nil {
		m.t.Fatal(err)
	}
	return &listening{c, m, e.AddrPort()}
}

// warm accepts a connection and ends it. After it all goroutines of the
// listener run, which the answer to the Open doesn't wait for.
func (l *listening) warm() {
	l.m.t.Helper()
	open := l.m.guest.Table.Stats().Open
	c := l.m.pipe()
	l.ask(1, c.ID())
	p := dialed(l.m.t, l.at)
	if _, a := l.answer(); a.Status != 0 {
		l.m.t.Fatal(unix.Errno(a.Status))
	}
	c.Close()
	p.Close()
	settled(l.m.t, "pipes", open, func() int { return l.m.guest.Table.Stats().Open })
}

func (l *listening) ask(request uint64, id pipes.ID) {
	l.m.t.Helper()
	if _, err := l.Write(wire.AppendAcceptConnection(nil, request, wire.AcceptConnection{Pipe: uint64(id)})); err != nil {
		l.m.t.Fatal(err)
	}
}

func (l *listening) answer() (uint64, wire.IncomingConnection) {
	l.m.t.Helper()
	h, p, err := receive(l)
	if err != nil {
		l.m.t.Fatal(err)
	}
	a, err := wire.DecodeIncomingConnection(p)
	if err != nil {
		l.m.t.Fatal(err)
	}
	return h.RequestID, a
}

// dialed connects to a guest's listener, from outside of the guest.
func dialed(t testing.TB, to netip.AddrPort) *net.TCPConn {
	t.Helper()
	c, err := net.DialTimeout("tcp", to.String(), patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	deadline(t, c)
	return c.(*net.TCPConn)
}

// hostListener is a server outside of the guest.
func hostListener(t testing.TB, on string) (*net.TCPListener, netip.AddrPort) {
	t.Helper()
	l, err := net.Listen("tcp", on)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	ln := l.(*net.TCPListener)
	if err := ln.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return ln, ln.Addr().(*net.TCPAddr).AddrPort()
}

func accepted(t testing.TB, l *net.TCPListener) *net.TCPConn {
	t.Helper()
	c, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	deadline(t, c)
	return c
}

// connected is a connection that the guest has opened: its end, and the peer's.
func (m *machine) connected() (guest *pipestest.GuestConn, peer *net.TCPConn) {
	m.t.Helper()
	l, to := hostListener(m.t, "127.0.0.1:0")
	guest = m.connect(to)
	return guest, accepted(m.t, l)
}

// pattern is n bytes that depend on their place and on the seed.
func pattern(seed, n int) []byte {
	b := make([]byte, n)
	x := uint32(seed)*2654435761 + 1
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}

func wantBytes(t testing.TB, r io.Reader, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(r, got); err != nil {
		t.Fatalf("after %d of %d bytes: %v", n, len(want), err)
	}
	if !bytes.Equal(got, want) {
		t.Fatal("the bytes differ")
	}
}

func wantEOF(t testing.TB, r io.Reader) {
	t.Helper()
	if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("got %d, %v, want end of file", n, err)
	}
}

func wantReadError(t testing.TB, r io.Reader, want unix.Errno) {
	t.Helper()
	if _, err := io.Copy(io.Discard, r); !errors.Is(err, want) {
		t.Fatalf("got %v, want %v", err, want)
	}
}

// wantFree waits until there is no stream, and no pipe but the control pipe.
func (m *machine) wantFree() {
	m.t.Helper()
	m.wait("pipes are left", func() bool { return m.guest.Table.Stats().Open == 1 && m.server.Stats().Streams == 0 })
}
