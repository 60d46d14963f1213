package kvm

// syncRegs is the class of general purpose registers (KVM_SYNC_X86_REGS) among
// those that the run page can carry, so that an exit needs no ioctl to read or
// change them (section 5).
const syncRegs = 1 << 0

// SyncOnExit makes every Run that returns nil leave the general purpose
// registers in the run page (kvm_valid_regs). It needs [Features.SyncRegs], or
// Run fails with EINVAL.
func (v *VCPU) SyncOnExit() { v.page.validRegs = syncRegs }

// SyncedRegs returns the run page's general purpose registers: the guest's,
// after a Run with [VCPU.SyncOnExit] chosen. Changes count only after
// [VCPU.SyncDirty].
func (v *VCPU) SyncedRegs() *Regs { return &v.page.regs }

// SyncDirty makes the next Run load the registers from the run page before it
// does anything else. What the exit asked for is completed after that: the
// value of an IN goes into RAX, and RIP moves past the instruction if it hasn't
// yet, so leave RIP alone. Run clears the mark.
func (v *VCPU) SyncDirty() { v.page.dirtyRegs |= syncRegs }
