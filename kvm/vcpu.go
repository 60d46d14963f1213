package kvm

import (
	"errors"
	"sync"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"
)

// Registers as KVM has them. RFLAGS bit 1 must be set.
type (
	Regs       = gokvm.Regs       // general purpose (struct kvm_regs)
	Sregs      = gokvm.Sregs      // segments, control registers, EFER, APIC base (struct kvm_sregs)
	Segment    = gokvm.Segment    // struct kvm_segment
	Descriptor = gokvm.Descriptor // GDT or IDT (struct kvm_dtable)
	VCPUEvents = gokvm.VCPUEvents // struct kvm_vcpu_events
)

// MPState is a vCPU's run state. With in-kernel interrupt controllers vCPU 0
// starts runnable, and all others wait for an INIT.
type MPState uint32

// The run states on x86.
const (
	MPRunnable      = MPState(gokvm.MPStateRunnable)
	MPUninitialized = MPState(gokvm.MPStateUninitialized)
	MPInitReceived  = MPState(gokvm.MPStateInitReceived)
	MPHalted        = MPState(gokvm.MPStateHalted)
	MPSIPIReceived  = MPState(gokvm.MPStateSipiReceived)
)

// VCPU is one virtual CPU. The package comment says which goroutine may call
// which method.
type VCPU struct {
	handle
	id int
	runArea

	// What ioctls read and write. It is on the heap once, rather than once for
	// each call.
	regs  Regs
	sregs Sregs

	// mu guards thread. It is held while a signal is sent, so that none reaches
	// a thread that has unbound itself.
	mu     sync.Mutex
	thread int
}

func newVCPU(fd, id, runSize int) (*VCPU, error) {
	area, err := mapRunArea(fd, runSize)
	if err != nil {
		_ = closeFD(fd)
		return nil, err
	}
	v := &VCPU{id: id, runArea: area}
	v.fd = fd
	v.free = func() error {
		err := area.unmap()
		if cerr := closeFD(fd); err == nil {
			err = cerr
		}
		return err
	}
	return v, nil
}

// EnforceParavirtual makes KVM's paravirtual registers and calls answer only
// as far as CPUID's leaf 0x4000_0001 offers them (section 7.25,
// KVM_CAP_ENFORCE_PV_FEATURE_CPUID, Linux 5.10). An older KVM leaves them as
// they are. Call it before [VCPU.SetCPUID].
func (v *VCPU) EnforceParavirtual() error {
	err := enable(&v.handle, gokvm.CapEnforcePVFeatureCPUID, []uint64{1})
	if errors.Is(err, unix.EINVAL) {
		return nil // a capability that this KVM doesn't know
	}
	return err
}

// GetRegs returns the general purpose registers (section 4.11).
func (v *VCPU) GetRegs() (Regs, error) {
	_, err := ioctl(&v.handle, reqGetRegs, &v.regs)
	return v.regs, err
}

// SetRegs sets the general purpose registers (section 4.12) and drops a pending
// exception.
func (v *VCPU) SetRegs(regs Regs) error {
	v.regs = regs
	return check(ioctl(&v.handle, reqSetRegs, &v.regs))
}

// GetSregs returns the special registers (section 4.13).
func (v *VCPU) GetSregs() (Sregs, error) {
	_, err := ioctl(&v.handle, reqGetSregs, &v.sregs)
	return v.sregs, err
}

// SetSregs sets the special registers (section 4.14). KVM may accept a CR4 bit
// that the vCPU's CPUID doesn't offer: the caller checks first.
func (v *VCPU) SetSregs(sregs Sregs) error {
	v.sregs = sregs
	return check(ioctl(&v.handle, reqSetSregs, &v.sregs))
}

