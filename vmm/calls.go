package vmm

import (
	"fmt"
	"log/slog"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/hypercall"
	"github.com/fix-project/arcavm/kvm"
)

// hypercall does the call that the registers name and puts the result into RAX.
func (c *cpu) hypercall() {
	if c.vm.features.SyncRegs {
		if c.dispatch(c.vcpu.SyncedRegs()) {
			c.vcpu.SyncDirty()
		}
		return
	}
	r, err := c.vcpu.GetRegs()
	if err == nil && c.dispatch(&r) {
		err = c.vcpu.SetRegs(r)
	}
	if err != nil {
		c.vm.end(outcome{err: fmt.Errorf("hypercall on virtual CPU %d: %w", c.index, err)})
	}
}

// dispatch does the call in r. It reports whether the guest goes on, with the
// result in r.
func (c *cpu) dispatch(r *kvm.Regs) bool {
	c.call = hypercall.Call{
		Number:    hypercall.Number(r.RAX),
		Arguments: [6]uint64{r.RDI, r.RSI, r.RCX, r.R10, r.R8, r.R9},
	}
	result, ended := c.vm.calls.Dispatch(c.index, &c.calls, &c.call)
	r.RAX = result
	if int64(result) < 0 && !ended {
		c.refused(c.call, unix.Errno(-int64(result)))
	}
	return !ended
}

// refused logs that a call failed. A notification for a pipe that is gone isn't
// worth a record: it may cross with the pipe's end (PROTOCOL.md section 12).
func (c *cpu) refused(call hypercall.Call, errno unix.Errno) {
	if errno == unix.ENOENT && (call.Number == hypercall.NotifyRead || call.Number == hypercall.NotifyWrite) {
		return
	}
	c.vm.refused.Log(c.vm.cfg.Logger, slog.LevelWarn, "hypercall refused",
		slog.Int("cpu", c.index), slog.String("call", c.vm.calls.Name(call.Number)), slog.String("argument", fmt.Sprintf("%#x", call.Arguments[0])), slog.Any("err", errno))
}

// newCalls ties the hypercalls to what they act on.
func (v *VM) newCalls() *hypercall.Table {
	h := hypercall.Handlers{
		Exit:     func(_, code int) { v.end(outcome{code: code}) },
		Log:      v.log.add,
		Symbol:   v.symbol,
		Panic:    v.panicked,
		Clock:    func(c hypercall.Clock) (int64, error) { return v.clock.now(c) },
		Stopping: v.gate.ending,
	}
	v.runner.handle(&h)
	return hypercall.NewTable(v.memory, h)
}

// symbol answers SYMNAME. Kernels of the older ABIs ask with return addresses,
// which may lie behind the function of the call; those of PROTOCOL.md ask with
// the address that they mean.
func (v *VM) symbol(address uint64) (name string, start uint64, found bool) {
	lookup := v.cfg.Image.Lookup
	if v.cfg.ABI.Older() {
		lookup = v.cfg.Image.LookupCall
	}
	s, _, ok := lookup(address)
	return s.Name, s.Start, ok
}

// panicked ends the VM because the guest asked for it. It runs on the CPU's
// thread. A record that can't be read doesn't hide that the guest is dead.
func (v *VM) panicked(cpu int, p hypercall.PanicRecord, err error) {
	c := v.cpus[cpu]
	reason := "panic: " + p.Message
	if err != nil {
		reason = "panic, with a record that can't be read: " + err.Error()
	}
	r := c.registers()
	if f := p.Frame; f != nil && r != nil {
		r.useFrame(f)
	}
	c.crashWith(reason, nil, r)
}

// useFrame replaces the registers at the hypercall by those where it happened.
func (r *Registers) useFrame(f *hypercall.Frame) {
	r.RAX, r.RBX, r.RCX, r.RDX = f.RAX, f.RBX, f.RCX, f.RDX
	r.RSI, r.RDI, r.RSP, r.RBP = f.RSI, f.RDI, f.RSP, f.RBP
	r.R8, r.R9, r.R10, r.R11 = f.R8, f.R9, f.R10, f.R11
	r.R12, r.R13, r.R14, r.R15 = f.R12, f.R13, f.R14, f.R15
	r.RIP, r.RFLAGS, r.CR2 = f.RIP, f.RFLAGS, f.CR2
	r.HasVector, r.Vector, r.ErrorCode = true, f.Vector, f.ErrorCode
}
