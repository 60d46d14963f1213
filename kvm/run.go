package kvm

import (
	"encoding/binary"
	"strconv"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"
)

// ExitReason says why Run returned; its String is the name in <linux/kvm.h>.
type ExitReason uint32

// The exits of x86 that a monitor handles.
const (
	ExitIO            = ExitReason(gokvm.EXITIO)
	ExitDebug         = ExitReason(gokvm.EXITDEBUG)
	ExitMMIO          = ExitReason(gokvm.EXITMMIO)
	ExitIRQWindowOpen = ExitReason(gokvm.EXITIRQWINDOWOPEN)
	ExitShutdown      = ExitReason(gokvm.EXITSHUTDOWN)
	ExitFailEntry     = ExitReason(gokvm.EXITFAILENTRY)
	ExitIntr          = ExitReason(gokvm.EXITINTR)
	ExitInternalError = ExitReason(gokvm.EXITINTERNALERROR)
	ExitSystemEvent   = ExitReason(24)
)

// exitNames are the names of all reasons that x86 has.
var exitNames = map[ExitReason]string{
	0:                 "KVM_EXIT_UNKNOWN",
	1:                 "KVM_EXIT_EXCEPTION",
	ExitIO:            "KVM_EXIT_IO",
	3:                 "KVM_EXIT_HYPERCALL",
	ExitDebug:         "KVM_EXIT_DEBUG",
	5:                 "KVM_EXIT_HLT",
	ExitMMIO:          "KVM_EXIT_MMIO",
	ExitIRQWindowOpen: "KVM_EXIT_IRQ_WINDOW_OPEN",
	ExitShutdown:      "KVM_EXIT_SHUTDOWN",
	ExitFailEntry:     "KVM_EXIT_FAIL_ENTRY",
	ExitIntr:          "KVM_EXIT_INTR",
	11:                "KVM_EXIT_SET_TPR",
	12:                "KVM_EXIT_TPR_ACCESS",
	16:                "KVM_EXIT_NMI",
	ExitInternalError: "KVM_EXIT_INTERNAL_ERROR",
	21:                "KVM_EXIT_WATCHDOG",
	ExitSystemEvent:   "KVM_EXIT_SYSTEM_EVENT",
	26:                "KVM_EXIT_IOAPIC_EOI",
	27:                "KVM_EXIT_HYPERV",
	29:                "KVM_EXIT_X86_RDMSR",
	30:                "KVM_EXIT_X86_WRMSR",
	31:                "KVM_EXIT_DIRTY_RING_FULL",
	33:                "KVM_EXIT_X86_BUS_LOCK",
	34:                "KVM_EXIT_XEN",
	37:                "KVM_EXIT_NOTIFY",
	39:                "KVM_EXIT_MEMORY_FAULT",
}

func (r ExitReason) String() string {
	if name, ok := exitNames[r]; ok {
		return name
	}
	return "KVM_EXIT_" + strconv.Itoa(int(r))
}

// Run runs the guest on the calling thread until an exit (section 4.10), for as
// long as that takes; a halted guest waits in it for an interrupt. It returns
// nil after an exit: [VCPU.ExitReason] and that exit's accessor say what
// happened. [ErrInterrupted] means that there was none: a signal arrived, or
// immediate_exit is set. What the exit before asked for, a port's or an MMIO's
// value, has been completed even then. The caller has locked the goroutine to
// its thread.
func (v *VCPU) Run() error {
	if err := v.acquire(); err != nil {
		return err
	}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(v.fd), reqRun.number, 0)
	if errno != 0 {
		// The page may still show the exit before this one.
		v.page.exitReason = uint32(ExitIntr)
	}
	v.release()
	switch errno {
	case 0:
		return nil
	case unix.EINTR, unix.EAGAIN:
		// EAGAIN is a vCPU that left the wait for INIT.
		return ErrInterrupted
	default:
		return &IoctlError{Ioctl: reqRun.name, Err: errno}
	}
}

// SetImmediateExit makes each Run return [ErrInterrupted] before it enters the
// guest, until it is set to false again (section 5, KVM_CAP_IMMEDIATE_EXIT). It
// doesn't interrupt a Run in flight: see [VCPU.Kick]. Any goroutine may call
// it; after Close it does nothing.
func (v *VCPU) SetImmediateExit(on bool) {
	if v.acquire() != nil {
		return
	}
	var control uint32
	if on {
		control = controlImmediateExit
	}
	v.page.control.Store(control)
	v.release()
}

// ExitReason returns why the last Run returned; [ExitIntr] if that was an
// error.
func (v *VCPU) ExitReason() ExitReason { return ExitReason(v.page.exitReason) }

