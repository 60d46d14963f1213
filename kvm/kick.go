package kvm

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// BindThread says that the calling thread is the one that calls Run, so that
// [VCPU.Kick] can reach it. The goroutine has locked itself to the thread, and
// calls UnbindThread before it unlocks or ends.
func (v *VCPU) BindThread() {
	v.mu.Lock()
	v.thread = unix.Gettid()
	v.mu.Unlock()
}

// UnbindThread undoes [VCPU.BindThread].
func (v *VCPU) UnbindThread() {
	v.mu.Lock()
	v.thread = 0
	v.mu.Unlock()
}

// Kick makes a Run in flight, and every later one until
// SetImmediateExit(false), return [ErrInterrupted] at once. Any goroutine may
// call it.
//
// The signal is SIGURG. A signal ends KVM_RUN if it has a handler, and the Go
// runtime has one for SIGURG, which does nothing unless the runtime itself
// asked for a preemption.
func (v *VCPU) Kick() error {
	// immediate_exit first: a signal that lands just before KVM_RUN would have
	// no effect alone.
	v.SetImmediateExit(true)
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.thread == 0 {
		return nil
	}
	if err := unix.Tgkill(unix.Getpid(), v.thread, unix.SIGURG); err != nil {
		return fmt.Errorf("kvm: kicking vCPU %d: tgkill: %w", v.id, err)
	}
	return nil
}
