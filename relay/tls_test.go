package relay_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/network/networktest"
	"github.com/fix-project/arcavm/pipes/pipestest"
	"github.com/fix-project/arcavm/relay"
	"github.com/fix-project/arcavm/wire"
)

// tlsPeer is an end of a TLS connection outside of the guest. Unlike
// crypto/tls, it can tell a truncated connection from one that has ended.
type tlsPeer struct {
	*tls.Conn
	tcp *net.TCPConn
}

func newPeer(tcp *net.TCPConn, cfg *tls.Config, side func(net.Conn, *tls.Config) *tls.Conn) *tlsPeer {
	return &tlsPeer{side(strict{tcp}, cfg), tcp}
}

var errCut = errors.New("cut off")

type strict struct{ *net.TCPConn }

func (s strict) Read(b []byte) (int, error) {
	n, err := s.TCPConn.Read(b)
	if err == io.EOF {
		err = errCut
	}
	return n, err
}

// tlsServer is a server outside of the guest that does a handshake with its
// first client.
func tlsServer(t testing.TB, on string, cfg *tls.Config) (netip.AddrPort, <-chan *tlsPeer) {
	t.Helper()
	l, to := hostListener(t, on)
	peers := make(chan *tlsPeer, 1)
	var serving sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		serving.Wait()
	})
	serving.Go(func() {
		tcp, err := l.AcceptTCP()
		if err != nil {
			return
		}
		deadline(t, tcp)
		p := newPeer(tcp, cfg, tls.Server)
		if err := p.Handshake(); err != nil {
			tcp.Close()
			close(peers)
			return
		}
		peers <- p
	})
	return to, peers
}

// tlsConnect is the payload of an Open.
func tlsConnect(to netip.AddrPort, server string, alpn ...string) []byte {
	m := wire.TLSConnect{Connect: wire.Connect{Endpoint: at(to)}, ServerName: []byte(server)}
	for _, name := range alpn {
		m.ALPN = wire.AppendALPN(m.ALPN, name)
	}
	return wire.AppendTLSConnect(nil, m)
}

// tlsConnected is a TLS connection that the guest has opened to a peer of this
// version.
func tlsConnected(t testing.TB, m *machine, a *networktest.Authority, version uint16) (*pipestest.GuestConn, *tlsPeer) {
	t.Helper()
	cfg := &tls.Config{Certificates: []tls.Certificate{a.Issue(t, nil)}, MinVersion: version, MaxVersion: version}
	to, peers := tlsServer(t, "127.0.0.1:0", cfg)
	g := m.pipe()
	p, err := open(g, wire.ProtocolTLSConnection, tlsConnect(to, ""))
	if err != nil {
		t.Fatal(err)
	}
	if c, err := wire.DecodeTLSConnected(p); err != nil || c.TLS.Version != version {
		t.Fatalf("Opened says %+v, %v", c, err)
	}
	peer := <-peers
	t.Cleanup(func() { peer.tcp.Close() })
	return g, peer
}

// bothVersions runs f with each version of TLS.
func bothVersions(t *testing.T, f func(t *testing.T, version uint16)) {
	for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(v), func(t *testing.T) {
			t.Parallel()
			f(t, v)
		})
	}
}

func TestTLSConnect(t *testing.T) {
	t.Parallel()
	a := networktest.NewAuthority(t)
	cert := a.Issue(t, nil)
	for _, c := range []struct {
		name, listen string
		host, server string
		offer        []string
		support      []string
		want         string
	}{
		{name: "IPv4", listen: "127.0.0.1:0"},
		{name: "IPv6", listen: "[::1]:0"},
		{name: "by name", listen: "127.0.0.1:0", host: "localhost"},
		{name: "server name", listen: "127.0.0.1:0", server: "server.test"},
		{name: "name and server name", listen: "127.0.0.1:0", host: "127.0.0.1", server: "server.test"},
		{name: "ALPN", listen: "127.0.0.1:0", offer: []string{"h2", "http/1.1"}, support: []string{"http/1.1", "other"}, want: "http/1.1"},
		{name: "ALPN not offered", listen: "127.0.0.1:0", support: []string{"h2"}},
		{name: "ALPN not known", listen: "127.0.0.1:0", offer: []string{"h2"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := start(t, setup{tls: relay.TLS{RootCAs: a.Pool}})
			to, peers := tlsServer(t, c.listen, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: c.support})
			target := wire.TLSConnect{Connect: wire.Connect{Endpoint: at(to)}, ServerName: []byte(c.server)}
			if c.host != "" {
				target.Connect = wire.Connect{Endpoint: wire.Endpoint{Port: to.Port()}, Name: []byte(c.host)}
			}
			for _, name := range c.offer {
				target.ALPN = wire.AppendALPN(target.ALPN, name)
			}
			g := m.pipe()
			p, err := open(g, wire.ProtocolTLSConnection, wire.AppendTLSConnect(nil, target))
			if err != nil {
				t.Fatal(err)
			}
			peer := <-peers
			got, err := wire.DecodeTLSConnected(p)
			if err != nil || got.Peer.AddrPort() != to || got.Local.AddrPort().String() != peer.RemoteAddr().String() ||
				got.TLS.Version != tls.VersionTLS13 || string(got.TLS.ALPN) != c.want {
				t.Errorf("Opened says %+v, %v", got, err)
			}
			wantSNI := c.server
			if wantSNI == "" && c.host != "" {
				wantSNI = c.host
			}
			if s := peer.ConnectionState(); s.ServerName != wantSNI || s.NegotiatedProtocol != c.want {
				t.Errorf("the peer was asked for %q by %q", s.ServerName, s.NegotiatedProtocol)
			}
			echo(t, g, peer)
			m.wantFree()
			if s := m.server.Stats(); s.ToGuest != 1<<20 || s.FromGuest != 1<<20 {
				t.Errorf("%+v", s)
			}
		})
	}
}

