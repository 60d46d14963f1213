package bench

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/emulated"
	"github.com/fix-project/arcavm/kvm"
	"github.com/fix-project/arcavm/testdata/images"
)

// Machine is where and with what a report was made.
type Machine struct {
	Processor string `json:"processor"`
	CPUs      int    `json:"cpus"`
	Procs     int    `json:"gomaxprocs"`
	Kernel    string `json:"kernel"`
	KVM       string `json:"kvm"`
	Lane      string `json:"lane"`
	Go        string `json:"go"`
	Version   string `json:"version"`
	Images    string `json:"images"` // beginning of a hash of the guest images
	Load      string `json:"load"`   // averages of one, five and fifteen minutes
	// Others is how many processors were busy with other programs' work, and
	// with that of other virtual machines beside this one, while the report was
	// made, on average. nil: not known.
	Others *float64 `json:"others,omitempty"`
}

// mostOthers is how much of a machine other work may take. Beyond it figures
// get no verdict.
const mostOthers = 0.1

// loaded reports whether other work took more than mostOthers, so that figures
// say little about the machine. The load before the run counts only in reports
// that don't have Others.
func (m *Machine) loaded() bool {
	others := 0.0
	if m.Others != nil {
		others = *m.Others
	} else if _, err := fmt.Sscan(m.Load, &others); err != nil {
		return false
	}
	return others > mostOthers*float64(m.CPUs)
}

func describeMachine(version string) Machine {
	m := Machine{
		Processor: processor(), CPUs: runtime.NumCPU(), Procs: runtime.GOMAXPROCS(0),
		Kernel: "unknown",
		Go:     runtime.Version(), Version: version, Images: hashImages(), Load: "unknown",
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		if f := strings.Fields(string(b)); len(f) >= 3 {
			m.Load = strings.Join(f[:3], " ")
		}
	}
	m.KVM, m.Lane = describeKVM()
	return m
}

// hashImages is the beginning of a hash of all guest images.
func hashImages() string {
	h := sha256.New()
	for _, name := range images.Names() {
		fmt.Fprintf(h, "%s %x\n", name, sha256.Sum256(images.Bytes(name)))
	}
	return hex.EncodeToString(h.Sum(nil)[:6])
}

func processor() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown processor"
	}
	for line := range bytes.Lines(b) {
		name, value, ok := bytes.Cut(line, []byte(":"))
		if ok && string(bytes.TrimSpace(name)) == "model name" {
			return string(bytes.TrimSpace(value))
		}
	}
	return "unknown processor"
}

// describeKVM returns the name of KVM's module, or why there is none, and the
// lane: what runs guests.
func describeKVM() (module, lane string) {
	lane = "/dev/kvm"
	if emulated.Inside() {
		lane = "/dev/kvm of hardware that QEMU emulates; " +
			"no time here says anything about a real machine"
	}
	system, err := kvm.Open("")
	if err != nil {
		var missing *kvm.UnavailableError
		if errors.As(err, &missing) {
			return missing.Problem, "no guests"
		}
		return err.Error(), "no guests"
	}
	defer system.Close()
	features, err := system.Features()
	if err != nil {
		return err.Error(), lane
	}
	module = features.Module
	if module == "" {
		module = "module unknown"
	}
	if features.Software() {
		module += " (software: guest kernel code is interpreted)"
	}
	return module, lane
}
