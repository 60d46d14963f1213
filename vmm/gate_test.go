package vmm

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// gated is a VM of CPUs without a guest: each counts while it is inside, and
// leaves after every step, as if it was kicked each time.
type gated struct {
	*VM
	counts  []atomic.Uint64
	threads sync.WaitGroup
}

func newGated(cpus int) *gated {
	return &gated{VM: &VM{life: newLife()}, counts: make([]atomic.Uint64, cpus)}
}

func (v *gated) start() {
	for i := range v.counts {
		c := &cpu{index: i}
		v.gate.arrive(c)
		v.threads.Go(func() {
			defer v.gate.leave(c, placeNone)
			v.gate.enter(c)
			for !v.gate.ending() {
				v.counts[i].Add(1)
				runtime.Gosched()
				v.gate.pass(c)
			}
		})
	}
}

func (v *gated) stop() {
	v.end(outcome{})
	v.threads.Wait()
}

func (v *gated) count() (n uint64) {
	for i := range v.counts {
		n += v.counts[i].Load()
	}
	return n
}

// moves waits until every CPU has counted.
func (v *gated) moves(t *testing.T) {
	t.Helper()
	for i := range v.counts {
		for before := v.counts[i].Load(); v.counts[i].Load() == before; {
			if t.Context().Err() != nil {
				t.Fatal("the CPUs stand")
			}
			runtime.Gosched()
		}
	}
}

func TestGate(t *testing.T) {
	t.Parallel()
	v := newGated(4)
	ctx := t.Context()
	if err := v.Resume(); !errors.Is(err, ErrNotPaused) {
		t.Errorf("Resume of what isn't paused: %v", err)
	}
	// Before the start, and twice.
	for range 2 {
		if err := v.Pause(ctx); err != nil {
			t.Fatal(err)
		}
	}
	v.start()
	if err := v.Resume(); err != nil {
		t.Fatal(err)
	}
	if n := v.count(); n != 0 {
		t.Errorf("the CPUs have counted to %d before the second Resume", n)
	}
	if err := v.Resume(); err != nil {
		t.Fatal(err)
	}
	v.moves(t)
	// A report's hold isn't what Resume ends.
	<-v.hold()
	if err := v.Resume(); !errors.Is(err, ErrNotPaused) {
		t.Errorf("Resume of what a report holds: %v", err)
	}
	before := v.count()
	if err := v.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	v.gate.release()
	if n := v.count(); n != before {
		t.Errorf("the CPUs have gone on to %d from %d", n, before)
	}
	// The end of a paused VM.
	v.stop()
	if n := v.count(); n != before {
		t.Errorf("the CPUs have gone on to %d from %d at the end", n, before)
	}
	if err := v.Pause(ctx); !errors.Is(err, ErrClosed) {
		t.Errorf("Pause after the end: %v", err)
	}
	done, cancel := context.WithCancel(ctx)
	cancel()
	if err := v.Pause(done); !errors.Is(err, ErrClosed) {
		t.Errorf("Pause after the end, with a context that is done: %v", err)
	}
	if err := v.Resume(); !errors.Is(err, ErrClosed) {
		t.Errorf("Resume after the end: %v", err)
	}
	// A report still may look.
	<-v.hold()
	v.gate.release()
}

// The watchdog counts a CPU as idle only when no pause has held it for a while;
// a report's hold doesn't matter.
func TestGateRanFor(t *testing.T) {
	t.Parallel()
	v := newGated(1)
	want := func(when string, d time.Duration, ran bool) {
		t.Helper()
		if v.gate.ranFor(d) != ran {
			t.Errorf("%s: ranFor(%v) is %v", when, d, !ran)
		}
	}
	want("never paused", time.Hour, true)
	<-v.hold()
	v.gate.release()
	want("after a report", time.Hour, true)
	if err := v.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	want("paused", 0, false)
	if err := v.Resume(); err != nil {
		t.Fatal(err)
	}
	want("just resumed", time.Hour, false)
	want("resumed", 0, true)
}

// A pause that is given up leaves nothing behind.
func TestPauseCancelled(t *testing.T) {
	t.Parallel()
	v := newGated(2)
	v.start()
	defer v.stop()
	stuck := &cpu{index: 2} // in a function of the embedder
	v.gate.enter(stuck)

	reason := errors.New("no time")
	ctx, cancel := context.WithCancelCause(t.Context())
	paused := make(chan error)
	go func() { paused <- v.Pause(ctx) }()
	for v.gate.state.Load() != gatePaused {
		runtime.Gosched()
	}
	cancel(reason)
	if err := <-paused; !errors.Is(err, reason) {
		t.Errorf("the pause returned %v", err)
	}
	v.moves(t)
	if err := v.Resume(); !errors.Is(err, ErrNotPaused) {
		t.Errorf("Resume: %v", err)
	}
	if err := v.Pause(ctx); !errors.Is(err, reason) {
		t.Errorf("Pause with a context that is done: %v", err)
	}
	v.gate.leave(stuck, placeNone)
	if err := v.Pause(t.Context()); err != nil {
		t.Error(err)
	}
}

// The end doesn't wait for a pause, nor the pause for a CPU at the end.
func TestPauseAtTheEnd(t *testing.T) {
	t.Parallel()
	v := newGated(1)
	stuck := &cpu{index: 1}
	v.gate.enter(stuck)
	v.start()
	paused := make(chan error)
	go func() { paused <- v.Pause(t.Context()) }()
	for v.gate.state.Load() != gatePaused {
		runtime.Gosched()
	}
	v.stop()
	if err := <-paused; !errors.Is(err, ErrClosed) {
		t.Errorf("the pause returned %v", err)
	}
	quiet := v.hold()
	select {
	case <-quiet:
		t.Error("quiet with a CPU inside")
	default:
	}
	v.gate.leave(stuck, placeNone)
	<-quiet
}

// A caller that has paused sees the CPUs stand, whatever other callers do.
func TestGateAtRandom(t *testing.T) {
	t.Parallel()
	for _, cpus := range []int{1, 2, 64} {
		v := newGated(cpus)
		v.start()
		var callers sync.WaitGroup
		for i := range 6 {
			random := rand.New(rand.NewPCG(uint64(i), uint64(cpus)))
			callers.Go(func() {
				for range 300 {
					v.holdAtRandom(t, random)
				}
			})
		}
		callers.Wait()
		v.moves(t)
		if v.gate.holds != 0 || v.gate.pauses != 0 {
			t.Errorf("%d holds and %d pauses are left", v.gate.holds, v.gate.pauses)
		}
		v.stop()
	}
}

func (v *gated) holdAtRandom(t *testing.T, random *rand.Rand) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	free := v.gate.release
	switch random.IntN(3) {
	case 0:
		<-v.hold()
	case 1:
		go cancel()
		fallthrough
	default:
		if err := v.Pause(ctx); err != nil {
			if !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			return
		}
		free = func() {
			if err := v.Resume(); err != nil {
				t.Error(err)
			}
		}
	}
	before := v.count()
	time.Sleep(time.Duration(random.IntN(20)) * time.Microsecond)
	if n := v.count(); n != before {
		t.Errorf("held CPUs have gone on to %d from %d", n, before)
	}
	free()
}
