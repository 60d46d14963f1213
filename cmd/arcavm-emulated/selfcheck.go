package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fix-project/arcavm/internal/eventfd"
	"github.com/fix-project/arcavm/kvm"
	"golang.org/x/sys/unix"
)

// roundTrips take seconds in the emulated lane, at 2 ms each. An emulator that
// forgets an interrupt shadow (see checkInterrupt) shows it within 1,000.
const roundTrips = 2_000

// roundTripLimit is far more than a round trip takes.
const roundTripLimit = 30 * time.Second

// Where the self-check's real-mode guest has its code.
const (
	checkCode    = 0x1000
	checkHandler = 0x2000
	checkMemory  = 0x4000
	checkVector  = 0x41
	checkGSI     = 5
	checkPort    = 0x10
)

var checkProgram = []byte{
	0x66, 0xb9, 0x0f, 0x08, 0x00, 0x00, // mov ecx, 0x80f: x2APIC spurious vector
	0x66, 0xb8, 0xff, 0x01, 0x00, 0x00, // mov eax, 0x1ff: local APIC on
	0x66, 0x31, 0xd2, // xor edx, edx
	0x0f, 0x30, // wrmsr
	0xfa,            // again: cli
	0xe6, checkPort, // out checkPort, al: the hypercall
	0xfb,       // sti
	0xf4,       // hlt
	0xeb, 0xf9, // jmp again
}

// The handler skips the hlt if it interrupts right before it: QEMU (7.2)
// forgets that sti holds interrupts off for one instruction if the guest leaves
// and enters KVM just there, and then the interrupt comes before the hlt that
// was to wait for it. A guest kernel that is to run in this lane does the same.
var checkInterrupt = []byte{
	0x89, 0xe5, // mov bp, sp
	0x81, 0x7e, 0x00, 0x15, 0x10, // cmp word [bp], the hlt
	0x75, 0x03, // jne +3
	0xff, 0x46, 0x00, // inc word [bp]
	0x66, 0xb9, 0x0b, 0x08, 0x00, 0x00, // mov ecx, 0x80b: x2APIC end of interrupt
	0x66, 0x31, 0xc0, // xor eax, eax
	0x66, 0x31, 0xd2, // xor edx, edx
	0x0f, 0x30, // wrmsr
	0xcf, // iret
}

// selfCheckVariable has this program check the machine that it runs in.
const selfCheckVariable = "ARCAVM_EMULATED_SELF_CHECK"

// selfCheck finds out whether the emulator loses interrupts.
func selfCheck() error {
	if err := checkHeartbeat(); err != nil {
		return err
	}
	return hypercallsToInterrupts()
}

// heartbeatLimit is far beyond the time from one heartbeat to the next.
const heartbeatLimit = 30 * time.Second

func checkHeartbeat() error {
	first, err := heartbeats()
	if err != nil {
		return err
	}
	for start := time.Now(); time.Since(start) < heartbeatLimit; {
		if now, err := heartbeats(); err != nil || now != first {
			return err
		}
	}
	return errors.New("the heart doesn't beat")
}

var heartbeatLine = regexp.MustCompile(`(?m)^ *\d+: +(\d+) .*hpet\d`)

// heartbeats is how many the kernel has counted.
func heartbeats() (n int, err error) {
	text, err := os.ReadFile("/proc/interrupts")
	if err != nil {
		return 0, err
	}
	line := heartbeatLine.FindSubmatch(text)
	if line == nil {
		return 0, fmt.Errorf("there is no heartbeat in\n%s", text)
	}
	_, err = fmt.Sscan(string(line[1]), &n)
	return n, err
}

