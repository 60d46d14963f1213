package kvm

import (
	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"
)

// RegSet is a set of register classes that the run page can carry, so that an exit needs no ioctl to read or change them.
type RegSet uint64

// The register classes of x86.
const (
	SyncRegs   RegSet = 1 << 0 // KVM_SYNC_X86_REGS: general purpose registers
	SyncSregs  RegSet = 1 << 1 // KVM_SYNC_X86_SREGS: special registers
	SyncEvents RegSet = 1 << 2 // KVM_SYNC_X86_EVENTS: exceptions, interrupts, NMIs
)

// SyncRegSets returns the classes that this KVM can carry; 0 if it has no KVM_CAP_SYNC_REGS.
func (s *System) SyncRegSets() (RegSet, error) {
	n, err := s.CheckExtension(gokvm.CapSyncRegs)
	return RegSet(n) & (SyncRegs | SyncSregs | SyncEvents), err
}

// SyncOnExit chooses the classes that every Run leaves in the run page when it returns nil (section 5, kvm_valid_regs).
// They must be among [System.SyncRegSets], or Run fails with EINVAL.
func (v *VCPU) SyncOnExit(set RegSet) error {
	if set&^(SyncRegs|SyncSregs|SyncEvents) != 0 {
		return &IoctlError{Ioctl: reqRun.name, Err: unix.EINVAL}
	}
	v.page.validRegs = uint64(set)
	return nil
}

// SyncDirty makes the next Run load these classes from the run page before it does anything else. What the exit asked
// for is completed after that: the value of an IN goes into RAX, and RIP moves past the instruction if it hasn't yet, so
// leave RIP alone. Run clears the mark.
func (v *VCPU) SyncDirty(set RegSet) { v.page.dirtyRegs |= uint64(set) }

// SyncedRegs returns the run page's general purpose registers: the guest's, after a Run with [SyncRegs] chosen. Changes
// count only after [VCPU.SyncDirty].
func (v *VCPU) SyncedRegs() *Regs { return &v.page.regs }

// SyncedSregs is [VCPU.SyncedRegs] for the special registers.
func (v *VCPU) SyncedSregs() *Sregs { return &v.page.sregs }

// SyncedEvents is [VCPU.SyncedRegs] for the events.
func (v *VCPU) SyncedEvents() *VCPUEvents { return &v.page.events }
