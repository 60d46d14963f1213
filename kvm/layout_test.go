package kvm

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// layouts names, for every kernel struct that is shared, Go's version of it and
// the counterparts of its fields.
var layouts = []struct {
	c      string
	go_    reflect.Type
	fields map[string]string // Go's name to C's
}{
	{"struct kvm_userspace_memory_region", reflect.TypeFor[userMemoryRegion](), map[string]string{
		"slot": "slot", "flags": "flags", "guestPhysAddr": "guest_phys_addr", "memorySize": "memory_size",
		"userspaceAddr": "userspace_addr",
	}},
	{"struct kvm_enable_cap", reflect.TypeFor[enableCap](), map[string]string{
		"cap": "cap", "flags": "flags", "args": "args",
	}},
	{"struct kvm_irq_routing_entry", reflect.TypeFor[irqRoutingEntry](), map[string]string{
		"GSI": "gsi", "Type": "type", "Flags": "flags",
		"AddressLo": "u.msi.address_lo", "AddressHi": "u.msi.address_hi", "Data": "u.msi.data",
	}},
	{"struct kvm_irqfd", reflect.TypeFor[irqfd](), map[string]string{
		"fd": "fd", "gsi": "gsi", "flags": "flags", "resamplefd": "resamplefd",
	}},
	{"struct kvm_msi", reflect.TypeFor[msi](), map[string]string{
		"addressLo": "address_lo", "addressHi": "address_hi", "data": "data", "flags": "flags", "devid": "devid",
	}},
	{"struct kvm_regs", reflect.TypeFor[Regs](), map[string]string{
		"RAX": "rax", "RBX": "rbx", "RCX": "rcx", "RDX": "rdx", "RSI": "rsi", "RDI": "rdi", "RSP": "rsp", "RBP": "rbp",
		"R8": "r8", "R9": "r9", "R10": "r10", "R11": "r11", "R12": "r12", "R13": "r13", "R14": "r14", "R15": "r15",
		"RIP": "rip", "RFLAGS": "rflags",
	}},
	{"struct kvm_segment", reflect.TypeFor[Segment](), map[string]string{
		"Base": "base", "Limit": "limit", "Selector": "selector", "Typ": "type", "Present": "present", "DPL": "dpl",
		"DB": "db", "S": "s", "L": "l", "G": "g", "AVL": "avl", "Unusable": "unusable",
	}},
	{"struct kvm_dtable", reflect.TypeFor[Descriptor](), map[string]string{"Base": "base", "Limit": "limit"}},
	{"struct kvm_sregs", reflect.TypeFor[Sregs](), map[string]string{
		"CS": "cs", "DS": "ds", "ES": "es", "FS": "fs", "GS": "gs", "SS": "ss", "TR": "tr", "LDT": "ldt",
		"GDT": "gdt", "IDT": "idt", "CR0": "cr0", "CR2": "cr2", "CR3": "cr3", "CR4": "cr4", "CR8": "cr8",
		"EFER": "efer", "ApicBase": "apic_base", "InterruptBitmap": "interrupt_bitmap",
	}},
	{"struct kvm_vcpu_events", reflect.TypeFor[VCPUEvents](), map[string]string{
		"E": "exception", "I": "interrupt", "N": "nmi", "SipiVector": "sipi_vector", "Flags": "flags", "S": "smi",
		"TripleFault": "triple_fault", "ExceptionHasPayload": "exception_has_payload", "ExceptionPayload": "exception_payload",
	}},
	{"struct kvm_cpuid_entry2", reflect.TypeFor[CPUIDEntry2](), map[string]string{
		"Function": "function", "Index": "index", "Flags": "flags", "Eax": "eax", "Ebx": "ebx", "Ecx": "ecx", "Edx": "edx",
	}},
	{"struct kvm_xcrs", reflect.TypeFor[xcrs](), map[string]string{"Count": "nr_xcrs", "Flags": "flags", "List": "xcrs"}},
	{"struct kvm_xcr", reflect.TypeFor[xcr](), map[string]string{"Number": "xcr", "Value": "value"}},
	{"struct kvm_msr_entry", reflect.TypeFor[MSREntry](), map[string]string{"Index": "index", "Data": "data"}},
	{"struct kvm_run", reflect.TypeFor[runPage](), map[string]string{
		"control": "request_interrupt_window", "exitReason": "exit_reason", "cr8": "cr8", "apicBase": "apic_base",
		"exit": "padding", "validRegs": "kvm_valid_regs", "dirtyRegs": "kvm_dirty_regs",
		"regs": "s.regs.regs",
	}},
}

