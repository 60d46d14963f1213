package vmm

import (
	"slices"

	"github.com/fix-project/arcavm/kvm"
)

// CPUID leaves that differ from what KVM reports, or that others depend on.
const (
	leafBasic      = 0x0
	leafFeatures   = 0x1
	leafTopology   = 0xB
	leafState      = 0xD
	leafTopologyV2 = 0x1F
	leafHypervisor = 0x4000_0000
	leafKVM        = 0x4000_0001
	leafExtended   = 0x8000_0000
	leafPower      = 0x8000_0007
	leafSizes      = 0x8000_0008
	leafAMDCPU     = 0x8000_001E

	bitTSCDeadline  = 1 << 24 // leafFeatures, ECX
	bitHypervisor   = 1 << 31 // leafFeatures, ECX
	bitInvariantTSC = 1 << 8  // leafPower, EDX

	lastBasic    = leafTopologyV2
	lastExtended = 0x8000_0021
)

// anyIndex stands for every index that a leaf has.
const anyIndex = -1

// cpuidRow says which bits of a leaf a guest sees.
type cpuidRow struct {
	function           uint32
	index              int
	eax, ebx, ecx, edx uint32
}

const allBits = ^uint32(0)

// bits is the mask of the given bits.
func bits(numbers ...int) (mask uint32) {
	for _, n := range numbers {
		mask |= 1 << n
	}
	return mask
}