// PeekRegs returns the general purpose and the special registers. Unlike
// GetRegs and GetSregs it may be called by any goroutine; the kernel makes it
// wait while a Run is in flight.
func (v *VCPU) PeekRegs() (Regs, Sregs, error) {
	regs, sregs := new(Regs), new(Sregs)
	if _, err := ioctl(&v.handle, reqGetRegs, regs); err != nil {
		return Regs{}, Sregs{}, err
	}
	_, err := ioctl(&v.handle, reqGetSregs, sregs)
	return *regs, *sregs, err
}

// GetMPState returns the run state (section 4.38). It may be called as
// PeekRegs.
func (v *VCPU) GetMPState() (MPState, error) {
	state := new(MPState)
	_, err := ioctl(&v.handle, reqGetMPState, state)
	return *state, err
}

// SetMPState sets the run state (section 4.39).
func (v *VCPU) SetMPState(state MPState) error {
	return check(ioctl(&v.handle, reqSetMPState, &state))
}

// TSCKHz returns the frequency of the vCPU's time stamp counter (section 4.56).
// EIO: the host's isn't stable.
func (v *VCPU) TSCKHz() (int, error) {
	return call(&v.handle, "KVM_GET_TSC_KHZ", func(fd uintptr) (uintptr, error) {
		khz, err := gokvm.GetTSCKHz(fd)
		return uintptr(khz), err
	})
}

// SetTSCKHz sets the frequency of the vCPU's time stamp counter (section 4.55,
// KVM_CAP_TSC_CONTROL). Without the capability KVM accepts a higher frequency
// than the host's, but the counter doesn't follow it.
func (v *VCPU) SetTSCKHz(khz int) error {
	return check(call(&v.handle, "KVM_SET_TSC_KHZ", func(fd uintptr) (uintptr, error) {
		return 0, gokvm.SetTSCKHz(fd, uint64(khz))
	}))
}

// xcrs is struct kvm_xcrs.
type xcrs struct {
	Count, Flags uint32
	List         [16]xcr
	_            [16]uint64
}

// xcr is struct kvm_xcr.
type xcr struct {
	Number, _ uint32
	Value     uint64
}

// XCR0 returns which state components the guest may use, in XSETBV's bits
// (section 4.77, KVM_CAP_XCRS).
func (v *VCPU) XCR0() (uint64, error) {
	x := new(xcrs)
	if _, err := ioctl(&v.handle, reqGetXCRS, x); err != nil {
		return 0, err
	}
	for _, r := range x.List[:min(int(x.Count), len(x.List))] {
		if r.Number == 0 {
			return r.Value, nil
		}
	}
	return 0, nil
}

// SetXCR0 sets what XCR0 returns (section 4.78, KVM_CAP_XCRS). EINVAL: the
// processor lacks one of the components, or bit 0 isn't set.
func (v *VCPU) SetXCR0(value uint64) error {
	x := &xcrs{Count: 1}
	x.List[0].Value = value
	return check(ioctl(&v.handle, reqSetXCRS, x))
}

// GetVCPUEvents returns pending exceptions, interrupts and NMIs (section 4.31,
// KVM_CAP_VCPU_EVENTS).
func (v *VCPU) GetVCPUEvents() (VCPUEvents, error) {
	events := new(VCPUEvents)
	_, err := ioctl(&v.handle, reqGetVCPUEvents, events)
	return *events, err
}

// SetVCPUEvents sets pending exceptions, interrupts and NMIs (section 4.32,
// KVM_CAP_VCPU_EVENTS).
func (v *VCPU) SetVCPUEvents(events VCPUEvents) error {
	return check(ioctl(&v.handle, reqSetVCPUEvents, &events))
}

// Close closes the vCPU and unmaps its run area. A Run in flight on a thread
// that has called [VCPU.BindThread] ends with [ErrInterrupted], and what it
// uses is freed then; on another thread it goes on to its next exit. The exit
// accessors and the synchronised registers must not be used after Close.
func (v *VCPU) Close() error {
	return errors.Join(v.Kick(), v.close())
}
