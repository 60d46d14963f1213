package kvm

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// runPage is struct kvm_run as far as it is used here. The kernel and the
// vCPU's thread take turns with it; only control is touched by other threads.
type runPage struct {
	// request_interrupt_window, which stays 0, immediate_exit, and padding
	control    atomic.Uint32
	_          [4]byte
	exitReason uint32
	_          [4]byte
	cr8        uint64
	apicBase   uint64
	exit       [256]byte
	validRegs  uint64
	dirtyRegs  uint64
	regs       Regs
}

const (
	controlImmediateExit = 1 << 8

	runPageSize = int(unsafe.Sizeof(runPage{}))
)

// runArea is the memory that a vCPU shares with the kernel: the run page, then
// the data of port accesses.
type runArea struct {
	page *runPage
	area []byte
}

func mapRunArea(fd, size int) (runArea, error) {
	area, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return runArea{}, fmt.Errorf("kvm: mapping a vCPU's run area: %w", err)
	}
	return runArea{page: (*runPage)(unsafe.Pointer(unsafe.SliceData(area))), area: area}, nil
}

func (r runArea) unmap() error {
	if err := unix.Munmap(r.area); err != nil {
		return fmt.Errorf("kvm: unmapping a vCPU's run area: %w", err)
	}
	return nil
}
