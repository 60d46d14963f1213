package kvm

import (
	"encoding/binary"
	"os"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// Features is what this machine's KVM offers beyond what [Open] insists on.
type Features struct {
	Processor

	// Module is the kernel module behind it: kvm_intel, kvm_amd or kvm_pvm; ""
	// if it can't be told.
	Module     string
	SyncRegs   bool // the run page can carry general purpose registers
	VCPUEvents bool // [VCPU.GetVCPUEvents] and its like
	MaxVCPUs   int  // of a VM
}

// Processor is what a guest can see of its processor.
type Processor struct {
	Vendor       string // CPUID's vendor, such as GenuineIntel
	GiBPages     bool   // 1 GiB pages
	FSGSBASE     bool
	SMEP         bool
	SMAP         bool
	RDTSCP       bool
	XSAVE        bool
	AVX          bool
	KVMClock     bool // the paravirtual clock
	X2APIC       bool
	TSCDeadline  bool // the local APIC's TSC-deadline timer
	InvariantTSC bool
	TSCScaling   bool // its time stamp counter may have another frequency than the host's
	PhysBits     int  // bits of a guest-physical address
}

// Software reports whether this KVM interprets a guest's kernel code instead of
// running it on the processor. It is right only where Module is known.
func (f Features) Software() bool { return f.Module == softwareModule }

const softwareModule = "kvm_pvm"

// Features asks KVM_GET_SUPPORTED_CPUID, the capabilities and /sys/module.
func (s *System) Features() (Features, error) {
	entries, err := s.SupportedCPUID()
	if err != nil {
		return Features{}, err
	}
	f := Features{Processor: processorFromCPUID(entries)}
	f.Module = loadedModule("/sys/module")
	sets, err := s.checkExtension(gokvm.CapSyncRegs)
	if err != nil {
		return Features{}, err
	}
	f.SyncRegs = sets&syncRegs != 0
	if f.MaxVCPUs, err = s.maxVCPUs(); err != nil {
		return Features{}, err
	}
	for _, b := range []struct {
		to  *bool
		cap gokvm.Capability
	}{
		// CPUID's bit depends on whether the local APIC is in the kernel, so
		// KVM reports this one as a capability.
		{&f.TSCDeadline, gokvm.CapTSCDeadlineTimer},
		{&f.TSCScaling, gokvm.CapTSCControl},
		{&f.VCPUEvents, gokvm.CapVCPUEvents},
	} {
		n, err := s.checkExtension(b.cap)
		if err != nil {
			return Features{}, err
		}
		*b.to = n > 0
	}
	return f, nil
}

func processorFromCPUID(entries []CPUIDEntry2) Processor {
	p := Processor{PhysBits: 36}
	for _, e := range entries {
		if e.Index != 0 {
			continue
		}
		switch e.Function {
		case 0:
			var vendor []byte
			for _, r := range []uint32{e.Ebx, e.Edx, e.Ecx} {
				vendor = binary.LittleEndian.AppendUint32(vendor, r)
			}
			p.Vendor = string(vendor)
		case 1:
			p.X2APIC = e.Ecx&(1<<21) != 0
			p.XSAVE = e.Ecx&(1<<26) != 0
			p.AVX = e.Ecx&(1<<28) != 0
		case 7:
			p.FSGSBASE = e.Ebx&(1<<0) != 0
			p.SMEP = e.Ebx&(1<<7) != 0
			p.SMAP = e.Ebx&(1<<20) != 0
		case 0x4000_0001:
			p.KVMClock = e.Eax&(1<<3) != 0
		case 0x8000_0001:
			p.GiBPages = e.Edx&(1<<26) != 0
			p.RDTSCP = e.Edx&(1<<27) != 0
		case 0x8000_0007:
			p.InvariantTSC = e.Edx&(1<<8) != 0
		case 0x8000_0008:
			p.PhysBits = int(e.Eax & 0xff)
		}
	}
	return p
}

// loadedModule names the module behind /dev/kvm. The software one comes first:
// a hardware module that is built in has a folder even where the processor
// lacks its support.
func loadedModule(root string) string {
	for _, name := range []string{softwareModule, "kvm_intel", "kvm_amd"} {
		if _, err := os.Stat(root + "/" + name); err == nil {
			return name
		}
	}
	return ""
}
