package rpc_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/rpc"
	"github.com/fix-project/arcavm/rpc/rpctest"
)

var loopback = [4]byte{127, 0, 0, 1}

func (m *machine) listen(t testing.TB) (*rpctest.Listener, netip.AddrPort) {
	t.Helper()
	l := m.Listen(loopback, 0)
	return l, wait(t, m.listens, "a listener")
}

func dial(t testing.TB, a netip.AddrPort) *net.TCPConn {
	t.Helper()
	conn, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(a))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestListenerAndStreams(t *testing.T) {
	t.Parallel()
	m := newMachine(t, rpc.Options{})
	l, address := m.listen(t)
	for i := range 20 {
		conn := dial(t, address)
		s := l.Accept()
		fmt.Fprintf(conn, "request %d", i)
		buf := make([]byte, 1024)
		n := s.Read(buf)
		if got := string(buf[:n]); got != fmt.Sprintf("request %d", i) {
			t.Errorf("received %q", got)
		}
		if n := s.Write([]byte("response")); n != 8 {
			t.Errorf("sent %d of 8", n)
		}
		s.Close()
		if got, err := io.ReadAll(conn); string(got) != "response" || err != nil {
			t.Errorf("peer got %q, %v", got, err)
		}
		conn.Close()
	}
	l.Close()
	if c, err := net.Dial("tcp", address.String()); err == nil {
		c.Close()
		t.Error("the port is still open")
	}
	m.settled(t)
}

func TestConnect(t *testing.T) {
	t.Parallel()
	m := newMachine(t, rpc.Options{})
	ln, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	port := uint16(ln.Addr().(*net.TCPAddr).Port)
	s := m.Connect("localhost", port)
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// Both directions, much more than a ring.
	want := pattern(3<<20 + 17)
	var moving sync.WaitGroup
	moving.Go(func() {
		got, err := io.ReadAll(conn)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("peer got %d of %d bytes, %v", len(got), len(want), err)
		}
	})
	for rest := want; len(rest) > 0; {
		rest = rest[s.Write(rest[:min(len(rest), 200_001)]):]
	}
	s.Close()
	moving.Wait()

	s = m.Connect("127.0.0.1", port)
	if conn, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	moving.Go(func() {
		if _, err := conn.Write(want); err != nil {
			t.Error(err)
		}
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Error(err)
		}
	})
	var got []byte
	buf := make([]byte, 50_000)
	for {
		n := s.Read(buf)
		if n == 0 {
			break
		}
		got = append(got, buf[:n]...)
	}
	moving.Wait()
	if !bytes.Equal(got, want) {
		t.Errorf("received %d of %d bytes", len(got), len(want))
	}
	// After the peer's end the other direction still works.
	s.Write([]byte("late"))
	s.Close()
	if late, err := io.ReadAll(conn); string(late) != "late" || err != nil {
		t.Errorf("peer got %q, %v", late, err)
	}
	m.settled(t)
}

