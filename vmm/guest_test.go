package vmm_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/fix-project/arcavm/testdata/images"
	"github.com/fix-project/arcavm/vmm"
	"github.com/fix-project/arcavm/vmm/image"
	"github.com/fix-project/arcavm/vmm/vmmtest"
)

func boot(t *testing.T, name string, args ...string) *vmmtest.Guest {
	t.Helper()
	return vmmtest.Boot(t, vmm.Config{Image: vmmtest.Image(t, name), Args: args})
}

func TestHello(t *testing.T) {
	t.Parallel()
	g := boot(t, "hello", "bob", "wörld", "--exit", "7")
	code, err := g.Wait()
	if code != 7 || err != nil {
		t.Errorf("the guest ended with %d, %v; want 7", code, err)
	}
	for _, want := range []string{"level=INFO", "hello, bob", "hello, wörld", "target=hello", "file=", "line="} {
		if !strings.Contains(g.Log(), want) {
			t.Errorf("the log doesn't say %q:\n%s", want, g.Log())
		}
	}
}

func TestExitCodeIsTheGuests(t *testing.T) {
	t.Parallel()
	for _, want := range []int{0, 1, 70, 255} {
		g := boot(t, "hello", "--exit", fmt.Sprint(want))
		if code, err := g.Wait(); code != want || err != nil {
			t.Errorf("the guest ended with %d, %v; want %d", code, err, want)
		}
	}
}

// Each way to die ends in a report that names the place, or says why it can't.
func TestCrash(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		how    string
		reason string
		frames []string // symbols that the backtrace must have, in this order
		vector uint64
	}{
		{"panic", "panic: ", []string{"program_main"}, 0},
		{"ud2", "panic: ", []string{"ud2", "program_main"}, 6},
		{"wild", "panic: ", []string{"wild", "program_main"}, 14},
		{"overflow", "panic: ", []string{"recurse", "recurse"}, 8},
		{"triple", "triple fault", []string{"triple", "program_main"}, 0},
		{"port", "I/O port 0x1234", []string{"port", "program_main"}, 0},
		{"mmio", "physical address 0xd0001000", []string{"mmio", "program_main"}, 0},
	} {
		t.Run(c.how, func(t *testing.T) {
			t.Parallel()
			_, err := boot(t, "crash", c.how).Wait()
			var crash *vmm.CrashError
			if !errors.As(err, &crash) {
				t.Fatalf("the guest ended with %v, not by a crash", err)
			}
			var report strings.Builder
			if err := crash.WriteReport(&report); err != nil {
				t.Fatal(err)
			}
			t.Logf("%v\n%s", err, &report)
			if !strings.Contains(crash.Reason, c.reason) {
				t.Errorf("the reason is %q, want %q in it", crash.Reason, c.reason)
			}
			if !strings.Contains(report.String(), "crashing by: "+c.how) {
				t.Error("the report doesn't show the guest's last log record")
			}
			if crash.Registers == nil {
				if c.how != "triple" {
					t.Fatal("the report has no registers")
				}
				return // AMD's processors lose them
			}
			if c.vector != 0 && crash.Registers.Vector != c.vector {
				t.Errorf("the vector is %d, want %d", crash.Registers.Vector, c.vector)
			}
			missing := c.frames
			for _, f := range crash.Backtrace {
				if len(missing) > 0 && f.Symbol == missing[0] {
					missing = missing[1:]
				}
			}
			if len(missing) > 0 {
				t.Errorf("the backtrace lacks %q", missing)
			}
		})
	}
}

// Hardware that the ABI doesn't name isn't there: the ports of interrupt
// controllers, timers, clock, keyboard, reset, PCI and hypervisors' back doors,
// and the pages of I/O APIC, HPET and firmware.
func TestNoHardware(t *testing.T) {
	t.Parallel()
	for _, port := range []uint64{
		0x01, 0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1, 0x40, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x7E, 0x80, 0x92,
		0x3F8, 0x402, 0x510, 0x600, 0xB2, 0xCF8, 0xCF9, 0xCFC, 0x5658, 0x5659, 0xFFFF,
	} {
		for _, how := range []string{"in", "port"} {
			wantNothing(t, how, port, fmt.Sprintf("I/O port %#x (1 bytes), where there is nothing", port))
		}
	}
	for _, address := range []uint64{0, 0xA_0000, 0xE000_0000, 0xFEC0_0000, 0xFEC0_0010, 0xFED0_0000, 0xFED4_0000, 0xFFFF_FFF0, 1<<32 - 8} {
		wantNothing(t, "mmio", address, fmt.Sprintf("physical address %#x, where there is nothing", address))
	}
}

