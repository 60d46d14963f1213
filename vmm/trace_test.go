package vmm_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fix-project/arcavm/testdata/images"
	"github.com/fix-project/arcavm/vmm"
	"github.com/fix-project/arcavm/vmm/image"
	"github.com/fix-project/arcavm/vmm/vmmtest"
)

// frames writes a backtrace's symbols, and how often a cycle is repeated.
func frames(s vmm.CPUState) string {
	var b strings.Builder
	for _, f := range s.Backtrace {
		fmt.Fprintf(&b, "%s ", f.Symbol)
		if f.Repeats > 0 {
			fmt.Fprintf(&b, "%d×%d ", f.Repeats, f.Cycle)
		}
	}
	return b.String()
}

var update = flag.Bool("update", false, "write the golden reports anew")

// golden compares a report with testdata/reports/NAME.txt. Addresses, registers
// and the kernel's line numbers, which change with the image, are left out.
func golden(t *testing.T, name, report string) {
	t.Helper()
	for _, r := range []struct{ pattern, with string }{
		{`\b[0-9a-f]{16}\b`, "VALUE"},
		{`0x[0-9a-f]{16}`, "ADDRESS"},
		{`\+0x[0-9a-f]+`, "+OFFSET"},
		{`(kernel/\w+\.\w):\d+`, "$1:LINE"},
	} {
		report = regexp.MustCompile(r.pattern).ReplaceAllString(report, r.with)
	}
	path := filepath.Join("testdata", "reports", name+".txt")
	if *update {
		if err := os.WriteFile(path, []byte(report), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), report); diff != "" {
		t.Errorf("the report isn't %s (-want +got); -update writes it anew:\n%s", path, diff)
	}
}

// A backtrace names the call and not where it returns to, has the caller of a
// function without a frame, and folds recursion.
func TestBacktrace(t *testing.T) {
	t.Parallel()
	for how, want := range map[string]string{
		"panic":     "hypercall panic_at inlined program_main run_program thread_begin ",
		"frameless": "call_panic frameless program_main run_program thread_begin ",
		"fault":     "read_word fault program_main run_program thread_begin ",
		"rounds":    "hypercall panic_at inlined round_two round_one round_two 99×2 round_one program_main run_program thread_begin ",
	} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			_, err := boot(t, "trace", how).Wait()
			var crash *vmm.CrashError
			if !errors.As(err, &crash) {
				t.Fatalf("the guest ended with %v", err)
			}
			golden(t, how, text(t, crash))
			if got := frames(crash.CPUState); got != want {
				t.Errorf("the backtrace is %s, want %s", got, want)
			}
		})
	}
}

// The image's source files are named as the image says, but fit for a terminal.
func TestBacktraceWithHostileFiles(t *testing.T) {
	t.Parallel()
	data := bytes.ReplaceAll(images.Bytes("trace"), []byte("trace.c\x00"), []byte("\x1b]0;a\x07\n\x00"))
	img, err := image.ParseBytes(data, "trace")
	if err != nil {
		t.Fatal(err)
	}
	_, err = vmmtest.Boot(t, vmm.Config{Image: img, Args: []string{"panic"}}).Wait()
	var crash *vmm.CrashError
	if !errors.As(err, &crash) {
		t.Fatalf("the guest ended with %v", err)
	}
	if said := text(t, crash); strings.ContainsAny(said, "\x1b\x07") || !strings.Contains(said, `(programs/\x1b]0;a\a:`) {
		t.Errorf("the report says %q", said)
	}
}

// A CPU that hears of nothing is found where it is.
func TestReportOfAHang(t *testing.T) {
	t.Parallel()
	g := vmmtest.Boot(t, vmm.Config{Image: vmmtest.Image(t, "trace"), Args: []string{"spin"}, CPUs: 4})
	g.WaitLog("tracing spin")
	g.VM.Stop()
	for {
		r, err := g.VM.Report()
		if err != nil {
			t.Fatal(err)
		}
		spinning := 0
		for _, c := range r.CPUs {
			if c.Activity == vmm.Running && c.Backtrace[0].Symbol == "spin" {
				spinning++
			}
		}
		if spinning < 3 || r.CPUs[3].Activity != vmm.Halted {
			continue // they are on their way
		}
		said := text(t, r)
		golden(t, "spin", said)
		for _, want := range []string{
			"CPU 0: running at spin+0x", "CPUs 1-2: running at spin+0x", "registers of CPU 1\n",
			"CPU 3: halted at cpu_halt+0x", "tracing spin",
		} {
			if !strings.Contains(said, want) {
				t.Errorf("%q is missing", want)
			}
		}
		if got := frames(r.CPUs[0]); got != "spin program_main run_program thread_begin " {
			t.Errorf("CPU 0's backtrace is %s", got)
		}
		return
	}
}
