package kvm

import (
	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"
)

// MemLogDirtyPages is a flag of a memory slot, for [VM.SetUserMemoryRegion]:
// KVM keeps a log of the pages that are written (KVM_MEM_LOG_DIRTY_PAGES).
const MemLogDirtyPages uint32 = 1 << 0

// VM is one virtual machine.
type VM struct {
	handle
	runSize int
}

// enableCap is struct kvm_enable_cap.
type enableCap struct {
	cap   uint32
	flags uint32
	args  [4]uint64
	_     [64]byte
}

// checkExtension is System.checkExtension as it applies to this VM.
func (vm *VM) checkExtension(c gokvm.Capability) (int, error) {
	return checkExtension(&vm.handle, c)
}

// enableCap turns on a capability that is off at first (section 4.37), with up
// to four arguments. More give E2BIG.
func (vm *VM) enableCap(c gokvm.Capability, args ...uint64) error {
	return enable(&vm.handle, c, args)
}

func enable(h *handle, c gokvm.Capability, args []uint64) error {
	arg := &enableCap{cap: uint32(c)}
	if len(args) > len(arg.args) {
		return &IoctlError{Ioctl: reqEnableCap.name, Err: unix.E2BIG}
	}
	copy(arg.args[:], args)
	return check(ioctl(h, reqEnableCap, arg))
}

// CreateIRQChip gives the VM two PICs, an I/O APIC and, for every vCPU that is
// created later, a local APIC (section 4.24).
func (vm *VM) CreateIRQChip() error {
	return check(call(&vm.handle, "KVM_CREATE_IRQCHIP", func(fd uintptr) (uintptr, error) {
		return 0, gokvm.CreateIRQChip(fd)
	}))
}

// CreateLocalAPICs gives every vCPU that is created later a local APIC, and
// the VM no other interrupt controller: neither ports nor memory of a PIC or an
// I/O APIC answer (section 7.5, KVM_CAP_SPLIT_IRQCHIP). Interrupts are messages
// then: [VM.SignalMSI], and GSIs that [VM.SetGSIRouting] routes as such.
// It stands in for [VM.CreateIRQChip], and comes before the first vCPU.
func (vm *VM) CreateLocalAPICs() error {
	const pinsOfIOAPIC = 0
	return vm.enableCap(gokvm.CapSplitIRQChip, pinsOfIOAPIC)
}

// Quirk is a way in which KVM differs from a processor, unless it is told not
// to (section 7.33).
type Quirk uint64

const (
	// QuirkLocalAPICHole: while a local APIC has no page in memory, what is
	// read there is all ones, and what is written is dropped, without an exit.
	QuirkLocalAPICHole Quirk = 1 << 2 // KVM_X86_QUIRK_LAPIC_MMIO_HOLE
	// QuirkHypercall: the other vendor's instruction for calls to a hypervisor
	// is overwritten in the guest's code, and is no invalid opcode.
	QuirkHypercall Quirk = 1 << 5 // KVM_X86_QUIRK_FIX_HYPERCALL_INSN
	// QuirkMWAIT: MONITOR and MWAIT do nothing where CPUID doesn't offer them,
	// and are no invalid opcodes.
	QuirkMWAIT Quirk = 1 << 6 // KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS
)

// DisableQuirks turns off those of the quirks that this KVM can do without.
// Call it before the first vCPU is created.
func (vm *VM) DisableQuirks(quirks Quirk) error {
	can, err := vm.checkExtension(gokvm.CapDisableQuirks2)
	if err != nil {
		return err
	}
	if quirks &= Quirk(can); quirks == 0 {
		return nil
	}
	return vm.enableCap(gokvm.CapDisableQuirks2, uint64(quirks))
}

// DisablePMU takes the performance counters away from the vCPUs that are
// created later: their registers and RDPMC fault (section 8.34,
// KVM_CAP_PMU_CAPABILITY, Linux 5.18). Where this KVM can't, it has none or
// they go by CPUID, and nothing happens.
func (vm *VM) DisablePMU() error {
	const disable = 1 << 0 // KVM_PMU_CAP_DISABLE
	can, err := vm.checkExtension(gokvm.CapPMUCapability)
	if err != nil || can&disable == 0 {
		return err
	}
	return vm.enableCap(gokvm.CapPMUCapability, disable)
}

// SetTSSAddr says where KVM may use three pages of guest-physical memory, below
// 4 GiB and away from every memory slot (section 4.36). Intel processors need
// it.
func (vm *VM) SetTSSAddr(gpa uint32) error {
	return check(call(&vm.handle, "KVM_SET_TSS_ADDR", func(fd uintptr) (uintptr, error) {
		return 0, gokvm.SetTSSAddr(fd, gpa)
	}))
}

// SetIdentityMapAddr says where KVM may use one page of guest-physical memory,
// below 4 GiB and away from every memory slot (section 4.46). Intel processors
// need it. It comes before the first vCPU.
func (vm *VM) SetIdentityMapAddr(gpa uint64) error {
	return check(ioctl(&vm.handle, reqSetIdentityMapAddr, &gpa))
}

// SetUserMemoryRegion makes mem the guest-physical memory at gpa, under the
// given slot number, or deletes the slot if mem is empty (section 4.35). mem
// and gpa must be page aligned. mem must be mapped memory, not Go's heap, and
// must stay mapped until the slot is deleted or the VM and all its vCPUs are
// closed.
func (vm *VM) SetUserMemoryRegion(slot, flags uint32, gpa uint64, mem []byte) error {
	return check(ioctl(&vm.handle, reqSetUserMemoryRegion, newUserMemoryRegion(slot, flags, gpa, mem)))
}

// CreateVCPU adds the vCPU with the given id, which is also its local APIC id
// (section 4.7). EEXIST: there is one; EINVAL: the id is too large for this
// KVM.
func (vm *VM) CreateVCPU(id int) (*VCPU, error) {
	fd, err := call(&vm.handle, "KVM_CREATE_VCPU", func(fd uintptr) (uintptr, error) { return gokvm.CreateVCPU(fd, id) })
	if err != nil {
		return nil, err
	}
	return newVCPU(fd, id, vm.runSize)
}

// Close closes the VM. KVM keeps it, and its use of the memory, until every
// vCPU is closed too.
func (vm *VM) Close() error { return vm.close() }
