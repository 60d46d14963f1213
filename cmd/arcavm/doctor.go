package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/emulated"
	"github.com/fix-project/arcavm/kvm"
)

// verdict is how a finding turned out.
type verdict string

const (
	isOK      verdict = "ok"
	isLimited verdict = "limited" // guests run, with less
	isMissing verdict = "missing" // something doesn't work without it
	isInfo    verdict = "info"
)

// finding is one line of doctor's report.
type finding struct {
	verdict verdict
	what    string
	detail  string
	remedy  string // what to do, if there is something to do
}

func newDoctorCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Check what this machine offers, and say what to do",
		Long: `Check the machine: KVM, the processor features that guests see, memory, how guests'
connections leave the machine, and QEMU, with which arcavm run --emulated needs no KVM.

Exit code 0 if guests can run, 69 if they can't without --emulated.`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			device, err := checkKVM(kvm.DefaultPath)
			findings := append(device, checkMemory(), checkProc(procfs), checkThreadRoom())
			findings = append(findings, checkNetwork()...)
			findings = append(findings, checkQEMU(), checkEmulatedKernel())
			if writeErr := writeFindings(cmd.OutOrStdout(), findings); writeErr != nil {
				return writeErr
			}
			if err != nil {
				return cannotRun(err)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), "\nguests can run here")
			return err
		},
	}
}

// cannotRun is the error of a machine that can't run guests.
func cannotRun(err error) error {
	if device := (*kvm.UnavailableError)(nil); errors.As(err, &device) && exhausted(device) {
		return err
	}
	return &codeError{exitUnavailable, fmt.Errorf("guests can't run here: %w; %s", err, withoutKVM)}
}

func writeFindings(w io.Writer, findings []finding) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range findings {
		fmt.Fprintf(t, "%s\t%s\t%s\n", f.verdict, f.what, f.detail)
		if f.remedy != "" {
			fmt.Fprintf(t, "\t\t→ %s\n", f.remedy)
		}
	}
	return t.Flush()
}

// checkKVM looks at the KVM device. The error is the reason why no guest can
// run.
func checkKVM(path string) ([]finding, error) {
	system, err := kvm.Open(path)
	if err != nil {
		f := finding{verdict: isMissing, what: path, detail: oneLine(err.Error())}
		if device := (*kvm.UnavailableError)(nil); errors.As(err, &device) {
			f.detail, f.remedy = device.Problem, device.Remedy+"; "+withoutKVM
			if exhausted(device) {
				f.detail, f.remedy = "can't be opened: "+oneLine(device.Err.Error()), "allow more open files (ulimit -n), or make room"
			}
		}
		return []finding{f}, err
	}
	defer system.Close()
	findings := []finding{{verdict: isOK, what: path, detail: "opens, speaks API version 12, has every capability that arcavm needs"}}
	features, err := system.Features()
	if err != nil {
		return append(findings, finding{verdict: isMissing, what: "features", detail: oneLine(err.Error())}), err
	}
	vm, err := system.CreateVM()
	if err != nil {
		return append(findings, finding{
			verdict: isMissing, what: "a virtual machine", detail: oneLine(err.Error()),
			remedy: "end another hypervisor that has the processor, or see the kernel's log",
		}), err
	}
	if err := vm.Close(); err != nil {
		return findings, err
	}
	return append(findings, describeFeatures(features)...), nil
}

func describeFeatures(f kvm.Features) []finding {
	module := finding{verdict: isOK, what: "kernel module", detail: f.Module}
	switch {
	case f.Module == "":
		module = finding{verdict: isInfo, what: "kernel module", detail: "can't be told"}
	case f.Software():
		module = finding{
			verdict: isLimited, what: "kernel module", detail: f.Module + ": software KVM, guest kernel code is interpreted and slow",
			remedy: "for speed, use a machine with hardware virtualisation",
		}
	}
	findings := []finding{
		module,
		{verdict: isOK, what: "virtual CPUs", detail: fmt.Sprintf("up to %d in a machine", f.MaxVCPUs)},
		{verdict: isOK, what: "physical addresses", detail: fmt.Sprintf("%d bits", f.PhysBits)},
	}
	if f.PhysBits < 39 {
		findings[2].verdict = isLimited
		findings[2].detail += fmt.Sprintf(": RAM and window must end below %d GiB", 1<<max(0, f.PhysBits-30))
	}
	optional := []struct {
		name    string
		has     bool
		without string
	}{
		{"1 GiB pages", f.GiBPages, "guests get 2 MiB pages; images of the older ABI can't run"},
		{"FSGSBASE", f.FSGSBASE, "images of the older ABI can't run"},
		{"SMEP", f.SMEP, "guests run without this protection"},
		{"SMAP", f.SMAP, "guests run without this protection; images of the older ABI can't run"},
		{"RDTSCP", f.RDTSCP, "images of the older ABI can't run"},
		{"AVX", f.AVX, "the newest images of the older ABI can't run"},
		{"kvmclock", f.KVMClock, "images of the older ABI can't run"},
		{"TSC scaling", f.TSCScaling, "images of the older ABI are wrong about durations that they take from the time stamp counter"},
		{"x2APIC", f.X2APIC, "guests with interrupts can't run"},
		{"TSC-deadline timer", f.TSCDeadline, "guests use the local APIC's older timer"},
		{"invariant TSC", f.InvariantTSC, "a guest's clock may drift"},
		{"registers in the run page", f.SyncRegs, "each hypercall costs two more system calls"},
	}
	for _, o := range optional {
		if o.has {
			findings = append(findings, finding{verdict: isOK, what: o.name})
		} else {
			findings = append(findings, finding{verdict: isLimited, what: o.name, detail: "missing: " + o.without})
		}
	}
	return findings
}