func wantNothing(t *testing.T, how string, where uint64, reason string) {
	t.Helper()
	code, err := boot(t, "crash", how, fmt.Sprint(where)).Wait()
	var crash *vmm.CrashError
	if !errors.As(err, &crash) || !strings.Contains(crash.Reason, reason) {
		t.Errorf("%s %#x: the guest ended with %d, %v", how, where, code, err)
	}
}

// What CPUID shows on a running guest is what vmm's table lets through.
func TestCPUIDOfGuest(t *testing.T) {
	t.Parallel()
	g := boot(t, "cpuid")
	if code, err := g.Wait(); code != 0 || err != nil {
		t.Fatalf("the guest ended with %d, %v", code, err)
	}
	type leaf struct{ a, b, c, d uint32 }
	leaves := map[[2]uint32]leaf{} // those that aren't all 0
	for line := range strings.Lines(g.Console()) {
		var at [2]uint32
		var l leaf
		if _, err := fmt.Sscanf(line, "%v %v %v %v %v %v", &at[0], &at[1], &l.a, &l.b, &l.c, &l.d); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		leaves[at] = l
	}
	at := func(function, index uint32) leaf { return leaves[[2]uint32{function, index}] }
	if n := at(0x4000_0000, 0); n != (leaf{a: 0x4000_0001}) {
		t.Errorf("the hypervisor's leaf is %x", n)
	}
	for f := uint32(0x4000_0001); f < 0x4000_0030; f++ {
		if n := at(f, 0); f == 0x4000_0001 && n != (leaf{}) || strings.Contains(registerBytes(n.b, n.c, n.d), "KVM") {
			t.Errorf("leaf %#x is %x", f, n)
		}
	}
	if last := at(0, 0).a; last > 0x1F {
		t.Errorf("the last basic leaf is %#x", last)
	}
	if last := at(0x8000_0000, 0).a; last > 0x8000_0021 {
		t.Errorf("the last extended leaf is %#x", last)
	}
	for _, hidden := range []struct {
		name string
		got  uint32
	}{
		{"VMX, MONITOR, PDCM, DTES64", at(1, 0).c & (1<<5 | 1<<3 | 1<<15 | 1<<2)},
		{"DS, ACPI, TM", at(1, 0).d & (1<<21 | 1<<22 | 1<<29)},
		{"MONITOR's leaf", at(5, 0).a | at(5, 0).c},
		{"power", at(6, 0).a&^(1<<2) | at(6, 0).c},
		{"SGX, RTM, RDT, PT", at(7, 0).b & (1<<2 | 1<<11 | 1<<12 | 1<<15 | 1<<25)},
		{"performance counters", at(0xA, 0).a | at(0xA, 0).d},
		{"SVM, IBS, PERFCTR", at(0x8000_0001, 0).c & (1<<2 | 1<<10 | 1<<23 | 1<<24 | 1<<28)},
		{"SVM's leaf", at(0x8000_000A, 0).a | at(0x8000_000A, 0).d},
		{"SEV", at(0x8000_001F, 0).a},
		{"performance counters of AMD", at(0x8000_0022, 0).a},
	} {
		if hidden.got != 0 {
			t.Errorf("%s: %#x", hidden.name, hidden.got)
		}
	}
	if c := at(1, 0).c; c&(1<<31) == 0 || c&(1<<21) == 0 {
		t.Errorf("leaf 1 has %#x in ECX: no hypervisor or no x2APIC", c)
	}
}

// registerBytes are the registers' bytes, in their order.
func registerBytes(registers ...uint32) string {
	var b []byte
	for _, r := range registers {
		b = binary.LittleEndian.AppendUint32(b, r)
	}
	return string(b)
}

// The image is as hostile as the guest: the names of its symbols must not reach
// a terminal as they are.
func TestCrashWithHostileSymbols(t *testing.T) {
	t.Parallel()
	data := bytes.ReplaceAll(images.Bytes("crash"), []byte("program_main\x00"), []byte("\x1b]0;ab\x07\n\x1b[2J\x00"))
	img, err := image.ParseBytes(data, "crash")
	if err != nil {
		t.Fatal(err)
	}
	_, err = vmmtest.Boot(t, vmm.Config{Image: img, Args: []string{"port"}}).Wait()
	var crash *vmm.CrashError
	if !errors.As(err, &crash) {
		t.Fatalf("the guest ended with %v, not by a crash", err)
	}
	var report strings.Builder
	if err := crash.WriteReport(&report); err != nil {
		t.Fatal(err)
	}
	if got := report.String() + crash.Error(); strings.ContainsAny(got, "\x1b\x07") || !strings.Contains(got, `\x1b]0;ab\a\n\x1b[2J+0x`) {
		t.Errorf("the report says %q", got)
	}
}