// openEnded are structs that the kernel pads for its future: only their fields
// are compared.
var openEnded = map[string]bool{"struct kvm_run": true}

// numbers are values that must equal a C expression.
var numbers = map[string]uint64{
	"KVM_API_VERSION":            apiVersion,
	"KVM_GET_SUPPORTED_CPUID":    uint64(reqGetSupportedCPUID.number),
	"KVM_SET_USER_MEMORY_REGION": uint64(reqSetUserMemoryRegion.number),
	"KVM_SET_IDENTITY_MAP_ADDR":  uint64(reqSetIdentityMapAddr.number),
	"KVM_SET_GSI_ROUTING":        uint64(reqSetGSIRouting.number),
	"KVM_IRQFD":                  uint64(reqIRQFD.number),
	"KVM_SIGNAL_MSI":             uint64(reqSignalMSI.number),
	"KVM_ENABLE_CAP":             uint64(reqEnableCap.number),
	"KVM_RUN":                    uint64(reqRun.number),
	"KVM_GET_REGS":               uint64(reqGetRegs.number),
	"KVM_SET_REGS":               uint64(reqSetRegs.number),
	"KVM_GET_SREGS":              uint64(reqGetSregs.number),
	"KVM_SET_SREGS":              uint64(reqSetSregs.number),
	"KVM_GET_MSRS":               uint64(reqGetMSRs.number),
	"KVM_SET_MSRS":               uint64(reqSetMSRs.number),
	"KVM_SET_CPUID2":             uint64(reqSetCPUID2.number),
	"KVM_GET_MP_STATE":           uint64(reqGetMPState.number),
	"KVM_SET_MP_STATE":           uint64(reqSetMPState.number),
	"KVM_GET_VCPU_EVENTS":        uint64(reqGetVCPUEvents.number),
	"KVM_SET_VCPU_EVENTS":        uint64(reqSetVCPUEvents.number),
	"KVM_GET_XCRS":               uint64(reqGetXCRS.number),
	"KVM_SET_XCRS":               uint64(reqSetXCRS.number),

	"sizeof(struct kvm_mp_state)":     uint64(sizeOf[MPState]()),
	"sizeof(struct kvm_cpuid2)":       cpuidHeaderSize,
	"sizeof(struct kvm_cpuid_entry2)": cpuidEntrySize,
	"sizeof(struct kvm_msrs)":         msrsHeaderSize,
	"sizeof(struct kvm_msr_entry)":    msrEntrySize,
	"sizeof(struct kvm_irq_routing)":  irqRoutingHeaderSize,

	"offsetof(struct kvm_msr_entry, data)": 8,

	// The run page's members that have no Go field: immediate_exit as a bit of
	// control, and what each exit's accessor reads.
	"1u << 8 * offsetof(struct kvm_run, immediate_exit)":                                                controlImmediateExit,
	"offsetof(struct kvm_run, io.direction) - offsetof(struct kvm_run, hw)":                             0,
	"offsetof(struct kvm_run, io.size) - offsetof(struct kvm_run, hw)":                                  1,
	"offsetof(struct kvm_run, io.port) - offsetof(struct kvm_run, hw)":                                  2,
	"offsetof(struct kvm_run, io.count) - offsetof(struct kvm_run, hw)":                                 4,
	"offsetof(struct kvm_run, io.data_offset) - offsetof(struct kvm_run, hw)":                           8,
	"offsetof(struct kvm_run, mmio.phys_addr) - offsetof(struct kvm_run, hw)":                           0,
	"offsetof(struct kvm_run, mmio.data) - offsetof(struct kvm_run, hw)":                                8,
	"offsetof(struct kvm_run, mmio.len) - offsetof(struct kvm_run, hw)":                                 16,
	"offsetof(struct kvm_run, mmio.is_write) - offsetof(struct kvm_run, hw)":                            20,
	"offsetof(struct kvm_run, internal.suberror) - offsetof(struct kvm_run, hw)":                        0,
	"offsetof(struct kvm_run, internal.ndata) - offsetof(struct kvm_run, hw)":                           4,
	"offsetof(struct kvm_run, internal.data) - offsetof(struct kvm_run, hw)":                            8,
	"offsetof(struct kvm_run, system_event.type) - offsetof(struct kvm_run, hw)":                        0,
	"offsetof(struct kvm_run, system_event.ndata) - offsetof(struct kvm_run, hw)":                       4,
	"offsetof(struct kvm_run, system_event.data) - offsetof(struct kvm_run, hw)":                        8,
	"offsetof(struct kvm_run, fail_entry.hardware_entry_failure_reason) - offsetof(struct kvm_run, hw)": 0,
	"offsetof(struct kvm_run, fail_entry.cpu) - offsetof(struct kvm_run, hw)":                           8,
	"offsetof(struct kvm_run, emulation_failure.flags) - offsetof(struct kvm_run, hw)":                  8,
	"offsetof(struct kvm_run, emulation_failure.insn_size) - offsetof(struct kvm_run, hw)":              16,
	"offsetof(struct kvm_run, emulation_failure.insn_bytes) - offsetof(struct kvm_run, hw)":             17,
	"sizeof(((struct kvm_run *)0)->internal.data)":                                                      8 * 16,
	"sizeof(((struct kvm_run *)0)->system_event.data)":                                                  8 * 16,
	"KVM_INTERNAL_ERROR_EMULATION":                                                                      1,
	"KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES":                                               1,
	"KVM_EXIT_IO_IN": gokvm.EXITIOIN,

	"KVM_IRQ_ROUTING_MSI":     irqRoutingMSI,
	"KVM_IRQ_ROUTING_IRQCHIP": irqRoutingIRQChip,
	"KVM_IRQCHIP_IOAPIC":      irqChipIOAPIC,
	"offsetof(struct kvm_irq_routing_entry, u.irqchip.irqchip) - offsetof(struct kvm_irq_routing_entry, u)": 0,
	"offsetof(struct kvm_irq_routing_entry, u.irqchip.pin) - offsetof(struct kvm_irq_routing_entry, u)":     4,
	"KVM_MEM_LOG_DIRTY_PAGES":    uint64(MemLogDirtyPages),
	"KVM_SYNC_X86_REGS":          syncRegs,
	"KVM_MP_STATE_RUNNABLE":      uint64(MPRunnable),
	"KVM_MP_STATE_UNINITIALIZED": uint64(MPUninitialized),
	"KVM_MP_STATE_INIT_RECEIVED": uint64(MPInitReceived),
	"KVM_MP_STATE_HALTED":        uint64(MPHalted),
	"KVM_MP_STATE_SIPI_RECEIVED": uint64(MPSIPIReceived),
	"KVM_CAP_IRQCHIP":            uint64(gokvm.CapIRQChip),
	"KVM_CAP_USER_MEMORY":        uint64(gokvm.CapUserMemory),
	"KVM_CAP_EXT_CPUID":          uint64(gokvm.CapEXTCPUID),
	"KVM_CAP_NR_VCPUS":           uint64(gokvm.CapNRVCPUS),
	"KVM_CAP_MP_STATE":           uint64(gokvm.CapMPState),
	"KVM_CAP_IRQ_ROUTING":        uint64(gokvm.CapIRQRouting),
	"KVM_CAP_IRQFD":              uint64(gokvm.CapIRQFD),
	"KVM_CAP_VCPU_EVENTS":        uint64(gokvm.CapVCPUEvents),
	"KVM_CAP_GET_TSC_KHZ":        uint64(gokvm.CapGetTSCkHz),
	"KVM_CAP_MAX_VCPUS":          uint64(gokvm.CapMAXVCPUS),
	"KVM_CAP_TSC_DEADLINE_TIMER": uint64(gokvm.CapTSCDeadlineTimer),
	"KVM_CAP_SYNC_REGS":          uint64(gokvm.CapSyncRegs),
	"KVM_CAP_SIGNAL_MSI":         uint64(gokvm.CapSignalMSI),
	"KVM_CAP_IMMEDIATE_EXIT":     uint64(gokvm.CapImmediateExit),
}

