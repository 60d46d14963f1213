// Package vmmtest boots guests in tests.
//
//	cfg := vmm.Config{Image: img, Args: []string{"127.0.0.1:0"}}
//	g := vmmtest.Boot(t, cfg)
//	resp, err := http.Get("http://" + g.Addr().String())
//
// The guest ends with the test. A guest that dies before fails the test: see
// [Boot]. On a machine without a usable KVM the test is skipped with the
// reason, or fails if ARCAVM_REQUIRE_KVM=1 is set.
//
// # Glossary
//
//	guest      a VM that runs in a test
//	death      an end that no test wants: a crash, or a code that isn't 0
//	report     what the guest's CPUs were doing, as package vmm tells it
//	journal    the text of a guest's console or log, which a test can wait for
//	patience   how long a method waits: see [Guest.Within]
package vmmtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fix-project/arcavm/hypercall"
	"github.com/fix-project/arcavm/internal/printable"
	"github.com/fix-project/arcavm/kvm"
	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/testdata/images"
	"github.com/fix-project/arcavm/vmm"
	"github.com/fix-project/arcavm/vmm/image"
)

// limit is the context of a guest, and of all that waits for it. It ends a
// tenth of the test's time before the test's deadline, at most 10 seconds, so
// that there is time for a report. Without a deadline it doesn't end.
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

// Guest is a VM that runs in a test.
//
// A method that waits ends the test, as [testing.T.FailNow] does, if what it
// waits for can't come any more or its time is up: then it says what every CPU
// was doing. It waits until shortly before the test's deadline (a tenth of what
// go test's -timeout has left when the guest boots, at most 10 seconds, before
// it), or as long as [Guest.Within] says. Without a deadline, as in a benchmark
// or with -timeout 0, it waits forever. Methods that wait are for the test's
// goroutine; the others may be called from any.
type Guest struct {
	VM *vmm.VM

	*run
	patience time.Duration // of what waits; 0: until the run's limit
}

// run is what all views of a guest, see [Guest.Within], have in common.
type run struct {
	t      testing.TB
	limit  context.Context
	cancel context.CancelFunc
	addrs  chan netip.AddrPort
	output *journal // console
	log    *journal

	careless atomic.Bool // AllowLostWakeups
	mayDie   atomic.Bool // AllowDeath, or Wait has returned how it ended
	reported atomic.Bool // the report is in the test's output

	done chan struct{}
	code int
	err  error
}

