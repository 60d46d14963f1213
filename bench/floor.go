package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/internal/eventfd"
	"github.com/fix-project/arcavm/kvm"
)

// The smallest guest has 2 MiB of memory from guest-physical 0 on, mapped to
// itself, with these pieces in it.
const (
	floorMemory  = 2 << 20
	floorPML4    = 0x1000
	floorPDPT    = 0x2000
	floorPD      = 0x3000
	floorIDT     = 0x4000
	floorGDT     = 0x5000
	floorHandler = 0xf000
	floorCode    = 0x10000
	floorStack   = 0x80000
	floorVector  = 0x41
)

// The guests' code. A call is a port exit. callAndSleep makes one when its
// local APIC is on; after that only the interrupt handler makes any.
var (
	callForEver = []byte{
		0x31, 0xd2, // xor %edx,%edx
		0xee,       // 1: out %al,%dx
		0xeb, 0xfd, // jmp 1b
	}
	callAndSleep = []byte{
		0xb9, 0x0f, 8, 0, 0, // mov $0x80f,%ecx: the x2APIC's spurious vector register
		0xb8, 0xff, 1, 0, 0, // mov $0x1ff,%eax: on
		0x31, 0xd2, // xor %edx,%edx
		0x0f, 0x30, // wrmsr
		0xee,       // out %al,%dx
		0xfb,       // sti
		0xf4,       // 1: hlt
		0xeb, 0xfd, // jmp 1b
	}
	// The handler saves no register: the code that it interrupts only sleeps.
	callInHandler = []byte{
		0xb9, 0x0b, 8, 0, 0, // mov $0x80b,%ecx: the x2APIC's end of interrupt
		0x31, 0xc0, // xor %eax,%eax
		0x31, 0xd2, // xor %edx,%edx
		0x0f, 0x30, // wrmsr
		0xee,       // out %al,%dx
		0x48, 0xcf, // iretq
	}
)

// floorGuest is a VM with a CPU in flat 64-bit mode.
type floorGuest struct {
	system *kvm.System
	vm     *kvm.VM
	cpu    *kvm.VCPU
	memory []byte
	event  int // eventfd of the interrupt
	ctx    context.Context
}

func newFloorGuest(code []byte) (g *floorGuest, err error) {
	g = &floorGuest{event: -1}
	defer func() {
		if err != nil {
			g.close()
		}
	}()
	if g.system, err = kvm.Open(""); err != nil {
		return g, fmt.Errorf("%w: %w", errMissing, err)
	}
	features, err := g.system.Features()
	if err != nil {
		return g, err
	}
	if !features.X2APIC {
		return g, fmt.Errorf("%w: no x2APIC", errMissing)
	}
	cpuid, err := g.system.SupportedCPUID()
	if err != nil {
		return g, err
	}
	const flags = unix.MAP_PRIVATE | unix.MAP_ANONYMOUS
	g.memory, err = unix.Mmap(-1, 0, floorMemory, unix.PROT_READ|unix.PROT_WRITE, flags)
	if err != nil {
		return g, fmt.Errorf("map memory: %w", err)
	}
	g.fill(code)
	if g.vm, err = g.system.CreateVM(); err != nil {
		return g, err
	}
	if g.event, err = eventfd.New(); err != nil {
		return g, err
	}
	return g, g.setUp(cpuid)
}

