package kvm

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"
)

// Pieces of 64-bit machine code, their assembly above each. Ports and addresses
// are those that the tests expect: guestData is 0x6000, guestMMIO 0x400000.
var (
	// mov $0x5a,%al; mov $0xe9,%edx; out %al,%dx
	codeOutByte = []byte{0xb0, 0x5a, 0xba, 0xe9, 0, 0, 0, 0xee}
	// out %al,%dx
	codeOut = []byte{0xee}
	// mov $0xe9,%edx; out %eax,%dx
	codeOutLong = []byte{0xba, 0xe9, 0, 0, 0, 0xef}
	// mov $0x60,%edx; in %dx,%eax
	codeInLong = []byte{0xba, 0x60, 0, 0, 0, 0xed}
	// mov $0x6000,%esi; mov $5,%ecx; mov $0xe9,%edx; rep outsb
	codeOutString = []byte{0xbe, 0, 0x60, 0, 0, 0xb9, 5, 0, 0, 0, 0xba, 0xe9, 0, 0, 0, 0xf3, 0x6e}
	// mov $0x6000,%edi; mov $5,%ecx; mov $0x60,%edx; rep insb
	codeInString = []byte{0xbf, 0, 0x60, 0, 0, 0xb9, 5, 0, 0, 0, 0xba, 0x60, 0, 0, 0, 0xf3, 0x6c}
	// mov 0x400000,%eax
	codeReadMMIO = []byte{0x8b, 0x04, 0x25, 0, 0, 0x40, 0}
	// mov %eax,0x400008
	codeWriteMMIO = []byte{0x89, 0x04, 0x25, 8, 0, 0x40, 0}
	// mov %rax,%rbx
	codeCopy = []byte{0x48, 0x89, 0xc3}
	// 1: incq 0x6000; jmp 1b
	codeCount = []byte{0x48, 0xff, 0x04, 0x25, 0, 0x60, 0, 0, 0xeb, 0xf6}
	// mov $0x40000100,%eax; cpuid
	codeCPUID = []byte{0xb8, 0, 1, 0, 0x40, 0x0f, 0xa2}
	// ud2
	codeInvalid = []byte{0x0f, 0x0b}
	// mov $0x80f,%ecx; mov $0x1ff,%eax; xor %edx,%edx; wrmsr
	codeEnableAPI = []byte{0xb9, 0x0f, 8, 0, 0, 0xb8, 0xff, 1, 0, 0, 0x31, 0xd2, 0x0f, 0x30}
	// mov $0x802,%ecx; rdmsr
	codeReadID = []byte{0xb9, 2, 8, 0, 0, 0x0f, 0x32}
	// sti; hlt; cli
	codeHalt = []byte{0xfb, 0xf4, 0xfa}
	// sti; 1: hlt; jmp 1b
	codeHaltLoop = []byte{0xfb, 0xf4, 0xeb, 0xfd}
	// xor %edx,%edx; 1: out %al,%dx; jmp 1b
	codeCallLoop = []byte{0x31, 0xd2, 0xee, 0xeb, 0xfd}
	// xor %edx,%edx; 1: mov $1000,%ecx; 2: dec %ecx; jnz 2b; out %al,%dx;
	// jmp 1b
	codeCountLoop = []byte{0x31, 0xd2, 0xb9, 0xe8, 3, 0, 0, 0xff, 0xc9, 0x75, 0xfc, 0xee, 0xeb, 0xf4}
	// push %rax, %rcx, %rdx; mov $0x80b,%ecx; xor %eax,%eax; xor %edx,%edx;
	// wrmsr
	codeEOI = []byte{0x50, 0x51, 0x52, 0xb9, 0x0b, 8, 0, 0, 0x31, 0xc0, 0x31, 0xd2, 0x0f, 0x30}
	// incq 0x6000
	codeIncrement = []byte{0x48, 0xff, 0x04, 0x25, 0, 0x60, 0, 0}
	// pop %rdx, %rcx, %rax; iretq
	codeReturn = []byte{0x5a, 0x59, 0x58, 0x48, 0xcf}
)

func TestOutByte(t *testing.T) {
	onThread(t)
	g := newGuest(t)
	v := g.vcpu(t, 0, codeOutByte)
	run(t, v, ExitIO)
	io := v.IO()
	if io.In || io.Size != 1 || io.Port != 0xe9 || io.Count != 1 || !bytes.Equal(io.Data, []byte{0x5a}) {
		t.Errorf("exit %+v", io)
	}
}

func TestInLong(t *testing.T) {
	onThread(t)
	g := newGuest(t)
	v := g.vcpu(t, 0, codeInLong, codeOutLong)
	run(t, v, ExitIO)
	io := v.IO()
	if !io.In || io.Size != 4 || io.Port != 0x60 || io.Count != 1 || len(io.Data) != 4 {
		t.Fatalf("exit %+v", io)
	}
	copy(io.Data, "\x78\x56\x34\x12")
	run(t, v, ExitIO)
	if io := v.IO(); io.In || string(io.Data) != "\x78\x56\x34\x12" {
		t.Errorf("exit %+v", io)
	}
}