// IOExit is an access to I/O ports ([ExitIO]): Count elements of Size bytes,
// more than one for a string instruction.
type IOExit struct {
	In    bool // the guest reads: fill Data in before the next Run
	Size  int  // 1, 2 or 4
	Port  uint16
	Count int
	Data  []byte // Size × Count bytes, valid until the next Run
}

// IO returns the exit's values. Data is the kernel's own buffer, which the
// guest can't reach.
func (v *VCPU) IO() IOExit {
	e := v.page.exit[:]
	io := IOExit{
		In:    e[0] == gokvm.EXITIOIN,
		Size:  int(e[1]),
		Port:  binary.LittleEndian.Uint16(e[2:]),
		Count: int(binary.LittleEndian.Uint32(e[4:])),
	}
	offset, n := binary.LittleEndian.Uint64(e[8:]), uint64(io.Size)*uint64(io.Count)
	if size := uint64(len(v.area)); offset <= size && n <= size-offset {
		io.Data = v.area[offset : offset+n : offset+n]
	}
	return io
}

// MMIOExit is an access to guest-physical memory that isn't there ([ExitMMIO]).
type MMIOExit struct {
	Address uint64
	Write   bool   // else the guest reads: fill Data in before the next Run
	Data    []byte // 1 to 8 bytes, valid until the next Run
}

// MMIO returns the exit's values. Data is the kernel's own buffer, which the
// guest can't reach.
func (v *VCPU) MMIO() MMIOExit {
	e := v.page.exit[:]
	n := min(binary.LittleEndian.Uint32(e[16:]), 8)
	return MMIOExit{
		Address: binary.LittleEndian.Uint64(e),
		Write:   e[20] != 0,
		Data:    e[8 : 8+n : 8+n],
	}
}

// SystemEventExit is the guest's wish for a shutdown, a reset and the like
// ([ExitSystemEvent]).
type SystemEventExit struct {
	Type uint32 // KVM_SYSTEM_EVENT_…: 1 shutdown, 2 reset, 3 crash
	Data []uint64
}

// SystemEvent returns the exit's values.
func (v *VCPU) SystemEvent() SystemEventExit {
	e := v.page.exit[:]
	return SystemEventExit{
		Type: binary.LittleEndian.Uint32(e),
		Data: words(e[8:], binary.LittleEndian.Uint32(e[4:])),
	}
}

// InternalErrorExit is KVM's own failure ([ExitInternalError]).
type InternalErrorExit struct {
	Suberror uint32 // KVM_INTERNAL_ERROR_…
	Data     []uint64
	// Instruction is what KVM couldn't emulate, if Suberror is 1 and KVM tells.
	Instruction []byte
}

// InternalError returns the exit's values.
func (v *VCPU) InternalError() InternalErrorExit {
	e := v.page.exit[:]
	x := InternalErrorExit{
		Suberror: binary.LittleEndian.Uint32(e),
		Data:     words(e[8:], binary.LittleEndian.Uint32(e[4:])),
	}
	const emulation, instructionBytes = 1, 1 << 0
	if x.Suberror == emulation && len(x.Data) >= 3 && x.Data[0]&instructionBytes != 0 {
		n := min(e[16], 15)
		x.Instruction = append([]byte(nil), e[17:17+n]...)
	}
	return x
}

func (x InternalErrorExit) String() string {
	names := [...]string{1: "emulation failed", 2: "simultaneous exceptions", 3: "exit while delivering an event", 4: "unexpected exit of the processor"}
	s := "suberror " + strconv.Itoa(int(x.Suberror))
	if int(x.Suberror) < len(names) && names[x.Suberror] != "" {
		s = names[x.Suberror]
	}
	if len(x.Instruction) > 0 {
		s += ", instruction bytes"
		for _, b := range x.Instruction {
			s += " " + strconv.FormatUint(uint64(b)+0x100, 16)[1:]
		}
	}
	return s
}

// FailEntryExit is a guest state that the processor refused to enter
// ([ExitFailEntry]).
type FailEntryExit struct {
	Reason uint64 // the processor's code
	CPU    uint32 // the host's
}

// FailEntry returns the exit's values.
func (v *VCPU) FailEntry() FailEntryExit {
	e := v.page.exit[:]
	return FailEntryExit{Reason: binary.LittleEndian.Uint64(e), CPU: binary.LittleEndian.Uint32(e[8:])}
}

// words copies n words, at most 16: what the kernel's struct holds.
func words(b []byte, n uint32) []uint64 {
	w := make([]uint64, min(n, 16))
	for i := range w {
		w[i] = binary.LittleEndian.Uint64(b[i*8:])
	}
	return w
}