// cpuidShown is all of CPUID that a guest sees: a leaf that isn't here is left
// out, and a bit that isn't here is 0, whatever KVM comes to offer. It has:
//
//   - instructions that any program may use, and the state that XSAVE keeps
//     for them;
//   - what belongs to 64-bit mode, to paging, to exceptions and to time;
//   - the local APIC, which is the one device that guests have;
//   - what protects a guest from its own programs (speculation control).
//
// It leaves out everything else whose registers or instructions a guest could
// then use, and that no ABI names:
//
//   - virtualisation: VMX, SVM and its leaf 0x8000_000A, SEV (0x8000_001F);
//   - performance counters and tracing: leaf 0xA, PDCM, DS and DTES64,
//     PerfCtr…, 0x8000_0022, processor trace (0x14), last branch records
//     (0x1C), IBS (0x8000_001B), LWP (0x8000_001C);
//   - power and heat: leaves 5 and 6 but for ARAT, MONITOR and MONITORX,
//     WAITPKG, ACPI, TM, TM2, EIST, APERF and MPERF with RDPRU and IRPERF,
//     CPPC;
//   - enclaves and measured launch: SGX (0x12), SMX, SKINIT, PCONFIG, key
//     locker (0x19);
//   - the host's cache and bandwidth control: leaves 0xF, 0x10, 0x8000_0020;
//   - transactional memory (HLE, RTM), MPX, AMX, CET, FRED, user interrupts,
//     ENQCMD, bus lock detection, 5-level paging, and so XSAVES: each needs
//     registers or modes that the entry state doesn't have;
//   - KVM's own leaves, and those of other hypervisors. The bit that says that
//     there is a hypervisor is always set, which not every KVM does: it is the
//     truth, and a guest may wish to know.
//
// A later instruction set is one row's bit away.
var cpuidShown = []cpuidRow{
	{leafBasic, anyIndex, allBits, allBits, allBits, allBits}, // vendor
	{leafFeatures, anyIndex, allBits, allBits,
		bits(0, 1, 9, 12, 13, // SSE3 PCLMULQDQ SSSE3 FMA CX16
			17, 19, 20, 21, // PCID SSE4.1 SSE4.2 x2APIC
			22, 23, 24, 25, // MOVBE POPCNT TSC-deadline AES
			26, 27, 28, 29, 30), // XSAVE OSXSAVE AVX F16C RDRAND
		bits(0, 1, 2, 3, 4, 5, 6, 7, // FPU VME DE PSE TSC MSR PAE MCE
			8, 9, 11, 12, 13, 14, // CX8 APIC SEP MTRR PGE MCA
			15, 16, 17, 19, // CMOV PAT PSE36 CLFSH
			23, 24, 25, 26, 27, 28)}, // MMX FXSR SSE SSE2 SS HTT
	{0x2, anyIndex, allBits, allBits, allBits, allBits}, // caches, TLBs
	{0x4, anyIndex, allBits, allBits, allBits, allBits}, // caches
	{0x6, anyIndex, bits(2), 0, 0, 0},                   // ARAT: the local APIC's timer never stops
	{0x7, 0, 0x3,
		bits(0, 1, 3, 5, 6, // FSGSBASE TSC_ADJUST BMI1 AVX2 FDP_EXCPTN
			7, 8, 9, 10, 13, // SMEP BMI2 ERMS INVPCID ZERO_FCS_FDS
			16, 17, 18, 19, 20, 21, // AVX512F AVX512DQ RDSEED ADX SMAP AVX512_IFMA
			23, 24, 26, 27, 28, 29, // CLFLUSHOPT CLWB AVX512PF ER CD SHA
			30, 31), // AVX512BW AVX512VL
		bits(0, 1, 2, 3, 4, // PREFETCHWT1 AVX512_VBMI UMIP PKU OSPKE
			6, 8, 9, 10, 11, // AVX512_VBMI2 GFNI VAES VPCLMULQDQ AVX512_VNNI
			12, 14, 22, // AVX512_BITALG AVX512_VPOPCNTDQ RDPID
			25, 27, 28), // CLDEMOTE MOVDIRI MOVDIR64B
		bits(2, 3, 4, 8, // AVX512_4VNNIW 4FMAPS FSRM VP2INTERSECT
			10, 14, 23, // MD_CLEAR SERIALIZE AVX512_FP16
			26, 27, 28, 29, 31)}, // SPEC_CTRL STIBP FLUSH_L1D ARCH_CAPABILITIES SSBD
	{0x7, 1,
		bits(0, 1, 2, 4, 5, 7, // SHA512 SM3 SM4 AVX_VNNI AVX512_BF16 CMPCCXADD
			10, 11, 12, 23), // FZRM FSRS FSRC AVX_IFMA
		0, 0,
		bits(4, 5, 10, 14)}, // AVX_VNNI_INT8 AVX_NE_CONVERT AVX_VNNI_INT16 PREFETCHI
	{0x7, 2, 0, 0, 0, bits(0, 1, 2, 3, 4, 5)}, // speculation: PSFD … MCDT_NO
	{leafTopology, anyIndex, allBits, allBits, allBits, allBits},
	{leafState, 0, stateComponents, allBits, allBits, 0},
	{leafState, 1, bits(0, 1, 2), allBits, 0, 0}, // XSAVEOPT XSAVEC XGETBV(1)
	{leafState, 2, allBits, allBits, allBits, 0}, // AVX
	{leafState, 5, allBits, allBits, allBits, 0}, // AVX-512
	{leafState, 6, allBits, allBits, allBits, 0},
	{leafState, 7, allBits, allBits, allBits, 0},
	{leafState, 9, allBits, allBits, allBits, 0},   // protection keys
	{0x15, anyIndex, allBits, allBits, allBits, 0}, // TSC frequency
	{0x16, anyIndex, allBits, allBits, allBits, 0}, // processor frequency
	{leafTopologyV2, anyIndex, allBits, allBits, allBits, allBits},

	{leafExtended, anyIndex, allBits, allBits, allBits, allBits}, // vendor
	{0x8000_0001, anyIndex, allBits, allBits,
		bits(0, 1, 4, 5, 6, 7, // LAHF CmpLegacy AltMovCr8 ABM SSE4A MisAlignSse
			8, 11, 16, 21, 22), // PREFETCHW XOP FMA4 TBM TopologyExtensions
		bits(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15, 16, 17, 23, 24, // as leaf 1
			11, 20, 22, 25, 26, 27, 29, 30, 31)}, // SYSCALL NX MMXEXT FFXSR 1GB RDTSCP LM 3DNOW…
	{0x8000_0002, anyIndex, allBits, allBits, allBits, allBits}, // the processor's name
	{0x8000_0003, anyIndex, allBits, allBits, allBits, allBits},
	{0x8000_0004, anyIndex, allBits, allBits, allBits, allBits},
	{0x8000_0005, anyIndex, allBits, allBits, allBits, allBits}, // caches, TLBs
	{0x8000_0006, anyIndex, allBits, allBits, allBits, allBits},
	{leafPower, anyIndex, 0, 0, 0, bitInvariantTSC},
	{leafSizes, anyIndex, 0x00FF_FFFF,
		bits(0, 2, 9, // CLZERO XSAVEERPTR WBNOINVD
			12, 14, 15, 16, 17, // IBPB IBRS STIBP IBRS and STIBP always on
			18, 19, 24, 25, 26, // IBRS preferred, same mode SSBD VIRT_SSBD SSB_NO
			28, 29, 30), // PSFD BTC_NO IBPB_RET
		0, 0},
	{0x8000_0019, anyIndex, allBits, allBits, 0, 0},             // TLBs for 1 GiB pages
	{0x8000_001A, anyIndex, allBits, 0, 0, 0},                   // which SSE and AVX are fast
	{0x8000_001D, anyIndex, allBits, allBits, allBits, allBits}, // caches
	{leafAMDCPU, anyIndex, 0, 0, 0, 0},
	{lastExtended, anyIndex,
		bits(0, 1, 2, 5, 6, 8, 9, // NoNestedDataBp … LFENCE VERW_CLEAR AutomaticIBRS …
			10, 11, 27, 28, 29, 30, 31), // FSRS FSRC, speculation
		0, bits(1, 2), 0}, // TSA_SQ_NO TSA_L1_NO
}