func TestTLSConnectFails(t *testing.T) {
	t.Parallel()
	a, other := networktest.NewAuthority(t), networktest.NewAuthority(t)
	with := func(c tls.Certificate) *tls.Config { return &tls.Config{Certificates: []tls.Certificate{c}} }
	good := a.Issue(t, nil)
	for _, c := range []struct {
		name   string
		server *tls.Config // or
		speak  func(*net.TCPConn)
		as     string
		want   unix.Errno
	}{
		{name: "unknown authority", server: with(other.Issue(t, nil)), want: unix.ENOKEY},
		{name: "expired", server: with(a.Issue(t, func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
		})), want: unix.EKEYEXPIRED},
		{name: "not valid yet", server: with(a.Issue(t, func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)
		})), want: unix.EKEYEXPIRED},
		{name: "another name", server: with(good), as: "other.test", want: unix.EKEYREJECTED},
		{name: "another address", server: with(a.Issue(t, func(c *x509.Certificate) { c.IPAddresses = nil })), want: unix.EKEYREJECTED},
		{name: "no name at all", server: with(good), as: "* / *", want: unix.EKEYREJECTED},
		{name: "not for servers", server: with(a.Issue(t, func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		})), want: unix.EBADMSG},
		{name: "no common ALPN", server: &tls.Config{Certificates: []tls.Certificate{good}, NextProtos: []string{"other"}}, want: unix.ECONNABORTED},
		{name: "TLS 1.1", server: &tls.Config{
			Certificates: []tls.Certificate{good}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11,
		}, want: unix.ECONNABORTED},
		{name: "no TLS", speak: func(c *net.TCPConn) {
			io.WriteString(c, "SSH-2.0-server\r\n")
			io.Copy(io.Discard, c)
		}, want: unix.ECONNABORTED},
		{name: "closed", speak: func(c *net.TCPConn) { c.CloseWrite(); io.Copy(io.Discard, c) }, want: unix.ECONNRESET},
		{name: "reset", speak: func(c *net.TCPConn) { c.Read(make([]byte, 1)); c.SetLinger(0) }, want: unix.ECONNRESET},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := start(t, setup{tls: relay.TLS{RootCAs: a.Pool}})
			var to netip.AddrPort
			if c.speak == nil {
				to, _ = tlsServer(t, "127.0.0.1:0", c.server)
			} else {
				var l *net.TCPListener
				l, to = hostListener(t, "127.0.0.1:0")
				var speaking sync.WaitGroup
				defer speaking.Wait()
				speaking.Go(func() {
					if conn, err := l.AcceptTCP(); err == nil {
						deadline(t, conn)
						c.speak(conn)
						conn.Close()
					}
				})
			}
			g := m.pipe()
			if _, err := open(g, wire.ProtocolTLSConnection, tlsConnect(to, c.as, "h2")); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			wantEOF(t, g)
			g.Close()
			m.wantFree()
			if s := m.server.Stats(); s.ConnectsFailed != 1 {
				t.Errorf("%+v", s)
			}
		})
	}
	t.Run("refused", func(t *testing.T) {
		t.Parallel()
		l, closed := hostListener(t, "127.0.0.1:0")
		l.Close()
		m := start(t, setup{})
		if _, err := open(m.pipe(), wire.ProtocolTLSConnection, tlsConnect(closed, "")); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("got %v", err)
		}
	})
}

