package main

import (
	"fmt"

	"github.com/fix-project/arcavm/vmm"
)

// crashRecord is a crash report as JSON: docs/output.md.
type crashRecord struct {
	Reason string      `json:"reason"`
	CPU    int         `json:"cpu"`  // -1: none
	CPUs   []cpuRecord `json:"cpus"` // the CPU that died first, then the others
	Log    []string    `json:"log"`
}

// guestRecord is what a guest was doing.
type guestRecord struct {
	CPUs []cpuRecord `json:"cpus"`
	Log  []string    `json:"log"`
}

type cpuRecord struct {
	CPU       int               `json:"cpu"`
	Activity  string            `json:"activity"`
	Exception *exceptionRecord  `json:"exception,omitempty"`
	Registers map[string]string `json:"registers,omitempty"`
	Backtrace []frameRecord     `json:"backtrace,omitempty"`
}

type exceptionRecord struct {
	Vector    uint64 `json:"vector"`
	ErrorCode uint64 `json:"error_code"`
}

type frameRecord struct {
	Address string `json:"address"`
	Symbol  string `json:"symbol,omitempty"`
	Offset  uint64 `json:"offset,omitempty"`
	File    string `json:"file,omitempty"`
	Line    int    `json:"line,omitempty"`
	Repeats int    `json:"repeats,omitempty"`
	Cycle   int    `json:"cycle,omitempty"`
	Skipped int    `json:"skipped,omitempty"`
	Inlined bool   `json:"inlined,omitempty"`
}

func newCrashRecord(e *vmm.CrashError) crashRecord {
	r := crashRecord{Reason: e.Reason, CPU: e.CPU, CPUs: []cpuRecord{}, Log: lines(e.Log)}
	if e.CPU >= 0 {
		r.CPUs = append(r.CPUs, newCPURecord(e.CPUState))
	}
	for _, s := range e.Others {
		r.CPUs = append(r.CPUs, newCPURecord(s))
	}
	return r
}

func newGuestRecord(g *vmm.Report) guestRecord {
	r := guestRecord{CPUs: []cpuRecord{}, Log: lines(g.Log)}
	for _, s := range g.CPUs {
		r.CPUs = append(r.CPUs, newCPURecord(s))
	}
	return r
}

// lines returns log without nil, which in JSON were null instead of an array.
func lines(log []string) []string { return append([]string{}, log...) }

func newCPURecord(s vmm.CPUState) cpuRecord {
	r := cpuRecord{CPU: s.CPU, Activity: s.Activity.String(), Registers: registersRecord(s.Registers)}
	if g := s.Registers; g != nil && g.HasVector {
		r.Exception = &exceptionRecord{g.Vector, g.ErrorCode}
	}
	for _, f := range s.Backtrace {
		r.Backtrace = append(r.Backtrace, frameRecord{
			Address: hex(f.Address), Symbol: f.Symbol, Offset: f.Offset, File: f.File, Line: f.Line, Repeats: f.Repeats, Cycle: f.Cycle, Skipped: f.Skipped, Inlined: f.Inlined,
		})
	}
	return r
}

// hex writes a word of 64 bits for JSON, as a string: many readers of JSON have
// numbers of 53 bits.
func hex(word uint64) string { return fmt.Sprintf("%#x", word) }

func registersRecord(r *vmm.Registers) map[string]string {
	if r == nil {
		return nil
	}
	return map[string]string{
		"rip": hex(r.RIP), "rsp": hex(r.RSP), "rbp": hex(r.RBP), "rflags": hex(r.RFLAGS),
		"rax": hex(r.RAX), "rbx": hex(r.RBX), "rcx": hex(r.RCX), "rdx": hex(r.RDX),
		"rsi": hex(r.RSI), "rdi": hex(r.RDI), "r8": hex(r.R8), "r9": hex(r.R9),
		"r10": hex(r.R10), "r11": hex(r.R11), "r12": hex(r.R12), "r13": hex(r.R13),
		"r14": hex(r.R14), "r15": hex(r.R15), "cr0": hex(r.CR0), "cr2": hex(r.CR2),
		"cr3": hex(r.CR3), "cr4": hex(r.CR4),
	}
}