// KVM decides how many elements of a string instruction an exit carries;
// together they are all of them, in order.
func TestOutString(t *testing.T) {
	onThread(t)
	g := newGuest(t)
	copy(g.mem[guestData:], "hello")
	v := g.vcpu(t, 0, codeOutString)
	var got []byte
	for len(got) < 5 {
		run(t, v, ExitIO)
		io := v.IO()
		if io.In || io.Size != 1 || io.Port != 0xe9 || io.Count < 1 || len(io.Data) != io.Count {
			t.Fatalf("exit %+v", io)
		}
		got = append(got, io.Data...)
	}
	if string(got) != "hello" {
		t.Errorf("got %q", got)
	}
}

func TestInString(t *testing.T) {
	onThread(t)
	g := newGuest(t)
	v := g.vcpu(t, 0, codeInString, codeOutByte)
	rest := []byte("world")
	for len(rest) > 0 {
		run(t, v, ExitIO)
		io := v.IO()
		if !io.In || io.Size != 1 || io.Port != 0x60 || io.Count < 1 || len(io.Data) != io.Count {
			t.Fatalf("exit %+v", io)
		}
		rest = rest[copy(io.Data, rest):]
	}
	run(t, v, ExitIO)
	if got := string(g.mem[guestData : guestData+5]); got != "world" {
		t.Errorf("guest read %q", got)
	}
}

func TestMMIO(t *testing.T) {
	onThread(t)
	g := newGuest(t)
	v := g.vcpu(t, 0, codeReadMMIO, codeWriteMMIO)
	run(t, v, ExitMMIO)
	m := v.MMIO()
	if m.Write || m.Address != guestMMIO || len(m.Data) != 4 {
		t.Fatalf("exit %+v", m)
	}
	copy(m.Data, "\x78\x56\x34\x12")
	run(t, v, ExitMMIO)
	m = v.MMIO()
	if !m.Write || m.Address != guestMMIO+8 || !bytes.Equal(m.Data, []byte("\x78\x56\x34\x12")) {
		t.Fatalf("exit %+v", m)
	}
}

// A fault without an IDT, and so a double and a triple fault.
func TestShutdown(t *testing.T) {
	onThread(t)
	g := newGuest(t)
	v := g.vcpu(t, 0, codeInvalid)
	sregs, err := v.GetSregs()
	must(t, err)
	sregs.IDT = Descriptor{}
	must(t, v.SetSregs(sregs))
	run(t, v, ExitShutdown)
}

func TestImmediateExit(t *testing.T) {
	onThread(t)
	g := newGuest(t)
	v := g.vcpu(t, 0, codeInLong, codeOutLong)
	v.SetImmediateExit(true)
	for range 2 {
		if err := v.Run(); !errors.Is(err, ErrInterrupted) {
			t.Fatalf("Run: %v", err)
		}
		if r := v.ExitReason(); r != ExitIntr {
			t.Errorf("exit reason %v", r)
		}
	}
	regs, err := v.GetRegs()
	must(t, err)
	if regs.RIP != guestCode {
		t.Errorf("the guest ran to %#x", regs.RIP)
	}

	v.SetImmediateExit(false)
	run(t, v, ExitIO)
	copy(v.IO().Data, "\x78\x56\x34\x12")
	v.SetImmediateExit(true)
	if err := v.Run(); !errors.Is(err, ErrInterrupted) {
		t.Fatalf("Run: %v", err)
	}
	// Not the exit before, which was handled. What it asked for is done.
	if r := v.ExitReason(); r != ExitIntr {
		t.Errorf("exit reason %v", r)
	}
	if regs, err = v.GetRegs(); err != nil || regs.RAX != 0x1234_5678 {
		t.Errorf("RAX %#x, %v", regs.RAX, err)
	}
	v.SetImmediateExit(false)
	run(t, v, ExitIO)
	if io := v.IO(); io.In || string(io.Data) != "\x78\x56\x34\x12" {
		t.Errorf("exit %+v", io)
	}
}

func TestSyncRegs(t *testing.T) {
	onThread(t)
	g := newGuest(t)
	if !g.features.SyncRegs {
		t.Skip("this KVM keeps no registers in the run page; Linux 4.17 and later do")
	}
	v := g.vcpu(t, 0, codeOutByte, codeCopy, codeOut, codeOut)
	v.SyncOnExit()
	regs, err := v.GetRegs()
	must(t, err)
	regs.R15 = 0xfeed_face_cafe_beef
	must(t, v.SetRegs(regs))

	run(t, v, ExitIO)
	if r := v.SyncedRegs(); r.RAX&0xff != 0x5a || r.RDX != 0xe9 || r.R15 != 0xfeed_face_cafe_beef {
		t.Fatalf("first exit: %+v", *r)
	}
	v.SyncedRegs().RAX = 0x1122_3344_5566_7788
	v.SyncDirty()
	run(t, v, ExitIO)
	r := v.SyncedRegs()
	if r.RAX != 0x1122_3344_5566_7788 || r.RBX != r.RAX || r.RDX != 0xe9 || r.R15 != 0xfeed_face_cafe_beef {
		t.Errorf("second exit: %+v", *r)
	}
	if io := v.IO(); string(io.Data) != "\x88" {
		t.Errorf("second exit: %+v", io)
	}
	if regs, err = v.GetRegs(); err != nil || regs != *r {
		t.Errorf("KVM_GET_REGS says %+v, %v; the run page %+v", regs, err, *r)
	}

	// Without the mark a change doesn't count, and the mark of before is gone.
	r.RAX = 1
	run(t, v, ExitIO)
	if r.RAX != 0x1122_3344_5566_7788 {
		t.Errorf("third exit: RAX %#x", r.RAX)
	}
}

