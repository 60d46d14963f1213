package emulated

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fix-project/arcavm/kvm"
	"golang.org/x/sys/unix"
)

// roundTrips take seconds in the emulated lane, at 2 ms each. An emulator that
// forgets an interrupt shadow (see checkInterrupt) shows it within 1,000.
const roundTrips = 2_000

// roundTripLimit is far beyond what one of them takes.
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

// The handler skips the hlt if it interrupts right before it: QEMU (7.2) forgets
// that sti holds interrupts off for one instruction if the guest leaves and
// enters KVM just there, and then the interrupt comes before the hlt that was to
// wait for it. A guest kernel that is to run in this lane does the same.
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

// The self-check of the emulated lane: a guest makes a hypercall and halts, and
// another goroutine wakes it by an irqfd, many times. A lost interrupt leaves
// the guest halted for good, which the test's deadline ends.
func TestHypercallsToInterrupts(t *testing.T) {
	vm, vcpu := checkGuest(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	vcpu.BindThread()
	defer vcpu.UnbindThread()
	var late atomic.Bool
	watchdog := time.AfterFunc(roundTripLimit, func() {
		late.Store(true)
		vcpu.SetImmediateExit(true)
		// If it fails, the test binary's own deadline ends this.
		_ = vcpu.Kick()
	})
	defer watchdog.Stop()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	must(t, err)
	defer unix.Close(fd)
	must(t, vm.SetGSIRouting([]kvm.IRQRoute{{GSI: checkGSI, MSI: kvm.FixedMSI(0, checkVector)}}))
	must(t, vm.AssignIRQFD(fd, checkGSI))

	calls := make(chan struct{}, 1)
	waker := make(chan error, 1)
	go func() {
		one := binary.NativeEndian.AppendUint64(nil, 1)
		for range calls {
			if _, err := unix.Write(fd, one); err != nil {
				waker <- fmt.Errorf("raise the interrupt: %w", err)
				return
			}
		}
		waker <- nil
	}()
	for i := range roundTrips {
		watchdog.Reset(roundTripLimit)
		if err := nextHypercall(vcpu, &late); err != nil {
			t.Fatalf("after %d round trips: %v", i, err)
		}
		calls <- struct{}{}
	}
	close(calls)
	must(t, <-waker)
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

// checkGuest makes a guest in real mode, with its local APIC as x2APIC.
func checkGuest(t *testing.T) (*kvm.VM, *kvm.VCPU) {
	t.Helper()
	system, err := kvm.Open("")
	if err != nil {
		var unavailable *kvm.UnavailableError
		if errors.As(err, &unavailable) && os.Getenv("ARCAVM_REQUIRE_KVM") != "1" {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { must(t, system.Close()) })
	vm, err := system.CreateVM()
	must(t, err)
	t.Cleanup(func() { must(t, vm.Close()) })
	memory, err := unix.Mmap(-1, 0, checkMemory, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	must(t, err)
	t.Cleanup(func() { must(t, unix.Munmap(memory)) })
	copy(memory[checkCode:], checkProgram)
	copy(memory[checkHandler:], checkInterrupt)
	binary.LittleEndian.PutUint32(memory[4*checkVector:], checkHandler)
	must(t, vm.SetTSSAddr(0xfffb_d000))
	must(t, vm.SetIdentityMapAddr(0xfffb_c000))
	must(t, vm.CreateIRQChip())
	must(t, vm.SetUserMemoryRegion(0, 0, 0, memory))

	vcpu, err := vm.CreateVCPU(0)
	must(t, err)
	t.Cleanup(func() { must(t, vcpu.Close()) })
	cpuid, err := system.SupportedCPUID()
	must(t, err)
	must(t, vcpu.SetCPUID(cpuid))
	sregs, err := vcpu.GetSregs()
	must(t, err)
	sregs.CS.Base, sregs.CS.Selector = 0, 0
	sregs.ApicBase |= 3 << 10 // enabled, x2APIC
	must(t, vcpu.SetSregs(sregs))
	must(t, vcpu.SetRegs(kvm.Regs{RIP: checkCode, RSP: checkMemory, RFLAGS: 2}))
	must(t, vcpu.SetMPState(kvm.MPRunnable))
	return vm, vcpu
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
