package relay_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/pipes/pipestest"
	"github.com/fix-project/arcavm/wire"
)

func descriptors(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// settled waits until a count is what it was. The test's own sockets and
// goroutines end a moment after their last use.
func settled(t testing.TB, what string, want int, count func() int) {
	t.Helper()
	late := time.Now().Add(patience)
	for count() > want {
		if time.Now().After(late) {
			t.Fatalf("%d %s, %d before", count(), what, want)
		}
		runtime.Gosched()
	}
}

// Connections that end in all ways, at all times, leave nothing behind. Not
// parallel: it counts the process's descriptors and goroutines.
func TestChurn(t *testing.T) {
	m := start(t, setup{})
	l, to := hostListener(t, "127.0.0.1:0")
	inside := m.listen("127.0.0.1:0", 0)
	inside.warm()
	var peers sync.WaitGroup
	peers.Go(func() {
		for i := 0; ; i++ {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			peers.Go(func() { misbehave(c, i) })
		}
	})
	fds, goroutines, open := descriptors(t), runtime.NumGoroutine(), m.guest.Table.Stats().Open

	const workers, rounds = 8, 40
	var guests sync.WaitGroup
	for w := range workers {
		guests.Go(func() {
			for i := range rounds {
				c, err := m.tryPipe(4096, 4096, 0)
				if err != nil {
					t.Error(err)
					return
				}
				switch (w + i) % 4 {
				case 0: // goes away while the connection is made
					c.Write(wire.AppendOpen(nil, 5, wire.Open{Protocol: wire.ProtocolTCPConnection, Payload: connectTo(to)}))
				case 1: // withdraws an accept
					frame := wire.AppendAcceptConnection(nil, 1, wire.AcceptConnection{Pipe: uint64(c.ID())})
					m.mu.Lock()
					_, err := inside.Write(frame)
					m.mu.Unlock()
					if err != nil {
						t.Error(err)
					}
				default:
					if _, err := open2(c, connectTo(to)); err != nil && !errors.Is(err, unix.ECONNRESET) {
						t.Error(err)
					}
					misbehave(c, i)
				}
				if i%2 == 0 {
					c.Close()
				} else {
					c.Reset(unix.ECONNABORTED)
				}
			}
		})
	}
	guests.Add(1)
	go func() {
		defer guests.Done()
		for range workers * rounds / 4 {
			inside.answer()
		}
	}()
	guests.Wait()
	m.wait("pipes are left", func() bool { return m.guest.Table.Stats().Open == open })
	settled(t, "descriptors", fds, func() int { return descriptors(t) })
	settled(t, "goroutines", goroutines, runtime.NumGoroutine)
	if n := m.server.Stats().Streams; n != 1 {
		t.Errorf("%d streams, want the listener", n)
	}
	l.Close()
	peers.Wait()
}

func open2(c *pipestest.GuestConn, payload []byte) ([]byte, error) {
	return open(c, wire.ProtocolTCPConnection, payload)
}

// misbehave uses one end of a connection in one of several ways and closes it.
func misbehave(c end, i int) {
	defer c.Close()
	switch i % 6 {
	case 0:
	case 1:
		if tcp, ok := c.(*net.TCPConn); ok {
			tcp.SetLinger(0)
		}
	case 2:
		c.Write(make([]byte, 3000))
		c.CloseWrite()
		io.Copy(io.Discard, io.LimitReader(c, 3000))
	case 3:
		c.Write(make([]byte, 3000))
	case 4:
		c.CloseWrite()
		io.Copy(io.Discard, c)
	case 5:
		c.CloseRead()
		c.Write(make([]byte, 3000))
	}
}

// The server stops while it is at work in every place.
func TestStop(t *testing.T) {
	t.Parallel()
	m := start(t, setup{root: share(t)})
	m.pipe() // unused
	m.pipe().Write([]byte("half a header"[:5]))
	idle, idlePeer := m.connected()
	blocked, blockedPeer := m.connected()
	stuff(t, blocked)
	stuff(t, blockedPeer)
	half, halfPeer := m.connected()
	half.CloseWrite()
	wantEOF(t, halfPeer)
	files := m.files(4096)
	files.Write(wire.AppendReadFileRequest(nil, 1, wire.ReadFileRequest{Length: wire.ToEnd, Path: []byte("large")}))
	l := m.listen("127.0.0.1:0", 0)
	l.ask(1, m.pipe().ID())
	waiting := m.listen("127.0.0.1:0", 0)
	backlogged := dialed(t, waiting.at)
	dialing := m.pipe()
	dialing.Write(wire.AppendOpen(nil, 5, wire.Open{
		Protocol: wire.ProtocolTCPConnection, Payload: connectTo(full(t)),
	}))

	m.stop()
	for _, p := range []*net.TCPConn{idlePeer, blockedPeer, backlogged} {
		if _, err := io.Copy(io.Discard, p); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("a peer sees %v", err)
		}
	}
	for _, err := halfPeer.Write([]byte("x")); !gone(err); _, err = halfPeer.Write([]byte("x")) {
		if err != nil {
			t.Error(err)
			break
		}
	}
	for _, g := range []*pipestest.GuestConn{m.control, idle, blocked, half, files, l.GuestConn, dialing} {
		wantReadError(t, g, unix.ECONNRESET)
	}
	if s := m.server.Stats(); s.Streams != 0 {
		t.Errorf("%+v", s)
	}
	m.stop()
}

