package vmm

import (
	"sync"
	"time"

	"github.com/fix-project/arcavm/kvm"
	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/relay"
	"github.com/fix-project/arcavm/rpc"
)

// Stats are counters since the VM was made.
type Stats struct {
	// Exits counts the guest's exits to the monitor, by the name of their
	// reason.
	Exits map[string]uint64
	// Hypercalls counts by name; unknown numbers together.
	Hypercalls map[string]uint64
	// Refused counts the hypercalls that got a negative result.
	Refused uint64
	// LogSuppressed counts the guest's log records that were left out because
	// there were too many.
	LogSuppressed uint64
	// Pipes counts bytes, signals and interrupts.
	Pipes pipes.Stats
	Relay relay.Stats
	// RPC is what is counted for a guest of an older ABI, instead of Pipes and
	// Relay.
	RPC rpc.Stats
}

// Step is one step on the way from nothing to a running guest.
type Step struct {
	Name string
	At   time.Time
}

// counters are a VM's counts that don't lie with what is counted.
type counters struct {
	timing timing
	final  Stats // as they were when the VM was freed; life.mu guards it
}

// timing collects steps.
type timing struct {
	start time.Time
	mu    sync.Mutex
	steps []Step
}

func (t *timing) mark(name string) {
	now := time.Now()
	t.mu.Lock()
	t.steps = append(t.steps, Step{name, now})
	t.mu.Unlock()
}

// Timing returns when New began and the steps since, in the order in which they
// were done.
func (v *VM) Timing() (start time.Time, steps []Step) {
	v.timing.mu.Lock()
	defer v.timing.mu.Unlock()
	return v.timing.start, append([]Step(nil), v.timing.steps...)
}

// Stats returns the counters. It may be called at any time; after the end they
// stay as they were.
func (v *VM) Stats() Stats {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.freeing {
		return v.final
	}
	return v.count()
}

// count collects the counters. life.mu is held, and the VM isn't freed.
func (v *VM) count() Stats {
	s := Stats{Exits: map[string]uint64{}, Hypercalls: map[string]uint64{}}
	if v.runner == nil { // New failed
		return s
	}
	for _, c := range v.cpus {
		for reason := range c.exits {
			if n := c.exits[reason].Load(); n != 0 {
				s.Exits[exitName(reason)] += n
			}
		}
		for _, n := range v.calls.Numbers() {
			if count := c.calls.Calls(n); count != 0 {
				s.Hypercalls[v.calls.Name(n)] += count
			}
		}
		s.Refused += c.calls.Refused()
		if n := c.calls.Unknown(); n != 0 {
			s.Hypercalls["unknown"] += n
		}
	}
	s.LogSuppressed = v.log.lost.Load()
	v.runner.stats(&s)
	return s
}

func exitName(reason int) string {
	if reason == maxExitReason-1 {
		return "other"
	}
	return kvm.ExitReason(reason).String()
}
