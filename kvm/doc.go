// Package kvm is a thin typed layer over /dev/kvm on x86-64.
//
// Three types own a file descriptor each: [System] (/dev/kvm), [VM] and [VCPU]. A method is one ioctl and carries its
// meaning in its name; its documentation names the section of the kernel's KVM API document
// (Documentation/virt/kvm/api.rst) and the capability that it needs. Every error names the ioctl and wraps the errno, so
// errors.Is(err, unix.EINVAL) works.
//
// Constants, ioctl number builders, register and CPUID types, and the calls that take no pointer come from
// github.com/bobuhiro11/gokvm/kvm. Calls that take a pointer are made here, with the pointer converted inside the system
// call's argument list, because a pointer that became a number earlier may be stale when a goroutine's stack moves.
//
// Methods of System and VM may be called by any goroutine. Of a VCPU only
// [VCPU.SetImmediateExit], [VCPU.Kick], [VCPU.Halted], [VCPU.PeekRegs],
// [VCPU.GetMPState] and [VCPU.Close] may, and the kernel makes other calls wait
// while a Run is in flight; everything else belongs to the thread that calls
// [VCPU.Run]. Close is idempotent everywhere; what is
// in flight in another goroutine keeps the descriptor until it returns, later calls give [ErrClosed].
package kvm