func TestCPUID(t *testing.T) {
	onThread(t)
	g := newGuest(t)
	mine := CPUIDEntry2{Function: 0x4000_0100, Eax: 0x6172_6361}
	i := slices.IndexFunc(g.cpuid, func(e CPUIDEntry2) bool { return e.Function == 0x4000_0000 })
	if i >= 0 {
		// A leaf is looked for only up to the largest one that its range names.
		g.cpuid[i].Eax = mine.Function
	}
	g.cpuid = append(g.cpuid, mine)
	v := g.vcpu(t, 0, codeCPUID, codeOutLong)
	run(t, v, ExitIO)
	if io := v.IO(); string(io.Data) != "acra" {
		t.Errorf("the guest's CPUID gave %q", io.Data)
	}
	got, err := getCPUID(&v.handle, request{"KVM_GET_CPUID2", gokvm.IIOWR(0x91, cpuidHeaderSize)})
	must(t, err)
	if !slices.Contains(got, mine) {
		t.Errorf("KVM_GET_CPUID2 leaves the leaf out")
	}
}

func TestXCR0(t *testing.T) {
	g := newGuest(t)
	v := g.vcpu(t, 0)
	i := slices.IndexFunc(g.cpuid, func(e CPUIDEntry2) bool { return e.Function == 0xd && e.Index == 0 })
	if i < 0 || g.cpuid[i].Eax&7 != 7 {
		t.Skip("this machine's KVM has no AVX")
	}
	for _, want := range []uint64{7, 3, 1} {
		must(t, v.SetXCR0(want))
		if got, err := v.XCR0(); got != want || err != nil {
			t.Errorf("XCR0 is %#x, %v; want %#x", got, err, want)
		}
	}
	if err := v.SetXCR0(6); !errors.Is(err, unix.EINVAL) {
		t.Errorf("without the x87's state: %v", err)
	}
}

func TestMSRs(t *testing.T) {
	g := newGuest(t)
	v := g.vcpu(t, 0)
	const star, kernelGSBase = 0xc000_0081, 0xc000_0102
	must(t, v.SetMSRs([]MSREntry{{Index: star, Data: 0x0010_0008 << 32}, {Index: kernelGSBase, Data: 0xffff_8000_1234_5000}}))
	got := []MSREntry{{Index: kernelGSBase}, {Index: star}}
	must(t, v.GetMSRs(got))
	if got[0].Data != 0xffff_8000_1234_5000 || got[1].Data != 0x0010_0008<<32 {
		t.Errorf("read %#x", got)
	}
	must(t, v.GetMSRs(nil))
	must(t, v.SetMSRs(nil))

	// A canonical address is asked for here.
	err := v.SetMSRs([]MSREntry{{Index: star}, {Index: kernelGSBase, Data: 1 << 62}})
	if !errors.Is(err, unix.EINVAL) {
		t.Errorf("a refused MSR: %v", err)
	}
	if want := "kvm: KVM_SET_MSRS: MSR 0xc0000102: invalid argument"; err == nil || err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
}

func TestMPState(t *testing.T) {
	g := newGuest(t)
	for id, want := range []MPState{MPRunnable, MPUninitialized} {
		v, err := g.vm.CreateVCPU(id)
		must(t, err)
		t.Cleanup(func() { closeOrFail(t, v) })
		got, err := v.GetMPState()
		must(t, err)
		if got != want {
			t.Errorf("vCPU %d starts in state %d, want %d", id, got, want)
		}
		must(t, v.SetMPState(MPHalted))
		if got, err = v.GetMPState(); err != nil || got != MPHalted {
			t.Errorf("vCPU %d: state %d, %v", id, got, err)
		}
	}
}

func TestTSCKHz(t *testing.T) {
	v := newGuest(t).vcpu(t, 0)
	khz, err := v.TSCKHz()
	if errors.Is(err, unix.EIO) {
		t.Skip("the host's time stamp counter isn't stable: use a machine where it is")
	}
	must(t, err)
	if khz < 1000 {
		t.Errorf("%d kHz", khz)
	}
}

func TestVCPUEvents(t *testing.T) {
	v := newGuest(t).vcpu(t, 0)
	events, err := v.GetVCPUEvents()
	must(t, err)
	const nmiPending = 1 << 0
	events.N.Pending, events.Flags = 1, events.Flags|nmiPending
	must(t, v.SetVCPUEvents(events))
	if events, err = v.GetVCPUEvents(); err != nil || events.N.Pending == 0 {
		t.Errorf("%+v, %v: no NMI pending", events, err)
	}
}
