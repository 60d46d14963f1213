package relay_test

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

	"github.com/fix-project/arcavm/relay/relaytest"
)

// Names that the attacked machine's network knows something of.
const (
	nameServer = "server.test" // both loopback addresses
	nameMany   = "many.test"   // more addresses than an answer holds
	nameStalls = "stalls.test" // no answer, for as long as anybody waits
)

// socketServer is the UNIX socket that somebody outside listens at.
const socketServer = "server"

// outside is all that a guest that attacks can reach: servers, who calls at its own, a console, and names. It counts what got there: the proof that
// the attack is on all of a handler and not on the decoder of its Open alone.
type outside struct {
	authority     *relaytest.Authority
	echo, tls     *net.TCPListener
	folder        string // of UNIX sockets
	unix          *net.UnixListener
	input, output *os.File // the monitor's ends
	hand, eye     *os.File // the user's ends
	serving       sync.WaitGroup
	calling       context.Context // ends with end
	hangUp        context.CancelFunc

	handshakes, locals, calls, tlsCalls, typed, shown, addressLookups, nameLookups atomic.Uint64
}

type counted struct {
	name string
	n    uint64
}

// counts are what must not be 0 after an attack.
func (o *outside) counts() []counted {
	return []counted{
		{"handshakes at the TLS server", o.handshakes.Load()}, {"connections to the UNIX socket", o.locals.Load()},
		{"calls at the guest's listeners", o.calls.Load()}, {"of them with TLS", o.tlsCalls.Load()},
		{"bytes from the console's input", o.typed.Load()}, {"bytes to its output", o.shown.Load()},
		{"lookups of names", o.addressLookups.Load()}, {"lookups of addresses", o.nameLookups.Load()},
	}
}

func (o *outside) begin(t testing.TB) {
	t.Helper()
	o.authority = relaytest.NewAuthority(t)
	o.calling, o.hangUp = context.WithCancel(t.Context())
	o.echo, _ = hostListener(t, "127.0.0.1:0")
	o.tls, _ = hostListener(t, "127.0.0.1:0")
	o.folder = socketFolder(t)
	o.unix = unixServer(t, filepath.Join(o.folder, socketServer))
	o.input, o.hand = filePipe(t)
	o.eye, o.output = filePipe(t)
	if err := errors.Join(o.echo.SetDeadline(time.Time{}), o.tls.SetDeadline(time.Time{}), o.unix.SetDeadline(time.Time{})); err != nil {
		t.Fatal(err)
	}
	echo := func(c net.Conn) {
		// Not as themselves: Go would keep pipes to splice them.
		_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
	}
	o.serve(o.echo, echo)
	o.serve(o.unix, func(c net.Conn) {
		o.locals.Add(1)
		echo(c)
	})
	cfg := &tls.Config{Certificates: []tls.Certificate{o.authority.Issue(t, nil)}, NextProtos: []string{"h2"}}
	o.serve(o.tls, func(c net.Conn) {
		s := tls.Server(c, cfg)
		if s.HandshakeContext(o.calling) == nil {
			o.handshakes.Add(1)
			_, _ = io.Copy(s, s)
		}
	})
	o.serving.Go(func() {
		for some := pattern(1, 1000); ; {
			n, err := o.hand.Write(some)
			if err != nil {
				return
			}
			o.typed.Add(uint64(n))
		}
	})
	o.serving.Go(func() {
		for some := make([]byte, 1000); ; {
			n, err := o.eye.Read(some)
			if err != nil {
				return
			}
			o.shown.Add(uint64(n))
		}
	})
}

func (o *outside) serve(l net.Listener, f func(net.Conn)) {
	o.serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			o.serving.Go(func() {
				defer c.Close()
				f(c)
			})
		}
	})
}

// call connects to what the guest listens on, once with TLS and once without, and leaves again when the guest does.
func (o *outside) call(at netip.AddrPort) {
	for _, withTLS := range []bool{false, true} {
		o.serving.Go(func() {
			var d net.Dialer
			c, err := d.DialContext(o.calling, "tcp", at.String())
			if err != nil {
				return
			}
			defer c.Close()
			// No port stays behind in TIME_WAIT: there are as many calls as listeners.
			_ = c.(*net.TCPConn).SetLinger(0)
			defer context.AfterFunc(o.calling, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
			o.calls.Add(1)
			var peer io.ReadWriter = c
			if withTLS {
				s := tls.Client(c, &tls.Config{RootCAs: o.authority.Pool, ServerName: nameServer})
				if s.HandshakeContext(o.calling) != nil {
					return
				}
				o.tlsCalls.Add(1)
				peer = s
			}
			if _, err := peer.Write([]byte("hello")); err == nil {
				_, _ = io.Copy(io.Discard, peer)
			}
		})
	}
}

// names is the host's network with names of this test's.
func (o *outside) names() lookups {
	return lookups{
		addrs: func(ctx context.Context, _, host string) (list []netip.Addr, err error) {
			o.addressLookups.Add(1)
			switch host {
			case nameServer:
				return parseAddrs("::1 127.0.0.1"), nil
			case nameMany:
				for i := range 100 {
					list = append(list, netip.AddrFrom4([4]byte{127, 0, 1, byte(i)}))
				}
				return list, nil
			case nameStalls:
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return nil, notFound(host)
		},
		names: func(context.Context, string) ([]string, error) {
			o.nameLookups.Add(1)
			return []string{nameServer + "."}, nil
		},
	}
}

// end is for after the guest's end.
func (o *outside) end(t testing.TB) {
	t.Helper()
	o.hangUp()
	if err := errors.Join(o.echo.Close(), o.tls.Close(), o.unix.Close(), o.input.Close(), o.output.Close(), o.hand.Close(), o.eye.Close()); err != nil {
		t.Error(err)
	}
	o.serving.Wait()
}
