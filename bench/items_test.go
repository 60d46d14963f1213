package bench

import (
	"errors"
	"math"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/kvm"
	"github.com/fix-project/arcavm/pipes/guest"
	"github.com/fix-project/arcavm/vmm"
	"github.com/fix-project/arcavm/vmm/vmmtest"
)

// measureQuickly runs an item once and returns its figures by name. The test
// fails if a figure isn't a number or the item failed.
func measureQuickly(t *testing.T, it item) (*Report, map[string]Figure) {
	t.Helper()
	report, err := run(t.Context(), Options{Quick: true, Rounds: 1}, []item{it})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range report.Failed {
		t.Errorf("%s: %s", f.Name, f.Reason)
	}
	figures := map[string]Figure{}
	for _, f := range report.Figures {
		v := f.Ours.Median
		if math.IsNaN(v) || math.IsInf(v, 0) || v < 0 && !strings.Contains(f.Name, "memory") {
			t.Errorf("%s: %v", f.key(), f.Ours)
		}
		if _, twice := figures[f.key()]; twice {
			t.Errorf("%s: twice", f.key())
		}
		figures[f.key()] = f
	}
	return report, figures
}

// wantFigures fails unless each text is in the names of figures, none of which
// is 0.
func wantFigures(t *testing.T, figures map[string]Figure, texts ...string) {
	t.Helper()
	for _, text := range texts {
		found := false
		for name, f := range figures {
			if strings.Contains(name, text) {
				found = true
				if f.Ours.Median == 0 {
					t.Errorf("%s is 0", name)
				}
			}
		}
		if !found {
			t.Errorf("no figure %q", text)
		}
	}
}

// needKVM skips the test where there is no KVM, or fails it where there should
// be.
func needKVM(t *testing.T) {
	t.Helper()
	system, err := kvm.Open("")
	if err != nil {
		vmmtest.Unavailable(t, err)
	}
	system.Close()
}

func TestRoundTripGo(t *testing.T) {
	t.Parallel()
	_, figures := measureQuickly(t, item{"round trip", roundTripGo})
	wantFigures(t, figures, "guest end in Go, p50",
		"guest end in Go and an echo by two goroutines, p99",
		"guest end in Go, in its interrupt handler, p99.9")
}

func TestBulk(t *testing.T) {
	t.Parallel()
	for _, toGuest := range []bool{false, true} {
		b := bulk{toGuest: toGuest, streams: 3, rings: []uint32{64 << 10, mebibyte}}
		report, figures := measureQuickly(t, item{b.name(), b.runGo})
		wantFigures(t, figures, "ring 64 KiB, "+movingEnd+": throughput",
			"ring 1024 KiB, "+copyingEnd+": throughput", "processor time and a proxy's",
			"ring 64 KiB, "+movingEnd+": notifications by the guest",
			"ring 64 KiB, "+movingEnd+": signals", "chunks")
		if report.Counted != "" {
			wantFigures(t, figures, "system calls of both ends")
		}
		for name, f := range figures {
			if !strings.HasSuffix(name, ": throughput") {
				continue
			}
			if f.Point == nil || f.Point.Streams != 3 {
				t.Errorf("%s: %+v", name, f.Point)
			}
		}
	}
}

func TestBulkBooted(t *testing.T) {
	t.Parallel()
	needKVM(t)
	for _, toGuest := range []bool{false, true} {
		b := bulk{toGuest: toGuest, streams: 2, rings: []uint32{256 << 10}}
		_, figures := measureQuickly(t, item{b.name(), b.runBooted})
		wantFigures(t, figures, "ring 256 KiB, "+bootedEnd+": throughput",
			"exits to the monitor", "hypercalls", "notifications by the guest")
	}
}

func TestConnections(t *testing.T) {
	t.Parallel()
	_, figures := measureQuickly(t, item{"connections", connectionsGo})
	wantFigures(t, figures, "close; guest end in Go",
		"guest end in Go: processor time, both ends", "guest end in Go: allocations, both ends")
}

func TestConnectionsBooted(t *testing.T) {
	t.Parallel()
	needKVM(t)
	_, figures := measureQuickly(t, item{"connections", connectionsBooted})
	wantFigures(t, figures, "booted guest")
}

func TestRoundTripBooted(t *testing.T) {
	t.Parallel()
	needKVM(t)
	_, figures := measureQuickly(t, item{"round trip", roundTripBooted})
	wantFigures(t, figures, "booted guest, p50", "floor of a hypercall")
	f := figures[roundTrips+": booted guest, p50"]
	exit := figures[roundTrips+": floor of a hypercall: a bare port exit"]
	if f.Target == nil || exit.Ours.Median <= 0 {
		t.Errorf("no floor: %+v", f)
	}
}

