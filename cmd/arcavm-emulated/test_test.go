package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/emulated"
	"github.com/fix-project/arcavm/internal/exitcode"
	"github.com/fix-project/arcavm/kvm"
)

// commandVariable makes this test binary the command.
const commandVariable = "EMULATED_TEST_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(commandVariable) != "" || os.Getpid() == 1 || os.Getenv(selfCheckVariable) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// patience is for a machine that boots while much else runs.
const patience = 5 * time.Minute

type result struct {
	code     int
	out, err string
}

// run runs the command in a folder.
func run(t *testing.T, dir string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), commandVariable+"=1", "CGO_ENABLED=0")
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	_ = cmd.Run() // a code other than 0 is an error here, too
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// module is the files of a module that doesn't use this one.
var module = map[string]string{
	"go.mod":             "module example.com/other\n\ngo 1.26\n",
	"none/none.go":       "package none\n",
	"broken/b_test.go":   "package broken\n\nimport \"testing\"\n\nfunc TestX(t *testing.T) { missing() }\n",
	"good/testdata/file": "content",
	"good/good_test.go": `package good

import (
	"flag"
	"os"
	"testing"
)

var word = flag.String("word", "", "")

func TestKVM(t *testing.T) {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

func TestFiles(t *testing.T) {
	for _, name := range []string{"testdata/file", "/passed/in"} {
		if b, err := os.ReadFile(name); err != nil || string(b) != "content" {
			t.Errorf("%q, %v", b, err)
		}
	}
}

func TestFlags(t *testing.T) {
	if *word != "a b" || os.Getenv("GIVEN") != "a=b" || !testing.Short() {
		t.Error(*word, os.Getenv("GIVEN"))
	}
}

func TestLeftOut(t *testing.T) { t.Error("this was to be left out") }

func TestSkipped(t *testing.T) { t.Skip("for a reason") }
`,
	"bad/bad_test.go": `package bad

import (
	"flag"
	"fmt"
	"os"
	"testing"
)

var _ = flag.String("word", "", "")

func TestMain(m *testing.M) {
	m.Run()
	fmt.Println("found at the end")
	os.Exit(3)
}

func TestGood(t *testing.T) { fmt.Println("not to be seen") }
`,
}

// Tests of a module elsewhere run as with go test, with its flags and its exit
// code.
func TestOtherModule(t *testing.T) {
	t.Parallel()
	if emulated.Inside() {
		t.Skip("this is the emulated machine already; run the test on the host")
	}
	if out, err := exec.CommandContext(t.Context(), "go", "env", "GOCACHE").CombinedOutput(); err != nil || strings.TrimSpace(string(out)) == "" {
		t.Skipf("the go command is needed, with a HOME or a GOCACHE: %v: %s", err, out)
	}
	dir := t.TempDir()
	for name, text := range module {
		name = filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	got := run(t, dir, "test", "--file", "/passed/in=good/testdata/file", "--env", "GIVEN=a=b", "-skip=LeftOut", "-short", "./...", "-args", "-word=a b")
	if got.code != 1 {
		t.Errorf("exit code %d, want 1", got.code)
	}
	if _, why, ok := strings.Cut(got.out, "lane "+laneName+": skipped: "); ok && os.Getenv("ARCAVM_REQUIRE_KVM") == "" {
		t.Skip(strings.TrimSpace(why))
	}
	for _, want := range []string{
		"undefined: missing", "FAIL\texample.com/other/broken [build failed]\n",
		"found at the end\n", "FAIL\texample.com/other/bad\t",
		"ok  \texample.com/other/good\t", "?   \texample.com/other/none\t[no test files]\n",
		"lane emulated KVM: 4 tests passed, 0 failed, 1 skipped\n", "skipped 1: for a reason (TestSkipped)\n",
		"lane emulated KVM: FAIL: example.com/other/broken example.com/other/bad\n",
	} {
		if !strings.Contains(got.out, want) {
			t.Errorf("the output lacks %q", want)
		}
	}
	if !strings.Contains(got.err, "ing Linux ") {
		t.Error("it isn't said that a machine boots or is resumed")
	}
	if t.Failed() {
		t.Logf("%s\n%s", got.out, got.err)
	}
}

func TestUsage(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		args []string
		want string
	}{
		{nil, "no command given"},
		{[]string{"test"}, "PACKAGES are missing"},
		{[]string{"test", "--", "-x"}, "PACKAGES are missing"},
		{[]string{"test", "--none", "./..."}, "unknown flag: --none"},
		{[]string{"tset"}, "unknown command"},
		{[]string{"run"}, "PROGRAM is missing"},
		{[]string{"run", "--file", "x", "/bin/true"}, "not of the form NAME=SOURCE"},
		{[]string{"run", "--env", "x", "/bin/true"}, "not of the form NAME=VALUE"},
		{[]string{"run", "--publish", "x", "/bin/true"}, "not of the form"},
	} {
		got := run(t, t.TempDir(), test.args...)
		if got.code != exitcode.Usage || !strings.Contains(got.err, test.want) {
			t.Errorf("%q: code %d and %q, want %d and %q", test.args, got.code, got.err, exitcode.Usage, test.want)
		}
	}
}

