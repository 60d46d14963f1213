package vmm

import (
	"fmt"

	"github.com/fix-project/arcavm/hypercall"
	"github.com/fix-project/arcavm/kvm"
)

// handleExit does what the guest left for. It runs on the CPU's thread.
func (c *cpu) handleExit() {
	reason := c.vcpu.ExitReason()
	c.exits[min(int(reason), maxExitReason-1)].Add(1)
	switch reason {
	case kvm.ExitIO:
		c.handleIO(c.vcpu.IO())
	case kvm.ExitIntr, kvm.ExitIRQWindowOpen:
	case kvm.ExitMMIO:
		m := c.vcpu.MMIO()
		what := "read of"
		if m.Write {
			what = "write to"
		}
		c.crash(fmt.Sprintf("%s physical address %#x, where there is nothing", what, m.Address), nil)
	case kvm.ExitShutdown:
		c.tripleFault()
	case kvm.ExitInternalError:
		c.crash(fmt.Sprintf("KVM internal error: %v", c.vcpu.InternalError()), nil)
	case kvm.ExitFailEntry:
		c.crash(fmt.Sprintf("KVM can't enter the guest: %v", c.vcpu.FailEntry()), nil)
	case kvm.ExitSystemEvent:
		c.crash(fmt.Sprintf("system event: %v", c.vcpu.SystemEvent()), nil)
	default:
		c.crash(fmt.Sprintf("unexpected exit %v", reason), nil)
	}
}

func (c *cpu) handleIO(io kvm.IOExit) {
	switch {
	case !io.In && io.Port == hypercall.Port && io.Size == 1 && io.Count == 1:
		c.hypercall()
	case !io.In && io.Port == hypercall.ConsolePort && io.Size == 1:
		c.vm.console.write(io.Data)
	default:
		what := "read from"
		if !io.In {
			what = "write to"
		}
		c.crash(fmt.Sprintf("%s I/O port %#x (%d bytes), where there is nothing", what, io.Port, io.Size), nil)
	}
}

// resetVector is where RIP is after a reset.
const resetVector = 0xFFF0

// tripleFault reports a fault that the guest couldn't take. AMD processors
// leave nothing of the guest's state after it, and KVM then shows a CPU after
// reset.
func (c *cpu) tripleFault() {
	r := c.registers()
	if r != nil && r.RIP == resetVector {
		c.crashWith("triple fault, after which this processor has lost its registers", nil, nil)
		return
	}
	c.crashWith("triple fault", nil, r)
}
