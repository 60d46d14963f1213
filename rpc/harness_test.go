package rpc_test

import (
	"context"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/fix-project/arcavm/rpc"
	"github.com/fix-project/arcavm/rpc/rpctest"
	"github.com/fix-project/arcavm/share"
)

func TestMain(m *testing.M) {
	// The guest's CPUs, which spin, are not Go's in a virtual machine.
	runtime.GOMAXPROCS(runtime.NumCPU() + 1)
	goleak.VerifyTestMain(m)
}

// deadline is how long anything may take. Nothing waits for it unless it is
// broken.
const deadline = 60 * time.Second

// machine is a server and the guest that it serves.
type machine struct {
	*rpctest.Guest
	server  *rpc.Server
	listens chan netip.AddrPort
	exits   chan int32
	breaks  chan error
	before  rpctest.Snapshot
	stop    func()
}

func newMachine(t testing.TB, o rpc.Options) *machine {
	t.Helper()
	return newMachineWith(t, o, func(*rpc.Server) {})
}

// newMachineWith has prepare called before the server serves.
func newMachineWith(t testing.TB, o rpc.Options, prepare func(*rpc.Server)) *machine {
	t.Helper()
	m := &machine{listens: make(chan netip.AddrPort, 16), exits: make(chan int32, 16), breaks: make(chan error, 16)}
	if o.RAM == nil {
		o.RAM = rpctest.NewRAM(64 << 20)
	}
	o.OnListen = func(a netip.AddrPort) { m.listens <- a }
	o.OnExit = func(code int32) { m.exits <- code }
	o.OnBroken = func(err error) { m.breaks <- err }
	var err error
	if m.server, err = rpc.New(o); err != nil {
		t.Fatal(err)
	}
	prepare(m.server)
	m.Guest = rpctest.NewGuest(o.RAM, rpctest.Entry(m.server.Entry()))
	m.before = m.Allocator.Snapshot()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.server.Serve(ctx) }()
	stopped := false
	m.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := wait(t, done, "Serve to return"); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(m.stop)
	return m
}

// notify has the guest notify from now on.
func (m *machine) notify() {
	m.NotifyRead = func() { _ = m.server.NotifyRead(0) }
	m.NotifyWrite = func() { _ = m.server.NotifyWrite(0) }
}

func wait[T any](t testing.TB, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(deadline):
		panic("waited in vain for " + what)
	}
}

// settled waits until no pipe but the control pipe is open, and checks that the
// guest's memory is as it was.
func (m *machine) settled(t testing.TB) {
	t.Helper()
	m.until(t, "pipes to be closed", func() bool { return m.server.Stats().Pipes == 1 })
	if diff := cmp.Diff(m.before, m.Allocator.Snapshot()); diff != "" {
		t.Errorf("the allocator isn't as it was: %s", diff)
	}
	if n := m.server.Stats().Broken; n != 0 {
		t.Errorf("%d pipes were broken", n)
	}
}

// until waits for something that has no event of its own.
func (m *machine) until(t testing.TB, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(deadline); !f(); <-tick.C {
		if time.Now().After(end) {
			t.Fatal("waited in vain for ", what)
		}
	}
}

func openFiles(t testing.TB) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

func shared(t testing.TB, writable bool) (string, rpc.Share) {
	t.Helper()
	dir := t.TempDir()
	s, err := share.Open(dir, writable)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return dir, s
}