func TestIdleGuestStops(t *testing.T) {
	t.Parallel()
	g := boot(t, "idle")
	g.WaitLog("idle")
	g.VM.Stop()
	if code, err := g.Wait(); code != 0 || err != nil {
		t.Errorf("the guest ended with %d, %v; want 0", code, err)
	}
	g.VM.Stop() // after the end: nothing
}

func TestCancel(t *testing.T) {
	t.Parallel()
	for _, cpus := range []int{1, 4, vmm.MaxCPUs} {
		t.Run(fmt.Sprint(cpus, " CPUs"), func(t *testing.T) {
			t.Parallel()
			g := vmmtest.Boot(t, vmm.Config{Image: vmmtest.Image(t, "idle"), CPUs: cpus})
			g.WaitLog("idle")
			g.Cancel()
			if _, err := g.Wait(); !errors.Is(err, context.Canceled) {
				t.Errorf("the run ended with %v, want context.Canceled", err)
			}
		})
	}
}

func TestRunOnce(t *testing.T) {
	t.Parallel()
	g := boot(t, "hello")
	g.Wait()
	if _, err := g.VM.Run(context.Background()); !errors.Is(err, vmm.ErrClosed) {
		t.Errorf("the second Run returned %v, want ErrClosed", err)
	}
	for range 2 {
		if err := g.VM.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestCloseWhileRunning(t *testing.T) {
	t.Parallel()
	g := boot(t, "idle")
	g.WaitLog("idle")
	if err := g.VM.Close(); err != nil {
		t.Error(err)
	}
	if _, err := g.Wait(); !errors.Is(err, vmm.ErrClosed) {
		t.Errorf("the run ended with %v, want ErrClosed", err)
	}
}

// A VM that is gone leaves no descriptor and no mapping behind, however it
// ended.
func TestNothingIsLeft(t *testing.T) {
	use := func() {
		boot(t, "hello").Wait()
		boot(t, "crash", "ud2").Wait()
		g := vmmtest.Boot(t, vmm.Config{Image: vmmtest.Image(t, "idle"), CPUs: 2})
		g.WaitLog("idle")
		g.Cancel()
		g.Wait()
		g = vmmtest.Boot(t, vmm.Config{Image: vmmtest.Image(t, "count"), CPUs: 2})
		pause(t, g.VM)
		g.Cancel()
		g.Wait()
		unused, err := vmm.New(vmm.Config{Image: vmmtest.Image(t, "idle")})
		if err != nil {
			t.Fatal(err)
		}
		if err := unused.Close(); err != nil {
			t.Error(err)
		}
	}
	use() // so that what the runtime opens once is open
	descriptors, mappings := openDescriptors(t), guestMappings(t)
	for range 5 {
		use()
	}
	if n := openDescriptors(t); n != descriptors {
		t.Errorf("%d descriptors before, %d after", descriptors, n)
	}
	if n := guestMappings(t); n != mappings || n != 0 {
		t.Errorf("%d mappings of guest memory and virtual CPUs before, %d after", mappings, n)
	}
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// guestMappings counts mappings of memfds and of virtual CPUs' run areas.
func guestMappings(t *testing.T) (n int) {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(maps)) {
		if strings.Contains(line, "arcavm-") || strings.Contains(line, "kvm-vcpu") {
			n++
		}
	}
	return n
}

// A guest that hasn't enabled its interrupts yet is reached later: a request to
// stop is never lost.
func TestStopBeforeTheStart(t *testing.T) {
	t.Parallel()
	vm, err := vmm.New(vmm.Config{Image: vmmtest.Image(t, "idle")})
	if err != nil {
		vmmtest.Unavailable(t, err)
	}
	vm.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if code, err := vm.Run(ctx); code != 0 || err != nil {
		t.Errorf("the guest ended with %d, %v; want 0", code, err)
	}
	if s := vm.Stats().Pipes; s.Rescued+s.Forgotten != 0 {
		t.Errorf("%d wake-ups of the monitor were lost, and %d of the guest", s.Rescued, s.Forgotten)
	}
}
