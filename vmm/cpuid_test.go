package vmm

import (
	"slices"
	"testing"

	"github.com/fix-project/arcavm/kvm"
)

// everything is a processor, and a KVM, that offer each bit of each leaf.
func everything() []kvm.CPUIDEntry2 {
	var all []kvm.CPUIDEntry2
	add := func(first, last uint32, indices ...uint32) {
		for f := first; f <= last; f++ {
			for _, i := range indices {
				all = append(all, kvm.CPUIDEntry2{Function: f, Index: i, Eax: ^uint32(0), Ebx: ^uint32(0), Ecx: ^uint32(0), Edx: ^uint32(0)})
			}
		}
	}
	add(0, 0x40, 0, 1, 2, 3)
	add(leafState, leafState, 9, 11, 12, 17, 18)
	add(0x4000_0000, 0x4000_0010, 0)
	add(0x4000_0100, 0x4000_0105, 0)
	add(0x8000_0000, 0x8000_0030, 0, 1)
	add(0x8086_0000, 0x8086_0001, 0)
	add(0xC000_0000, 0xC000_0004, 0)
	return all
}

func leafOf(entries []kvm.CPUIDEntry2, function, index uint32) kvm.CPUIDEntry2 {
	i := slices.IndexFunc(entries, func(e kvm.CPUIDEntry2) bool { return e.Function == function && e.Index == index })
	if i < 0 {
		return kvm.CPUIDEntry2{}
	}
	return entries[i]
}

// register is EAX, EBX, ECX or EDX, by its letter.
func register(e kvm.CPUIDEntry2, letter byte) uint32 {
	switch letter {
	case 'a':
		return e.Eax
	case 'b':
		return e.Ebx
	case 'c':
		return e.Ecx
	}
	return e.Edx
}