// A server that doesn't answer the handshake has as much time as one that
// doesn't answer the connect.
func TestTLSConnectTimesOut(t *testing.T) {
	t.Parallel()
	m := start(t, setup{connectTimeout: 50 * time.Millisecond})
	l, to := hostListener(t, "127.0.0.1:0")
	g := m.pipe()
	if _, err := open(g, wire.ProtocolTLSConnection, tlsConnect(to, "")); !errors.Is(err, unix.ETIMEDOUT) {
		t.Errorf("got %v, want ETIMEDOUT", err)
	}
	if _, err := io.Copy(io.Discard, accepted(t, l)); err != nil && !gone(err) {
		t.Error(err)
	}
	g.Close()
	m.wantFree()
}

// A guest that ends the pipe during the handshake ends the connection.
func TestTLSConnectGivenUp(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*pipestest.GuestConn){
		"reset": func(g *pipestest.GuestConn) { g.Reset(unix.ECONNABORTED) },
		"close": func(g *pipestest.GuestConn) { g.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := start(t, setup{})
			l, to := hostListener(t, "127.0.0.1:0")
			g := m.pipe()
			if _, err := g.Write(wire.AppendOpen(nil, 5, wire.Open{Protocol: wire.ProtocolTLSConnection, Payload: tlsConnect(to, "")})); err != nil {
				t.Fatal(err)
			}
			p := accepted(t, l)
			if _, err := p.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			end(g)
			if _, err := io.Copy(io.Discard, p); err != nil && !gone(err) {
				t.Error(err)
			}
			m.wantFree()
		})
	}
}

// A half-close is a close_notify and a FIN. Each end in turn sends,
// half-closes, and gets an answer that begins after these have arrived.
func TestTLSHalfClose(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	a := networktest.NewAuthority(t)
	bothVersions(t, func(t *testing.T, version uint16) {
		for _, guestFirst := range []bool{true, false} {
			m := start(t, setup{tls: relay.TLS{RootCAs: a.Pool}})
			g, p := tlsConnected(t, m, a, version)
			first, second := network.Conn(g), network.Conn(p)
			if !guestFirst {
				first, second = second, first
			}
			request, answer := pattern(3, size), pattern(4, size)
			var sending sync.WaitGroup
			sending.Go(func() {
				first.Write(request)
				first.CloseWrite()
			})
			wantAll(t, second, request)
			sending.Wait()
			if guestFirst {
				wantEOF(t, p.tcp)
			}
			sending.Go(func() {
				second.Write(answer)
				second.CloseWrite()
			})
			wantAll(t, first, answer)
			sending.Wait()
			if !guestFirst {
				wantEOF(t, p.tcp)
			}
			g.Close()
			m.wantFree()
		}
	})
}

// Both ends send many bytes at once.
func TestTLSBulk(t *testing.T) {
	t.Parallel()
	const size = 8 << 20
	a := networktest.NewAuthority(t)
	bothVersions(t, func(t *testing.T, version uint16) {
		m := start(t, setup{tls: relay.TLS{RootCAs: a.Pool}})
		g, p := tlsConnected(t, m, a, version)
		there, back := pattern(5, size), pattern(6, size)
		var all sync.WaitGroup
		all.Go(func() {
			g.Write(there)
			g.CloseWrite()
		})
		all.Go(func() {
			p.Write(back)
			p.CloseWrite()
		})
		all.Go(func() { wantAll(t, p, there) })
		wantAll(t, g, back)
		all.Wait()
		g.Close()
		m.wantFree()
	})
}

