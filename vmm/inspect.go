package vmm

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/fix-project/arcavm/kvm"
	"github.com/fix-project/arcavm/vmm/image"
)

// How a running CPU is looked at. The reporter leaves an inspection with the
// CPU and kicks it; one of two takes it, and answers:
//
//	taken by            when                              reads
//	the CPU's thread    it has left the guest             its registers
//	the reporter        the thread didn't within          them, too: the kernel
//	                    inspectPatience, or doesn't run   lets any thread
//
// The thread doesn't enter the guest again before the report is complete: it
// shows one moment, and the kernel would keep a reporter waiting while the CPU
// is in the guest.
type inspection struct {
	taken    atomic.Bool
	answered chan struct{}   // closed by the CPU's thread, if it has taken it
	found    snapshot        // valid from then on
	complete <-chan struct{} // the whole report's end
}

// snapshot is what a CPU was doing, without names.
type snapshot struct {
	state CPUState
	trace trace
}

// named adds the backtrace, which takes no guest.
func (s snapshot) named(img *image.Image) CPUState {
	if s.state.Registers != nil {
		s.state.Backtrace = s.trace.frames(img)
	}
	return s.state
}

const (
	// inspectPatience is how long all CPUs together have to leave the guest.
	inspectPatience = time.Second
	// peekPatience is how long the kernel has to tell the registers of the CPUs
	// that didn't.
	peekPatience = time.Second / 4
)

// Report says what every CPU is doing: registers and backtrace, and the last
// log records. The guest is interrupted and goes on. That takes 1.25 seconds at
// most, however stuck the guest or the monitor is, and a CPU that can't be
// reached until then is shown with what is known; the first time the image's
// symbols and debug information are read, too. It may be called from New to the
// end of [VM.Run], then it returns [ErrClosed]. A function of the [Config] may
// call it; the CPU that waits for it is one that can't be reached.
func (v *VM) Report() (*Report, error) {
	v.inspecting.Lock()
	defer v.inspecting.Unlock()
	v.mu.Lock()
	freed := v.freed
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

// inspect stops the CPUs for as long as it takes to look at all of them.
func (v *VM) inspect() ([]snapshot, []string) {
	complete := make(chan struct{})
	defer close(complete)
	asked := make([]*inspection, len(v.cpus))
	for i, c := range v.cpus {
		asked[i] = &inspection{answered: make(chan struct{}), complete: complete}
		c.inspection.Store(asked[i])
		// A CPU that can't be kicked is one that doesn't run. One that doesn't
		// run yet is kicked as it begins.
		_ = c.vcpu.Kick()
	}
	patience := time.NewTimer(inspectPatience)
	defer patience.Stop()
	late := false
	for i, c := range v.cpus {
		if c.running.Load() && !late {
			select {
			case <-asked[i].answered:
			case <-patience.C:
				late = true
			}
		}
	}
	var overdue sync.WaitGroup
	found := make([]snapshot, len(v.cpus))
	stop := time.Now().Add(peekPatience)
	for i, c := range v.cpus {
		overdue.Go(func() { found[i] = c.answerOf(asked[i], stop) })
	}
	overdue.Wait()
	for _, c := range v.cpus {
		c.inspection.Store(nil)
	}
	return found, v.log.tail()
}

// answerOf returns the answer to an inspection, or takes it.
func (c *cpu) answerOf(q *inspection, stop time.Time) snapshot {
	if !q.taken.CompareAndSwap(false, true) {
		<-q.answered
		return q.found
	}
	s := snapshot{state: CPUState{CPU: c.index, Activity: Stopped}}
	if c.running.Load() {
		s.state.Activity = InMonitor
	}
	registers := make(chan *Registers, 1)
	go func() { registers <- c.registers() }()
	select {
	case s.state.Registers = <-registers:
		c.walk(&s)
	case <-time.After(time.Until(stop)):
	}
	return s
}

// answer is the CPU's thread's part, while the CPU isn't in the guest and no
// exit is under way.
func (c *cpu) answer(q *inspection) {
	if q.taken.CompareAndSwap(false, true) {
		q.found = c.look()
		close(q.answered)
	}
	<-q.complete
}

// look returns what the CPU is doing. It runs on its thread.
func (c *cpu) look() snapshot {
	s := snapshot{state: CPUState{CPU: c.index, Registers: c.registers()}}
	if state, err := c.vcpu.GetMPState(); err == nil && state == kvm.MPHalted {
		s.state.Activity = Halted
	}
	c.walk(&s)
	return s
}

// walk adds the trace. Only a CPU that was running is at the instruction that
// RIP names.
func (c *cpu) walk(s *snapshot) {
	if s.state.Registers != nil {
		s.trace = walk(c.vm.memory, c.vm.cfg.Image, s.state.Registers, s.state.Activity != Running)
	}
}

// interrupted is what the CPU's thread does when it was kicked out of the
// guest. What has kicked it comes after the flag: who sets it again has another
// wish.
func (c *cpu) interrupted() {
	c.vcpu.SetImmediateExit(false)
	if q := c.inspection.Load(); q != nil {
		c.answer(q)
	}
}

// leave is what the CPU's thread does last.
func (c *cpu) leave() {
	if c.vm.outcome.reported() {
		c.last = c.look()
	}
	c.running.Store(false)
	if q := c.inspection.Load(); q != nil {
		c.answer(q)
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
