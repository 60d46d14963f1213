// Package vmmtest boots guests in tests.
//
//	g := vmmtest.Boot(t, vmm.Config{Image: img, Args: []string{"127.0.0.1:0"}})
//	resp, err := http.Get("http://" + g.Addr().String())
//
// The guest ends with the test, and a little before go test's -timeout. On a machine without a usable KVM the test is
// skipped with the reason, or fails if ARCAVM_REQUIRE_KVM=1 is set.
package vmmtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fix-project/arcavm/hypercall"
	"github.com/fix-project/arcavm/kvm"
	"github.com/fix-project/arcavm/relay"
	"github.com/fix-project/arcavm/testdata/images"
	"github.com/fix-project/arcavm/vmm"
	"github.com/fix-project/arcavm/vmm/image"
)

// limit is when a guest's time is up, and that of all that waits for it: a little before the test's own, so that it can still report. Without a deadline
// (-timeout 0, benchmarks) it is never.
func limit(t testing.TB) (context.Context, context.CancelFunc) {
	test, ok := t.(interface{ Deadline() (time.Time, bool) })
	if !ok {
		return context.WithCancel(context.Background())
	}
	deadline, ok := test.Deadline()
	if !ok {
		return context.WithCancel(context.Background())
	}
	return context.WithDeadline(context.Background(), deadline.Add(-min(10*time.Second, time.Until(deadline)/10)))
}

// watchInterval is short enough that a wake-up lost in a short test is noticed.
const watchInterval = 100 * time.Millisecond

// Guest is a VM that runs in a test. Methods that wait end the test, as [testing.T.FailNow] does, if what they wait for can't come any
// more: they are for the test's goroutine. The others may be called from any.
type Guest struct {
	VM *vmm.VM

	t      testing.TB
	limit  context.Context
	cancel context.CancelFunc
	addrs  chan netip.AddrPort
	output *journal // console
	log    *journal

	careless bool

	done chan struct{}
	code int
	err  error
}

// Image returns one of the committed test images; a name that there isn't is a panic.
func Image(t testing.TB, name string) *image.Image {
	t.Helper()
	img, err := image.ParseBytes(images.Bytes(name), name)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// Unavailable skips the test because KVM can't be used, or fails it if
// ARCAVM_REQUIRE_KVM=1 is set.
func Unavailable(t testing.TB, err error) {
	t.Helper()
	if os.Getenv("ARCAVM_REQUIRE_KVM") == "1" {
		t.Fatalf("ARCAVM_REQUIRE_KVM=1, but: %v", err)
	}
	t.Skipf("%v; `arcavm doctor` says what to do", err)
}

// Boot starts a guest. What it writes to its console and where it listens is collected for [Guest.Console] and [Guest.Addr], beside
// what cfg's Console and OnListen get; the log for [Guest.Log], if cfg has no Logger of its own. Its Network, if nil,
// is [relay.Host]: a guest in a test may connect to this machine. Its WatchInterval, if 0, is a tenth of a second.
func Boot(t testing.TB, cfg vmm.Config) *Guest {
	t.Helper()
	g := &Guest{t: t, addrs: make(chan netip.AddrPort, 64), output: newJournal(), log: newJournal(), done: make(chan struct{})}
	if cfg.Console == nil {
		cfg.Console = g.output
	} else {
		cfg.Console = io.MultiWriter(cfg.Console, g.output)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.NewTextHandler(g.log, &slog.HandlerOptions{Level: hypercall.SlogTrace}))
	}
	if cfg.Network == nil {
		cfg.Network = relay.Host{}
	}
	tell := cfg.OnListen
	cfg.OnListen = func(a netip.AddrPort) {
		if tell != nil {
			tell(a)
		}
		select {
		case g.addrs <- a:
		default:
		}
	}
	if cfg.WatchInterval == 0 {
		cfg.WatchInterval = watchInterval
	}
	vm, err := vmm.New(cfg)
	var missing *kvm.UnavailableError
	if errors.As(err, &missing) {
		Unavailable(t, err)
	}
	if err != nil {
		t.Fatalf("making the VM: %v", err)
	}
	limited, release := limit(t)
	t.Cleanup(release)
	ctx, cancel := context.WithCancel(limited)
	g.VM, g.limit, g.cancel = vm, limited, cancel
	go func() {
		defer close(g.done)
		defer g.output.close()
		defer g.log.close()
		g.code, g.err = vm.Run(ctx)
	}()
	t.Cleanup(g.stop)
	return g
}