// A reset arrives, wherever the relay waits. A close_notify to a peer that
// doesn't read doesn't delay it.
func TestTLSReset(t *testing.T) {
	t.Parallel()
	a := networktest.NewAuthority(t)
	for name, prepare := range map[string]func(*testing.T, *pipestest.GuestConn, *tlsPeer){
		"idle": func(*testing.T, *pipestest.GuestConn, *tlsPeer) {},
		"guest half closed": func(t *testing.T, g *pipestest.GuestConn, p *tlsPeer) {
			g.CloseWrite()
			wantEOF(t, p)
		},
		"peer doesn't read":  func(t *testing.T, g *pipestest.GuestConn, p *tlsPeer) { stuff(t, g) },
		"guest doesn't read": func(t *testing.T, g *pipestest.GuestConn, p *tlsPeer) { stuffTLS(t, p) },
		"peer doesn't read, guest half closes": func(t *testing.T, g *pipestest.GuestConn, p *tlsPeer) {
			stuff(t, g)
			g.CloseWrite()
		},
	} {
		t.Run("guest/"+name, func(t *testing.T) {
			t.Parallel()
			m := start(t, setup{tls: relay.TLS{RootCAs: a.Pool}})
			g, p := tlsConnected(t, m, a, tls.VersionTLS13)
			prepare(t, g, p)
			g.Reset(unix.ECONNABORTED)
			m.wantFree()
			if _, err := io.Copy(io.Discard, p.tcp); err != nil && !gone(err) {
				t.Errorf("reading: %v", err)
			} else if _, err2 := p.tcp.Write([]byte("x")); !gone(err) && !gone(err2) {
				t.Errorf("the peer sees %v, %v", err, err2)
			}
		})
		t.Run("peer/"+name, func(t *testing.T) {
			t.Parallel()
			m := start(t, setup{tls: relay.TLS{RootCAs: a.Pool}})
			g, p := tlsConnected(t, m, a, tls.VersionTLS13)
			prepare(t, g, p)
			p.tcp.SetLinger(0)
			p.tcp.Close()
			wantReadError(t, g, unix.ECONNRESET)
			g.Close()
			m.wantFree()
		})
	}
}

// stuffTLS writes until all buffers on the way are full. The connection can't
// be used after that.
func stuffTLS(t *testing.T, p *tlsPeer) {
	t.Helper()
	p.tcp.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
	if n, err := p.Write(make([]byte, 64<<20)); err == nil {
		t.Fatalf("%d bytes went to a guest that reads none", n)
	}
	deadline(t, p.tcp)
}

// A connection that ends without a close_notify may have been cut off. The
// guest gets what has arrived, and then an error.
func TestTLSTruncated(t *testing.T) {
	t.Parallel()
	a := networktest.NewAuthority(t)
	bothVersions(t, func(t *testing.T, version uint16) {
		for name, cut := range map[string]func(*tlsPeer){
			"between records": func(*tlsPeer) {},
			"in a record":     func(p *tlsPeer) { p.tcp.Write([]byte{23, 3, 3, 1, 0, 42}) },
			"in a header":     func(p *tlsPeer) { p.tcp.Write([]byte{23, 3}) },
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				m := start(t, setup{tls: relay.TLS{RootCAs: a.Pool}})
				g, p := tlsConnected(t, m, a, version)
				data := pattern(7, 200_000) // more than the ring holds
				var sending sync.WaitGroup
				sending.Go(func() {
					p.Write(data)
					cut(p)
					p.tcp.CloseWrite()
				})
				wantBytes(t, g, data)
				if n, err := g.Read(make([]byte, 1)); n != 0 || !errors.Is(err, unix.ECONNRESET) {
					t.Errorf("got %d, %v, want ECONNRESET", n, err)
				}
				sending.Wait()
				g.Close()
				m.wantFree()
			})
		}
	})
}

// A server can end, though the guest never reads the bytes before the end.
func TestTLSTruncatedUnread(t *testing.T) {
	t.Parallel()
	a := networktest.NewAuthority(t)
	m := start(t, setup{tls: relay.TLS{RootCAs: a.Pool}})
	g, p := tlsConnected(t, m, a, tls.VersionTLS13)
	p.Write([]byte("unread"))
	p.tcp.Close()
	if _, _, err := g.ReserveRead(6); err != nil {
		t.Fatal(err)
	}
	g.CommitRead(0)
	m.stop()
	wantReadError(t, g, unix.ECONNRESET)
}

