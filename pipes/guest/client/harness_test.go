package client_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fix-project/arcavm/network/networktest"
	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/pipes/guest"
	"github.com/fix-project/arcavm/pipes/guest/client"
	"github.com/fix-project/arcavm/pipes/pipestest"
	"github.com/fix-project/arcavm/relay"
	"github.com/fix-project/arcavm/share"
	"github.com/fix-project/arcavm/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds what a test waits for; only a test that fails reaches it.
const patience = 30 * time.Second

// echoProtocol answers with the Open's payload and sends back what comes;
// muteProtocol never answers an Open.
const (
	echoProtocol = wire.ProtocolPrivate
	muteProtocol = wire.ProtocolPrivate + 1
)

// fixture is a machine with every protocol and a shared folder.
type fixture struct {
	*client.Machine
	server    *relay.Server
	dir       string // shared for files and sockets, to write
	authority *networktest.Authority
	typed     io.Writer     // standard input
	printed   io.Reader     // standard output
	muted     chan struct{} // one for each Open of muteProtocol
}

func start(t *testing.T, o pipes.Options) *fixture {
	t.Helper()
	// Short, since the path of a UNIX socket is.
	dir, err := os.MkdirTemp("", "client")
	try(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	folder, err := share.Open(dir, true)
	try(t, err)
	t.Cleanup(func() { _ = folder.Close() })
	try(t, os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o600))

	f := &fixture{dir: dir, authority: networktest.NewAuthority(t), muted: make(chan struct{}, 100)}
	input, typed := io.Pipe()
	printed, output := io.Pipe()
	f.typed, f.printed = typed, printed
	g, err := pipestest.NewGuest(16<<20, o)
	try(t, err)
	f.Machine, err = client.Start(g, func(control *pipes.Pipe) client.Server {
		f.server = relay.New(g.Table, control, f.mux(t, folder, input, output), relay.Options{})
		return f.server
	})
	try(t, err)
	t.Cleanup(func() {
		_, _ = typed.Close(), printed.Close()
		try(t, f.Close())
		try(t, f.Close()) // may be called again
	})
	return f
}

func (f *fixture) mux(t *testing.T, folder share.Share, in io.Reader, out io.Writer) *relay.Mux {
	cert := f.authority.Issue(t, nil)
	secure := relay.TLS{RootCAs: f.authority.Pool, Certificates: []tls.Certificate{cert}}
	var mux relay.Mux
	mux.Handle(wire.ProtocolFileSystem, relay.FileSystem(folder))
	mux.Handle(wire.ProtocolTCPListener, relay.TCPListener())
	mux.Handle(wire.ProtocolTCPConnection, relay.TCPConnection())
	mux.Handle(wire.ProtocolUDP, relay.UDP())
	mux.Handle(wire.ProtocolUnixListener, relay.UnixListener(folder))
	mux.Handle(wire.ProtocolUnixConnection, relay.UnixConnection(folder))
	mux.Handle(wire.ProtocolResolver, relay.Resolver())
	mux.Handle(wire.ProtocolTLSConnection, relay.TLSConnection(secure))
	mux.Handle(wire.ProtocolTLSListener, relay.TLSListener(secure))
	mux.Handle(wire.ProtocolStdio, relay.Stdio(in, out, nil))
	mux.Handle(echoProtocol, relay.HandlerFunc(echo))
	mux.Handle(muteProtocol, relay.HandlerFunc(func(ctx context.Context, s *relay.Stream) error {
		f.muted <- struct{}{}
		ended := make(chan struct{})
		s.Pipe.OnReadError(func() { close(ended) })
		select {
		case <-ended:
		case <-ctx.Done():
		}
		return nil
	}))
	return &mux
}

func echo(_ context.Context, s *relay.Stream) error {
	if err := s.Opened(0, s.Payload); err != nil {
		return err
	}
	if _, err := s.Pipe.ReadFrom(struct{ io.Reader }{s.Pipe}); err != nil {
		return err
	}
	return s.Pipe.CloseWrite()
}

// soon is a context for what succeeds.
func soon(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func try(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// hostListener is a server outside of the guest, that echoes.
func hostListener(t *testing.T, network, address string) net.Listener {
	t.Helper()
	l, err := net.Listen(network, address)
	try(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go serveEcho(l)
	return l
}

func serveEcho(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
			_ = c.Close()
		}()
	}
}

// exchange sends text, closes its writer, and wants it back.
func exchange(t *testing.T, c interface {
	net.Conn
	CloseWrite() error
}, text string) {
	t.Helper()
	try(t, c.SetDeadline(time.Now().Add(patience)))
	_, err := io.WriteString(c, text)
	try(t, err)
	try(t, c.CloseWrite())
	got, err := io.ReadAll(c)
	if err != nil || string(got) != text {
		t.Errorf("got %q, %v, want %q", got, err, text)
	}
	_ = c.Close()
}

func newGuest() (*guest.Guest, error) { return pipestest.NewGuest(8<<20, pipes.Options{}) }
