package vmm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/internal/eventfd"
	"github.com/fix-project/arcavm/internal/guestmap"
	"github.com/fix-project/arcavm/kvm"
	"github.com/fix-project/arcavm/rpc"
)

// rpcStackSize is the size of each CPU's stack.
const rpcStackSize = 2 << 20

// rpcTSCKHz is the frequency by which these kernels convert their time stamp
// counter.
const rpcTSCKHz = 4_294_967

// Pins of the I/O APIC that these guests know; each has the GSI of its number.
const (
	rpcSignalPin = 0
	rpcStopPin   = 1
	ioapicPins   = 24
)

// MissingError says that KVM lacks what guests of the older ABIs can't do
// without.
type MissingError struct {
	Features []string
}

func (e *MissingError) Error() string {
	return "this machine's KVM lacks " + strings.Join(e.Features, ", ") + ", which images of Arca's older ABIs need"
}

// olderNeeds refuses a machine on which a kernel of the older ABIs would die of
// what is missing. There is no window: these guests' rings lie in their RAM.
func olderNeeds(f kvm.Features) (needs, error) {
	var missing []string
	for _, need := range []struct {
		has  bool
		name string
	}{
		{f.GiBPages, "1 GiB pages"},
		{f.FSGSBASE, "FSGSBASE"},
		{f.RDTSCP, "RDTSCP"},
		{f.SMAP, "SMAP"},
		{f.X2APIC, "x2APIC"},
		{f.KVMClock, "kvmclock"},
	} {
		if !need.has {
			missing = append(missing, need.name)
		}
	}
	if len(missing) > 0 {
		return needs{}, &MissingError{missing}
	}
	// The guest asserts that its counter is invariant. KVM leaves the bit out
	// where it doesn't know that of the host's, such as in emulated hardware.
	return needs{kvmClock: true, invariantTSC: true}, nil
}

// olderOptions are what package rpc serves a guest of any dialect with.
func olderOptions(v *VM) rpc.Options {
	var reserved []rpc.Range
	for _, s := range v.cfg.Image.Segments {
		reserved = append(reserved, rpc.Range{Offset: s.Physical - guestmap.RAMBase, Size: s.MemSize})
	}
	return rpc.Options{
		RAM:      v.memory.ram.mem,
		Reserved: reserved,
		Share:    v.cfg.Share,
		Logger:   v.cfg.Logger,
		OnListen: v.cfg.OnListen,
		Network:  v.cfg.Network,
		Limits:   v.cfg.Limits,
		Pipes:    v.cfg.StreamLimit,
		OnBroken: func(err error) {
			v.end(outcome{err: &CrashError{CPUState: CPUState{CPU: -1}, Reason: err.Error(), Log: v.log.tail(), cause: err}})
		},
	}
}

// allocator is the guest's own, in its RAM.
type allocator interface {
	// Alloc takes size bytes and returns their offset in RAM.
	Alloc(size uint64) (uint64, error)
}

// olderLayout is where in RAM the CPUs' things lie, by physical addresses.
type olderLayout struct {
	tables uint64
	stacks []uint64 // by CPU
}

// layOutOlder takes what the CPUs start with from the guest's allocator.
func layOutOlder(v *VM, guest allocator) (l olderLayout, err error) {
	alloc := func(n uint64) uint64 {
		var off uint64
		if err == nil {
			off, err = guest.Alloc(n)
		}
		return guestmap.RAMBase + off
	}
	l.tables = alloc(2 * pageSize)
	for range v.cfg.CPUs {
		l.stacks = append(l.stacks, alloc(rpcStackSize))
	}
	if err != nil {
		return l, &ConfigError{"memory", fmt.Sprintf("%s is too little for the image, page tables and %d stacks", size(v.cfg.Memory), v.cfg.CPUs)}
	}
	return l, writeOlderTables(v.memory, l.tables)
}

// writeOlderTables maps all that the direct map can hold, by pages of 1 GiB, at
// physical address at.
func writeOlderTables(m *memory, at uint64) error {
	const page = ptePresent | pteWritable | pteLarge | pteGlobal
	t, err := m.Bytes(at, 2*pageSize)
	if err != nil {
		return fmt.Errorf("writing page tables: %w", err)
	}
	binary.LittleEndian.PutUint64(t[256*8:], (at+pageSize)|ptePresent|pteWritable)
	for i := range uint64(guestmap.MaxPhysical / gib) {
		binary.LittleEndian.PutUint64(t[pageSize+i*8:], i*gib|page)
	}
	return nil
}

// olderRunner is what is alike in the machines of Arca's older ABIs, in all
// their dialects: page tables, stacks and interrupts. What a guest asks for,
// and how, is for the types that embed it.
type olderRunner struct {
	signal, quit int // eventfds of the pins; -1 before connect
}

// build completes a machine with its image loaded. The CPUs start with regs,
// beside what is alike in all dialects.
func (r *olderRunner) build(v *VM, guest allocator, regs kvm.Regs) (err error) {
	layout, err := layOutOlder(v, guest)
	if err != nil {
		return err
	}
	v.timing.mark("image loaded")
	defer func() {
		if err != nil {
			err = errors.Join(err, r.free())
		}
	}()
	if err := r.connect(v.kvm); err != nil {
		return err
	}
	v.timing.mark("interrupts and streams ready")
	err = v.makeCPUs(func(i int) entryState {
		regs := regs
		regs.RSP = guestmap.DirectMap + layout.stacks[i] + rpcStackSize
		regs.RDI = uint64(v.cfg.CPUs)
		return entryState{tables: layout.tables, globalPages: true, extended: true, tscKHz: rpcTSCKHz, regs: regs}
	})
	if err != nil {
		return err
	}
	v.timing.mark("virtual CPUs ready")
	return nil
}

// connect ties the interrupts to the pins of the I/O APIC, which the guest
// programs. KVM has an I/O APIC only together with two PICs, whose ports
// answer; no GSI is routed to them.
func (r *olderRunner) connect(vm *kvm.VM) (err error) {
	if err := vm.CreateIRQChip(); err != nil {
		return err
	}
	var routes []kvm.IRQRoute
	for pin := range uint32(ioapicPins) {
		routes = append(routes, kvm.IRQRoute{GSI: pin, IOAPIC: true, Pin: pin})
	}
	if err := vm.SetGSIRouting(routes); err != nil {
		return err
	}
	if r.signal, err = newIRQFD(vm, rpcSignalPin); err != nil {
		return err
	}
	r.quit, err = newIRQFD(vm, rpcStopPin)
	return err
}

// stop always counts as arrived: what becomes of it is up to the guest's I/O
// APIC.
func (r *olderRunner) stop() (bool, error) {
	eventfd.Signal(r.quit)
	return true, nil
}

// drain has nothing to wait for: what a guest of these ABIs was told to be sent
// is with the kernel.
func (r *olderRunner) drain(context.Context) {}

func (r *olderRunner) free() error {
	for _, fd := range []*int{&r.signal, &r.quit} {
		if *fd >= 0 {
			unix.Close(*fd)
			*fd = -1
		}
	}
	return nil
}