// An alert after the handshake: only then does a server with TLS 1.3 tell that
// it wants a certificate of the client.
func TestTLSAlert(t *testing.T) {
	t.Parallel()
	a := networktest.NewAuthority(t)
	to, _ := tlsServer(t, "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{a.Issue(t, nil)}, ClientAuth: tls.RequireAnyClientCert})
	// The certificate of the guest's servers isn't shown to other servers.
	m := start(t, setup{tls: relay.TLS{RootCAs: a.Pool, Certificates: []tls.Certificate{a.Issue(t, nil)}}})
	g := m.pipe()
	// The reset may come before the guest has read Opened.
	if _, err := open(g, wire.ProtocolTLSConnection, tlsConnect(to, "")); err == nil {
		wantReadError(t, g, unix.ECONNABORTED)
	} else if !errors.Is(err, unix.ECONNABORTED) {
		t.Fatal(err)
	}
	g.Close()
	m.wantFree()
}

// A guest that reads no more may go on writing.
func TestTLSGuestClosesReader(t *testing.T) {
	t.Parallel()
	a := networktest.NewAuthority(t)
	m := start(t, setup{tls: relay.TLS{RootCAs: a.Pool}})
	g, p := tlsConnected(t, m, a, tls.VersionTLS13)
	g.CloseRead()
	sent := pattern(8, 1<<20)
	var sending sync.WaitGroup
	sending.Go(func() {
		g.Write(sent)
		g.CloseWrite()
	})
	wantAll(t, p, sent)
	sending.Wait()
	m.wantFree()
}

// tlsListen opens a TLS listener of the guest.
func (m *machine) tlsListen(on string, alpn ...string) *listening {
	m.t.Helper()
	c := m.pipe()
	listen := wire.TLSListen{Listen: wire.Listen{Endpoint: at(netip.MustParseAddrPort(on)), Backlog: 200}}
	for _, name := range alpn {
		listen.ALPN = wire.AppendALPN(listen.ALPN, name)
	}
	p, err := open(c, wire.ProtocolTLSListener, wire.AppendTLSListen(nil, listen))
	if err != nil {
		m.t.Fatal(err)
	}
	e, err := wire.DecodeEndpoint(p)
	if err != nil {
		m.t.Fatal(err)
	}
	return &listening{c, m, e.AddrPort()}
}

func (l *listening) answerTLS() (uint64, wire.IncomingTLSConnection) {
	l.m.t.Helper()
	h, p, err := receive(l)
	if err != nil {
		l.m.t.Fatal(err)
	}
	a, err := wire.DecodeIncomingTLSConnection(p)
	if err != nil {
		l.m.t.Fatal(err)
	}
	return h.RequestID, a
}

// tlsDialed connects to the guest's TLS listener, from outside of the guest.
func tlsDialed(t testing.TB, to netip.AddrPort, a *networktest.Authority, alpn ...string) *tlsPeer {
	t.Helper()
	p := newPeer(dialed(t, to), &tls.Config{RootCAs: a.Pool, ServerName: "server.test", NextProtos: alpn}, tls.Client)
	if err := p.Handshake(); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestTLSAccept(t *testing.T) {
	t.Parallel()
	a := networktest.NewAuthority(t)
	server := relay.TLS{Certificates: []tls.Certificate{a.Issue(t, nil)}}
	for _, c := range []struct {
		name, on string
		guest    []string
		peer     []string
		want     string
	}{
		{name: "IPv4", on: "127.0.0.1:0"},
		{name: "IPv6", on: "[::1]:0"},
		{name: "ALPN", on: "127.0.0.1:0", guest: []string{"h2", "http/1.1"}, peer: []string{"http/1.1"}, want: "http/1.1"},
		{name: "ALPN not offered", on: "127.0.0.1:0", guest: []string{"h2"}},
		{name: "http/1.1 offered to h2", on: "127.0.0.1:0", guest: []string{"h2"}, peer: []string{"http/1.1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var heard []netip.AddrPort
			m := start(t, setup{tls: server, onListen: func(a netip.AddrPort) { heard = append(heard, a) }})
			l := m.tlsListen(c.on, c.guest...)
			if len(heard) != 1 || heard[0] != l.at || l.at.Port() == 0 {
				t.Errorf("OnListen heard %v, the guest %v", heard, l.at)
			}
			g := m.pipe()
			l.ask(3, g.ID())
			peer := tlsDialed(t, l.at, a, c.peer...)
			request, in := l.answerTLS()
			if request != 3 || in.Status != 0 || in.Pipe != uint64(g.ID()) || in.Local.AddrPort() != l.at ||
				in.Peer.AddrPort().String() != peer.LocalAddr().String() || in.TLS.Version != tls.VersionTLS13 || string(in.TLS.ALPN) != c.want {
				t.Errorf("request %d: %+v", request, in)
			}
			echo(t, g, peer)
			l.Close()
			m.wantFree()
		})
	}
}

// Many peers connect at once. Each gets its own bytes.
func TestTLSAcceptMany(t *testing.T) {
	t.Parallel()
	const n = 20
	a := networktest.NewAuthority(t)
	m := start(t, setup{window: 32 << 20, tls: relay.TLS{Certificates: []tls.Certificate{a.Issue(t, nil)}}})
	l := m.tlsListen("127.0.0.1:0")
	waiting := make(map[uint64]*pipestest.GuestConn)
	for i := range uint64(n) {
		waiting[i] = m.pipe()
		l.ask(i, waiting[i].ID())
	}
	var peers, served sync.WaitGroup
	for i := range n {
		peers.Go(func() {
			tcp, err := net.DialTimeout("tcp", l.at.String(), patience)
			if err != nil {
				t.Error(err)
				return
			}
			defer tcp.Close()
			deadline(t, tcp)
			p := newPeer(tcp.(*net.TCPConn), &tls.Config{RootCAs: a.Pool, ServerName: "localhost"}, tls.Client)
			want := pattern(i, 10_000)
			if _, err := p.Write(want); err != nil {
				t.Error(err)
			}
			p.CloseWrite()
			wantAll(t, p, want)
		})
	}
	for range n {
		request, in := l.answerTLS()
		c := waiting[request]
		if c == nil || in.Status != 0 || in.Pipe != uint64(c.ID()) {
			t.Fatalf("request %d: %+v", request, in)
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
	if s := m.server.Stats(); s.Accepted != n || s.HandshakesFailed != 0 {
		t.Errorf("%+v", s)
	}
}

// Peers that send nothing, more than there are accepts, don't delay those that
// do.
func TestTLSAcceptBesideStalled(t *testing.T) {
	t.Parallel()
	a := networktest.NewAuthority(t)
	m := start(t, setup{tls: relay.TLS{Certificates: []tls.Certificate{a.Issue(t, nil)}}})
	l := m.tlsListen("127.0.0.1:0")
	g := m.pipe()
	l.ask(1, g.ID())
	for i := range 10 {
		stalled := dialed(t, l.at)
		if i%2 == 0 {
			stalled.Write([]byte{22, 3, 1}) // the beginning of a record
		}
	}
	peer := tlsDialed(t, l.at, a)
	if request, in := l.answerTLS(); request != 1 || in.Status != 0 {
		t.Fatalf("request %d: %+v", request, in)
	}
	echo(t, g, peer)
	l.Close()
	m.wantFree()
	if s := m.server.Stats(); s.HandshakesFailed != 0 {
		t.Errorf("%d handshakes failed that were given up", s.HandshakesFailed)
	}
}

// The stalled handshakes of one peer, however many, keep no other peer out, nor
// the peer itself for long.
func TestTLSHandshakesShared(t *testing.T) {
	t.Parallel()
	for name, from := range map[string]string{"another peer": "127.0.0.3", "the same peer": "127.0.0.2"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := networktest.NewAuthority(t)
			m := start(t, setup{tls: relay.TLS{Certificates: []tls.Certificate{a.Issue(t, nil)}}})
			l := m.tlsListen("127.0.0.1:0")
			g := m.pipe()
			l.ask(1, g.ID())
			for range 2 * relay.MaxHandshakes {
				dialedFrom(t, "127.0.0.2", l.at)
			}
			peer := newPeer(dialedFrom(t, from, l.at), &tls.Config{RootCAs: a.Pool, ServerName: "server.test"}, tls.Client)
			if err := peer.Handshake(); err != nil {
				t.Fatal(err)
			}
			if request, in := l.answerTLS(); request != 1 || in.Status != 0 || in.Peer.Addr.String() != from {
				t.Fatalf("request %d: %+v", request, in)
			}
			echo(t, g, peer)
			l.Close()
			m.wantFree()
		})
	}
}

// A server whose handshakes stall, however many, doesn't keep the guest from
// other servers.
func TestTLSStalledServer(t *testing.T) {
	t.Parallel()
	a := networktest.NewAuthority(t)
	m := start(t, setup{streams: 2 * relay.MaxGreetings, window: 32 << 20, tls: relay.TLS{RootCAs: a.Pool}})
	l, stalled := hostListener(t, "127.0.0.2:0")
	for range relay.MaxGreetings + 1 {
		c, err := m.tryPipe(4096, 4096, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(wire.AppendOpen(nil, 5, wire.Open{Protocol: wire.ProtocolTLSConnection, Payload: tlsConnect(stalled, "")})); err != nil {
			t.Fatal(err)
		}
		accepted(t, l)
	}
	g, peer := tlsConnected(t, m, a, tls.VersionTLS13)
	echo(t, g, peer)
	if n := m.server.Stats().ConnectsFailed; n != 0 {
		t.Errorf("%d stalled handshakes had to time out before", n)
	}
}

// dialedFrom connects from one of this machine's addresses.
func dialedFrom(t *testing.T, from string, to netip.AddrPort) *net.TCPConn {
	t.Helper()
	d := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := d.Dial("tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	deadline(t, c)
	return c.(*net.TCPConn)
}

func TestTLSHandshakeTimesOut(t *testing.T) {
	t.Parallel()
	a := networktest.NewAuthority(t)
	m := start(t, setup{connectTimeout: 50 * time.Millisecond, tls: relay.TLS{Certificates: []tls.Certificate{a.Issue(t, nil)}}})
	l := m.tlsListen("127.0.0.1:0")
	l.ask(1, m.pipe().ID())
	if _, err := io.Copy(io.Discard, dialed(t, l.at)); err != nil && !gone(err) {
		t.Error(err)
	}
	m.wait("the handshake hasn't failed", func() bool { return m.server.Stats().HandshakesFailed == 1 })
}

// The accept gets the connection whose handshake succeeds, however many fail
// before it, and how.
func TestTLSHandshakesFail(t *testing.T) {
	t.Parallel()
	a, other := networktest.NewAuthority(t), networktest.NewAuthority(t)
	m := start(t, setup{tls: relay.TLS{Certificates: []tls.Certificate{a.Issue(t, nil)}}})
	l := m.tlsListen("127.0.0.1:0", "h2")
	g := m.pipe()
	l.ask(1, g.ID())
	fail := []func(*net.TCPConn){
		func(*net.TCPConn) {},
		func(c *net.TCPConn) { c.SetLinger(0) },
		func(c *net.TCPConn) { io.WriteString(c, "GET / HTTP/1.1\r\n\r\n") },
		func(c *net.TCPConn) {
			tls.Client(c, &tls.Config{RootCAs: other.Pool, ServerName: "server.test"}).Handshake()
		},
		func(c *net.TCPConn) {
			tls.Client(c, &tls.Config{RootCAs: a.Pool, ServerName: "server.test", NextProtos: []string{"x"}}).Handshake()
		},
		func(c *net.TCPConn) {
			tls.Client(c, &tls.Config{RootCAs: a.Pool, ServerName: "server.test", MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}).Handshake()
		},
	}
	const n = 135 // more than may be under way at once
	for i := range n {
		c := dialed(t, l.at)
		fail[i%len(fail)](c)
		c.Close()
	}
	peer := tlsDialed(t, l.at, a, "h2")
	if request, in := l.answerTLS(); request != 1 || in.Status != 0 || string(in.TLS.ALPN) != "h2" {
		t.Fatalf("request %d: %+v", request, in)
	}
	echo(t, g, peer)
	m.wait("not all handshakes failed", func() bool { return m.server.Stats().HandshakesFailed == n })
	l.Close()
	m.wantFree()
}

// Without a certificate there is no TLS server.
func TestTLSListenWithoutCertificate(t *testing.T) {
	t.Parallel()
	m := start(t, setup{})
	c := m.pipe()
	listen := wire.TLSListen{Listen: wire.Listen{Endpoint: at(netip.MustParseAddrPort("127.0.0.1:0"))}}
	if _, err := open(c, wire.ProtocolTLSListener, wire.AppendTLSListen(nil, listen)); !errors.Is(err, unix.ENOKEY) {
		t.Errorf("got %v, want ENOKEY", err)
	}
	if said := m.records("listen failed"); len(said) != 1 || !strings.Contains(said[0]["err"], "no certificate is given") {
		t.Errorf("logged: %v", said)
	}
	wantEOF(t, c)
	c.Close()
	m.wantFree()
}

// A malformed Open is a breach.
func TestTLSMalformedOpen(t *testing.T) {
	t.Parallel()
	for _, protocol := range []uint16{wire.ProtocolTLSConnection, wire.ProtocolTLSListener} {
		m := start(t, setup{})
		if _, err := open(m.pipe(), protocol, make([]byte, 32)); !errors.Is(err, unix.EPROTO) {
			t.Errorf("protocol %d: %v, want EPROTO", protocol, err)
		}
	}
}

// The policy judges a connection by the name that the guest connects to,
// whatever server name it asks for.
func TestTLSPolicy(t *testing.T) {
	t.Parallel()
	a := networktest.NewAuthority(t)
	cert := a.Issue(t, nil)
	var rules []network.Rule
	for _, text := range []string{"denied.test", "in:*:444"} {
		r, err := network.ParseRule(false, text)
		if err != nil {
			t.Fatal(err)
		}
		rules = append(rules, r)
	}
	outside := netip.MustParseAddr("198.51.100.1")
	memory := &networktest.Network{Hosts: map[string]netip.Addr{
		"server.test": outside, "denied.test": outside, "inside.test": netip.MustParseAddr("127.0.0.1"),
	}}
	m := start(t, setup{
		network: network.NewPolicy(memory, rules, nil),
		tls:     relay.TLS{RootCAs: a.Pool, Certificates: []tls.Certificate{cert}},
	})
	for _, on := range []string{"198.51.100.1:443", "127.0.0.1:443"} {
		ln, err := memory.Listen(t.Context(), "tcp", on)
		if err != nil {
			t.Fatal(err)
		}
		var serving sync.WaitGroup
		t.Cleanup(func() {
			ln.Close()
			serving.Wait()
		})
		serving.Go(func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				serving.Go(func() {
					defer c.Close()
					deadline(t, c)
					p := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}})
					io.Copy(p, p)
					p.CloseWrite()
				})
			}
		})
	}
	denied := uint64(0)
	for _, c := range []struct {
		name, server string
		want         error
	}{
		{"server.test", "", nil},
		{"denied.test", "server.test", unix.EACCES},
		{"inside.test", "server.test", unix.EACCES},
	} {
		g := m.pipe()
		_, err := open(g, wire.ProtocolTLSConnection, wire.AppendTLSConnect(nil, wire.TLSConnect{
			Connect: wire.Connect{Endpoint: wire.Endpoint{Port: 443}, Name: []byte(c.name)}, ServerName: []byte(c.server),
		}))
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		if c.want != nil {
			denied++
		} else {
			g.Write([]byte("hello"))
			g.CloseWrite()
			wantAll(t, g, []byte("hello"))
		}
		g.Close()
	}
	c := m.pipe()
	listen := wire.TLSListen{Listen: wire.Listen{Endpoint: at(netip.MustParseAddrPort("198.51.100.2:444"))}}
	if _, err := open(c, wire.ProtocolTLSListener, wire.AppendTLSListen(nil, listen)); !errors.Is(err, unix.EACCES) {
		t.Errorf("listening: %v, want EACCES", err)
	}
	c.Close()
	m.wantFree()
	if n := m.server.Stats().Denied; n != denied+1 {
		t.Errorf("%d were denied, want %d", n, denied+1)
	}
}

