// Package outside is for tests: everything that an attacking guest can reach,
// on loopback addresses. It counts what arrives there, to prove that an attack
// reached the whole of a protocol's handler, and not only the decoder of its
// Open.
package outside

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/network/networktest"
)

// Names that the network knows. No others exist.
const (
	NameServer = "server.test" // both loopback addresses
	NameMany   = "many.test"   // more addresses than an answer holds
	NameStalls = "stalls.test" // never answered
)

// Socket is the name of a UNIX socket in [World.Folder] with a listener.
const Socket = "server"

// World is servers, clients of the guest's servers, a standard input and
// output, and names.
type World struct {
	Authority *networktest.Authority // of the TLS server, which clients trust, too
	Echo, TLS netip.AddrPort         // echo servers; Echo is a UDP server's, too
	Folder    string                 // of UNIX sockets
	Input     *os.File               // never at its end
	Output    *os.File

	echo, secure, local net.Listener
	datagrams           *net.UDPConn
	hand, eye           *os.File // the other ends of Input and Output
	serving             sync.WaitGroup
	calling             context.Context // ends with Close
	hangUp              context.CancelFunc

	handshakes, locals, sent, calls, tlsCalls, typed, shown, addressLookups, nameLookups atomic.Uint64
}

// Count is how often an attack has reached something.
type Count struct {
	Of string
	N  uint64
}

// Counts must not be 0 after an attack.
func (w *World) Counts() []Count {
	return []Count{
		{"handshakes at the TLS server", w.handshakes.Load()},
		{"connections to the UNIX socket", w.locals.Load()},
		{"datagrams to the UDP server", w.sent.Load()},
		{"calls at the guest's listeners", w.calls.Load()},
		{"calls with TLS", w.tlsCalls.Load()},
		{"bytes from the standard input", w.typed.Load()},
		{"bytes to the standard output", w.shown.Load()},
		{"lookups of names", w.addressLookups.Load()},
		{"lookups of addresses", w.nameLookups.Load()},
	}
}

// New makes a World. The caller closes it when the guest has ended.
func New(t testing.TB) *World {
	t.Helper()
	// The path of the test's own folder may be too long for a socket's address.
	dir, err := os.MkdirTemp("", "outside")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w := &World{Authority: networktest.NewAuthority(t), Folder: dir}
	w.calling, w.hangUp = context.WithCancel(t.Context())
	w.echo, w.datagrams = listenTwice(t)
	w.secure, w.local = listen(t, "tcp", "127.0.0.1:0"), listen(t, "unix", filepath.Join(dir, Socket))
	w.Echo, w.TLS = w.echo.Addr().(*net.TCPAddr).AddrPort(), w.secure.Addr().(*net.TCPAddr).AddrPort()
	w.Input, w.hand = Pipe(t)
	w.eye, w.Output = Pipe(t)

	w.serve(w.echo, echo)
	w.serve(w.local, func(c net.Conn) {
		w.locals.Add(1)
		echo(c)
	})
	cfg := &tls.Config{Certificates: []tls.Certificate{w.Authority.Issue(t, nil)}, NextProtos: []string{"h2"}}
	w.serve(w.secure, func(c net.Conn) {
		s := tls.Server(c, cfg)
		if s.HandshakeContext(w.calling) == nil {
			w.handshakes.Add(1)
			_, _ = io.Copy(s, s)
		}
	})
	w.serving.Go(w.answerDatagrams)
	w.serving.Go(func() {
		for some := make([]byte, 1000); ; {
			n, err := w.hand.Write(some)
			if err != nil {
				return
			}
			w.typed.Add(uint64(n))
		}
	})
	w.serving.Go(func() {
		for some := make([]byte, 1000); ; {
			n, err := w.eye.Read(some)
			if err != nil {
				return
			}
			w.shown.Add(uint64(n))
		}
	})
	return w
}

func listen(t testing.TB, network, address string) net.Listener {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// listenTwice listens for connections and for datagrams on the same port.
func listenTwice(t testing.TB) (net.Listener, *net.UDPConn) {
	t.Helper()
	for tries := 1; ; tries++ {
		l := listen(t, "tcp", "127.0.0.1:0")
		at := l.Addr().(*net.TCPAddr)
		c, err := net.ListenUDP("udp", &net.UDPAddr{IP: at.IP, Port: at.Port})
		if err == nil {
			t.Cleanup(func() { c.Close() })
			return l, c
		}
		if l.Close(); tries == 10 {
			t.Fatal(err)
		}
	}
}

// answerDatagrams sends each datagram back, until the socket is closed.
func (w *World) answerDatagrams() {
	for some := make([]byte, 1<<16); ; {
		n, from, err := w.datagrams.ReadFromUDPAddrPort(some)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			w.sent.Add(1)
			_, _ = w.datagrams.WriteToUDPAddrPort(some[:n], from)
		}
	}
}