// setUp gives the VM its memory, its interrupt and its CPU.
func (g *floorGuest) setUp(cpuid []kvm.CPUIDEntry2) (err error) {
	for _, step := range []func() error{
		func() error { return g.vm.SetTSSAddr(0xfffb_d000) },
		func() error { return g.vm.SetIdentityMapAddr(0xfffb_c000) },
		g.vm.CreateIRQChip,
		func() error { return g.vm.SetUserMemoryRegion(0, 0, 0, g.memory) },
		func() error {
			return g.vm.SetGSIRouting([]kvm.IRQRoute{{GSI: 1, MSI: kvm.FixedMSI(0, floorVector)}})
		},
		func() error { return g.vm.AssignIRQFD(g.event, 1) },
		func() error { g.cpu, err = g.vm.CreateVCPU(0); return err },
		func() error { return g.cpu.SetCPUID(cpuid) },
		g.setRegisters,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// fill writes page tables, descriptor tables and code.
func (g *floorGuest) fill(code []byte) {
	put := func(at int, value uint64) { binary.LittleEndian.PutUint64(g.memory[at:], value) }
	const present, large = 3, 1 << 7
	put(floorPML4, floorPDPT|present)
	put(floorPDPT, floorPD|present)
	put(floorPD, present|large)
	put(floorGDT+0x08, 0x00af_9b00_0000_ffff)
	put(floorGDT+0x10, 0x00cf_9300_0000_ffff)
	put(floorIDT+16*floorVector, floorHandler|0x08<<16|0x8e00<<32)
	copy(g.memory[floorHandler:], callInHandler)
	copy(g.memory[floorCode:], code)
}

func (g *floorGuest) setRegisters() error {
	s, err := g.cpu.GetSregs()
	if err != nil {
		return err
	}
	s.CS = kvm.Segment{Limit: ^uint32(0), Selector: 0x08, Typ: 11, Present: 1, S: 1, L: 1, G: 1}
	data := kvm.Segment{Limit: ^uint32(0), Selector: 0x10, Typ: 3, Present: 1, S: 1, DB: 1, G: 1}
	s.DS, s.ES, s.FS, s.GS, s.SS = data, data, data, data, data
	s.GDT = kvm.Descriptor{Base: floorGDT, Limit: 0x17}
	s.IDT = kvm.Descriptor{Base: floorIDT, Limit: 0xfff}
	s.CR0, s.CR3, s.CR4, s.EFER = 0x8001_0023, floorPML4, 0x20, 0x500
	s.ApicBase |= 3 << 10
	if err := g.cpu.SetSregs(s); err != nil {
		return err
	}
	if err := g.cpu.SetRegs(kvm.Regs{RIP: floorCode, RFLAGS: 2, RSP: floorStack}); err != nil {
		return err
	}
	return g.cpu.SetMPState(kvm.MPRunnable)
}

func (g *floorGuest) close() {
	if g.cpu != nil {
		g.cpu.Close()
	}
	if g.vm != nil {
		g.vm.Close()
	}
	if g.system != nil {
		g.system.Close()
	}
	if g.event >= 0 {
		_ = unix.Close(g.event)
	}
	if g.memory != nil {
		_ = unix.Munmap(g.memory)
	}
}

// toExit runs the guest until its next call.
func (g *floorGuest) toExit() error {
	for {
		err := g.cpu.Run()
		if errors.Is(err, kvm.ErrInterrupted) {
			if err := g.ctx.Err(); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		if reason := g.cpu.ExitReason(); reason != kvm.ExitIO {
			return fmt.Errorf("exit %v instead of a call", reason)
		}
		return nil
	}
}

// times calls f n times and returns how long each took, in order of length.
func times(n int, f func() error) (trips, error) {
	t := make(trips, n)
	for i := range t {
		start := time.Now()
		if err := f(); err != nil {
			return nil, err
		}
		t[i] = time.Since(start)
	}
	slices.Sort(t)
	return t, nil
}

// floors measure what no hypercall and no interrupt can be faster than here.
// The CPUs need a thread of their own, on which nothing else runs.
type floors struct {
	work chan func()

	caller, sleeper *floorGuest
}

func (s *scope) floors() (*floors, error) {
	f := &floors{work: make(chan func())}
	ready := make(chan error)
	s.goes(func() { f.serve(s.ctx, ready) })
	if err := <-ready; err != nil {
		return nil, err
	}
	return f, nil
}

// serve makes the guests on a thread of its own, sends the error of that or nil
// to ready, and does the work until ctx ends.
func (f *floors) serve(ctx context.Context, ready chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for _, g := range []struct {
		guest **floorGuest
		code  []byte
	}{{&f.caller, callForEver}, {&f.sleeper, callAndSleep}} {
		made, err := newFloorGuest(g.code)
		if err != nil {
			ready <- err
			return
		}
		defer made.bind(ctx)()
		*g.guest = made
	}
	// Until the guest's local APIC is on, interrupts would be lost.
	if err := f.sleeper.toExit(); err != nil {
		ready <- err
		return
	}
	ready <- nil
	for {
		select {
		case <-ctx.Done():
			return
		case do := <-f.work:
			do()
		}
	}
}

// on runs measure on the floors' thread.
func (f *floors) on(ctx context.Context, measure func() (trips, error)) (t trips, err error) {
	done := make(chan struct{})
	select {
	case f.work <- func() { t, err = measure(); close(done) }:
		<-done
		return t, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

const floorTrips = 1000

// exit measures bare port exits.
func (f *floors) exit(ctx context.Context) (trips, error) {
	return f.on(ctx, func() (trips, error) { return times(floorTrips, f.caller.toExit) })
}

// interruptAndExit measures interrupts by eventfd whose handler makes a port
// exit.
func (f *floors) interruptAndExit(ctx context.Context) (trips, error) {
	return f.on(ctx, func() (trips, error) {
		return times(floorTrips, func() error {
			eventfd.Signal(f.sleeper.event)
			return f.sleeper.toExit()
		})
	})
}

// bind makes the calling thread the CPU's. When ctx ends, toExit returns.
// release ends both and closes the guest.
func (g *floorGuest) bind(ctx context.Context) (release func()) {
	g.ctx = ctx
	g.cpu.BindThread()
	stop := context.AfterFunc(ctx, func() { _ = g.cpu.Kick() })
	return func() {
		stop()
		g.cpu.UnbindThread()
		g.close()
	}
}
