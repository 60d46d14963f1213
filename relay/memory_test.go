package relay_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network/networktest"
	"github.com/fix-project/arcavm/pipes/pipestest"
	"github.com/fix-project/arcavm/relay"
	"github.com/fix-project/arcavm/wire"
)

// TestStreamMemory bounds how much of the monitor's memory (heap and stacks) a
// stream keeps when it has done what costs most and waits again. -v shows the
// amounts, which docs/security.md names. Not parallel: it measures the process.
func TestStreamMemory(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector's own memory counts")
	}
	const n, warm = 100, 16
	a := networktest.NewAuthority(t)
	m := start(t, setup{
		quiet: true, streams: 9*(n+warm) + 8, window: 256 << 20, root: folderOfNames(t),
		tls: relay.TLS{RootCAs: a.Pool, Certificates: []tls.Certificate{a.Issue(t, nil)}},
	})
	usual, hostile := tlsServers(t, a, 0), tlsServers(t, a, 26<<10)
	l, to := hostListener(t, "127.0.0.1:0")
	peers := make([]*net.UDPConn, 220)
	for i := range peers {
		peers[i], _ = hostUDP(t, "127.0.0.1:0")
	}
	for _, c := range []struct {
		name string
		most int // KiB
		use  func()
	}{
		{"pipe without an Open", 4, func() { m.smallPipe() }},
		{"TCP connection", 12, func() {
			if _, err := open(m.smallPipe(), wire.ProtocolTCPConnection, connectTo(to)); err != nil {
				t.Fatal(err)
			}
			accepted(t, l)
		}},
		{"TCP listener", 20, func() { m.listen("127.0.0.1:0", 0) }},
		{"TLS listener", 24, func() { m.tlsListen("127.0.0.1:0") }},
		{"UDP socket, after a datagram of 60,000 bytes", 20, func() { m.sendLarge() }},
		{"UDP socket at all addresses, after 220 peers", 44, func() { m.hearAll(peers) }},
		{"file system, after a listing of 64 KiB", 20, func() { m.listAll() }},
		{"TLS connection", 40, func() { m.tlsTo(usual) }},
		{"TLS connection, after a chain of 26 KiB", 160, func() { m.tlsTo(hostile) }},
	} {
		for range warm { // what all streams have in common is there
			c.use()
		}
		before := memoryUse()
		for range n {
			c.use()
		}
		each := (memoryUse() - before) / n
		// Stacks and parsed certificates of handshakes that have just ended are
		// freed by one of the next collections.
		for tries := 0; each > c.most<<10 && tries < 20; tries++ {
			each = (memoryUse() - before) / n
		}
		t.Logf("%s: %.1f KiB", c.name, float64(each)/1024)
		if each > c.most<<10 {
			t.Errorf("%s keeps %d bytes, more than %d KiB", c.name, each, c.most)
		}
	}
}

// memoryUse is how much of Go's memory the process uses.
func memoryUse() int {
	// The second collection frees what the first one found to be unused.
	runtime.GC()
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return int(s.HeapAlloc + s.StackInuse)
}

// smallPipe is a pipe with the smallest rings.
func (m *machine) smallPipe() *pipestest.GuestConn {
	m.t.Helper()
	c, err := m.tryPipe(4096, 4096, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	return c
}

// hearAll receives a datagram of each peer on a socket at all addresses.
func (m *machine) hearAll(peers []*net.UDPConn) {
	m.t.Helper()
	u := m.udpBound(4096, "0.0.0.0:0")
	u.SetDeadline(time.Time{})
	in := make([]byte, wire.HeaderSize+wire.ReceivedDatagramPrefixSize+1)
	for _, p := range peers {
		sendTo(m.t, p, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), u.local.Port()), []byte("x"))
		if _, err := io.ReadFull(u, in); err != nil {
			m.t.Fatal(err)
		}
	}
}

// sendLarge sends a datagram that is larger than the ring.
func (m *machine) sendLarge() {
	m.t.Helper()
	c := m.smallPipe()
	p, err := open(c, wire.ProtocolUDP, wire.AppendUDPSocket(nil, wire.UDPSocket{Local: at(netip.MustParseAddrPort("127.0.0.1:0"))}))
	if err != nil {
		m.t.Fatal(err)
	}
	socket, err := wire.DecodeUDPSocket(p)
	if err != nil {
		m.t.Fatal(err)
	}
	b := wire.AppendSendDatagram(nil, 1, wire.SendDatagram{To: socket.Local, Data: make([]byte, 60000)})
	// A datagram without a destination is answered after those before it were
	// sent.
	b = wire.AppendSendDatagram(b, 2, wire.SendDatagram{})
	if _, err := c.Write(b); err != nil {
		m.t.Fatal(err)
	}
	for {
		h, _, err := receive(c)
		if err != nil {
			m.t.Fatal(err)
		}
		if h.RequestID == 2 {
			return
		}
	}
}

// folderOfNames is a folder whose listing has more than 64 KiB.
func folderOfNames(t *testing.T) *os.Root {
	t.Helper()
	dir := t.TempDir()
	for i := range 400 {
		name := fmt.Sprintf("%s%03d", strings.Repeat("n", 200), i)
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

func (m *machine) listAll() {
	m.t.Helper()
	c := m.smallPipe()
	if _, err := open(c, wire.ProtocolFileSystem, nil); err != nil {
		m.t.Fatal(err)
	}
	if _, err := c.Write(wire.AppendListRequest(nil, 1, wire.ListRequest{Limit: wire.MaxFileList, Path: []byte("."), After: nil})); err != nil {
		m.t.Fatal(err)
	}
	_, p, err := receive(c)
	if err != nil || len(p) < wire.MaxFileList-512 {
		m.t.Fatalf("%d bytes, %v", len(p), err)
	}
}

func (m *machine) tlsTo(server netip.AddrPort) {
	m.t.Helper()
	if _, err := open(m.smallPipe(), wire.ProtocolTLSConnection, tlsConnect(server, "")); err != nil {
		m.t.Fatal(err)
	}
}

// tlsServers is a server that shows each client a chain of certificates of its
// own, of about size bytes, and then sends nothing.
func tlsServers(t *testing.T, a *networktest.Authority, size int) netip.AddrPort {
	t.Helper()
	l, to := hostListener(t, "127.0.0.1:0")
	cert := a.Issue(t, nil)
	var serving sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		serving.Wait()
	})
	serving.Go(func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
			chain := cert
			chain.Certificate = cert.Certificate[:1:1]
			for n := len(cert.Certificate[0]); n < size; {
				further := a.Issue(t, nil).Certificate[0]
				chain.Certificate = append(chain.Certificate, further)
				n += len(further)
			}
			if err := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{chain}}).Handshake(); err != nil {
				return
			}
		}
	})
	return to
}

// A server can't make the monitor keep a chain of any size.
func TestTLSGreetingTooLarge(t *testing.T) {
	t.Parallel()
	a := networktest.NewAuthority(t)
	m := start(t, setup{tls: relay.TLS{RootCAs: a.Pool}})
	_, err := open(m.pipe(), wire.ProtocolTLSConnection, tlsConnect(tlsServers(t, a, 40<<10), ""))
	if err != unix.ECONNABORTED {
		t.Errorf("got %v, want ECONNABORTED", err)
	}
}
