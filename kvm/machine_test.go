package kvm

import (
	"encoding/binary"
	"slices"
	"testing"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

var (
	// xor %edx,%edx; 1: in %dx,%al; inc %dx; jnz 1b
	codeInAll = []byte{0x31, 0xd2, 0xec, 0x66, 0xff, 0xc2, 0x75, 0xfa}
	// xor %edx,%edx; 1: out %al,%dx; inc %dx; jnz 1b
	codeOutAll = []byte{0x31, 0xd2, 0xee, 0x66, 0xff, 0xc2, 0x75, 0xfa}
	// mov (%rbx),%eax; mov %eax,(%rbx)
	codeTouch = []byte{0x8b, 0x03, 0x89, 0x03}
	// mov $0x6000,%eax; xor %ecx,%ecx; xor %edx,%edx; monitor
	codeMonitor = []byte{0xb8, 0, 0x60, 0, 0, 0x31, 0xc9, 0x31, 0xd2, 0x0f, 0x01, 0xc8}
	// mov %cr4,%rax; or $0x2000,%eax; mov %rax,%cr4
	codeCR4 = []byte{0x0f, 0x20, 0xe0, 0x0d, 0, 0x20, 0, 0, 0x0f, 0x22, 0xe0}
	// mov $0xc0000080,%ecx; rdmsr; or $0x1000,%eax; wrmsr
	codeEFER = []byte{0xb9, 0x80, 0, 0, 0xc0, 0x0f, 0x32, 0x0d, 0, 0x10, 0, 0, 0x0f, 0x30}
	// xor %ecx,%ecx; rdpmc; or %edx,%eax
	codeRDPMC = []byte{0x31, 0xc9, 0x0f, 0x33, 0x09, 0xd0}
	// vmxon 0x6000
	codeVMXON = []byte{0xf3, 0x0f, 0xc7, 0x34, 0x25, 0, 0x60, 0, 0}
	// mov $0x6000,%eax; vmrun
	codeVMRUN = []byte{0xb8, 0, 0x60, 0, 0, 0x0f, 0x01, 0xd8}
	// mov $0x4b564d01,%ecx; xor %eax,%eax; xor %edx,%edx; wrmsr
	codeKVMMSR = []byte{0xb9, 1, 0x4d, 0x56, 0x4b, 0x31, 0xc0, 0x31, 0xd2, 0x0f, 0x30}
)

// newBareGuest makes a guest with local APICs and nothing else, as guests of
// the stream ABI have it.
func newBareGuest(t *testing.T) *guest {
	t.Helper()
	return newGuestWith(t, func(vm *VM) error {
		if err := vm.DisablePMU(); err != nil {
			return err
		}
		if err := vm.DisableQuirks(QuirkLocalAPICHole | QuirkHypercall | QuirkMWAIT); err != nil {
			return err
		}
		return vm.CreateLocalAPICs()
	})
}

// No port answers inside of KVM: each access leaves the guest.
func TestNoPortAnswers(t *testing.T) {
	onThread(t)
	for _, test := range []struct {
		name string
		in   bool
		code []byte
	}{{"in", true, codeInAll}, {"out", false, codeOutAll}} {
		t.Run(test.name, func(t *testing.T) {
			v := newBareGuest(t).vcpu(t, 0, test.code)
			for port := range 1 << 16 {
				run(t, v, ExitIO)
				if io := v.IO(); io.In != test.in || int(io.Port) != port || io.Size != 1 || io.Count != 1 {
					t.Fatalf("exit %+v, want port %#x", io, port)
				}
			}
		})
	}
}

// The full set of controllers brings two PICs, whose ports nothing takes away.
func TestPortsOfPIC(t *testing.T) {
	onThread(t)
	pics := []int{0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1}
	v := newGuest(t).vcpu(t, 0, codeInAll)
	for port := range 1 << 16 {
		if slices.Contains(pics, port) {
			continue
		}
		run(t, v, ExitIO)
		if io := v.IO(); !io.In || int(io.Port) != port {
			t.Fatalf("exit %+v, want port %#x", io, port)
		}
	}
}

// mapLow4GiB maps the first 4 GiB of guest-physical memory to themselves.
func (g *guest) mapLow4GiB() {
	const tables, present, large = 0x100000, 3, 1 << 7
	for i := range uint64(4) {
		g.put64(guestPDPT+8*i, (tables+i<<12)|present)
		for j := range uint64(512) {
			g.put64(tables+i<<12+8*j, i<<30|j<<21|present|large)
		}
	}
}

// No address below 4 GiB answers but what a test has put there. A local APIC's
// page answers only out of x2APIC mode.
func TestNoAddressAnswers(t *testing.T) {
	onThread(t)
	g := newBareGuest(t)
	g.needX2APIC(t)
	g.mapLow4GiB()
	addresses := []uint64{
		0xFEC0_0000, 0xFEC0_0010, 0xFEC0_1000, // I/O APICs
		0xFED0_0000, 0xFED0_00F0, // HPET
		0xFED4_0000, 0xFED9_0000, // TPM, IOMMU
		0xFFFB_C000, 0xFFFB_D000, 0xFFFB_F000, // KVM's own, on old processors
		0xFFFF_0000, 0xFFFF_FFF0, // firmware
	}
	if n, err := g.vm.checkExtension(gokvm.CapDisableQuirks2); err == nil && Quirk(n)&QuirkLocalAPICHole != 0 {
		addresses = append(addresses, 0xFEE0_0000, 0xFEE0_0020, 0xFEE0_0030, 0xFEE0_0380)
	}
	for a := uint64(guestMemory); a < 4<<30; a += 2 << 20 {
		addresses = append(addresses, a)
	}
	v := g.vcpu(t, 0, codeTouch)
	for _, a := range addresses {
		regs, err := v.GetRegs()
		must(t, err)
		regs.RIP, regs.RBX = guestCode, a
		must(t, v.SetRegs(regs))
		for _, write := range []bool{false, true} {
			run(t, v, ExitMMIO)
			m := v.MMIO()
			if m.Write != write || m.Address != a || len(m.Data) != 4 {
				t.Fatalf("exit %+v, want %#x", m, a)
			}
			binary.LittleEndian.PutUint32(m.Data, 0x5A5A_5A5A)
		}
		// What was asked for is done when the guest goes on.
		v.SetImmediateExit(true)
		_ = v.Run()
		v.SetImmediateExit(false)
	}
}

// What CPUID doesn't offer doesn't work: it is an invalid opcode or a fault, as
// on a processor without it.
func TestHiddenFaults(t *testing.T) {
	onThread(t)
	const undefined, protection = 6, 13
	for _, test := range []struct {
		name   string
		code   []byte
		vector byte
	}{
		{"VMXON", codeVMXON, undefined},
		{"VMRUN", codeVMRUN, undefined},
		{"MONITOR", codeMonitor, undefined},
		{"CR4.VMXE", codeCR4, protection},
		{"EFER.SVME", codeEFER, protection},
		{"RDPMC", codeRDPMC, protection},
		{"KVM's registers", codeKVMMSR, protection},
	} {
		t.Run(test.name, func(t *testing.T) {
			onThread(t)
			g := newBareGuest(t)
			if n, err := g.vm.checkExtension(gokvm.CapDisableQuirks2); test.name == "MONITOR" && (err != nil || Quirk(n)&QuirkMWAIT == 0) {
				t.Skip("this KVM takes MONITOR always: Linux 5.18 and later don't have to")
			}
			g.cpuid = slices.DeleteFunc(g.cpuid, func(e CPUIDEntry2) bool {
				return e.Function == 0xA || e.Function>>8 == 0x40_0000 || e.Function == 0x8000_000A || e.Function == 0x8000_0022
			})
			for i := range g.cpuid {
				switch e := &g.cpuid[i]; e.Function {
				case 1:
					e.Ecx &^= 1<<3 | 1<<5 | 1<<15
				case 0x8000_0001:
					e.Ecx &^= 1<<2 | 1<<23
				}
			}
			for _, vector := range []byte{undefined, protection} {
				at := testHandler + 16*uint64(vector)
				// mov $vector,%al; mov $0xe9,%edx; out %al,%dx
				copy(g.mem[at:], []byte{0xb0, vector, 0xba, 0xe9, 0, 0, 0, 0xee})
				g.setGate(vector, at)
			}
			v := g.vcpu(t, 0, test.code, codeOutLong)
			must(t, v.Run())
			if v.ExitReason() == ExitInternalError {
				return // a KVM that interprets, and doesn't know the instruction at all
			}
			if v.ExitReason() != ExitIO {
				t.Fatalf("exit %v (%s)", v.ExitReason(), describe(v))
			}
			// An older KVM answers RDPMC by counters that never count.
			if io := v.IO(); test.name == "RDPMC" && io.Size == 4 && string(io.Data) == "\x00\x00\x00\x00" {
				return
			}
			if io := v.IO(); io.Size != 1 || io.Data[0] != test.vector {
				t.Errorf("it went on, or faulted otherwise: %+v, want exception %d", io, test.vector)
			}
		})
	}
}

// What CPUID does offer of KVM works: the kernels of the older ABI tell KVM
// where to keep their clock.
func TestOfferedParavirtual(t *testing.T) {
	onThread(t)
	g := newGuest(t)
	if !g.features.KVMClock {
		t.Skip("this KVM has no kvmclock")
	}
	for i := range g.cpuid {
		if e := &g.cpuid[i]; e.Function == 0x4000_0001 {
			e.Eax &= 1 << 3
		}
	}
	v := g.vcpu(t, 0, codeKVMMSR, codeOutLong)
	run(t, v, ExitIO)
}