// TestLayout compares every struct and number that this package shares with the
// kernel to <linux/kvm.h>, as the C compiler sees it. The requests without a
// pointer aren't here: gokvm keeps their numbers to itself, and the other tests
// make each.
func TestLayout(t *testing.T) {
	t.Parallel()
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("needs gcc and <linux/kvm.h>: apt-get install gcc linux-libc-dev")
	}
	want := map[string]uint64{}
	for name, n := range numbers {
		want[name] = n
	}
	for reason, name := range exitNames {
		want[name] = uint64(reason)
	}
	for _, l := range layouts {
		if !openEnded[l.c] {
			want["sizeof("+l.c+")"] = uint64(l.go_.Size())
		}
		if l.go_.NumField() < len(l.fields) {
			t.Fatalf("%s: more fields are listed than there are", l.go_)
		}
		for i := range l.go_.NumField() {
			f := l.go_.Field(i)
			if f.Name == "_" || strings.HasPrefix(f.Name, "Padding") {
				continue
			}
			c, ok := l.fields[f.Name]
			if !ok {
				t.Errorf("%s.%s has no counterpart in %s here", l.go_, f.Name, l.c)
				continue
			}
			want[fmt.Sprintf("offsetof(%s, %s)", l.c, c)] = uint64(f.Offset)
			want[fmt.Sprintf("sizeof(((%s *)0)->%s)", l.c, c)] = uint64(f.Type.Size())
		}
	}
	// control stands for request_interrupt_window, immediate_exit and padding.
	delete(want, "sizeof(((struct kvm_run *)0)->request_interrupt_window)")

	// An older header may lack a newer exit.
	var src bytes.Buffer
	src.WriteString("#include <linux/kvm.h>\n#include <stddef.h>\n#include <stdio.h>\nint main(void) {\n")
	for expr := range want {
		printf := fmt.Sprintf("printf(\"%%s=%%llu\\n\", %q, (unsigned long long)(%s));\n", expr, expr)
		if strings.HasPrefix(expr, "KVM_EXIT_") {
			printf = fmt.Sprintf("#ifdef %s\n%s#endif\n", expr, printf)
		}
		src.WriteString(printf)
	}
	src.WriteString("return 0;\n}\n")

	dir := t.TempDir()
	source, program := filepath.Join(dir, "layout.c"), filepath.Join(dir, "layout")
	if err := os.WriteFile(source, src.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), gcc, "-o", program, source).CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	out, err := exec.CommandContext(t.Context(), program).Output()
	if err != nil {
		t.Fatal(err)
	}
	compared := 0
	for line := range strings.Lines(string(out)) {
		expr, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		compared++
		if got := fmt.Sprint(want[expr]); got != value {
			t.Errorf("%s is %s in C and %s here", expr, value, got)
		}
	}
	if compared < len(want)-len(exitNames) {
		t.Errorf("compared only %d of %d", compared, len(want))
	}
}
