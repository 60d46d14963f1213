package kvm

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

func ioctlPointer[T any](fd, number uintptr, arg *T) (uintptr, unix.Errno) {
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, number, uintptr(unsafe.Pointer(arg)))
	return n, errno
}

func sizeOf[T any]() uintptr {
	var t T
	return unsafe.Sizeof(t)
}

// userMemoryRegion is struct kvm_userspace_memory_region. The address is a
// pointer so that it never is a bare number.
type userMemoryRegion struct {
	slot          uint32
	flags         uint32
	guestPhysAddr uint64
	memorySize    uint64
	userspaceAddr unsafe.Pointer
}

func newUserMemoryRegion(slot, flags uint32, gpa uint64, mem []byte) *userMemoryRegion {
	return &userMemoryRegion{
		slot:          slot,
		flags:         flags,
		guestPhysAddr: gpa,
		memorySize:    uint64(len(mem)),
		userspaceAddr: unsafe.Pointer(unsafe.SliceData(mem)),
	}
}
