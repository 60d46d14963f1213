package kvm

import (
	"errors"
	"fmt"
	"strings"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"
)

// DefaultPath is where Linux has the KVM device.
const DefaultPath = "/dev/kvm"

const apiVersion = 12

// requirement is a capability without which this package can't run a VM.
type requirement struct {
	cap  gokvm.Capability
	name string
}

var requirements = []requirement{
	{gokvm.CapUserMemory, "memory slots (KVM_CAP_USER_MEMORY)"},
	{gokvm.CapIRQChip, "in-kernel interrupt controllers (KVM_CAP_IRQCHIP)"},
	{gokvm.CapSplitIRQChip, "local APICs without the other controllers (KVM_CAP_SPLIT_IRQCHIP)"},
	{gokvm.CapIRQRouting, "interrupt routing (KVM_CAP_IRQ_ROUTING)"},
	{gokvm.CapIRQFD, "irqfd (KVM_CAP_IRQFD)"},
	{gokvm.CapSignalMSI, "message signalled interrupts (KVM_CAP_SIGNAL_MSI)"},
	{gokvm.CapMPState, "the run state of a vCPU (KVM_CAP_MP_STATE)"},
	{gokvm.CapEXTCPUID, "CPUID (KVM_CAP_EXT_CPUID)"},
	{gokvm.CapGetTSCkHz, "the TSC frequency (KVM_CAP_GET_TSC_KHZ)"},
	{gokvm.CapImmediateExit, "immediate_exit (KVM_CAP_IMMEDIATE_EXIT)"},
}

// System is an open KVM device.
type System struct {
	handle
	path    string
	runSize int
}

// Open opens a KVM device ("" is [DefaultPath]). It checks that the device
// speaks API version 12 and has every capability that this package needs. If
// not, the error is an [*UnavailableError]: one sentence with what is missing
// and what to do.
func Open(path string) (*System, error) {
	if path == "" {
		path = DefaultPath
	}
	fd, err := openDevice(path)
	if err != nil {
		return nil, unavailable(path, err)
	}
	s := &System{path: path}
	s.fd = fd
	s.free = func() error { return closeFD(fd) }
	if err := s.probe(); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

func openDevice(path string) (int, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

func closeFD(fd int) error {
	if err := unix.Close(fd); err != nil {
		return fmt.Errorf("kvm: close: %w", err)
	}
	return nil
}

func unavailable(path string, err error) error {
	e := &UnavailableError{Path: path, Err: err}
	switch {
	case errors.Is(err, unix.ENOENT):
		e.Problem = "doesn't exist"
		e.Remedy = "turn on virtualisation in the firmware and load the module kvm_intel or kvm_amd; " +
			"in a container, pass the device in; in a cloud machine, choose a type with nested virtualisation"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		e.Problem = "may not be opened by this user"
		e.Remedy = "join the device's group (usually: usermod -aG kvm, then log in again) or, in a container, pass the device in"
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		e.Problem = "has no driver behind it"
		e.Remedy = "load the module kvm_intel or kvm_amd"
	default:
		e.Problem = "can't be opened"
		e.Remedy = "check that it is the KVM device, readable and writable"
	}
	return e
}

func (s *System) probe() error {
	version, err := call(&s.handle, "KVM_GET_API_VERSION", gokvm.GetAPIVersion)
	if err != nil {
		remedy := "use " + DefaultPath
		if s.path == DefaultPath {
			remedy = "find out what took its place; in a container, pass the host's device in"
		}
		return &UnavailableError{Path: s.path, Problem: "isn't a KVM device", Remedy: remedy, Err: err}
	}
	if version != apiVersion {
		return &UnavailableError{
			Path:    s.path,
			Problem: fmt.Sprintf("speaks KVM API version %d, not %d", version, apiVersion),
			Remedy:  "use a Linux kernel from 2.6.22 on",
		}
	}
	var missing []string
	for _, r := range requirements {
		n, err := s.checkExtension(r.cap)
		if err != nil {
			return err
		}
		if n == 0 {
			missing = append(missing, r.name)
		}
	}
	if len(missing) > 0 {
		return &UnavailableError{
			Path:    s.path,
			Problem: "lacks " + strings.Join(missing, ", "),
			Remedy:  "use Linux 4.13 or later with KVM and its in-kernel interrupt controllers for x86-64",
		}
	}
	s.runSize, err = call(&s.handle, "KVM_GET_VCPU_MMAP_SIZE", gokvm.GetVCPUMMmapSize)
	if err != nil {
		return err
	}
	if s.runSize < runPageSize {
		return &UnavailableError{
			Path:    s.path,
			Problem: fmt.Sprintf("shares %d bytes with a vCPU's thread, not at least %d", s.runSize, runPageSize),
			Remedy:  "use a Linux kernel for x86-64",
		}
	}
	return nil
}

// checkExtension returns 0 if the capability is missing and its value, often 1,
// if it is there (section 4.4).
func (s *System) checkExtension(c gokvm.Capability) (int, error) {
	return checkExtension(&s.handle, c)
}

func checkExtension(h *handle, c gokvm.Capability) (int, error) {
	return call(h, "KVM_CHECK_EXTENSION", func(fd uintptr) (uintptr, error) { return gokvm.CheckExtension(fd, c) })
}

// maxVCPUs returns how many vCPUs a VM may have (section 4.7).
func (s *System) maxVCPUs() (int, error) {
	n, err := s.checkExtension(gokvm.CapMAXVCPUS)
	if err != nil || n > 0 {
		return n, err
	}
	n, err = s.checkExtension(gokvm.CapNRVCPUS)
	if err != nil || n > 0 {
		return n, err
	}
	// What the API document says to assume when neither is reported.
	return 4, nil
}

// CreateVM makes a VM without memory, interrupt controllers and vCPUs (section
// 4.2). It lives until it is closed, even if the System is closed before.
// EBUSY: another hypervisor has the processor.
func (s *System) CreateVM() (*VM, error) {
	fd, err := call(&s.handle, "KVM_CREATE_VM", gokvm.CreateVM)
	if err != nil {
		return nil, err
	}
	vm := &VM{runSize: s.runSize}
	vm.fd = fd
	vm.free = func() error { return closeFD(fd) }
	return vm, nil
}

// Close closes the device.
func (s *System) Close() error { return s.close() }