// checkMemory makes memory of the kind that a guest gets, to see whether it can
// be made.
func checkMemory() finding {
	f := finding{verdict: isMissing, what: "shared memory", remedy: "use Linux 3.17 or later, and let the sandbox, if there is one, allow memfd_create"}
	fd, err := unix.MemfdCreate("arcavm-doctor", unix.MFD_CLOEXEC)
	if err != nil {
		f.detail = "memfd_create: " + err.Error()
		return f
	}
	defer unix.Close(fd)
	detail := "memfd works"
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_AS, &limit); err == nil && limit.Cur != unix.RLIM_INFINITY {
		return finding{
			verdict: isLimited, what: "shared memory", detail: fmt.Sprintf("%s; address space limited to %d MiB", detail, limit.Cur>>20),
			remedy: "ulimit -v unlimited, or choose --mem and --window below it",
		}
	}
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err == nil {
		detail += fmt.Sprintf("; up to %d files and sockets at once", limit.Max)
	}
	return finding{verdict: isOK, what: "shared memory", detail: detail}
}

// procfs is where Linux shows its processes.
const procfs = "/proc"

// checkProc looks for /proc, which a container or a chroot may lack.
func checkProc(root string) finding {
	if _, err := os.Stat(root + "/self/fd"); err != nil {
		return finding{
			verdict: isLimited, what: "/proc", remedy: "mount -t proc proc /proc",
			detail: "isn't mounted: no --sockets, no --emulated, no arcavm bench; a terminal stays in line mode",
		}
	}
	return finding{verdict: isOK, what: "/proc", detail: "is mounted"}
}

// ownFile is the path of this program's file.
func ownFile() (string, error) {
	self, err := os.Executable()
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("finding this program's file needs /proc, which isn't mounted here: %w", err)
	}
	if err != nil {
		return "", fmt.Errorf("finding this program's file: %w", err)
	}
	return self, nil
}

// checkNetwork tells by which ways guests' connections can leave. arcavm makes
// them as sockets of the user's own.
func checkNetwork() []finding {
	return []finding{checkLoopback(), checkIPv6(), checkRoute("IPv4", netlink.FAMILY_V4), checkRoute("IPv6", netlink.FAMILY_V6)}
}

func checkLoopback() finding {
	f := finding{verdict: isMissing, what: "loopback", remedy: "ip link set lo up"}
	link, err := netlink.LinkByName("lo")
	if err != nil {
		f.detail = "lo: " + oneLine(err.Error())
		return f
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		f.detail = "lo is down: guests can't be reached from this machine"
		return f
	}
	return finding{verdict: isOK, what: "loopback", detail: "lo is up"}
}

func checkIPv6() finding {
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		return finding{verdict: isLimited, what: "IPv6", detail: "not in this kernel: guests have IPv4 only"}
	}
	listener, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		return finding{
			verdict: isLimited, what: "IPv6", detail: "::1 can't be used: " + oneLine(err.Error()),
			remedy: "sysctl net.ipv6.conf.lo.disable_ipv6=0",
		}
	}
	listener.Close()
	return finding{verdict: isOK, what: "IPv6", detail: "::1 works"}
}

func checkRoute(name string, family int) finding {
	what := "way out, " + name
	routes, err := netlink.RouteList(nil, family)
	if err != nil {
		return finding{verdict: isInfo, what: what, detail: "routes can't be read: " + oneLine(err.Error())}
	}
	for _, r := range routes {
		if r.Dst != nil {
			if ones, _ := r.Dst.Mask.Size(); ones != 0 {
				continue
			}
		}
		if r.Type != unix.RTN_UNICAST {
			continue
		}
		return finding{verdict: isOK, what: what, detail: describeRoute(r)}
	}
	return finding{verdict: isInfo, what: what, detail: "no default route: guests reach this machine and its own networks only"}
}

func describeRoute(r netlink.Route) string {
	var parts []string
	if r.Gw != nil {
		parts = append(parts, "by "+r.Gw.String())
	}
	if link, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
		parts = append(parts, "through "+link.Attrs().Name)
	}
	if r.Src != nil {
		parts = append(parts, "from "+r.Src.String())
	}
	return "default route " + strings.Join(parts, " ")
}

func checkQEMU() finding {
	path, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		return finding{
			verdict: isInfo, what: "QEMU", detail: "missing: arcavm run --emulated can't run guests without it",
			remedy: "apt-get install qemu-system-x86",
		}
	}
	return finding{verdict: isOK, what: "QEMU", detail: path + ", for arcavm run --emulated"}
}

func checkEmulatedKernel() finding {
	const what = "Linux for --emulated"
	if file := emulated.Kernel(); file != "" {
		return finding{verdict: isOK, what: what, detail: file}
	}
	return finding{
		verdict: isInfo, what: what, detail: "none yet: the first run downloads one, 27 MB, by apt-get",
		remedy: "do that while there is a network, or set ARCAVM_EMULATED_KERNEL to a linux-image-….deb or vmlinuz-…",
	}
}
