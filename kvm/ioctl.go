package kvm

import (
	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"
)

// request is an ioctl: its name in <linux/kvm.h> and its number.
type request struct {
	name   string
	number uintptr
}

// The requests whose number or argument is built here. gokvm's calls without a
// pointer carry theirs.
var (
	reqGetSupportedCPUID   = request{"KVM_GET_SUPPORTED_CPUID", gokvm.IIOWR(0x05, cpuidHeaderSize)}
	reqSetUserMemoryRegion = request{"KVM_SET_USER_MEMORY_REGION", gokvm.IIOW(0x46, sizeOf[userMemoryRegion]())}
	reqSetIdentityMapAddr  = request{"KVM_SET_IDENTITY_MAP_ADDR", gokvm.IIOW(0x48, sizeOf[uint64]())}
	reqSetGSIRouting       = request{"KVM_SET_GSI_ROUTING", gokvm.IIOW(0x6a, irqRoutingHeaderSize)}
	reqIRQFD               = request{"KVM_IRQFD", gokvm.IIOW(0x76, sizeOf[irqfd]())}
	reqSignalMSI           = request{"KVM_SIGNAL_MSI", gokvm.IIOW(0xa5, sizeOf[msi]())}
	reqEnableCap           = request{"KVM_ENABLE_CAP", gokvm.IIOW(0xa3, sizeOf[enableCap]())}
	reqRun                 = request{"KVM_RUN", gokvm.IIO(0x80)}
	reqGetRegs             = request{"KVM_GET_REGS", gokvm.IIOR(0x81, sizeOf[Regs]())}
	reqSetRegs             = request{"KVM_SET_REGS", gokvm.IIOW(0x82, sizeOf[Regs]())}
	reqGetSregs            = request{"KVM_GET_SREGS", gokvm.IIOR(0x83, sizeOf[Sregs]())}
	reqSetSregs            = request{"KVM_SET_SREGS", gokvm.IIOW(0x84, sizeOf[Sregs]())}
	reqGetMSRs             = request{"KVM_GET_MSRS", gokvm.IIOWR(0x88, msrsHeaderSize)}
	reqSetMSRs             = request{"KVM_SET_MSRS", gokvm.IIOW(0x89, msrsHeaderSize)}
	reqSetCPUID2           = request{"KVM_SET_CPUID2", gokvm.IIOW(0x90, cpuidHeaderSize)}
	reqGetMPState          = request{"KVM_GET_MP_STATE", gokvm.IIOR(0x98, sizeOf[uint32]())}
	reqSetMPState          = request{"KVM_SET_MP_STATE", gokvm.IIOW(0x99, sizeOf[uint32]())}
	reqGetVCPUEvents       = request{"KVM_GET_VCPU_EVENTS", gokvm.IIOR(0x9f, sizeOf[VCPUEvents]())}
	reqGetXCRS             = request{"KVM_GET_XCRS", gokvm.IIOR(0xa6, sizeOf[xcrs]())}
	reqSetXCRS             = request{"KVM_SET_XCRS", gokvm.IIOW(0xa7, sizeOf[xcrs]())}
	reqSetVCPUEvents       = request{"KVM_SET_VCPU_EVENTS", gokvm.IIOW(0xa0, sizeOf[VCPUEvents]())}
)

// ioctl does a request with a pointer argument. It is repeated after a signal.
func ioctl[T any](h *handle, r request, arg *T) (int, error) {
	return call(h, r.name, func(fd uintptr) (uintptr, error) {
		n, errno := ioctlPointer(fd, r.number, arg)
		if errno != 0 {
			return 0, errno
		}
		return n, nil
	})
}

// call does one of gokvm's calls, or a request, on an open handle.
func call(h *handle, name string, f func(fd uintptr) (uintptr, error)) (int, error) {
	if err := h.acquire(); err != nil {
		return 0, err
	}
	defer h.release()
	for {
		n, err := f(uintptr(h.fd))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, &IoctlError{Ioctl: name, Err: err}
		}
		return int(n), nil
	}
}

// check drops a result that carries nothing.
func check(_ int, err error) error { return err }
