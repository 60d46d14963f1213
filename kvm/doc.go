// Package kvm is a thin typed layer over /dev/kvm on x86-64.
//
// Three types own a file descriptor each: [System] (/dev/kvm), [VM] and [VCPU].
// A method is one ioctl and carries its meaning in its name. Its documentation
// names the section of the kernel's KVM API document, which is
// Documentation/virt/kvm/api.rst, and the capability that it needs. Every
// error names the ioctl and wraps the errno.
//
// # Concurrency
//
// Methods of System and VM may be called by any goroutine. Of a VCPU only
// [VCPU.SetImmediateExit], [VCPU.Kick], [VCPU.Halted], [VCPU.PeekRegs],
// [VCPU.GetMPState] and [VCPU.Close] may, and of these the ioctls wait in the
// kernel while a Run is in flight. Everything else belongs to the thread that
// calls [VCPU.Run]. Close is idempotent everywhere: a call in flight in another
// goroutine keeps the descriptor until it returns, and later calls give
// [ErrClosed].
//
// # Glossary
//
//	vCPU            a virtual CPU; the thread that calls Run is its processor
//	exit            the return from guest code to Run's caller, with a reason
//	run page        memory that a vCPU's thread shares with the kernel
//	immediate_exit  a flag in the run page by which Run returns at once
//	kick            to end a Run in flight: immediate_exit, then a signal
//	GSI             an interrupt's number; its route says where it goes
//	irqfd           an eventfd whose writes raise a GSI
//	MSI             an interrupt as a message to a local APIC
//	memory slot     guest-physical addresses with memory behind them
//	quirk           a way in which KVM differs from a processor
//
// # What comes from gokvm
//
// Constants, builders of ioctl numbers, types of registers and CPUID entries,
// and the calls without a pointer are those of
// github.com/bobuhiro11/gokvm/kvm. Calls with a pointer are made here, with the
// pointer converted within the system call's argument list: a pointer that
// became a number before may be stale, because a goroutine's stack moves.
package kvm
