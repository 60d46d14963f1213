package vmm

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/fix-project/arcavm/kvm"
)

const unknownSymbol = "?"

// Report is what a VM's CPUs were doing at one moment.
//
// Its texts come from the guest and its image, which may be hostile: the
// symbols, files and log records. They are cut, valid UTF-8, and free of
// control characters and line ends.
type Report struct {
	CPUs []CPUState // ascending by number
	// Log holds the last records that the guest logged, oldest first, one line
	// each.
	Log []string
}

// CPUState is what one virtual CPU was doing.
type CPUState struct {
	CPU      int // its number; -1 in a [CrashError] that isn't about one
	Activity Activity
	// Registers are where the CPU was, or nil if they aren't known. After a
	// panic with a frame they are the frame's.
	Registers *Registers
	// Backtrace starts with the instruction that RIP names and holds at most 64
	// frames; recursion is folded, and what is too much is left out before the
	// outermost 16, see [Frame].
	Backtrace []Frame
}

// Activity is what a virtual CPU was doing in one word.
type Activity int

// The activities.
const (
	Running Activity = iota // executed instructions of the guest
	Halted                  // waited for an interrupt
	// InMonitor is a CPU for which the monitor did something, and didn't come
	// back in time: a writer, Logger or function of the [Config] that blocks.
	InMonitor
	Stopped // not started yet, or ended
)

func (a Activity) String() string {
	switch a {
	case Running:
		return "running"
	case Halted:
		return "halted"
	case InMonitor:
		return "in the monitor"
	case Stopped:
		return "stopped"
	}
	return fmt.Sprintf("activity %d", int(a))
}

// Registers are a CPU's state as a report shows it.
type Registers struct {
	kvm.Regs
	CR0, CR2, CR3, CR4 uint64
	// Vector and ErrorCode belong to an exception; HasVector says whether there
	// is one.
	HasVector         bool
	Vector, ErrorCode uint64
}

// Frame is one step of a backtrace, or several equal ones.
type Frame struct {
	Address uint64 // of the instruction, or to which the call returns
	Symbol  string // demangled, printable; empty if unknown
	Offset  uint64 // of Address from the symbol's start
	File    string // of the call or instruction, printable; empty if unknown
	Line    int    // in File; 0 if unknown
	// Repeats is how often the Cycle frames that end with this one were there
	// once more, one after the other. Both are 0 for a frame that doesn't end a
	// recursion.
	Repeats, Cycle int
	// Inlined says that the compiler has put this call into the function of the
	// next frame. It has the same Address, and no Offset.
	Inlined bool
	// Skipped is how many frames are left out before this one.
	Skipped int
}

func (f Frame) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%#016x ", f.Address)
	switch {
	case f.Symbol == "":
		b.WriteString(unknownSymbol)
	case f.Inlined:
		b.WriteString(f.Symbol)
	default:
		fmt.Fprintf(&b, "%s+%#x", f.Symbol, f.Offset)
	}
	if f.Inlined {
		b.WriteString(" [inlined]")
	}
	if f.File != "" {
		fmt.Fprintf(&b, " (%s:%d)", f.File, f.Line)
	}
	return b.String()
}

// place is where the CPU was, for a line of text.
func (s *CPUState) place() string {
	if len(s.Backtrace) == 0 {
		return ""
	}
	return " at " + s.at()
}

// at names the function that the CPU is in; "?" if that isn't known.
func (s *CPUState) at() string {
	if len(s.Backtrace) == 0 {
		return unknownSymbol
	}
	f := s.Backtrace[s.inlined()]
	if f.Symbol == "" {
		return fmt.Sprintf("%#x", f.Address)
	}
	return fmt.Sprintf("%s+%#x", f.Symbol, f.Offset)
}

// inlined returns how many inlined calls the backtrace begins with; after them
// there is a frame.
func (s *CPUState) inlined() int {
	return max(0, slices.IndexFunc(s.Backtrace, func(f Frame) bool { return !f.Inlined }))
}

// WriteReport writes everything that is known, for a person to read.
func (r *Report) WriteReport(w io.Writer) error {
	var b strings.Builder
	writeCPUs(&b, r.CPUs)
	writeLog(&b, r.Log)
	_, err := io.WriteString(w, strings.TrimPrefix(b.String(), "\n"))
	return err
}

// HangError says that the time for a guest was up before it ended, and what it
// was doing. [VM.Run] returns it when its context's deadline passes.
// errors.Is finds [context.DeadlineExceeded] and the context's cause in it.
type HangError struct {
	Report
	cause error
}

func (e *HangError) Error() string {
	text := fmt.Sprintf("the guest was ended: %v", e.cause)
	for i, s := range e.CPUs {
		if i == maxNamed {
			return fmt.Sprintf("%s; %d CPUs more", text, len(e.CPUs)-i)
		}
		text += fmt.Sprintf("; CPU %d was %v%s", s.CPU, s.Activity, s.place())
	}
	return text
}

