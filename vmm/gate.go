package vmm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// ErrNotPaused is returned by [VM.Resume] of a VM that isn't paused.
var ErrNotPaused = errors.New("vmm: the VM isn't paused")

// gate keeps the virtual CPUs out of the guest. Its states:
//
//	state    a CPU's thread                       left by
//	running  goes into the guest, and comes back  a hold: paused; end: ending
//	         for its exits
//	paused   completes its exit and waits here    the last release: running;
//	                                              end: ending
//	ending   goes into the guest no more          nothing
//
// A hold keeps the CPUs out for one caller: a pause, or a report for as long as
// it looks. The caller that changes the state kicks the CPUs after that
// (VM.kick). A kicked CPU goes through KVM_RUN once more, where the kernel
// completes the exit that the CPU has handled, and returns before it enters the
// guest. Only then does the thread look whether it has to wait. So a CPU that
// waits has no exit half done, and a CPU that runs meets no lock here.
type gate struct {
	// state is stored with mu held. A CPU's thread loads it once an exit.
	state atomic.Uint32

	// mu comes after all other locks of this package.
	mu     sync.Mutex
	opened sync.Cond // broadcast when the state leaves paused
	holds  int       // callers for which the CPUs stay out
	pauses int       // holds that Resume ends
	inside int       // CPUs at placeInside
	// quiet is made when the state leaves running, and closed when the last CPU
	// that was inside has come out.
	quiet chan struct{}
	// resumed is when the last pause ended; zero: there was none.
	resumed time.Time
}

// The gate's states.
const (
	gateRunning = iota
	gatePaused
	gateEnding
)

// place is where a CPU's thread is, seen from the gate.
type place uint8

const (
	placeNone    place = iota // it doesn't run: before VM.Run, and at the end
	placeWaiting              // at the gate; all its exits are completed
	placeInside               // in the guest, or in the monitor for it
)

func newGate() *gate {
	g := new(gate)
	g.opened.L = &g.mu
	return g
}

// ending reports whether the VM ends.
func (g *gate) ending() bool { return g.state.Load() == gateEnding }

// arrive says that a CPU's thread is about to start, and then calls enter.
func (g *gate) arrive(c *cpu) {
	g.mu.Lock()
	defer g.mu.Unlock()
	c.place = placeWaiting
}

// enter is called by a CPU's thread that wants to go inside. It waits while the
// state is paused. If the VM ends it returns without letting the thread in.
func (g *gate) enter(c *cpu) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.state.Load() == gatePaused {
		g.opened.Wait()
	}
	if !g.ending() {
		c.place = placeInside
		g.inside++
	}
}

// leave says that a CPU's thread is at another place than inside.
func (g *gate) leave(c *cpu, to place) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c.place == placeInside {
		g.inside--
		g.settle()
	}
	c.place = to
}

// pass is for a CPU's thread that a kick has brought out of the guest. It waits
// while the CPUs are held.
func (g *gate) pass(c *cpu) {
	if g.state.Load() == gateRunning {
		return // kicked by a hold that is over
	}
	g.leave(c, placeWaiting)
	g.enter(c)
}

// settle tells the holders when the last CPU is out. mu is held.
func (g *gate) settle() {
	if g.inside == 0 && g.state.Load() != gateRunning {
		close(g.quiet)
	}
}

// shut changes the state to one in which no CPU goes in. mu is held.
func (g *gate) shut(state uint32) {
	if g.state.Swap(state) == gateRunning {
		g.quiet = make(chan struct{})
		g.settle()
	}
}

// hold keeps the CPUs out until release is called. It returns the channel that
// is closed when all are out, and whether the caller has to kick them. A VM
// that ends can be held: its CPUs stay out anyway.
func (g *gate) hold() (quiet <-chan struct{}, kick bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.holds++
	kick = g.state.Load() == gateRunning
	if kick {
		g.shut(gatePaused)
	}
	return g.quiet, kick
}

// release ends one hold.
func (g *gate) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.releaseLocked()
}

