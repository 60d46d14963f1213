package kvm

import (
	"bytes"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Halted reports whether the guest has halted the virtual CPU, which then waits
// for an interrupt: its thread, the one of [VCPU.BindThread], sleeps in
// KVM_RUN. Any goroutine may call it. It reads /proc/self/task/TID/syscall
// (proc(5)), and where the kernel doesn't tell, it is false.
func (v *VCPU) Halted() bool {
	v.mu.Lock()
	thread := v.thread
	v.mu.Unlock()
	if thread == 0 {
		return false
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/syscall", thread))
	if err != nil {
		return false
	}
	// Of a thread that doesn't sleep the file says "running", even if the
	// thread only waits for a processor.
	return bytes.HasPrefix(b, fmt.Appendf(nil, "%d %#x %#x ", unix.SYS_IOCTL, v.fd, reqRun.number))
}