func TestFairness(t *testing.T) {
	t.Parallel()
	_, figures := measureQuickly(t, item{"fairness", fairness})
	wantFigures(t, figures, "guest end in Go: round trip of 64 bytes, p99",
		"plain sockets: round trip of 64 bytes, p99")
	if f := figures[fairGroup+": guest end in Go: p99 by that without the one"]; f.Target == nil {
		t.Errorf("fairness has no target: %+v", f)
	}
}

// Without KVM the booted guest is missing, and the other sides are measured.
func TestIdle(t *testing.T) {
	t.Parallel()
	report, figures := measureQuickly(t, item{"streams at once", idle{[]int{10, 150}}.run})
	wantFigures(t, figures, "10 streams at once: guest end in Go: processor time, idle",
		"150 streams at once: guest end in Go: 2 of them active, round trip p99")
	if len(report.Missing) == 0 {
		wantFigures(t, figures, "150 streams at once: booted guest: host memory")
	}
}

func TestFloors(t *testing.T) {
	t.Parallel()
	needKVM(t)
	s := newScope(t.Context())
	f, err := s.floors()
	if errors.Is(err, errMissing) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	exit, err := f.exit(s.ctx)
	if err != nil {
		t.Fatal(err)
	}
	both, err := f.interruptAndExit(s.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if exit.micros(0.5) <= 0 || both.micros(0.5) <= exit.micros(0.5) {
		t.Errorf("exit %v µs, interrupt and exit %v µs", exit.micros(0.5), both.micros(0.5))
	}
	if err := s.close(); err != nil {
		t.Error(err)
	}
	if _, err := f.exit(s.ctx); err == nil {
		t.Error("floors work after their scope's end")
	}
}

// A guest that ends by itself is an error of the scope, whatever was measured.
func TestGuestThatEnds(t *testing.T) {
	t.Parallel()
	needKVM(t)
	s := newScope(t.Context())
	if _, err := s.boot("echo", vmm.Config{}, "not a number"); err == nil || !strings.Contains(err.Error(), "exit") {
		t.Errorf("a guest with a bad argument: %v", err)
	}
	if err := s.close(); err == nil {
		t.Error("the scope has no error")
	}
}

// A wake-up of the monitor that is lost is an error of the scope.
func TestLostWakeup(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("the watchdog takes seconds")
	}
	s, g, p, peer := connected(t)
	untilWaiting(g, p, guest.Outgoing)
	// The guest moves its cursor and clears the flag, but doesn't notify.
	at := p.Descriptor().Header
	g.Guest.Store(at+uint64(guest.Outgoing)+64+8, 0)
	g.Guest.Store(at+uint64(guest.Outgoing), g.Guest.Load(at+uint64(guest.Outgoing))+8)
	if err := peer.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := peer.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	if err := s.close(); !errors.Is(err, errBroken) {
		t.Errorf("got %v", err)
	}
}

// connected makes a guest in Go with a connection, and its peer.
func connected(t *testing.T) (*scope, *rig, *guest.Conn, *net.TCPConn) {
	t.Helper()
	s := newScope(t.Context())
	g, err := s.rig(16<<20, 4)
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.listen()
	if err != nil {
		t.Fatal(err)
	}
	p, peer, err := g.connect(l, 64<<10, 64<<10)
	if err != nil {
		t.Fatal(err)
	}
	s.keep(peer)
	return s, g, p, peer
}

// untilWaiting returns when the consumer of a ring waits.
func untilWaiting(g *rig, p *guest.Conn, ring guest.Ring) {
	waiting := p.Descriptor().Header + uint64(ring) + 72 // the consumer's state and flag
	for g.Guest.Load(waiting)>>32 == 0 {
		runtime.Gosched()
	}
}

// A wake-up of the guest that is lost is an error of the scope, even if the
// item ends before anything else shows it.
func TestLostInterrupt(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("the watchdog takes seconds")
	}
	s, g, p, peer := connected(t)
	g.users.Go(func() { echo(p) })
	untilWaiting(g, p, guest.Incoming)
	g.Guest.LoseInterrupts(1)
	before := g.counts().pipes.Doorbells
	if _, err := peer.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	for g.counts().pipes.Doorbells == before {
		runtime.Gosched()
	}
	if err := s.close(); !errors.Is(err, errBroken) {
		t.Errorf("got %v", err)
	}
}

func TestPartThatIsUnknown(t *testing.T) {
	t.Parallel()
	s := newScope(t.Context())
	p, err := s.part("nonexistent", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.do(request{Op: "start"}); err == nil || !strings.Contains(err.Error(), "no such part") {
		t.Errorf("got %v", err)
	}
	if err := s.close(); err != nil {
		t.Errorf("told twice: %v", err)
	}
	s = newScope(t.Context())
	if p, err = s.part("server", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := p.do(request{Op: "xyzzy"}); err == nil || !strings.Contains(err.Error(), "xyzzy") {
		t.Errorf("got %v", err)
	}
	if err := p.cmd.Process.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := s.close(); err == nil {
		t.Error("a part was killed, and the scope has no error")
	}
}