// Image returns one of the committed test images. An unknown name ends the test
// with the list of those that there are.
func Image(t testing.TB, name string) *image.Image {
	t.Helper()
	if !slices.Contains(images.Names(), name) {
		t.Fatalf("there is no test image %q; there are %s", name, strings.Join(images.Names(), ", "))
	}
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

// Boot starts a guest.
//
// The test fails if the guest dies, exits with a code other than 0, or its
// monitor fails, unless the test asks how it ended by [Guest.Wait], or has
// called [Guest.AllowDeath]. When the test fails, for whatever reason, its
// output has the guest's report, log and console in it. The end of the test
// ends a guest that is still at work; how it would have ended isn't known.
//
// What the guest writes to its console and log, and where it listens, is
// collected for [Guest.Console], [Guest.Log] and [Guest.Addr], beside what
// cfg's Console, Logger and OnListen get. Cfg's Network, if nil, is
// [network.Host]: a guest in a test may connect to this machine. Its
// WatchInterval, if 0, is a tenth of a second.
func Boot(t testing.TB, cfg vmm.Config) *Guest {
	t.Helper()
	r := &run{t: t, addrs: make(chan netip.AddrPort, 64), output: newJournal(), log: newJournal(), done: make(chan struct{})}
	g := &Guest{run: r}
	if cfg.Console == nil {
		cfg.Console = g.output
	} else {
		cfg.Console = io.MultiWriter(cfg.Console, g.output)
	}
	cfg.Logger = g.logger(cfg.Logger)
	if cfg.Network == nil {
		cfg.Network = network.Host{}
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
	g.VM, r.limit, r.cancel = vm, limited, cancel
	go func() {
		defer close(r.done)
		defer r.output.close()
		defer r.log.close()
		r.code, r.err = vm.Run(ctx)
	}()
	t.Cleanup(g.stop)
	return g
}

// logger collects the log, beside the Logger that the test has.
func (g *Guest) logger(own *slog.Logger) *slog.Logger {
	journal := slog.NewTextHandler(g.log, &slog.HandlerOptions{Level: hypercall.SlogTrace})
	if own == nil {
		return slog.New(journal)
	}
	return slog.New(slog.NewMultiHandler(journal, own.Handler()))
}

// stop ends the guest with its test, and judges it.
func (g *Guest) stop() {
	g.t.Helper()
	running := ""
	if g.t.Failed() && !g.over() && !g.reported.Load() {
		// The guest may be about to end: then the report of its end counts.
		running, _ = g.now()
	}
	g.cancel()
	<-g.done
	if died := g.death(); died != "" && !g.mayDie.Load() {
		g.t.Errorf("%s; a test that wants it asks by Wait, or says AllowDeath", died)
	}
	s := g.VM.Stats().Pipes
	if s.Rescued > 0 && !g.careless.Load() {
		g.t.Errorf("%d wake-ups of the monitor were lost", s.Rescued)
	}
	if s.Forgotten > 0 && !g.careless.Load() {
		g.t.Errorf("%d wake-ups of the guest were lost", s.Forgotten)
	}
	if !g.t.Failed() {
		return
	}
	ended := "the guest ran until the test ended it" + running
	if g.err == nil || g.death() != "" {
		ended = g.ending() + g.doing()
	}
	// The output is for a terminal that isn't the guest's: what could steer it
	// is escaped.
	g.t.Logf("%s", printable.String(fmt.Sprintf("guest's log:\n%s\nguest's console:\n%s\n%s", g.Log(), g.Console(), ended)))
}

// over reports whether the guest has ended.
func (r *run) over() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

// death says how the guest died; "" if it didn't, but ended in good order, by
// itself or because it was ended.
func (r *run) death() string {
	switch {
	case errors.Is(r.err, context.Canceled), errors.Is(r.err, vmm.ErrClosed):
		return ""
	case r.err != nil:
		return firstLine(r.err.Error())
	case r.code != 0:
		return fmt.Sprintf("the guest exited with code %d", r.code)
	}
	return ""
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// ending says how the guest ended, which it has.
func (r *run) ending() string {
	if r.err != nil {
		return "the guest has ended: " + firstLine(r.err.Error())
	}
	return fmt.Sprintf("the guest has ended: code %d", r.code)
}

// endPatience is how long a report waits for a VM that is ending.
const endPatience = 5 * time.Second

// doing is the guest's report in lines of their own: of its death, or of what
// it does now. It is "" if there is none, or the test's output has it already.
func (g *Guest) doing() string {
	if g.reported.Swap(true) {
		return ""
	}
	if text, running := g.now(); running {
		return text
	}
	select {
	case <-g.done:
	case <-time.After(endPatience):
		return "\nthe guest ends, but its monitor doesn't come back: a function, writer or Logger of its Config blocks"
	}
	var report interface{ WriteReport(io.Writer) error }
	var crash *vmm.CrashError
	var hang *vmm.HangError
	switch {
	case errors.As(g.err, &crash):
		report = crash
	case errors.As(g.err, &hang):
		report = hang
	default:
		return ""
	}
	return inLines(report)
}

// now is the report of a guest that runs, in lines of their own. It reports
// whether the guest does.
func (g *Guest) now() (string, bool) {
	r, err := g.VM.Report()
	if err != nil {
		return "", false
	}
	return inLines(r), true
}

func inLines(report interface{ WriteReport(io.Writer) error }) string {
	var b strings.Builder
	b.WriteString("\n")
	_ = report.WriteReport(&b)
	return b.String()
}

// AllowLostWakeups lets the test pass although the guest owes its monitor
// notifications, as a hostile one does.
func (g *Guest) AllowLostWakeups() { g.careless.Store(true) }

// AllowDeath lets the test pass although the guest dies or exits with a code
// other than 0, or its monitor fails, and the test doesn't ask by [Guest.Wait].
func (g *Guest) AllowDeath() { g.mayDie.Store(true) }

// Within returns the guest with methods that wait for d at most:
//
//	g.Within(5 * time.Second).WaitLog("ready")
func (g *Guest) Within(d time.Duration) *Guest {
	return &Guest{VM: g.VM, run: g.run, patience: d}
}

// time is when a wait is over.
func (g *Guest) time() (context.Context, context.CancelFunc) {
	if g.patience == 0 {
		return context.WithCancel(g.limit)
	}
	return context.WithTimeout(g.limit, g.patience)
}

// fail ends the test because what it waited for didn't come.
func (g *Guest) fail(what string) {
	g.t.Helper()
	if g.over() {
		g.t.Fatalf("the guest %s; %s%s", what, g.ending(), g.doing())
	}
	until := "before the test's time was up"
	if g.patience != 0 && g.limit.Err() == nil {
		until = fmt.Sprintf("within %v", g.patience)
	}
	g.t.Fatalf("the guest %s %s%s", what, until, g.doing())
}

// Addr waits for the guest to listen and returns the address; each call returns
// the next one, of which 64 are kept.
func (g *Guest) Addr() netip.AddrPort {
	g.t.Helper()
	ctx, cancel := g.time()
	defer cancel()
	select {
	case a := <-g.addrs:
		return a
	case <-g.done:
	case <-ctx.Done():
	}
	select {
	case a := <-g.addrs:
		return a
	default:
	}
	g.fail("didn't listen")
	panic("unreachable")
}

// Wait waits for the guest's end and returns what [vmm.VM.Run] returned.
func (g *Guest) Wait() (int, error) {
	g.t.Helper()
	ctx, cancel := g.time()
	defer cancel()
	select {
	case <-g.done:
	case <-ctx.Done():
		g.fail("didn't end")
	}
	g.mayDie.Store(true)
	return g.code, g.err
}

// Cancel ends the guest at once, as cancelling the context of [vmm.VM.Run]
// does.
func (g *Guest) Cancel() { g.cancel() }

// Console returns what the guest has written to its debug console so far.
func (g *Guest) Console() string { return g.output.String() }

// Log returns the log so far, of all levels, a line for each record.
func (g *Guest) Log() string { return g.log.String() }

// WaitLog waits until the log, of all levels, contains text.
func (g *Guest) WaitLog(text string) {
	g.t.Helper()
	g.wait(g.log, "log", text)
}

// WaitConsole waits until the console's output contains text.
func (g *Guest) WaitConsole(text string) {
	g.t.Helper()
	g.wait(g.output, "console", text)
}

func (g *Guest) wait(j *journal, name, text string) {
	g.t.Helper()
	ctx, cancel := g.time()
	defer cancel()
	if !j.wait(text, ctx.Done()) {
		if ctx.Err() == nil {
			<-g.done // the journal was closed; this follows
		}
		g.fail(fmt.Sprintf("didn't say %q on its %s", text, name))
	}
}
