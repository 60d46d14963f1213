package kvm

import (
	"encoding/binary"
	"errors"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// Where a test guest's pieces are in its 2 MiB of memory, which starts at
// guest-physical 0.
const (
	guestMemory = 2 << 20
	guestPML4   = 0x1000
	guestPDPT   = 0x2000
	guestPD     = 0x3000
	guestIDT    = 0x4000
	guestGDT    = 0x5000
	guestData   = 0x6000
	guestCode   = 0x10000 // and 0x1000 more for each vCPU
	guestStack  = 0x80000 // grows down; 0x1000 more for each vCPU

	// Mapped in the guest's page table, without memory behind it.
	guestMMIO = 4 << 20
)

// guest is a VM for tests with flat 64-bit mode vCPUs.
type guest struct {
	sys      *System
	vm       *VM
	mem      []byte
	features Features
	cpuid    []CPUIDEntry2
}

// openSystem opens KVM or skips the test, unless the environment says that KVM
// must be there.
func openSystem(t testing.TB) *System {
	t.Helper()
	sys, err := Open("")
	if err != nil {
		var unavailable *UnavailableError
		if errors.As(err, &unavailable) && os.Getenv("ARCAVM_REQUIRE_KVM") != "1" {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { closeOrFail(t, sys) })
	return sys
}

func closeOrFail(t testing.TB, c interface{ Close() error }) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newGuest(t testing.TB) *guest {
	t.Helper()
	return newGuestWith(t, (*VM).CreateIRQChip)
}

// newGuestWith makes a guest whose interrupt controllers the function makes.
func newGuestWith(t testing.TB, controllers func(*VM) error) *guest {
	t.Helper()
	g := &guest{sys: openSystem(t)}
	var err error
	g.features, err = g.sys.Features()
	must(t, err)
	g.cpuid, err = g.sys.SupportedCPUID()
	must(t, err)
	g.mem, err = unix.Mmap(-1, 0, guestMemory, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	must(t, err)
	t.Cleanup(func() { must(t, unix.Munmap(g.mem)) })
	g.vm, err = g.sys.CreateVM()
	must(t, err)
	t.Cleanup(func() { closeOrFail(t, g.vm) })
	must(t, g.vm.SetTSSAddr(0xfffb_d000))
	must(t, g.vm.SetIdentityMapAddr(0xfffb_c000))
	must(t, controllers(g.vm))
	must(t, g.vm.SetUserMemoryRegion(0, 0, 0, g.mem))

	const present, large = 3, 1 << 7
	g.put64(guestPML4, guestPDPT|present)
	g.put64(guestPDPT, guestPD|present)
	for i := range uint64(4) {
		g.put64(guestPD+8*i, i<<21|present|large)
	}
	g.put64(guestGDT+0x08, 0x00af_9b00_0000_ffff)
	g.put64(guestGDT+0x10, 0x00cf_9300_0000_ffff)
	return g
}

func (g *guest) put64(at, value uint64) { binary.LittleEndian.PutUint64(g.mem[at:], value) }

func (g *guest) get64(at uint64) uint64 { return binary.LittleEndian.Uint64(g.mem[at:]) }

// setGate points the IDT's vector to code at an address.
func (g *guest) setGate(vector uint8, handler uint64) {
	at := guestIDT + 16*uint64(vector)
	g.put64(at, handler&0xffff|0x08<<16|0x8e00<<32|handler>>16<<48)
	g.put64(at+8, handler>>32)
}

// vcpu adds a vCPU that starts with the code in 64-bit mode, interrupts off.
func (g *guest) vcpu(t testing.TB, id int, code ...[]byte) *VCPU {
	t.Helper()
	v, err := g.vm.CreateVCPU(id)
	must(t, err)
	t.Cleanup(func() { closeOrFail(t, v) })
	must(t, v.EnforceParavirtual())
	must(t, v.SetCPUID(g.cpuid))
	start := guestCode + 0x1000*uint64(id)
	at := start
	for _, c := range code {
		at += uint64(copy(g.mem[at:], c))
	}

	sregs, err := v.GetSregs()
	must(t, err)
	sregs.CS = Segment{Limit: ^uint32(0), Selector: 0x08, Typ: 11, Present: 1, S: 1, L: 1, G: 1}
	data := Segment{Limit: ^uint32(0), Selector: 0x10, Typ: 3, Present: 1, S: 1, DB: 1, G: 1}
	sregs.DS, sregs.ES, sregs.FS, sregs.GS, sregs.SS = data, data, data, data, data
	sregs.GDT = Descriptor{Base: guestGDT, Limit: 0x17}
	sregs.IDT = Descriptor{Base: guestIDT, Limit: 0xfff}
	sregs.CR0 = 0x8001_0023
	sregs.CR3 = guestPML4
	sregs.CR4 = 0x20
	sregs.EFER = 0x500
	if g.features.X2APIC {
		sregs.ApicBase |= 3 << 10
	}
	must(t, v.SetSregs(sregs))
	must(t, v.SetRegs(Regs{RIP: start, RFLAGS: 2, RSP: guestStack + 0x1000*uint64(id)}))
	must(t, v.SetMPState(MPRunnable))
	return v
}

// run goes on to the next exit, which must be the given one.
func run(t testing.TB, v *VCPU, want ExitReason) {
	t.Helper()
	for {
		err := v.Run()
		if errors.Is(err, ErrInterrupted) {
			continue
		}
		must(t, err)
		if got := v.ExitReason(); got != want {
			t.Fatalf("exit %v (%s), want %v", got, describe(v), want)
		}
		return
	}
}

func describe(v *VCPU) string {
	regs, _ := v.GetRegs()
	s := ""
	switch v.ExitReason() {
	case ExitInternalError:
		s = v.InternalError().String()
	case ExitFailEntry:
		s = "entry failed"
	}
	return s + " at RIP " + hex(regs.RIP)
}

func hex(n uint64) string {
	const digits = "0123456789abcdef"
	b := []byte("0x")
	for shift := 60; shift >= 0; shift -= 4 {
		b = append(b, digits[n>>shift&15])
	}
	return string(b)
}

// onThread keeps a vCPU's test on one thread, as Run wants it.
func onThread(t testing.TB) {
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
}
