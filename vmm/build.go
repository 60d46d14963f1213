package vmm

import (
	"errors"
	"fmt"
	"time"

	"github.com/fix-project/arcavm/hypercall"
	"github.com/fix-project/arcavm/internal/guestmap"
	"github.com/fix-project/arcavm/internal/limit"
	"github.com/fix-project/arcavm/kvm"
)

// machine is what a virtual machine is made of. [New] fills it in, in the order
// of the fields, and afterwards they stay as they are. What it owns is freed by
// close.
type machine struct {
	cfg      Config // with its defaults
	system   *kvm.System
	features kvm.Features
	needs    needs
	kvm      *kvm.VM
	memory   *memory
	cpus     []*cpu
	calls    *hypercall.Table
}

// New builds a VM and loads its image; nothing of the guest runs yet. The
// caller must call [VM.Run] or [VM.Close]. Errors are *ConfigError for a bad
// value in cfg, *image.LoadError for an image that doesn't fit,
// *kvm.UnavailableError and *MissingError for a machine that can't run it, or
// wrap an errno.
func New(cfg Config) (*VM, error) {
	begun := time.Now()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	v := newVM(cfg.WithDefaults())
	v.timing.start = begun
	if err := v.build(); err != nil {
		return nil, errors.Join(err, v.Close())
	}
	return v, nil
}

// newVM returns a VM without a machine.
func newVM(cfg Config) *VM {
	v := &VM{life: newLife()}
	v.cfg = cfg
	v.log.logger, v.log.first = cfg.Logger, func() { v.timing.mark("first log record of the guest") }
	v.log.bytes = limit.NewRate(cfg.LogLimit, logBurst)
	v.refused = limit.NewLog(time.Second, 10)
	v.console.logger, v.console.w = cfg.Logger, cfg.Console
	return v
}

// build makes the machine. After an error, [VM.Close] frees what there is.
func (v *VM) build() (err error) {
	if v.clock, err = newHostClock(readHostClock); err != nil {
		return err
	}
	b := newBuilder(&v.cfg)
	if err := v.openKVM(b); err != nil {
		return err
	}
	if err := v.mapMemory(); err != nil {
		return err
	}
	if v.runner, err = b.build(v); err != nil {
		return err
	}
	v.calls = v.newCalls()
	return nil
}

func (v *VM) openKVM(b builder) (err error) {
	if v.system, err = kvm.Open(v.cfg.Device); err != nil {
		return err
	}
	if v.features, err = v.system.Features(); err != nil {
		return err
	}
	if v.needs, err = b.needs(v.features); err != nil {
		return err
	}
	if v.needs.invariantTSC {
		v.features.InvariantTSC = true
	}
	if n := v.features.MaxVCPUs; v.cfg.CPUs > n {
		return &ConfigError{"cpus", fmt.Sprintf("%d are more than the %d that this machine's KVM allows", v.cfg.CPUs, n)}
	}
	if v.kvm, err = v.system.CreateVM(); err != nil {
		return err
	}
	v.timing.mark("KVM opened, VM created")
	return nil
}

// tssPages is where Intel processors without unrestricted guest mode have three
// pages, and one page of address space, for real mode, which no guest of ours
// enters. They must not overlap a memory slot, and there is none below 4 GiB.
const tssPages = 0xFFFB_D000

// mapMemory makes the memory slots. It comes before the interrupt controllers:
// once there are interrupt routes, a change of slots waits for all their
// readers in KVM, which takes milliseconds.
func (v *VM) mapMemory() (err error) {
	if v.memory, err = newMemory(v.cfg.Memory, v.needs.window); err != nil {
		return err
	}
	if end, limit := v.memory.end(), uint64(1)<<v.features.PhysBits; end > limit {
		return &ConfigError{"memory", fmt.Sprintf("%s and a window of %s end above the %s that this processor can address",
			size(v.cfg.Memory), size(v.needs.window), size(limit))}
	}
	for slot, r := range v.memory.regions() {
		if err := v.kvm.SetUserMemoryRegion(uint32(slot), 0, r.base, r.mem); err != nil {
			return err
		}
	}
	if err := v.kvm.SetTSSAddr(tssPages); err != nil {
		return err
	}
	v.timing.mark("memory mapped")
	return nil
}

// loadImage copies the image to the start of RAM, below the physical address
// limit.
func (v *VM) loadImage(limit uint64) error {
	return v.cfg.Image.Load(guestmap.RAMBase, v.memory.ram.mem[:limit-guestmap.RAMBase])
}

// makeCPUs makes the virtual CPUs, CPU i in the state entry(i). It comes after
// the interrupt controllers, by which KVM gives each its local APIC.
func (v *VM) makeCPUs(entry func(i int) entryState) error {
	if err := v.kvm.DisablePMU(); err != nil {
		return err
	}
	supported, err := v.system.SupportedCPUID()
	if err != nil {
		return err
	}
	cpuid := guestCPUID(supported, v.needs.kvmClock)
	for i := range v.cfg.CPUs {
		c, err := newCPU(v, i, cpuid, entry(i))
		if err != nil {
			return err
		}
		v.cpus = append(v.cpus, c)
	}
	return nil
}

// args are the guest's arguments, of which the first is its own name.
func (v *VM) args() []string {
	return append([]string{v.cfg.Image.Name}, v.cfg.Args...)
}

// close gives back what there is.
func (m *machine) close() error {
	var errs []error
	for _, c := range m.cpus {
		errs = append(errs, c.vcpu.Close())
	}
	if m.kvm != nil {
		errs = append(errs, m.kvm.Close())
	}
	if m.memory != nil {
		errs = append(errs, m.memory.close())
	}
	if m.system != nil {
		errs = append(errs, m.system.Close())
	}
	return errors.Join(errs...)
}
