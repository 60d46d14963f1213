package kvm

import (
	"errors"
	"strings"
)

var (
	// ErrClosed is what a call on a closed System, VM or VCPU returns.
	ErrClosed = errors.New("kvm: closed")

	// ErrInterrupted is what Run returns without an exit: a signal arrived, or
	// immediate_exit is set. Nothing of the guest's needs handling; the caller
	// looks whether it is to stop, and calls Run again.
	ErrInterrupted = errors.New("kvm: KVM_RUN: interrupted")
)

// IoctlError is an ioctl that failed. Err is the errno.
type IoctlError struct {
	Ioctl string // its name in <linux/kvm.h>
	Err   error
}

func (e *IoctlError) Error() string { return "kvm: " + e.Ioctl + ": " + e.Err.Error() }

// Unwrap returns the errno.
func (e *IoctlError) Unwrap() error { return e.Err }

// UnavailableError says that KVM can't be used on this machine, in one
// sentence: what is missing, and what to do.
type UnavailableError struct {
	Path    string // of the device
	Problem string // continues "<path> "
	Remedy  string // an imperative
	Err     error  // the cause; may be nil
}

func (e *UnavailableError) Error() string {
	var b strings.Builder
	b.WriteString("kvm: ")
	b.WriteString(e.Path)
	b.WriteByte(' ')
	b.WriteString(e.Problem)
	if e.Err != nil {
		b.WriteString(" (")
		b.WriteString(strings.TrimPrefix(e.Err.Error(), "kvm: "))
		b.WriteByte(')')
	}
	b.WriteString(": ")
	b.WriteString(e.Remedy)
	return b.String()
}

// Unwrap returns the cause.
func (e *UnavailableError) Unwrap() error { return e.Err }
