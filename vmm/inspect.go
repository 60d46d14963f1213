package vmm

import (
	"sync"
	"time"

	"github.com/fix-project/arcavm/kvm"
	"github.com/fix-project/arcavm/vmm/image"
)

// view is what a CPU was doing, its backtrace still without names.
type view struct {
	state CPUState
	trace trace
}

// named returns the state with its backtrace. It needs the image only, so the
// CPUs may be in the guest meanwhile.
func (s view) named(img *image.Image) CPUState {
	if s.state.Registers != nil {
		s.state.Backtrace = s.trace.frames(img)
	}
	return s.state
}

const (
	// inspectPatience is how long all CPUs together have to leave the guest.
	inspectPatience = time.Second
	// peekPatience is how long the kernel has to tell the registers of the CPUs
	// that haven't left by then.
	peekPatience = time.Second
)

// Report says what every CPU is doing: registers and backtrace, and the last
// log records. It takes the CPUs out of the guest while it looks; then they go
// on, unless the VM is paused. It may be called from New to the end of
// [VM.Run], and then returns [ErrClosed].
//
// It takes 2 seconds at most, however stuck the guest or the monitor is, and
// the first time as long as reading the image's symbols and debug information
// needs. A CPU that can't be reached until then is shown with what is known. A
// function of the [Config] may call it; the CPU that waits for that function is
// one that can't be reached.
func (v *VM) Report() (*Report, error) {
	v.inspecting.Lock()
	defer v.inspecting.Unlock()
	v.mu.Lock()
	freed := v.freeing
	v.mu.Unlock()
	if freed {
		return nil, ErrClosed
	}
	// Read the symbols before the CPUs' time begins: a walk needs them.
	v.cfg.Image.Lookup(0)
	found, log := v.inspect()
	r := &Report{Log: log}
	for _, s := range found {
		r.CPUs = append(r.CPUs, s.named(v.cfg.Image))
	}
	return r, nil
}

// inspect holds the CPUs for as long as it takes to look at all of them.
func (v *VM) inspect() ([]view, []string) {
	quiet := v.hold()
	defer v.gate.release()
	select {
	case <-quiet:
	case <-time.After(inspectPatience):
	}
	var looks sync.WaitGroup
	found := make([]view, len(v.cpus))
	stop := time.Now().Add(peekPatience)
	for i, c := range v.cpus {
		looks.Go(func() { found[i] = c.inspect(v.gate.whereIs(c), stop) })
	}
	looks.Wait()
	return found, v.log.tail()
}

// inspect returns what the CPU is doing, as far as it is known until stop.
func (c *cpu) inspect(at place, stop time.Time) view {
	switch at {
	case placeWaiting:
		return c.look()
	case placeInside:
		return c.peek(InMonitor, stop)
	default:
		return c.peek(Stopped, stop)
	}
}

// peek looks at a CPU that isn't at the gate. The kernel tells no registers of
// a CPU that is in the guest: the call returns when the CPU has left it, which
// may be after stop.
func (c *cpu) peek(activity Activity, stop time.Time) view {
	s := view{state: CPUState{CPU: c.index, Activity: activity}}
	registers := make(chan *Registers, 1)
	go func() { registers <- c.registers() }()
	select {
	case s.state.Registers = <-registers:
		c.walk(&s)
	case <-time.After(time.Until(stop)):
	}
	return s
}

// look returns what a CPU is doing that isn't in the guest, and has no exit
// under way. Any goroutine may call it.
func (c *cpu) look() view {
	s := view{state: CPUState{CPU: c.index, Registers: c.registers()}}
	if state, err := c.vcpu.GetMPState(); err == nil && state == kvm.MPHalted {
		s.state.Activity = Halted
	}
	c.walk(&s)
	return s
}

// walk adds the trace. Only a CPU that was running is at the instruction that
// RIP names.
func (c *cpu) walk(s *view) {
	if s.state.Registers != nil {
		s.trace = walk(c.vm.memory, c.vm.cfg.Image, s.state.Registers, s.state.Activity != Running)
	}
}

// await waits for the CPUs' threads to end. If one of them doesn't come back
// from the monitor, which may hold up VM.Run forever, the Logger is told how
// the run ended, and where that CPU is.
func (v *VM) await(running *sync.WaitGroup) {
	ended := make(chan struct{})
	go func() {
		running.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return
	case <-time.After(inspectPatience):
	}
	r, err := v.Report()
	if err == nil {
		for _, s := range r.CPUs {
			if s.Activity == InMonitor {
				v.cfg.Logger.Warn("the run has ended, but a function, writer or Logger of its Config holds up a virtual CPU",
					"ended", v.outcome.String(), "cpu", s.CPU, "at", s.at())
			}
		}
	}
	<-ended
}

// lasts returns what the CPUs were doing when they left the guest for good.
func (v *VM) lasts() []CPUState {
	states := make([]CPUState, 0, len(v.cpus))
	for _, c := range v.cpus {
		states = append(states, c.last.named(v.cfg.Image))
	}
	return states
}
