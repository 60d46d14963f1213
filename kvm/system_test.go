package kvm

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"
)

func TestOpenUnavailable(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	must(t, os.WriteFile(file, nil, 0o600))
	secret := filepath.Join(dir, "secret")
	must(t, os.WriteFile(secret, nil, 0))
	for _, test := range []struct {
		name, path string
		errno      unix.Errno
		want       []string
		root       bool // root may do this
	}{
		{"missing", filepath.Join(dir, "kvm"), unix.ENOENT, []string{"doesn't exist", "load the module kvm_intel or kvm_amd"}, false},
		{"not allowed", secret, unix.EACCES, []string{"may not be opened", "usermod -aG kvm"}, true},
		{"a file", file, unix.ENOTTY, []string{"isn't a KVM device", "KVM_GET_API_VERSION", "use /dev/kvm"}, false},
		{"another device", os.DevNull, unix.ENOTTY, []string{"isn't a KVM device"}, false},
		{"a folder", dir, unix.EISDIR, []string{"can't be opened"}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if test.root && os.Geteuid() == 0 {
				t.Skip("root may open everything: run it as another user")
			}
			_, err := Open(test.path)
			var unavailable *UnavailableError
			if !errors.As(err, &unavailable) {
				t.Fatalf("error %v of type %T", err, err)
			}
			if !errors.Is(err, test.errno) {
				t.Errorf("error %v isn't %v", err, test.errno)
			}
			for _, want := range append(test.want, test.path) {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q lacks %q", err, want)
				}
			}
			if strings.ContainsAny(err.Error(), "\n.") && !strings.Contains(test.path, ".") {
				t.Errorf("error %q isn't one sentence", err)
			}
		})
	}
}

func TestUnavailableByErrno(t *testing.T) {
	t.Parallel()
	for errno, want := range map[unix.Errno]string{
		unix.EPERM:  "kvm: /dev/kvm may not be opened by this user (operation not permitted): join the device's group",
		unix.ENODEV: "kvm: /dev/kvm has no driver behind it (no such device): load the module kvm_intel or kvm_amd",
		unix.EMFILE: "kvm: /dev/kvm can't be opened (too many open files): check",
	} {
		if err := unavailable(DefaultPath, errno); !strings.HasPrefix(err.Error(), want) {
			t.Errorf("error %q, want %q", err, want)
		}
	}
}

func TestErrorNamesIoctlAndErrno(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	for _, test := range []struct {
		name  string
		err   func() error
		errno unix.Errno
		want  string
	}{
		{"unaligned memory", func() error { return g.vm.SetUserMemoryRegion(1, 0, 1<<30, g.mem[1:]) },
			unix.EINVAL, "kvm: KVM_SET_USER_MEMORY_REGION: invalid argument"},
		{"memory over memory", func() error { return g.vm.SetUserMemoryRegion(1, 0, 0, g.mem) },
			unix.EEXIST, "kvm: KVM_SET_USER_MEMORY_REGION: file exists"},
		{"interrupt controllers twice", g.vm.CreateIRQChip,
			unix.EEXIST, "kvm: KVM_CREATE_IRQCHIP: file exists"},
		{"a vCPU's id", func() error { _, err := g.vm.CreateVCPU(1 << 30); return err },
			unix.EINVAL, "kvm: KVM_CREATE_VCPU: invalid argument"},
		{"no eventfd", func() error { return g.vm.AssignIRQFD(-1, 1) },
			unix.EBADF, "kvm: KVM_IRQFD: bad file descriptor"},
		{"a capability that isn't", func() error { return g.vm.enableCap(255) },
			unix.EINVAL, "kvm: KVM_ENABLE_CAP: invalid argument"},
		{"too many arguments", func() error { return g.vm.enableCap(gokvm.CapX2APICAPI, 1, 2, 3, 4, 5) },
			unix.E2BIG, "kvm: KVM_ENABLE_CAP: argument list too long"},
	} {
		err := test.err()
		if err == nil || err.Error() != test.want || !errors.Is(err, test.errno) {
			t.Errorf("%s: error %v, want %q", test.name, err, test.want)
		}
	}
	const use32BitIDs = 1
	must(t, g.vm.enableCap(gokvm.CapX2APICAPI, use32BitIDs))
	must(t, g.vm.SetUserMemoryRegion(0, 0, 0, nil))
}

func TestFeatures(t *testing.T) {
	t.Parallel()
	sys := openSystem(t)
	f, err := sys.Features()
	must(t, err)
	t.Logf("%+v", f)
	if len(f.Vendor) != 12 {
		t.Errorf("vendor %q", f.Vendor)
	}
	if f.MaxVCPUs < 1 || f.PhysBits < 36 {
		t.Errorf("%d vCPUs, %d bits of physical address", f.MaxVCPUs, f.PhysBits)
	}
}

func TestFeaturesFromCPUID(t *testing.T) {
	t.Parallel()
	none := Processor{PhysBits: 36}
	all := Processor{
		Vendor: "AuthenticAMD", GiBPages: true, FSGSBASE: true, SMEP: true, SMAP: true, RDTSCP: true, XSAVE: true,
		X2APIC: true, AVX: true, KVMClock: true, InvariantTSC: true, PhysBits: 48,
	}
	for _, test := range []struct {
		name    string
		entries []CPUIDEntry2
		want    Processor
	}{
		{"nothing", nil, none},
		{"another index", []CPUIDEntry2{{Function: 7, Index: 1, Ebx: ^uint32(0)}}, none},
		{"all", []CPUIDEntry2{
			{Function: 0, Ebx: 0x6874_7541, Edx: 0x6974_6e65, Ecx: 0x444d_4163},
			{Function: 1, Ecx: 1<<21 | 1<<26 | 1<<28},
			{Function: 7, Ebx: 1<<0 | 1<<7 | 1<<20},
			{Function: 0x4000_0001, Eax: 1 << 3},
			{Function: 0x8000_0001, Edx: 1<<20 | 1<<26 | 1<<27},
			{Function: 0x8000_0007, Edx: 1 << 8},
			{Function: 0x8000_0008, Eax: 0x3930},
		}, all},
	} {
		if got := processorFromCPUID(test.entries); got != test.want {
			t.Errorf("%s: %+v, want %+v", test.name, got, test.want)
		}
	}
}

func TestLoadedModule(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		modules  []string
		want     string
		software bool
	}{
		{nil, "", false},
		{[]string{"kvm"}, "", false},
		{[]string{"kvm", "kvm_amd"}, "kvm_amd", false},
		{[]string{"kvm", "kvm_intel"}, "kvm_intel", false},
		{[]string{"kvm", "kvm_intel", "kvm_pvm"}, "kvm_pvm", true},
	} {
		root := t.TempDir()
		for _, m := range test.modules {
			must(t, os.Mkdir(filepath.Join(root, m), 0o700))
		}
		got := loadedModule(root)
		if got != test.want || (Features{Module: got}).Software() != test.software {
			t.Errorf("of %q: %q, software %v", test.modules, got, Features{Module: got}.Software())
		}
	}
}