func (g *Guest) stop() {
	ended := "it ran until the test's end"
	select {
	case <-g.done:
		ended = fmt.Sprintf("it ended before the test: code %d, %v", g.code, g.err)
	default:
	}
	g.cancel()
	<-g.done
	s := g.VM.Stats().Pipes
	if s.Rescued > 0 && !g.careless {
		g.t.Errorf("%d wake-ups of the monitor were lost", s.Rescued)
	}
	if s.Forgotten > 0 && !g.careless {
		g.t.Errorf("%d wake-ups of the guest were lost", s.Forgotten)
	}
	if g.t.Failed() {
		g.t.Logf("guest's log:\n%s\nguest's console:\n%s\n%s", g.Log(), g.Console(), ended)
	}
}

// AllowLostWakeups lets the test pass although the guest owes its monitor notifications, as a hostile one does.
func (g *Guest) AllowLostWakeups() { g.careless = true }

// Addr waits for the guest to listen and returns the address; each call returns the next one, of which 64 are kept.
func (g *Guest) Addr() netip.AddrPort {
	g.t.Helper()
	select {
	case a := <-g.addrs:
		return a
	case <-g.done:
		select {
		case a := <-g.addrs:
			return a
		default:
		}
		g.t.Fatalf("the guest ended before it listened: code %d, %v", g.code, g.err)
	case <-g.limit.Done():
		g.t.Fatal("the guest doesn't listen")
	}
	panic("unreachable")
}

// Wait waits for the guest's end and returns what [vmm.VM.Run] returned.
func (g *Guest) Wait() (int, error) {
	g.t.Helper()
	select {
	case <-g.done:
	case <-g.limit.Done():
		g.t.Fatal("the guest doesn't end")
	}
	return g.code, g.err
}

// Cancel ends the guest at once, as cancelling the context of [vmm.VM.Run] does.
func (g *Guest) Cancel() { g.cancel() }

// Console returns what the guest has written to its debug console so far.
func (g *Guest) Console() string { return g.output.String() }

// Log returns the log so far, a line for each record.
func (g *Guest) Log() string { return g.log.String() }

// WaitLog waits until the log contains text. With a Logger of the test's own it never does.
func (g *Guest) WaitLog(text string) {
	g.t.Helper()
	if !g.log.wait(text, g.limit.Done()) {
		g.t.Fatalf("the guest's log never said %q", text)
	}
}

// WaitConsole waits until the console's output contains text.
func (g *Guest) WaitConsole(text string) {
	g.t.Helper()
	if !g.output.wait(text, g.limit.Done()) {
		g.t.Fatalf("the guest's console never said %q", text)
	}
}

// journal is a growing text that one can wait on.
type journal struct {
	mu      sync.Mutex
	text    strings.Builder
	changed chan struct{} // closed and replaced at each change
	closed  bool
}

func newJournal() *journal { return &journal{changed: make(chan struct{})} }

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.text.Write(p)
	j.announce()
	return len(p), nil
}

func (j *journal) close() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.closed = true
	j.announce()
}

func (j *journal) announce() {
	close(j.changed)
	j.changed = make(chan struct{})
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

// wait reports whether text came before the limit, and before the journal was closed.
func (j *journal) wait(text string, limit <-chan struct{}) bool {
	for {
		j.mu.Lock()
		found, closed, changed := strings.Contains(j.text.String(), text), j.closed, j.changed
		j.mu.Unlock()
		if found || closed {
			return found
		}
		select {
		case <-changed:
		case <-limit:
			return false
		}
	}
}