// A server that is stopped while new streams open ends nevertheless.
func TestStopWhileOpening(t *testing.T) {
	t.Parallel()
	for range 20 {
		m := start(t, setup{})
		_, to := hostListener(t, "127.0.0.1:0")
		var guests sync.WaitGroup
		for range 4 {
			guests.Go(func() {
				for {
					c, err := m.tryPipe(4096, 4096, 0)
					if err != nil {
						return
					}
					open2(c, connectTo(to))
					c.Close()
				}
			})
		}
		c := m.pipe()
		open2(c, connectTo(to))
		m.stop()
		guests.Wait()
	}
}

// The kernel has no descriptors left. Each accept is answered with that, and
// the listener goes on when there are some again.
func TestAcceptWithoutDescriptors(t *testing.T) {
	if os.Getenv("RELAY_TEST_CHILD") == "" {
		t.Parallel()
		// The limit is a process's, so the test runs in one of its own.
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), "RELAY_TEST_CHILD=1")
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS") {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	m := start(t, setup{})
	l := m.listen("127.0.0.1:0", 0)
	first, second := m.pipe(), m.pipe()
	peer := dialed(t, l.at)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	none := limit
	none.Cur = 3
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	l.ask(1, first.ID())
	l.ask(2, second.ID())
	for i := range uint64(2) {
		if request, a := l.answer(); request != i+1 || a.Status != uint32(unix.EMFILE) {
			t.Errorf("request %d got %+v", request, a)
		}
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	l.ask(3, first.ID())
	if request, a := l.answer(); request != 3 || a.Status != 0 {
		t.Fatalf("request %d got %+v", request, a)
	}
	echo(t, first, peer)
}

// full returns the address of a listener whose backlog is full, so that a
// connect to it waits.
func full(t *testing.T) (to netip.AddrPort) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	in4 := sa.(*unix.SockaddrInet4)
	to = netip.AddrPortFrom(netip.AddrFrom4(in4.Addr), uint16(in4.Port))
	dialed(t, to)
	return to
}

// A guest that closes its pipe ends its connect.
func TestConnectAbandoned(t *testing.T) {
	t.Parallel()
	for name, leave := range map[string]func(*pipestest.GuestConn){
		"close": func(c *pipestest.GuestConn) { c.Close() },
		"reset": func(c *pipestest.GuestConn) { c.Reset(unix.ECANCELED) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := start(t, setup{})
			c := m.pipe()
			c.Write(wire.AppendOpen(nil, 5, wire.Open{Protocol: wire.ProtocolTCPConnection, Payload: connectTo(full(t))}))
			m.wait("not opened", func() bool { return m.log.count("stream opened") == 1 })
			leave(c)
			m.wantFree()
		})
	}
}