// TestFailures checks the answers to what guests expect no error for.
func TestFailures(t *testing.T) {
	t.Parallel()
	m := newMachine(t, rpc.Options{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(ln.Addr().(*net.TCPAddr).Port)
	taken := m.Listen(loopback, port)
	ln.Close()
	for _, s := range []*rpctest.Stream{m.Connect("127.0.0.1", port), m.Connect("no such host!", 1), m.Connect("", 0)} {
		if n := s.Read(make([]byte, 100)); n != 0 {
			t.Errorf("received %d bytes", n)
		}
		if n := s.Write(pattern(1 << 20)); n != 1<<20 {
			t.Errorf("sent %d bytes", n)
		}
		s.Close()
	}
	if n := m.server.Stats().ConnectsFailed; n != 3 {
		t.Errorf("%d connects failed", n)
	}
	taken.Close()
	m.settled(t)
}

// TestPeerResets lets the peer go away in the middle.
// TestPolicy connects to the host by all that reaches it: the rules hold, and
// by the one that allows localhost the same targets are reached.
func TestPolicy(t *testing.T) {
	t.Parallel()
	allow, err := network.ParseRule(true, "out:localhost")
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if err := ln.(*net.TCPListener).SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	port := uint16(ln.Addr().(*net.TCPAddr).Port)
	denied := newMachine(t, rpc.Options{Network: network.NewPolicy(network.Host{}, nil, nil)})
	allowed := newMachine(t, rpc.Options{Network: network.NewPolicy(network.Host{}, []network.Rule{allow}, nil)})
	for _, c := range []struct {
		host    string
		allowed bool
	}{
		{"127.0.0.1", true},
		{"0.0.0.0", true},
		{"::ffff:0.0.0.0", true},
		{"localhost", true},
		{"::%1", false},
		{"::1%1", false},
		{"::ffff:127.0.0.1%1", false},
		{"64:ff9b::a9fe:a9fe", false},
		{"224.0.0.1", false},
	} {
		for m, want := range map[*machine]bool{denied: false, allowed: c.allowed} {
			before := m.server.Stats().ConnectsFailed
			s := m.Connect(c.host, port)
			if want {
				conn, err := ln.Accept()
				if err != nil {
					t.Fatal(err)
				}
				conn.Close()
			}
			if n := s.Read(make([]byte, 1)); n != 0 {
				t.Errorf("%s: %d bytes", c.host, n)
			}
			s.Close()
			if failed := m.server.Stats().ConnectsFailed > before; failed == want {
				t.Errorf("%s: refused %v, want %v", c.host, failed, !want)
			}
		}
	}
}

func TestPeerResets(t *testing.T) {
	t.Parallel()
	m := newMachine(t, rpc.Options{})
	l, address := m.listen(t)
	conn := dial(t, address)
	s := l.Accept()
	if err := conn.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if n := s.Read(make([]byte, 10)); n != 0 {
		t.Errorf("received %d bytes", n)
	}
	for range 5 {
		if n := s.Write(pattern(200_000)); n != 200_000 {
			t.Errorf("sent %d bytes", n)
		}
	}
	s.Close()
	l.Close()
	m.settled(t)
}

// TestUnreadBytesDontReset checks that a response arrives although the guest
// has not received all of the request.
func TestUnreadBytesDontReset(t *testing.T) {
	t.Parallel()
	m := newMachine(t, rpc.Options{})
	l, address := m.listen(t)
	for range 20 {
		conn := dial(t, address)
		s := l.Accept()
		if _, err := conn.Write(pattern(50_000)); err != nil {
			t.Fatal(err)
		}
		s.Read(make([]byte, 100))
		want := pattern(30_000)
		s.Write(want)
		s.Close()
		got, err := io.ReadAll(conn)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("peer got %d bytes, %v", len(got), err)
		}
	}
	l.Close()
	m.settled(t)
}

// TestBlockedPipesDontBlockOthers has a waiting accept, many waiting receives
// and a connect, and works on.
func TestBlockedPipesDontBlockOthers(t *testing.T) {
	t.Parallel()
	_, share := shared(t, true)
	m := newMachine(t, rpc.Options{Share: share})
	l, address := m.listen(t)
	var streams []*rpctest.Stream
	var conns []*net.TCPConn
	for range 100 {
		conns = append(conns, dial(t, address))
		s := l.Accept()
		s.Ask(100)
		streams = append(streams, s)
	}
	l.Send([]byte{0})
	f, _ := m.Open("f", create)
	f.Write([]byte("x"))
	f.Close()
	if got := m.Args(); len(got) != 0 {
		t.Error(got)
	}
	for i := range streams {
		i = len(streams) - 1 - i
		fmt.Fprintf(conns[i], "number %d", i)
		if got := string(streams[i].Receive()[2:]); got != fmt.Sprintf("number %d", i) {
			t.Errorf("received %q", got)
		}
		streams[i].Close()
	}
	if l.Responded() {
		t.Error("accepted nobody")
	}
	m.stop()
	if n := m.server.Stats().Pipes; n != 0 {
		t.Errorf("%d pipes are open", n)
	}
}

// TestStopWithEverythingOpen stops while all kinds of operations are under way.
func TestStopWithEverythingOpen(t *testing.T) {
	fds := openFiles(t)
	dir, share := shared(t, true)
	_ = dir
	m := newMachine(t, rpc.Options{Share: share})
	l, address := m.listen(t)
	conn := dial(t, address)
	s := l.Accept()
	s.Ask(10)
	idle := dial(t, address)
	l.Accept()
	l.Send([]byte{0})
	m.Open("f", create)
	partial, _ := m.Open("g", create)
	partial.Write([]byte{1})
	m.Connect("127.0.0.1", address.Port())
	m.stop()
	if n := m.server.Stats().Pipes; n != 0 {
		t.Errorf("%d pipes are open", n)
	}
	for _, c := range []*net.TCPConn{conn, idle} {
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, net.ErrClosed) {
			t.Error("the peer isn't told:", err)
		}
		c.Close()
	}
	share.Close()
	if n := openFiles(t); n > fds {
		t.Errorf("%d files are open, %d were", n, fds)
	}
	m.Allocator.Snapshot()
}