// maxNamed is how many CPUs the one line of a HangError names.
const maxNamed = 4

// Unwrap returns the context's cause and its error.
func (e *HangError) Unwrap() []error { return []error{e.cause, context.DeadlineExceeded} }

// WriteReport writes everything that is known, for a person to read.
func (e *HangError) WriteReport(w io.Writer) error {
	if _, err := fmt.Fprintf(w, "guest ended: %v\n\n", e.cause); err != nil {
		return err
	}
	return e.Report.WriteReport(w)
}

// maxRegisters is for how many CPUs, or groups of them, registers are written.
const maxRegisters = 8

// writeCPUs writes CPUs that did the same at the same place as one. A halted
// CPU's registers say nothing that its backtrace doesn't.
func writeCPUs(b *strings.Builder, cpus []CPUState) {
	shown := make([]bool, len(cpus))
	registers := 0
	for i := range cpus {
		if shown[i] {
			continue
		}
		var same []int
		for j := i; j < len(cpus); j++ {
			if !shown[j] && cpus[i].like(&cpus[j]) {
				shown[j] = true
				same = append(same, cpus[j].CPU)
			}
		}
		fmt.Fprintf(b, "\n%s: %v%s\n", numbers(same), cpus[i].Activity, cpus[i].place())
		switch {
		case cpus[i].Registers == nil:
			fmt.Fprintf(b, "  its registers aren't known\n")
		case cpus[i].Activity != Halted && registers < maxRegisters:
			registers++
			if len(same) > 1 {
				fmt.Fprintf(b, "registers of CPU %d\n", cpus[i].CPU)
			} else {
				fmt.Fprintf(b, "registers\n")
			}
			cpus[i].Registers.write(b)
		}
		cpus[i].writeBacktrace(b)
	}
}

// like reports whether two CPUs can be shown as one: they do the same, called
// from the same places, and are in the same function. A loop that several CPUs
// are in counts as one place.
func (s *CPUState) like(o *CPUState) bool {
	if s.Activity != o.Activity || (s.Registers == nil) != (o.Registers == nil) ||
		len(s.Backtrace) == 0 || len(o.Backtrace) == 0 {
		return s.Activity == o.Activity && s.Registers == nil && o.Registers == nil
	}
	a, b := s.Backtrace[s.inlined():], o.Backtrace[o.inlined():]
	if !slices.Equal(a[1:], b[1:]) {
		return false
	}
	return a[0] == b[0] || a[0].Symbol != "" && a[0].Symbol == b[0].Symbol &&
		a[0].Address-a[0].Offset == b[0].Address-b[0].Offset
}

func (s *CPUState) writeBacktrace(b *strings.Builder) {
	if len(s.Backtrace) == 0 {
		return
	}
	fmt.Fprintf(b, "backtrace\n")
	n := 0
	for _, f := range s.Backtrace {
		if f.Skipped > 0 {
			fmt.Fprintf(b, "      … %d frames\n", f.Skipped)
			n += f.Skipped
		}
		fmt.Fprintf(b, "  %2d  %v\n", n, f)
		n++
		switch {
		case f.Repeats == 0:
		case f.Cycle == 1:
			fmt.Fprintf(b, "      … %d more of the same\n", f.Repeats)
		default:
			fmt.Fprintf(b, "      … %d more of the same %d\n", f.Repeats, f.Cycle)
		}
		n += f.Repeats * f.Cycle
	}
}

// numbers names CPUs, which ascend, as ranges.
func numbers(cpus []int) string {
	if len(cpus) == 1 {
		return fmt.Sprintf("CPU %d", cpus[0])
	}
	var ranges []string
	for i := 0; i < len(cpus); {
		j := i
		for j+1 < len(cpus) && cpus[j+1] == cpus[j]+1 {
			j++
		}
		if i == j {
			ranges = append(ranges, fmt.Sprint(cpus[i]))
		} else {
			ranges = append(ranges, fmt.Sprintf("%d-%d", cpus[i], cpus[j]))
		}
		i = j + 1
	}
	return "CPUs " + strings.Join(ranges, ", ")
}

func writeLog(b *strings.Builder, log []string) {
	if len(log) == 0 {
		return
	}
	fmt.Fprintf(b, "\nlast log records\n")
	for _, l := range log {
		fmt.Fprintf(b, "  %s\n", l)
	}
}

func (r *Registers) write(b *strings.Builder) {
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

// without returns the states but that of one CPU.
func without(cpus []CPUState, cpu int) []CPUState {
	return slices.DeleteFunc(slices.Clone(cpus), func(s CPUState) bool { return s.CPU == cpu })
}