// Whatever KVM offers, no guest sees what no ABI names.
func TestCPUIDHides(t *testing.T) {
	t.Parallel()
	for _, clock := range []bool{false, true} {
		shown := guestCPUID(everything(), clock)
		for _, f := range []struct {
			name            string
			function, index uint32
			register        byte
			bits            uint32
		}{
			{"VMX", 1, 0, 'c', 1 << 5},
			{"SMX", 1, 0, 'c', 1 << 6},
			{"MONITOR", 1, 0, 'c', 1 << 3},
			{"EIST, TM2", 1, 0, 'c', 1<<7 | 1<<8},
			{"PDCM", 1, 0, 'c', 1 << 15},
			{"DTES64, DS-CPL", 1, 0, 'c', 1<<2 | 1<<4},
			{"serial number, DS, ACPI, TM, PBE", 1, 0, 'd', 1<<18 | 1<<21 | 1<<22 | 1<<29 | 1<<31},
			{"MONITOR's leaf", 5, 0, 'a', ^uint32(0)},
			{"APERF and MPERF", 6, 0, 'c', ^uint32(0)},
			{"turbo, HWP, PLN", 6, 0, 'a', ^uint32(1 << 2)},
			{"SGX, HLE, RTM, RDT, MPX, PT", 7, 0, 'b', 1<<2 | 1<<4 | 1<<11 | 1<<12 | 1<<14 | 1<<15 | 1<<25},
			{"WAITPKG, CET, LA57, bus locks, ENQCMD, SGX_LC, PKS, key locker", 7, 0, 'c', 1<<5 | 1<<7 | 1<<16 | 1<<23 | 1<<24 | 1<<29 | 1<<30 | 1<<31},
			{"UINTR, SRBDS, PCONFIG, LBR, IBT, AMX, core capabilities", 7, 0, 'd', 1<<5 | 1<<9 | 1<<18 | 1<<19 | 1<<20 | 1<<22 | 1<<24 | 1<<25 | 1<<30},
			{"FRED, LKGS, WRMSRNS, AMX, LAM", 7, 1, 'a', 1<<17 | 1<<18 | 1<<19 | 1<<21 | 1<<26},
			{"AMX, UIRET, CET, AVX10", 7, 1, 'd', 1<<8 | 1<<17 | 1<<18 | 1<<19},
			{"performance counters", 0xA, 0, 'a', ^uint32(0)},
			{"performance counters", 0xA, 0, 'd', ^uint32(0)},
			{"MPX, AMX, CET in XCR0", 0xD, 0, 'a', 1<<3 | 1<<4 | 1<<11 | 1<<12 | 1<<17 | 1<<18},
			{"XSAVES, XFD", 0xD, 1, 'a', 1<<3 | 1<<4},
			{"what XSAVES keeps", 0xD, 1, 'c', ^uint32(0)},
			{"CET's state", 0xD, 11, 'a', ^uint32(0)},
			{"AMX's state", 0xD, 18, 'a', ^uint32(0)},
			{"cache monitoring", 0xF, 0, 'd', ^uint32(0)},
			{"cache allocation", 0x10, 0, 'b', ^uint32(0)},
			{"SGX", 0x12, 0, 'a', ^uint32(0)},
			{"processor trace", 0x14, 0, 'b', ^uint32(0)},
			{"key locker", 0x19, 0, 'a', ^uint32(0)},
			{"last branch records", 0x1C, 0, 'a', ^uint32(0)},
			{"performance counters", 0x23, 0, 'a', ^uint32(0)},
			{"AVX10", 0x24, 0, 'b', ^uint32(0)},
			{"SVM", 0x8000_0001, 0, 'c', 1 << 2},
			{"extended APIC, OSVW, IBS, SKINIT, WDT, LWP", 0x8000_0001, 0, 'c', 1<<3 | 1<<9 | 1<<10 | 1<<12 | 1<<13 | 1<<15},
			{"PERFCTR, data breakpoints, MWAITX", 0x8000_0001, 0, 'c', 1<<23 | 1<<24 | 1<<26 | 1<<27 | 1<<28 | 1<<29},
			{"power", 0x8000_0007, 0, 'd', ^uint32(bitInvariantTSC)},
			{"IRPERF, RDPRU, CPPC", 0x8000_0008, 0, 'b', 1<<1 | 1<<4 | 1<<27},
			{"SVM", 0x8000_000A, 0, 'a', ^uint32(0)},
			{"SVM", 0x8000_000A, 0, 'd', ^uint32(0)},
			{"IBS", 0x8000_001B, 0, 'a', ^uint32(0)},
			{"LWP", 0x8000_001C, 0, 'a', ^uint32(0)},
			{"SEV", 0x8000_001F, 0, 'a', ^uint32(0)},
			{"bandwidth control", 0x8000_0020, 0, 'b', ^uint32(0)},
			{"performance counters", 0x8000_0022, 0, 'a', ^uint32(0)},
			{"another hypervisor's leaves", 0x4000_0002, 0, 'a', ^uint32(0)},
			{"another hypervisor's leaves", 0x4000_0100, 0, 'b', ^uint32(0)},
			{"KVM beside its clock", 0x4000_0001, 0, 'a', ^uint32(kvmClockBits)},
			{"KVM's hints", 0x4000_0001, 0, 'd', ^uint32(0)},
			{"Transmeta", 0x8086_0001, 0, 'a', ^uint32(0)},
			{"VIA", 0xC000_0001, 0, 'd', ^uint32(0)},
		} {
			if got := register(leafOf(shown, f.function, f.index), f.register) & f.bits; got != 0 {
				t.Errorf("clock %v: %s: leaf %#x.%d shows %#x in E%cX", clock, f.name, f.function, f.index, got, f.register-'a'+'A')
			}
		}
		kvmLeaf, hypervisor := leafOf(shown, leafKVM, 0), leafOf(shown, leafHypervisor, 0)
		if clock != (kvmLeaf.Eax == kvmClockBits) || clock != (hypervisor.Ebx != 0) || hypervisor.Eax != leafKVM {
			t.Errorf("clock %v: hypervisor %+v, features %+v", clock, hypervisor, kvmLeaf)
		}
		for _, e := range shown {
			if (e.Function > lastBasic && e.Function < leafHypervisor) || e.Function > lastExtended {
				t.Errorf("clock %v: leaf %#x is beyond the last one", clock, e.Function)
			}
		}
		if a, b := leafOf(shown, 0, 0).Eax, leafOf(shown, leafExtended, 0).Eax; a != lastBasic || b != lastExtended {
			t.Errorf("the last leaves are %#x and %#x", a, b)
		}
	}
}