// TestChurn opens and closes ten thousand connections on several guest CPUs.
func TestChurn(t *testing.T) {
	t.Parallel()
	total := 10_000
	if testing.Short() || raceEnabled {
		total = 1000
	}
	m := newMachine(t, rpc.Options{})
	l, address := m.listen(t)
	var cpus, clients sync.WaitGroup
	tickets := make(chan struct{}, total)
	for range total {
		tickets <- struct{}{}
	}
	close(tickets)
	var accepting sync.Mutex
	for range 4 {
		cpus.Go(func() {
			buf := make([]byte, 100)
			for range tickets {
				accepting.Lock()
				s := l.Accept()
				accepting.Unlock()
				// The kernel's own memory comes and goes meanwhile.
				block := m.Allocator.Alloc(5000)
				n := s.Read(buf)
				s.Write(buf[:n])
				m.Allocator.Free(block, 5000)
				s.Close()
			}
		})
	}
	for c := range 4 {
		clients.Go(func() {
			for range total / 4 {
				conn, err := net.Dial("tcp", address.String())
				if err != nil {
					t.Error(err)
					return
				}
				fmt.Fprintf(conn, "client %d", c)
				got, err := io.ReadAll(conn)
				if err != nil || string(got) != fmt.Sprintf("client %d", c) {
					t.Errorf("client got %q, %v", got, err)
				}
				conn.Close()
			}
		})
	}
	clients.Wait()
	cpus.Wait()
	l.Close()
	m.settled(t)
	if n := m.server.Stats().Accepted; n != uint64(total) {
		t.Errorf("%d accepted", n)
	}
}

// TestPublished has a guest of this ABI, which knows IPv4 only, listen on a
// port that is published by an address of each family: it is reached at both.
func TestPublished(t *testing.T) {
	t.Parallel()
	var publish []network.Publish
	for _, host := range []string{"127.0.0.1:0", "[::1]:0"} {
		publish = append(publish, network.Publish{Protocol: "tcp", Host: netip.MustParseAddrPort(host), Guest: 80})
	}
	deny, err := network.ParseRule(false, "*")
	if err != nil {
		t.Fatal(err)
	}
	hosts := make(chan netip.AddrPort, 2)
	policy := network.NewPolicy(network.Host{}, []network.Rule{deny}, publish)
	policy.OnPublish = func(_ network.Publish, host netip.AddrPort) { hosts <- host }
	m := newMachine(t, rpc.Options{Network: policy})
	l := m.Listen(loopback, 80)
	for _, host := range []netip.AddrPort{wait(t, hosts, "the first address"), wait(t, hosts, "the second address")} {
		for range 2 {
			peer, err := net.Dial("tcp", host.String())
			if err != nil {
				t.Fatal(err)
			}
			defer peer.Close()
			if _, err := peer.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			s := l.Accept()
			b := make([]byte, 5)
			if n := s.Read(b); n == 0 || string(b[:n]) != "hello"[:n] {
				t.Errorf("by %v: %q", host, b[:n])
			}
			s.Close()
		}
	}
	// The second listener of the port is one at which no client arrives.
	m.Listen(loopback, 80).Close()
	l.Close()
	m.settled(t)
}
