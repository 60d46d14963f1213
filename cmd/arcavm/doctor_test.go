package main

import (
	"net"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/kvm"
)

func TestDoctor(t *testing.T) {
	t.Parallel()
	got := inProcess("doctor")
	for _, want := range []string{"/dev/kvm", "shared memory", "loopback", "IPv6", "way out, IPv4", "QEMU", "Linux for --emulated"} {
		if !strings.Contains(got.out, want) {
			t.Errorf("%q is not in:\n%s", want, got.out)
		}
	}
	switch got.code {
	case 0:
		if !strings.Contains(got.out, "guests can run here") {
			t.Errorf("got:\n%s", got.out)
		}
	case exitUnavailable:
		wantLine(t, got.err, "guests can't run here")
	default:
		t.Errorf("code %d", got.code)
	}
}

func TestDoctorWithoutKVM(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]string{
		t.TempDir() + "/kvm": "doesn't exist",
		os.DevNull:           "isn't a KVM device",
	} {
		findings, err := checkKVM(path)
		if err == nil || len(findings) != 1 {
			t.Fatalf("%s: %v, %v", path, findings, err)
		}
		if f := findings[0]; f.verdict != isMissing || !strings.Contains(f.detail, want) || !strings.Contains(f.remedy, "arcavm run --emulated") {
			t.Errorf("%s: %+v", path, f)
		}
		var b strings.Builder
		if code := finish(&b, cannotRun(err)); code != exitUnavailable {
			t.Errorf("%s: code %d", path, code)
		}
		wantLine(t, b.String(), "guests can't run here: ")
		wantLine(t, b.String(), "; arcavm run --emulated needs no KVM")
	}
}

// On a machine that is short of descriptors doctor doesn't say that KVM is
// missing.
func TestDoctorExhausted(t *testing.T) {
	t.Parallel()
	err := cannotRun(&kvm.UnavailableError{Path: "/dev/kvm", Problem: "can't be opened", Remedy: "check it", Err: unix.EMFILE})
	var b strings.Builder
	if code := finish(&b, err); code != exitOS {
		t.Errorf("code %d, want %d", code, exitOS)
	}
	wantLine(t, b.String(), "opening /dev/kvm: too many open files")
}

// Without QEMU the finding says what QEMU is for.
func TestDoctorWithoutQEMU(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if f := checkQEMU(); f.verdict != isInfo || !strings.Contains(f.detail, "arcavm run --emulated") {
		t.Errorf("got %+v", f)
	}
}

func TestDescribeFeatures(t *testing.T) {
	t.Parallel()
	count := func(f kvm.Features) (n int) {
		for _, f := range describeFeatures(f) {
			if f.verdict != isOK {
				n++
			}
		}
		return n
	}
	all := kvm.Features{
		Processor: kvm.Processor{
			GiBPages: true, FSGSBASE: true, SMEP: true, SMAP: true, RDTSCP: true, AVX: true, KVMClock: true, X2APIC: true,
			TSCDeadline: true, InvariantTSC: true, TSCScaling: true, PhysBits: 46,
		},
		Module: "kvm_intel", SyncRegs: true,
	}
	if n := count(all); n != 0 {
		t.Errorf("%d complaints about a machine that has everything", n)
	}
	if n := count(kvm.Features{Module: "kvm_pvm", Processor: kvm.Processor{PhysBits: 36}}); n != 14 {
		t.Errorf("%d complaints about a machine that has nothing, want 14", n)
	}
}

// A new network namespace has no loopback and no way out.
func TestDoctorNetwork(t *testing.T) {
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	before, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	inside, err := netns.New()
	if err != nil {
		t.Skipf("making a network namespace: %v; run as root", err)
	}
	defer inside.Close()
	defer netns.Set(before)

	want := func(step string, f finding, v verdict, detail string) {
		t.Helper()
		if f.verdict != v || !strings.Contains(f.detail, detail) {
			t.Errorf("%s: got %+v, want %s with %q", step, f, v, detail)
		}
	}
	want("new", checkLoopback(), isMissing, "lo is down")
	want("new", checkRoute("IPv4", netlink.FAMILY_V4), isInfo, "no default route")
	want("new", checkRoute("IPv6", netlink.FAMILY_V6), isInfo, "no default route")
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	want("lo up", checkLoopback(), isOK, "lo is up")
	everywhere := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: everywhere}); err != nil {
		t.Fatal(err)
	}
	want("route", checkRoute("IPv4", netlink.FAMILY_V4), isOK, "through lo")
}