// What guests of both ABIs, and the older one's kernels, need is there.
func TestCPUIDShows(t *testing.T) {
	t.Parallel()
	features := kvm.Features{Processor: kvm.Processor{TSCDeadline: true, InvariantTSC: true}}
	for _, clock := range []bool{false, true} {
		shown := cpuidFor(2, 4, guestCPUID(everything(), clock), features)
		for _, f := range []struct {
			name            string
			function, index uint32
			register        byte
			bits, want      uint32
		}{
			{"x2APIC, TSC deadline, XSAVE, AVX", 1, 0, 'c', 1<<21 | 1<<24 | 1<<26 | 1<<28, ^uint32(0)},
			{"a hypervisor", 1, 0, 'c', 1 << 31, ^uint32(0)},
			{"APIC id and number of CPUs", 1, 0, 'b', 0xFFFF_0000, 2<<24 | 4<<16},
			{"local APIC", 1, 0, 'd', 1 << 9, ^uint32(0)},
			{"FSGSBASE, SMEP, SMAP", 7, 0, 'b', 1<<0 | 1<<7 | 1<<20, ^uint32(0)},
			{"SPEC_CTRL, SSBD", 7, 0, 'd', 1<<26 | 1<<31, ^uint32(0)},
			{"x2APIC id", 0xB, 0, 'd', ^uint32(0), 2},
			{"XSAVE of AVX", 0xD, 0, 'a', 7, 7},
			{"NX, 1 GiB pages, RDTSCP", 0x8000_0001, 0, 'd', 1<<20 | 1<<26 | 1<<27, ^uint32(0)},
			{"invariant TSC", 0x8000_0007, 0, 'd', 1 << 8, ^uint32(0)},
			{"number of CPUs, less one", 0x8000_0008, 0, 'c', ^uint32(0), 3},
			{"extended APIC id", 0x8000_001E, 0, 'a', ^uint32(0), 2},
		} {
			if got := register(leafOf(shown, f.function, f.index), f.register) & f.bits; got != f.want&f.bits {
				t.Errorf("clock %v: %s: leaf %#x.%d has %#x in E%cX, want %#x", clock, f.name, f.function, f.index, got, f.register-'a'+'A', f.want&f.bits)
			}
		}
	}
}

// The size of the XSAVE area is that of what may be in it.
func TestCPUIDStateSize(t *testing.T) {
	t.Parallel()
	all := []kvm.CPUIDEntry2{
		{Function: leafState, Index: 0, Eax: 0x602E7, Ecx: 11008},
		{Function: leafState, Index: 2, Eax: 256, Ebx: 576},
		{Function: leafState, Index: 9, Eax: 8, Ebx: 2688},
		{Function: leafState, Index: 18, Eax: 8192, Ebx: 2816},
	}
	for _, c := range []struct {
		name    string
		entries []kvm.CPUIDEntry2
		want    uint32
	}{
		{"AMX is left out", all, 2696},
		{"AVX only", all[:2], 832},
		{"x87 and SSE only", all[:1], 576},
	} {
		if got := leafOf(guestCPUID(c.entries, false), leafState, 0); got.Ecx != c.want || got.Eax != 0x2E7 {
			t.Errorf("%s: %d bytes of %#x, want %d", c.name, got.Ecx, got.Eax, c.want)
		}
	}
}
