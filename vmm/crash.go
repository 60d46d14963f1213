package vmm

import (
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"github.com/fix-project/arcavm/hypercall"
	"github.com/fix-project/arcavm/kvm"
	"github.com/fix-project/arcavm/vmm/image"
)

const (
	maxBacktrace  = 64
	unknownSymbol = "?"
)

// CrashError says that the guest died: a panic, an exit that nothing handles,
// a triple fault, or an error inside KVM.
type CrashError struct {
	CPU    int    // virtual CPU on which it happened; -1 if it was none
	Reason string // printable; one line, or several if the guest panicked with several

	// Registers are where the guest was, or nil if the processor didn't keep
	// them. After a panic with a frame they are the frame's.
	Registers *Registers
	// Backtrace starts with the instruction that RIP names.
	Backtrace []Frame
	// Log holds the last records that the guest logged, oldest first, one line each.
	Log []string

	cause error
}

// Registers are a CPU's state as a crash report shows it.
type Registers struct {
	kvm.Regs
	CR0, CR2, CR3, CR4 uint64
	// Vector and ErrorCode belong to an exception; HasVector says whether there is one.
	HasVector         bool
	Vector, ErrorCode uint64
}

// Frame is one step of a backtrace.
type Frame struct {
	Address uint64
	Symbol  string // demangled, printable; empty if unknown
	Offset  uint64 // from the symbol's start
}

func (f Frame) String() string {
	if f.Symbol == "" {
		return fmt.Sprintf("%#016x %s", f.Address, unknownSymbol)
	}
	return fmt.Sprintf("%#016x %s+%#x", f.Address, f.Symbol, f.Offset)
}

func (e *CrashError) Error() string {
	where := ""
	if len(e.Backtrace) > 0 {
		f := e.Backtrace[0]
		if f.Symbol != "" {
			where = fmt.Sprintf(" at %s+%#x", f.Symbol, f.Offset)
		} else {
			where = fmt.Sprintf(" at %#x", f.Address)
		}
	}
	return fmt.Sprintf("the guest died%s: %s%s", e.onCPU(), e.Reason, where)
}

func (e *CrashError) onCPU() string {
	if e.CPU < 0 {
		return ""
	}
	return fmt.Sprintf(" on CPU %d", e.CPU)
}

// Unwrap returns the host's error behind the crash, if there is one.
func (e *CrashError) Unwrap() error { return e.cause }

// WriteReport writes everything that is known about the crash, for a person to read.
func (e *CrashError) WriteReport(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "guest died%s: %s\n", e.onCPU(), e.Reason)
	e.writeRegisters(&b)
	if len(e.Backtrace) > 0 {
		fmt.Fprintf(&b, "\nbacktrace\n")
		for i, f := range e.Backtrace {
			fmt.Fprintf(&b, "  %2d  %v\n", i, f)
		}
	}
	if len(e.Log) > 0 {
		fmt.Fprintf(&b, "\nlast log records\n")
		for _, l := range e.Log {
			fmt.Fprintf(&b, "  %s\n", l)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (e *CrashError) writeRegisters(b *strings.Builder) {
	r := e.Registers
	if r == nil {
		return
	}
	if r.HasVector {
		fmt.Fprintf(b, "\nexception %d (%s), error code %#x\n", r.Vector, exceptionName(r.Vector), r.ErrorCode)
	}
	fmt.Fprintf(b, "\nregisters\n")
	rows := [][]struct {
		name  string
		value uint64
	}{
		{{"rip", r.RIP}, {"rsp", r.RSP}, {"rbp", r.RBP}, {"rfl", r.RFLAGS}},
		{{"rax", r.RAX}, {"rbx", r.RBX}, {"rcx", r.RCX}, {"rdx", r.RDX}},
		{{"rsi", r.RSI}, {"rdi", r.RDI}, {"r8", r.R8}, {"r9", r.R9}},
		{{"r10", r.R10}, {"r11", r.R11}, {"r12", r.R12}, {"r13", r.R13}},
		{{"r14", r.R14}, {"r15", r.R15}, {"cr0", r.CR0}, {"cr2", r.CR2}},
		{{"cr3", r.CR3}, {"cr4", r.CR4}},
	}
	for _, row := range rows {
		for _, reg := range row {
			fmt.Fprintf(b, "  %-3s %016x", reg.name, reg.value)
		}
		b.WriteByte('\n')
	}
}

// exceptionName is the name of an exception vector (Intel SDM volume 3, table 6-1).
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

func (c *cpu) crashWith(reason string, cause error, r *Registers) {
	e := &CrashError{CPU: c.index, Reason: reason, Registers: r, Log: c.vm.log.tail(), cause: cause}
	if r != nil {
		e.Backtrace = backtrace(c.vm.memory, c.vm.cfg.Image, r)
	}
	c.vm.end(outcome{err: e})
}

// registers reads the CPU's state, or returns nil if it can't be read.
func (c *cpu) registers() *Registers {
	regs, err := c.vcpu.GetRegs()
	if err != nil {
		return nil
	}
	s, err := c.vcpu.GetSregs()
	if err != nil {
		return nil
	}
	return &Registers{Regs: regs, CR0: s.CR0, CR2: s.CR2, CR3: s.CR3, CR4: s.CR4}
}

// backtrace follows the chain of frame pointers. The stack is the guest's and
// may hold anything: each frame must lie above the one before.
func backtrace(m *memory, img *image.Image, r *Registers) []Frame {
	frames := []Frame{symbolize(img, r.RIP, r.RIP)}
	for rbp := r.RBP; len(frames) < maxBacktrace && rbp != 0; {
		next, ok := readVirtual(m, r.CR3, rbp)
		if !ok {
			break
		}
		ret, ok := readVirtual(m, r.CR3, rbp+8)
		if !ok || ret == 0 {
			break
		}
		// The return address may already lie in the next function if the call
		// was the last instruction of its own.
		frames = append(frames, symbolize(img, ret, ret-1))
		if next <= rbp {
			break
		}
		rbp = next
	}
	return frames
}

// symbolize names the symbol that holds address inside, and says how far address lies behind its start.
func symbolize(img *image.Image, address, inside uint64) Frame {
	s, off, ok := img.Lookup(inside)
	if !ok {
		return Frame{Address: address}
	}
	return Frame{Address: address, Symbol: hypercall.Printable(s.Name), Offset: off + (address - inside)}
}

// readVirtual reads a word at a guest-virtual address through the page tables at cr3.
func readVirtual(m *memory, cr3, address uint64) (uint64, bool) {
	if address%8 != 0 {
		return 0, false // a frame is aligned, and an aligned word doesn't cross a page
	}
	physical, ok := translate(m, cr3, address)
	if !ok {
		return 0, false
	}
	return readPhysical(m, physical)
}

func readPhysical(m *memory, address uint64) (uint64, bool) {
	b, err := m.Bytes(address, 8)
	if err != nil {
		return 0, false
	}
	return binary.LittleEndian.Uint64(b), true
}

// translate walks four levels of page tables (Intel SDM volume 3, section 4.5).
func translate(m *memory, cr3, address uint64) (uint64, bool) {
	table := cr3 & pteAddress
	for shift := 39; ; shift -= 9 {
		entry, ok := readPhysical(m, table+(address>>shift&511)*8)
		if !ok || entry&ptePresent == 0 {
			return 0, false
		}
		if shift == 12 || shift < 39 && entry&pteLarge != 0 {
			mask := uint64(1)<<shift - 1
			return entry&pteAddress&^mask | address&mask, true
		}
		table = entry & pteAddress
	}
}