// A package that isn't there fails like one that can't be built.
func TestNoPackage(t *testing.T) {
	t.Parallel()
	got := run(t, t.TempDir(), "test", "./none")
	if got.code != 1 || !strings.Contains(got.err, "go list") {
		t.Errorf("code %d and %q, want 1 and go list's words", got.code, got.err)
	}
}

func TestDashes(t *testing.T) {
	t.Parallel()
	got := dashes([]string{"test", "-v", "-run", "X", "-count=2", "--short", "-other", "./...", "-args", "-run"})
	want := []string{"test", "-v", "--run", "X", "--count=2", "--short", "-other", "./...", "--", "-run"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	again := []string{"test", "./...", "--", "-run", "-args"}
	if diff := cmp.Diff(again, dashes(again)); diff != "" {
		t.Error(diff)
	}
}

// On a machine's own KVM, too, every hypercall gets its interrupt.
func TestHypercallsToInterrupts(t *testing.T) {
	err := hypercallsToInterrupts()
	var unavailable *kvm.UnavailableError
	if errors.As(err, &unavailable) && os.Getenv("ARCAVM_REQUIRE_KVM") != "1" {
		t.Skip(err)
	}
	if err != nil {
		t.Error(err)
	}
}

func TestRunRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		program string
		code    int
		want    string
	}{
		{text, exitcode.Data, text + " is no ELF program"},
		{filepath.Join(dir, "none"), exitcode.NoInput, "no such file"},
	} {
		got := run(t, dir, "run", test.program)
		if got.code == exitcode.Unavailable && os.Getenv("ARCAVM_REQUIRE_KVM") == "" {
			t.Skip(got.err)
		}
		if got.code != test.code || !strings.Contains(got.err, test.want) {
			t.Errorf("%s: code %d, %q, want code %d and %q", test.program, got.code, got.err, test.code, test.want)
		}
	}
}

// The second signal ends the machine, which may not have booted, and the time
// that it took is told.
func TestRunTwoSignals(t *testing.T) {
	t.Parallel()
	if emulated.Inside() {
		t.Skip("this is the emulated machine already; run the test on the host")
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, self, "run", "--timing", self)
	cmd.Env = append(os.Environ(), commandVariable+"=1")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	signalled := false
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		said.WriteString(lines.Text() + "\n")
		if signalled || !strings.Contains(lines.Text(), "ing Linux ") {
			continue
		}
		signalled = true
		for _, s := range []os.Signal{unix.SIGINT, unix.SIGTERM} {
			if err := cmd.Process.Signal(s); err != nil {
				t.Error(err)
			}
		}
	}
	_ = cmd.Wait()
	code := cmd.ProcessState.ExitCode()
	if code == exitcode.Unavailable && os.Getenv("ARCAVM_REQUIRE_KVM") == "" {
		t.Skip(said.String())
	}
	if code != 143 || !strings.Contains(said.String(), "files packed") || !strings.Contains(said.String(), "total ") {
		t.Errorf("code %d, want that of the second signal; it said\n%s", code, &said)
	}
}