// hypercallsToInterrupts has a guest make a hypercall and halt, and another
// goroutine wake it by an irqfd, many times. A lost interrupt leaves the guest
// halted for good, which the watchdog ends.
func hypercallsToInterrupts() (err error) {
	g, err := newCheckGuest()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.close()) }()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	g.vcpu.BindThread()
	defer g.vcpu.UnbindThread()
	var late atomic.Bool
	watchdog := time.AfterFunc(roundTripLimit, func() {
		late.Store(true)
		g.vcpu.SetImmediateExit(true)
		// If it fails, the run's own limit ends this.
		_ = g.vcpu.Kick()
	})
	defer watchdog.Stop()
	fd, err := eventfd.New()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := g.vm.SetGSIRouting([]kvm.IRQRoute{{GSI: checkGSI, MSI: kvm.FixedMSI(0, checkVector)}}); err != nil {
		return err
	}
	if err := g.vm.AssignIRQFD(fd, checkGSI); err != nil {
		return err
	}
	calls := make(chan struct{}, 1)
	var waking sync.WaitGroup
	waking.Go(func() {
		for range calls {
			eventfd.Signal(fd)
		}
	})
	defer waking.Wait()
	defer close(calls)
	for i := range roundTrips {
		watchdog.Reset(roundTripLimit)
		if err := nextHypercall(g.vcpu, &late); err != nil {
			return fmt.Errorf("after %d round trips: %w", i, err)
		}
		calls <- struct{}{}
	}
	return nil
}

func nextHypercall(v *kvm.VCPU, late *atomic.Bool) error {
	for {
		err := v.Run()
		if late.Load() {
			return fmt.Errorf("an interrupt was lost: no hypercall came within %v", roundTripLimit)
		}
		if errors.Is(err, kvm.ErrInterrupted) {
			continue
		}
		if err != nil {
			return err
		}
		if r := v.ExitReason(); r != kvm.ExitIO {
			return fmt.Errorf("exit %v", r)
		}
		return nil
	}
}

// checkGuest is a guest in real mode, with its local APIC as x2APIC.
type checkGuest struct {
	vm     *kvm.VM
	vcpu   *kvm.VCPU
	closes []func() error // of what there is, in the order it was made
}

// newCheckGuest returns a guest to be closed.
func newCheckGuest() (*checkGuest, error) {
	g := &checkGuest{}
	if err := g.make(); err != nil {
		return nil, errors.Join(err, g.close())
	}
	return g, nil
}

func (g *checkGuest) close() error {
	var errs []error
	for i := len(g.closes) - 1; i >= 0; i-- {
		errs = append(errs, g.closes[i]())
	}
	return errors.Join(errs...)
}

func (g *checkGuest) make() error {
	system, err := kvm.Open("")
	if err != nil {
		return err
	}
	g.closes = append(g.closes, system.Close)
	if g.vm, err = system.CreateVM(); err != nil {
		return err
	}
	g.closes = append(g.closes, g.vm.Close)
	memory, err := unix.Mmap(-1, 0, checkMemory, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("map the guest's memory: %w", err)
	}
	g.closes = append(g.closes, func() error { return unix.Munmap(memory) })
	copy(memory[checkCode:], checkProgram)
	copy(memory[checkHandler:], checkInterrupt)
	binary.LittleEndian.PutUint32(memory[4*checkVector:], checkHandler)
	for _, step := range []func() error{
		func() error { return g.vm.SetTSSAddr(0xfffb_d000) },
		func() error { return g.vm.SetIdentityMapAddr(0xfffb_c000) },
		g.vm.CreateIRQChip,
		func() error { return g.vm.SetUserMemoryRegion(0, 0, 0, memory) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	if g.vcpu, err = g.vm.CreateVCPU(0); err != nil {
		return err
	}
	g.closes = append(g.closes, g.vcpu.Close)
	cpuid, err := system.SupportedCPUID()
	if err != nil {
		return err
	}
	if err := g.vcpu.SetCPUID(cpuid); err != nil {
		return err
	}
	sregs, err := g.vcpu.GetSregs()
	if err != nil {
		return err
	}
	sregs.CS.Base, sregs.CS.Selector = 0, 0
	sregs.ApicBase |= 3 << 10 // enabled, x2APIC
	if err := g.vcpu.SetSregs(sregs); err != nil {
		return err
	}
	if err := g.vcpu.SetRegs(kvm.Regs{RIP: checkCode, RSP: checkMemory, RFLAGS: 2}); err != nil {
		return err
	}
	return g.vcpu.SetMPState(kvm.MPRunnable)
}
