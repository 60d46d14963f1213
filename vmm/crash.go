package vmm

import (
	"fmt"
	"io"
	"strings"
)

// CrashError says that the guest died: a panic, an exit that nothing handles,
// a triple fault, or an error inside KVM.
//
// Reason has words of the guest in it, made printable as the texts of a
// [Report] are; it may have several lines.
type CrashError struct {
	CPUState        // the CPU on which it happened; its number is -1 if it was none
	Reason   string // one line, or several if the guest panicked with several
	// Others are the other CPUs as they were made to stop, a moment later.
	Others []CPUState
	// Log holds the last records that the guest logged, oldest first, one line
	// each.
	Log []string

	cause error
}

func (e *CrashError) Error() string {
	return fmt.Sprintf("the guest died%s: %s%s", e.onCPU(), e.Reason, e.place())
}

func (e *CrashError) onCPU() string {
	if e.CPU < 0 {
		return ""
	}
	return fmt.Sprintf(" on CPU %d", e.CPU)
}

// Unwrap returns the host's error behind the crash, if there is one.
func (e *CrashError) Unwrap() error { return e.cause }

// WriteReport writes everything that is known about the crash, for a person to
// read.
func (e *CrashError) WriteReport(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "guest died%s: %s\n", e.onCPU(), e.Reason)
	if r := e.Registers; r != nil {
		if r.HasVector {
			fmt.Fprintf(&b, "\nexception %d (%s), error code %#x\n", r.Vector, exceptionName(r.Vector), r.ErrorCode)
		}
		fmt.Fprintf(&b, "\nregisters\n")
		r.write(&b)
	}
	if len(e.Backtrace) > 0 {
		b.WriteByte('\n')
		e.writeBacktrace(&b)
	}
	writeCPUs(&b, e.Others)
	writeLog(&b, e.Log)
	_, err := io.WriteString(w, b.String())
	return err
}

// exceptionName is the name of an exception vector (Intel SDM volume 3, table
// 6-1).
func exceptionName(vector uint64) string {
	names := map[uint64]string{
		0: "divide error", 1: "debug", 2: "NMI", 3: "breakpoint", 4: "overflow", 5: "bound range",
		6: "invalid opcode", 7: "device not available", 8: "double fault", 10: "invalid TSS",
		11: "segment not present", 12: "stack fault", 13: "general protection", 14: "page fault",
		16: "x87 error", 17: "alignment check", 18: "machine check", 19: "SIMD error",
		20: "virtualization", 21: "control protection",
	}
	if n, ok := names[vector]; ok {
		return n
	}
	return "unknown"
}

// crash ends the VM because of this CPU. It runs on the CPU's thread.
func (c *cpu) crash(reason string, cause error) {
	c.crashWith(reason, cause, c.registers())
}

// crashWith ends the VM first, so that the other CPUs don't run on while this
// one looks at the stack. VM.Run waits for this thread before it reads the
// error.
func (c *cpu) crashWith(reason string, cause error, r *Registers) {
	e := &CrashError{CPUState: CPUState{CPU: c.index, Registers: r}, Reason: reason, Log: c.vm.log.tail(), cause: cause}
	c.vm.end(outcome{err: e})
	if r != nil {
		e.Backtrace = c.vm.backtrace(r, !r.HasVector)
	}
}

// registers reads the CPU's state, or returns nil if it can't be read. Any
// goroutine may call it; it waits while the CPU is in the guest.
func (c *cpu) registers() *Registers {
	regs, s, err := c.vcpu.PeekRegs()
	if err != nil {
		return nil
	}
	return &Registers{Regs: regs, CR0: s.CR0, CR2: s.CR2, CR3: s.CR3, CR4: s.CR4}
}
