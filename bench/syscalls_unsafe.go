package bench

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// filterEvent has a perf event count only where text, an expression of the
// tracepoint's fields, is true.
func filterEvent(fd int, text string) error {
	p, err := unix.BytePtrFromString(text)
	if err != nil {
		return err
	}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd),
		unix.PERF_EVENT_IOC_SET_FILTER, uintptr(unsafe.Pointer(p)))
	if errno != 0 {
		return os.NewSyscallError("ioctl PERF_EVENT_IOC_SET_FILTER", errno)
	}
	return nil
}
