package rpc_test

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/rpc"
	"github.com/fix-project/arcavm/rpc/message"
	"github.com/fix-project/arcavm/rpc/rpctest"
)

// TestPipeLimit has the guest ask for more pipes than it may have, giving back
// the memory of those that it has.
func TestPipeLimit(t *testing.T) {
	t.Parallel()
	m := newMachine(t, rpc.Options{Pipes: 3})
	m.Listen(loopback, 0)
	m.Listen(loopback, 0)
	if r, ok := m.Ask(message.Connect{}).(message.Err); !ok {
		t.Errorf("a pipe too many: %v", r)
	}
	if s := m.server.Stats(); s.PipesLimited != 1 || s.Pipes != 3 {
		t.Errorf("%d pipes, %d refused", s.Pipes, s.PipesLimited)
	}
}

// stuckNetwork never connects, and doesn't give up by itself.
type stuckNetwork struct {
	network.Host
	dialing chan struct{}
}

func (n stuckNetwork) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	n.dialing <- struct{}{}
	<-ctx.Done()
	return nil, ctx.Err()
}

// TestCloseWhileConnecting closes and drops streams whose connection doesn't
// come about: neither has to wait for that.
func TestCloseWhileConnecting(t *testing.T) {
	t.Parallel()
	network := stuckNetwork{dialing: make(chan struct{}, 3)}
	m := newMachine(t, rpc.Options{Network: network})
	closed, dropped, left := m.Connect("nobody", 1), m.Connect("nobody", 1), m.Connect("nobody", 1)
	for range 3 {
		wait(t, network.dialing, "an attempt to connect")
	}
	closed.Close()
	dropped.Drop()
	m.until(t, "the streams to end", func() bool { return m.server.Stats().Pipes == 2 })
	// The server's end is that of an attempt, too.
	left.Send(message.AppendStreamRequest(nil, message.StreamRequest{Op: message.StreamReceive, Length: 1}))
	m.stop()
}

type foreignNetwork struct{ network.Host }

type foreignListener struct{ net.Listener }

func (foreignListener) Addr() net.Addr { return &net.UnixAddr{Name: "elsewhere", Net: "unix"} }

func (n foreignNetwork) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	ln, err := n.Host.Listen(ctx, network, address)
	return foreignListener{ln}, err
}

// TestForeignListener gives the guest a listener that has no address of TCP: it
// is one at which no client arrives.
func TestForeignListener(t *testing.T) {
	t.Parallel()
	m := newMachine(t, rpc.Options{Network: foreignNetwork{}})
	m.Listen(loopback, 0).Close()
	m.settled(t)
}

// emptyNetwork gives nothing, and no error either.
type emptyNetwork struct{ network.Host }

func (emptyNetwork) DialContext(context.Context, string, string) (net.Conn, error) { return nil, nil }
func (emptyNetwork) Listen(context.Context, string, string) (net.Listener, error)  { return nil, nil }

// emptyListener is a listener that gives nothing, and tells when it is asked.
type emptyListener struct {
	net.Listener
	asked chan struct{}
}

func (l emptyListener) Accept() (net.Conn, error) {
	select {
	case l.asked <- struct{}{}:
	default:
	}
	return nil, nil
}

type listenerNetwork struct {
	network.Host
	asked chan struct{}
}

func (n listenerNetwork) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	ln, err := n.Host.Listen(ctx, network, address)
	return emptyListener{ln, n.asked}, err
}

// TestNetworkThatGivesNothing has what the network doesn't give end for the
// guest as what it refuses does.
func TestNetworkThatGivesNothing(t *testing.T) {
	t.Parallel()
	m := newMachine(t, rpc.Options{Network: emptyNetwork{}})
	s := m.Connect("192.0.2.1", 1)
	if n := s.Read(make([]byte, 1)); n != 0 {
		t.Errorf("received %d", n)
	}
	s.Close()
	m.Listen(loopback, 0).Close()
	m.settled(t)

	// No client arrives.
	network := listenerNetwork{asked: make(chan struct{})}
	m = newMachine(t, rpc.Options{Network: network})
	m.Listen(loopback, 0).Send(message.AppendListenerRequest(nil, message.ListenerAccept))
	for range 2 {
		wait(t, network.asked, "an accept")
	}
	m.stop()
}

// lockedBuffer may be written and read by several goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *lockedBuffer) Len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Len()
}

// TestLongNames sends paths and hosts that no system has: they are refused, and
// little of them gets into the log.
func TestLongNames(t *testing.T) {
	t.Parallel()
	_, share := shared(t, true)
	var log lockedBuffer
	m := newMachine(t, rpc.Options{Share: share, Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	long := strings.Repeat("a/", 30_000)
	if f, kind := m.Open(long, create); f != nil || kind != message.Other {
		t.Errorf("a path of %d bytes was opened, or %v", len(long), kind)
	}
	if _, ok := m.Mkdir(long); ok {
		t.Errorf("a path of %d bytes was made", len(long))
	}
	s := m.Connect(strings.Repeat("\x1b", 60_000), 1)
	if n := s.Read(make([]byte, 1)); n != 0 {
		t.Errorf("received %d", n)
	}
	s.Close()
	m.settled(t)
	if n := log.Len(); n > 10_000 {
		t.Errorf("%d bytes of log", n)
	}
	if n := m.server.Stats().ConnectsFailed; n != 1 {
		t.Errorf("%d connections failed", n)
	}
}

// TestOnlyRegularFiles has no FIFO opened, where a guest's read would wait for
// ever.
func TestOnlyRegularFiles(t *testing.T) {
	t.Parallel()
	dir, share := shared(t, true)
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	m := newMachine(t, rpc.Options{Share: share})
	for _, mode := range []message.Mode{read, create, {Read: true, Write: true}} {
		if f, kind := m.Open("fifo", mode); f != nil || kind != message.InvalidInput {
			t.Errorf("%+v: opened, or %v", mode, kind)
		}
	}
	m.settled(t)
}

// TestAbandonedListenerWithoutMemory drops a listener while no pipe can be
// made: the next client is the listener's end all the same.
func TestAbandonedListenerWithoutMemory(t *testing.T) {
	t.Parallel()
	m := newMachine(t, rpc.Options{RAM: rpctest.NewRAM(1 << 20)})
	l, address := m.listen(t)
	l.Send([]byte{0})
	m.until(t, "the accept to be taken", func() bool { return m.server.Stats().Requests >= 2 })
	for m.Allocator.Alloc(4096) != 0 {
	}
	l.Drop()
	dial(t, address)
	m.until(t, "the listener to end", func() bool { return m.server.Stats().Pipes == 1 })
}