// releaseLocked is release with mu held.
func (g *gate) releaseLocked() {
	g.holds--
	if g.holds == 0 && g.state.Load() == gatePaused {
		g.state.Store(gateRunning)
		g.opened.Broadcast()
	}
}

// grant makes a hold whose CPUs are out a pause, which resume ends. It reports
// false, and ends the hold, if the VM ends.
func (g *gate) grant() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ending() {
		g.releaseLocked()
		return false
	}
	g.pauses++
	return true
}

// resume ends one pause.
func (g *gate) resume() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.ending():
		return ErrClosed
	case g.pauses == 0:
		return ErrNotPaused
	}
	g.pauses--
	if g.pauses == 0 {
		g.resumed = time.Now()
	}
	g.releaseLocked()
	return nil
}

// end lets the CPUs go, but not into the guest. It is called once.
func (g *gate) end() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut(gateEnding)
	g.opened.Broadcast()
}

// whereIs returns where a CPU's thread is.
func (g *gate) whereIs(c *cpu) place {
	g.mu.Lock()
	defer g.mu.Unlock()
	return c.place
}

// ranFor reports whether no CPU has been held by a pause for some time.
func (g *gate) ranFor(d time.Duration) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.pauses == 0 && time.Since(g.resumed) >= d
}

// Pause takes every virtual CPU out of the guest, and keeps it out until
// [VM.Resume]. When it returns nil, each exit of a CPU to the monitor has been
// completed: registers stay as they are, and memory changes only where the host
// serves the guest. It waits for a CPU that is in a function, writer or Logger
// of the [Config] until that returns or ctx is done, so these must not call it
// without a deadline.
//
// Pauses are counted: the guest goes on after as many calls of Resume as Pause
// has returned nil. A VM that doesn't run yet can be paused; [VM.Run] then
// starts a guest that stands before its first instruction.
//
// The host goes on. Streams take what peers send until their rings are full;
// then peers meet backpressure, and the guest finds all of it when it goes on,
// with the interrupts that it missed. The guest's clocks, the deadline of Run's
// context and [VM.Stop] don't wait, either.
//
// Errors: [ErrClosed] when the VM has ended or ends meanwhile, which a pause
// doesn't keep it from; else ctx's cause, and then nothing stays paused by this
// call. Any goroutine may call Pause and Resume at any time.
func (v *VM) Pause(ctx context.Context) error {
	if v.gate.ending() {
		return ErrClosed
	}
	if ctx.Err() != nil {
		return fmt.Errorf("vmm: pausing: %w", context.Cause(ctx))
	}
	quiet := v.hold()
	select {
	case <-quiet:
	case <-v.ended:
	case <-ctx.Done():
		v.gate.release()
		return fmt.Errorf("vmm: pausing: %w", context.Cause(ctx))
	}
	if !v.gate.grant() {
		return ErrClosed
	}
	return nil
}

// Resume undoes one [VM.Pause]; when all are undone, the guest goes on. It
// doesn't block. [ErrNotPaused]: there is no pause to undo. [ErrClosed]: the VM
// has ended, and all pauses with it.
func (v *VM) Resume() error { return v.gate.resume() }

// hold makes the CPUs leave the guest. The channel is closed when all are out;
// they stay out until the gate's release.
func (v *VM) hold() (quiet <-chan struct{}) {
	quiet, kick := v.gate.hold()
	if kick {
		v.kick()
	}
	return quiet
}

// kick makes every CPU leave the guest, after the gate's state has changed.
func (v *VM) kick() {
	for _, c := range v.cpus {
		// A CPU that can't be kicked is one that doesn't run.
		_ = c.vcpu.Kick()
	}
}

// idle reports whether a CPU has halted, and no pause can be why it hasn't yet
// seen a wake-up: a look of the watchdog compares with the look before it.
func (v *VM) idle(cpu int) bool {
	return v.gate.ranFor(v.cfg.WatchInterval) && v.cpus[cpu].vcpu.Halted()
}
