package vmm

import (
	"errors"
	"fmt"

	"github.com/fix-project/arcavm/kvm"
)

// entryState is what a CPU starts with, beside the image's entry address.
type entryState struct {
	tables      uint64 // physical address of the PML4
	regs        kvm.Regs
	noExecute   bool // pages can be not executable
	globalPages bool // page table entries can be global
	x2APIC      bool // the local APIC is in x2APIC mode already
	extended    bool // XSAVE may be used, where there is one, for all that AVX needs
	tscKHz      int  // of the time stamp counter, if the guest takes it for granted; else 0
}

// Model-specific registers (Intel SDM volume 4).
const (
	msrTSC    = 0x10
	msrTSCAux = 0xC000_0103
)

// newCPU makes virtual CPU i in its entry state.
func newCPU(v *VM, i int, cpuid []kvm.CPUIDEntry2, entry entryState) (*cpu, error) {
	vcpu, err := v.kvm.CreateVCPU(i)
	if err != nil {
		return nil, fmt.Errorf("virtual CPU %d: %w", i, err)
	}
	c := &cpu{vm: v, index: i, vcpu: vcpu}
	if err := c.setUp(cpuid, entry); err != nil {
		return nil, errors.Join(fmt.Errorf("virtual CPU %d: %w", i, err), vcpu.Close())
	}
	return c, nil
}

func (c *cpu) setUp(cpuid []kvm.CPUIDEntry2, entry entryState) error {
	f := c.vm.features
	if err := c.vcpu.EnforceParavirtual(); err != nil {
		return err
	}
	// CPUID comes first: what registers may hold depends on it.
	if err := c.vcpu.SetCPUID(cpuidFor(c.index, c.vm.cfg.CPUs, cpuid, f)); err != nil {
		return err
	}
	if err := c.setSystemRegisters(entry); err != nil {
		return err
	}
	entry.regs.RIP = c.vm.cfg.Image.Entry
	entry.regs.RFLAGS = rflagsReserved
	if err := c.vcpu.SetRegs(entry.regs); err != nil {
		return err
	}
	if f.SyncRegs {
		c.vcpu.SyncOnExit()
	}
	// With in-kernel interrupt controllers every CPU but the first would wait
	// for an INIT.
	return c.vcpu.SetMPState(kvm.MPRunnable)
}

// setSystemRegisters sets all registers but the general purpose ones.
func (c *cpu) setSystemRegisters(entry entryState) error {
	f := c.vm.features
	s, err := c.vcpu.GetSregs()
	if err != nil {
		return err
	}
	enterLongMode(&s, f, entry, c.index == 0)
	if err := c.vcpu.SetSregs(s); err != nil {
		return err
	}
	if entry.extended && f.AVX {
		if err := c.vcpu.SetXCR0(xcr0X87 | xcr0SSE | xcr0AVX); err != nil {
			return err
		}
	}
	if entry.tscKHz != 0 {
		if err := c.setTSC(entry.tscKHz); err != nil {
			return err
		}
	}
	if f.RDTSCP {
		return c.vcpu.SetMSRs([]kvm.MSREntry{{Index: msrTSCAux, Data: uint64(c.index)}})
	}
	return nil
}

// rflagsReserved is the bit that is always set (Intel SDM volume 1, section
// 3.4.3).
const rflagsReserved = 2

// Control register bits (Intel SDM volume 3, sections 2.2.1 and 2.5).
const (
	cr0PE, cr0MP, cr0NE, cr0WP, cr0PG = 1 << 0, 1 << 1, 1 << 5, 1 << 16, 1 << 31

	cr4PAE, cr4PGE                     = 1 << 5, 1 << 7
	cr4OSFXSR, cr4OSXMMEXCPT           = 1 << 9, 1 << 10
	cr4FSGSBase, cr4OSXSAVE            = 1 << 16, 1 << 18
	cr4SMEP, cr4SMAP                   = 1 << 20, 1 << 21
	eferSCE, eferLME, eferLMA, eferNXE = 1 << 0, 1 << 8, 1 << 10, 1 << 11

	xcr0X87, xcr0SSE, xcr0AVX = 1 << 0, 1 << 1, 1 << 2

	apicBase, apicBSP, apicX2, apicEnable = 0xFEE0_0000, 1 << 8, 1 << 10, 1 << 11
)

// enterLongMode changes a CPU's reset state into 64-bit mode.
func enterLongMode(s *kvm.Sregs, f kvm.Features, e entryState, bsp bool) {
	s.CR0 = cr0PE | cr0MP | cr0NE | cr0WP | cr0PG
	s.CR3 = e.tables
	s.CR4 = cr4PAE | cr4OSFXSR | cr4OSXMMEXCPT
	if e.globalPages {
		s.CR4 |= cr4PGE
	}
	if f.FSGSBASE {
		s.CR4 |= cr4FSGSBase
	}
	if e.extended && f.XSAVE {
		s.CR4 |= cr4OSXSAVE
	}
	if f.SMEP {
		s.CR4 |= cr4SMEP
	}
	if f.SMAP {
		s.CR4 |= cr4SMAP
	}
	s.EFER = eferSCE | eferLME | eferLMA
	if e.noExecute {
		s.EFER |= eferNXE
	}
	s.CS = kvm.Segment{Limit: 0xFFFF_FFFF, Selector: 0x08, Typ: 0xB, Present: 1, S: 1, L: 1, G: 1}
	data := kvm.Segment{Limit: 0xFFFF_FFFF, Selector: 0x10, Typ: 0x3, Present: 1, S: 1, DB: 1, G: 1}
	s.DS, s.ES, s.FS, s.GS, s.SS = data, data, data, data, data
	s.GDT, s.IDT = kvm.Descriptor{}, kvm.Descriptor{}
	s.ApicBase = apicBase | apicEnable
	if e.x2APIC {
		s.ApicBase |= apicX2
	}
	if bsp {
		s.ApicBase |= apicBSP
	}
}

// setTSC gives the time stamp counter a frequency. Where the processor can't,
// the guest is wrong about durations.
func (c *cpu) setTSC(khz int) error {
	if c.vm.features.TSCScaling {
		return c.vcpu.SetTSCKHz(khz)
	}
	if c.index == 0 {
		c.vm.cfg.Logger.Debug("the guest's time stamp counter has the host's frequency, not the one that it takes for granted", "khz", khz)
	}
	return nil
}

func (c *cpu) tscHz() (uint64, error) {
	khz, err := c.vcpu.TSCKHz()
	if err != nil {
		return 0, err
	}
	return uint64(khz) * 1000, nil
}

func (c *cpu) tsc() (uint64, error) {
	m := []kvm.MSREntry{{Index: msrTSC}}
	if err := c.vcpu.GetMSRs(m); err != nil {
		return 0, err
	}
	return m[0].Data, nil
}