// stateComponents are what XSAVE may keep: x87, SSE, AVX, AVX-512, protection
// keys.
const stateComponents = 1<<0 | 1<<1 | 1<<2 | 1<<5 | 1<<6 | 1<<7 | 1<<9

// kvmClockBits are the paravirtual clock in KVM's leaf: its registers old and
// new, and that it is stable.
const kvmClockBits = 1<<0 | 1<<3 | 1<<24

// legacySize is the XSAVE area of x87 and SSE, and its header.
const legacySize = 512 + 64

// guestCPUID is what all CPUs of a guest see alike of what KVM supports: see
// cpuidShown. With kvmClock KVM's leaves are there, too, with its clock and
// nothing else in them; without, they name no hypervisor and nothing of one.
func guestCPUID(supported []kvm.CPUIDEntry2, kvmClock bool) []kvm.CPUIDEntry2 {
	var shown []kvm.CPUIDEntry2
	for _, e := range supported {
		row := slices.IndexFunc(cpuidShown, func(r cpuidRow) bool {
			return r.function == e.Function && (r.index == anyIndex || uint32(r.index) == e.Index)
		})
		switch {
		case row >= 0:
			r := cpuidShown[row]
			e.Eax, e.Ebx, e.Ecx, e.Edx = e.Eax&r.eax, e.Ebx&r.ebx, e.Ecx&r.ecx, e.Edx&r.edx
		case kvmClock && e.Function == leafHypervisor:
			e.Eax = leafKVM
		case kvmClock && e.Function == leafKVM:
			e.Eax, e.Ebx, e.Ecx, e.Edx = e.Eax&kvmClockBits, 0, 0, 0
		default:
			continue
		}
		shown = append(shown, e)
	}
	if !kvmClock {
		// Without leaves here Intel's processors answer with another one's
		// values.
		shown = append(shown, kvm.CPUIDEntry2{Function: leafHypervisor, Eax: leafKVM}, kvm.CPUIDEntry2{Function: leafKVM})
	}
	limitCPUID(shown)
	return shown
}

// limitCPUID makes what says how much there is agree with what is there.
func limitCPUID(entries []kvm.CPUIDEntry2) {
	area := uint32(legacySize)
	for _, e := range entries {
		if e.Function == leafState && e.Index >= 2 && e.Eax != 0 {
			area = max(area, e.Ebx+e.Eax)
		}
	}
	for n := range entries {
		e := &entries[n]
		switch {
		case e.Function == leafBasic:
			e.Eax = min(e.Eax, lastBasic)
		case e.Function == leafExtended:
			e.Eax = min(e.Eax, lastExtended)
		case e.Function == leafState && e.Index == 0:
			// EBX is KVM's: it follows XCR0.
			e.Ecx = min(e.Ecx, area)
		}
	}
}

// cpuidFor is what CPU i sees: what all see, with its own ids, and the bits
// that KVM leaves to its user.
func cpuidFor(i, cpus int, shown []kvm.CPUIDEntry2, f kvm.Features) []kvm.CPUIDEntry2 {
	entries := slices.Clone(shown)
	for n := range entries {
		e := &entries[n]
		switch e.Function {
		case leafFeatures:
			e.Ebx = e.Ebx&0x0000_FFFF | uint32(i)<<24 | uint32(cpus)<<16
			e.Ecx |= bitHypervisor
			if f.TSCDeadline {
				e.Ecx |= bitTSCDeadline
			}
		case leafTopology, leafTopologyV2:
			e.Edx = uint32(i)
		case leafPower:
			if f.InvariantTSC {
				e.Edx |= bitInvariantTSC
			}
		case leafSizes:
			e.Ecx = uint32(cpus - 1)
		case leafAMDCPU:
			e.Eax, e.Ebx = uint32(i), uint32(i)
		}
	}
	return entries
}
