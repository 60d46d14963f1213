package vmm

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

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

// olderABI is how the virtual machines of Arca's older ABIs look, in all their
// dialects: memory and its allocator, page tables, interrupts. What a guest
// asks for, and how, is for the types that embed it.
type olderABI struct {
	vm    *VM
	guest interface {
		Alloc(size uint64) (uint64, error)
	} // the allocator in RAM
	tables uint64
	stacks []uint64

	signal, quit int // eventfds of the pins; -1 before connect
}

// MissingError says that KVM lacks what guests of the older ABIs can't do
// without.
type MissingError struct {
	Features []string
}

func (e *MissingError) Error() string {
	return "this machine's KVM lacks " + strings.Join(e.Features, ", ") + ", which images of Arca's older ABIs need"
}

// check comes before anything of the guest is built: its kernel would die of
// what is missing.
func (a *olderABI) check() error {
	f := &a.vm.features
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
		return &MissingError{missing}
	}
	// The guest asserts the bit. KVM leaves it out where it doesn't know the
	// host's counter to be invariant, such as in emulated hardware.
	f.InvariantTSC = true
	return nil
}

func (a *olderABI) windowSize() uint64 { return 0 }

// options are what package rpc serves a guest of any dialect with.
func (a *olderABI) options() rpc.Options {
	v := a.vm
	var reserved []rpc.Range
	for _, s := range v.cfg.Image.Segments {
		reserved = append(reserved, rpc.Range{Offset: s.Physical - ramBase, Size: s.MemSize})
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

// layOut takes what the CPUs start with from the guest's allocator.
func (a *olderABI) layOut() (err error) {
	if a.tables, err = a.alloc(2 * pageSize); err != nil {
		return err
	}
	for range a.vm.cfg.CPUs {
		stack, err := a.alloc(rpcStackSize)
		if err != nil {
			return err
		}
		a.stacks = append(a.stacks, stack)
	}
	return a.writeTables()
}

// entryWith is the state in which CPU i starts, with these registers beside
// those that are alike in all dialects.
func (a *olderABI) entryWith(i int, regs kvm.Regs) entryState {
	regs.RSP = directMap + a.stacks[i] + rpcStackSize
	regs.RDI = uint64(a.vm.cfg.CPUs)
	return entryState{tables: a.tables, globalPages: true, extended: true, tscKHz: rpcTSCKHz, regs: regs}
}

func (a *olderABI) finish() error { return nil }

// alloc takes memory from the guest's own allocator and returns its physical
// address.
func (a *olderABI) alloc(n uint64) (uint64, error) {
	off, err := a.guest.Alloc(n)
	if err != nil {
		return 0, &ConfigError{"memory", fmt.Sprintf("%s is too little for the image, page tables and %d stacks", size(a.vm.cfg.Memory), a.vm.cfg.CPUs)}
	}
	return ramBase + off, nil
}

// writeTables maps the first 512 GiB at the direct map by pages of 1 GiB.
func (a *olderABI) writeTables() error {
	const page = ptePresent | pteWritable | pteLarge | pteGlobal
	t, err := a.vm.memory.Bytes(a.tables, 2*pageSize)
	if err != nil {
		return fmt.Errorf("writing page tables: %w", err)
	}
	binary.LittleEndian.PutUint64(t[256*8:], (a.tables+pageSize)|ptePresent|pteWritable)
	for i := range uint64(512) {
		binary.LittleEndian.PutUint64(t[pageSize+i*8:], i*gib|page)
	}
	return nil
}

// connect ties the interrupts to the pins of the I/O APIC, which the guest
// programs. KVM has that one only together with two PICs, whose ports answer;
// they have no route from anywhere.
func (a *olderABI) connect() (err error) {
	if err := a.vm.vm.CreateIRQChip(); err != nil {
		return err
	}
	var routes []kvm.IRQRoute
	for pin := range uint32(ioapicPins) {
		routes = append(routes, kvm.IRQRoute{GSI: pin, IOAPIC: true, Pin: pin})
	}
	if err := a.vm.vm.SetGSIRouting(routes); err != nil {
		return err
	}
	if a.signal, err = newIRQFD(a.vm.vm, rpcSignalPin); err != nil {
		return err
	}
	a.quit, err = newIRQFD(a.vm.vm, rpcStopPin)
	return err
}

func (a *olderABI) kvmClock() bool { return true }

// stop always counts as arrived: what becomes of it is up to the guest's I/O
// APIC.
func (a *olderABI) stop() (bool, error) {
	_, _ = unix.Write(a.quit, eventfdOne)
	return true, nil
}

// drain has nothing to wait for: what a guest of this ABI was told to be sent
// is with the kernel.
func (a *olderABI) drain(context.Context) {}

func (a *olderABI) free() error {
	for _, fd := range []*int{&a.signal, &a.quit} {
		if *fd >= 0 {
			unix.Close(*fd)
			*fd = -1
		}
	}
	return nil
}
