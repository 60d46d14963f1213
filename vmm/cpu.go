package vmm

import (
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"

	"github.com/fix-project/arcavm/hypercall"
	"github.com/fix-project/arcavm/kvm"
)

// cpu is one virtual CPU and the thread that runs it.
type cpu struct {
	vm    *VM
	index int
	vcpu  *kvm.VCPU

	// exits counts by exit reason. Only the CPU's thread adds.
	exits [maxExitReason]atomic.Uint64
	calls hypercall.Counters
	call  hypercall.Call // under way; here so that none is allocated

	place place // where the thread is; the gate's
	last  view  // as it left the guest for good; see outcome.reported
}

// maxExitReason bounds the exit reasons counted one by one; KVM has about 40.
const maxExitReason = 64

// run executes the guest on a thread of its own until the VM ends.
func (c *cpu) run() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	c.vcpu.BindThread()
	defer c.vcpu.UnbindThread()
	defer c.leave()
	gate := c.vm.gate
	gate.enter(c)
	for !gate.ending() {
		if err := c.vcpu.Run(); err != nil {
			if !errors.Is(err, kvm.ErrInterrupted) {
				c.crash(fmt.Sprintf("KVM can't go on: %v", err), err)
				return
			}
			// The flag first: what kicks the CPU has changed the gate before,
			// and sets the flag again for another change.
			c.vcpu.SetImmediateExit(false)
			gate.pass(c)
			continue
		}
		c.handleExit()
	}
}

// leave is what the CPU's thread does last.
func (c *cpu) leave() {
	if c.vm.outcome.reported() {
		c.last = c.look()
	}
	c.vm.gate.leave(c, placeNone)
}
