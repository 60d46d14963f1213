package bench

import (
	"bytes"
	"errors"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/kvm"
)

// Machine is where and with what a report was made.
type Machine struct {
	Processor string `json:"processor"`
	CPUs      int    `json:"cpus"`
	Kernel    string `json:"kernel"`
	KVM       string `json:"kvm"`
	Lane      string `json:"lane"`
	Go        string `json:"go"`
	Version   string `json:"version"`
	Load      string `json:"load"` // average of one, five and fifteen minutes
}

func describeMachine(version string) Machine {
	m := Machine{
		Processor: processor(), CPUs: runtime.NumCPU(), Kernel: "unknown",
		Go: runtime.Version(), Version: version, Load: "unknown",
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

func processor() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown processor"
	}
	for line := range bytes.Lines(b) {
		if name, value, ok := bytes.Cut(line, []byte(":")); ok && string(bytes.TrimSpace(name)) == "model name" {
			return string(bytes.TrimSpace(value))
		}
	}
	return "unknown processor"
}

// describeKVM returns the module's name and the lane: what runs guests.
func describeKVM() (module, lane string) {
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
		return err.Error(), "/dev/kvm"
	}
	module = features.Module
	if module == "" {
		module = "module unknown"
	}
	if features.Software() {
		return module + " (software: guest kernel code is interpreted)", "/dev/kvm"
	}
	return module, "/dev/kvm"
}