// A published port is bound elsewhere, and does TLS there.
func TestTLSPublished(t *testing.T) {
	t.Parallel()
	a := networktest.NewAuthority(t)
	bound := make(chan netip.AddrPort, 1)
	m := start(t, setup{
		network:  network.NewPolicy(network.Host{}, nil, []network.Publish{{Protocol: "tcp", Host: netip.MustParseAddrPort("127.0.0.1:0"), Guest: 443}}),
		tls:      relay.TLS{Certificates: []tls.Certificate{a.Issue(t, nil)}},
		onListen: func(a netip.AddrPort) { bound <- a },
	})
	l := m.tlsListen("127.0.0.9:443")
	if l.at.String() != "127.0.0.9:443" {
		t.Errorf("the guest believes that it listens on %v", l.at)
	}
	g := m.pipe()
	l.ask(1, g.ID())
	peer := tlsDialed(t, <-bound, a)
	if request, in := l.answerTLS(); request != 1 || in.Status != 0 {
		t.Fatalf("request %d: %+v", request, in)
	}
	echo(t, g, peer)
}

// A server that stops during handshakes, on both sides, leaves nothing behind.
// Not parallel: it counts the process's resources.
func TestTLSStop(t *testing.T) {
	a := networktest.NewAuthority(t)
	fds := descriptors(t)
	m := start(t, setup{tls: relay.TLS{RootCAs: a.Pool, Certificates: []tls.Certificate{a.Issue(t, nil)}}})
	l := m.tlsListen("127.0.0.1:0")
	l.ask(1, m.pipe().ID())
	out, to := hostListener(t, "127.0.0.1:0")
	var peers []*net.TCPConn
	for range 5 {
		g := m.pipe()
		if _, err := g.Write(wire.AppendOpen(nil, 5, wire.Open{Protocol: wire.ProtocolTLSConnection, Payload: tlsConnect(to, "")})); err != nil {
			t.Fatal(err)
		}
		p := accepted(t, out)
		if _, err := p.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		peers = append(peers, p, dialed(t, l.at))
	}
	// A connection whose handshake is done waits for an accept beside those.
	done := tlsDialed(t, l.at, a)
	l.answerTLS()
	l.ask(2, m.pipe().ID())
	waits := tlsDialed(t, l.at, a)
	l.answerTLS()
	m.stop()
	for i, p := range append(peers, done.tcp, waits.tcp) {
		if _, err := io.Copy(io.Discard, p); err != nil && !gone(err) {
			t.Error(fmt.Errorf("peer %d: %w", i, err))
		}
		p.Close()
	}
	out.Close()
	settled(t, "descriptors", fds, func() int { return descriptors(t) })
}