// Pipe is a pipe for a stdio stream. The test has the other end.
func Pipe(t testing.TB) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.Close()
		w.Close()
	})
	return r, w
}

func echo(c net.Conn) {
	// The wrappers hide that these are sockets: for those Go would splice, and
	// keep pipes for that.
	_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
}

func (w *World) serve(l net.Listener, f func(net.Conn)) {
	w.serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			w.serving.Go(func() {
				defer c.Close()
				defer w.endWithCalling(c)()
				f(c)
			})
		}
	})
}

func (w *World) endWithCalling(c net.Conn) (stop func() bool) {
	return context.AfterFunc(w.calling, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
}

// Call is an OnListen. It connects to the guest's listener, once with TLS and
// once without, and ends when the guest does.
func (w *World) Call(at netip.AddrPort) {
	for _, withTLS := range []bool{false, true} {
		w.serving.Go(func() { w.call(at, withTLS) })
	}
}

func (w *World) call(at netip.AddrPort, withTLS bool) {
	var d net.Dialer
	c, err := d.DialContext(w.calling, "tcp", at.String())
	if err != nil {
		return
	}
	defer c.Close()
	defer w.endWithCalling(c)()
	// A reset leaves no port in TIME_WAIT: there are as many calls as
	// listeners.
	_ = c.(*net.TCPConn).SetLinger(0)
	w.calls.Add(1)
	var peer io.ReadWriter = c
	if withTLS {
		s := tls.Client(c, &tls.Config{RootCAs: w.Authority.Pool, ServerName: NameServer})
		if s.HandshakeContext(w.calling) != nil {
			return
		}
		w.tlsCalls.Add(1)
		peer = s
	}
	if _, err := peer.Write([]byte("hello")); err == nil {
		_, _ = io.Copy(io.Discard, peer)
	}
}

// Ports of the guest that [World.Network] publishes.
const (
	PublishedTCP = 80
	PublishedUDP = 53
)

// Network is the host's network, with rules for this World, and for what more
// allows.
func (w *World) Network(t testing.TB, more ...string) *network.Policy {
	t.Helper()
	var rules []network.Rule
	for _, text := range append(more, "out:"+w.Echo.String(), "out:"+w.TLS.String(), "out:*.test", "in:127.0.0.1") {
		rules = append(rules, rule(t, true, text))
	}
	free := netip.AddrPortFrom(w.Echo.Addr(), 0)
	return network.NewPolicy(names{world: w}, append(rules, rule(t, false, "*")), []network.Publish{
		{Protocol: "tcp", Host: free, Guest: PublishedTCP}, {Protocol: "udp", Host: free, Guest: PublishedUDP},
	})
}

func rule(t testing.TB, allow bool, text string) network.Rule {
	t.Helper()
	r, err := network.ParseRule(allow, text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// names is the host's network, with this package's names.
type names struct {
	network.Host
	world *World
}

func (n names) LookupNetIP(ctx context.Context, _, host string) (list []netip.Addr, err error) {
	n.world.addressLookups.Add(1)
	switch host {
	case NameServer:
		return []netip.Addr{netip.IPv6Loopback(), netip.AddrFrom4([4]byte{127, 0, 0, 1})}, nil
	case NameMany:
		for i := range 100 {
			list = append(list, netip.AddrFrom4([4]byte{127, 0, 1, byte(i)}))
		}
		return list, nil
	case NameStalls:
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

func (n names) LookupAddr(context.Context, string) ([]string, error) {
	n.world.nameLookups.Add(1)
	return []string{NameServer + "."}, nil
}

// Close ends everything and waits for it.
func (w *World) Close(t testing.TB) {
	t.Helper()
	w.hangUp()
	if err := errors.Join(w.echo.Close(), w.secure.Close(), w.local.Close(), w.datagrams.Close(), w.Input.Close(), w.Output.Close(), w.hand.Close(), w.eye.Close()); err != nil {
		t.Error(err)
	}
	w.serving.Wait()
}
