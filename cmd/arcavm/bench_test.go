package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/bench"
	"github.com/fix-project/arcavm/vmm"
)

func TestBench(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	page, data := filepath.Join(dir, "bench.html"), filepath.Join(dir, "bench.json")
	args := []string{"bench", "--quick", "--rounds", "1", "--run", "round trip, guest end in Go"}
	got := asProcess(t, append(args, "--html", page, "--json", data)...)
	if got.code != 0 || !strings.Contains(got.out, "\nround trip, Go end ") {
		t.Fatalf("code %d\n%s\n%s", got.code, got.out, got.err)
	}
	wantScreen(t, got.out)
	if b, err := os.ReadFile(page); err != nil || !strings.Contains(string(b), "<svg") {
		t.Errorf("page: %v, %d bytes", err, len(b))
	}
	got = asProcess(t, append(args, "--compare", data)...)
	summary, changes, ok := strings.Cut(got.out, "\nCompared with the run of")
	if got.code != 0 || !ok || !strings.Contains(changes, "-v prints every change") {
		t.Errorf("code %d\n%s\n%s", got.code, got.out, got.err)
	}
	wantScreen(t, summary)
	wantScreen(t, changes)
}

// wantScreen fails if a text has more than 25 lines or 80 columns.
func wantScreen(t *testing.T, text string) {
	t.Helper()
	if n := strings.Count(text, "\n"); n > 25 {
		t.Errorf("%d lines:\n%s", n, text)
	}
	for line := range strings.Lines(text) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 80 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
}

// With -v each figure is there, and each change.
func TestBenchVerbose(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "bench.json")
	args := []string{"bench", "--quick", "--rounds", "1", "--run", "round trip, guest end in Go", "--verbose"}
	got := asProcess(t, append(args, "--json", data)...)
	if got.code != 0 || strings.Count(got.out, "plain echo") != 9 {
		t.Fatalf("code %d\n%s\n%s", got.code, got.out, got.err)
	}
	got = asProcess(t, append(args, "--compare", data)...)
	if got.code != 0 || !strings.Contains(got.out, " figures within the noise\n") {
		t.Errorf("code %d\n%s\n%s", got.code, got.out, got.err)
	}
}

// Each boot is a process of its own, which reports its times.
func TestBenchBoot(t *testing.T) {
	t.Parallel()
	needKVM(t)
	got := asProcess(t, "bench", "-v", "--quick", "--rounds", "1", "--run", "boot")
	for _, want := range []string{"128 MiB of guest memory: first instruction of the guest", "1024 MiB of guest memory: first log record"} {
		if got.code != 0 || !strings.Contains(got.out, want) {
			t.Errorf("code %d; %q is not in\n%s\n%s", got.code, want, got.out, got.err)
		}
	}
}

// The timing for scripts is one line of JSON.
func TestTimingJSON(t *testing.T) {
	t.Parallel()
	needKVM(t)
	started := time.Now()
	got := asProcess(t, "run", "--timing=json", "--log-level", "error", imageFile(t, "hello"))
	var timing struct {
		Steps []bench.TimingStep
		Stats vmm.Stats
	}
	if err := json.Unmarshal([]byte(got.err), &timing); err != nil || strings.Count(got.err, "\n") != 1 {
		t.Fatalf("%v: %q", err, got.err)
	}
	last := started.UnixNano()
	for _, s := range timing.Steps {
		if s.At < last {
			t.Errorf("%s is out of order: %v", s.Name, timing.Steps)
		}
		last = s.At
	}
	if len(timing.Steps) < 8 || timing.Stats.Hypercalls["EXIT"] != 1 || time.Unix(0, last).After(time.Now()) {
		t.Errorf("%+v", timing)
	}
	if got := inProcess("run", "--timing=xml", "image"); got.code != exitUsage || !strings.Contains(got.err, "text, json") {
		t.Errorf("code %d, %q", got.code, got.err)
	}
}

func TestBenchRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--run", "("}, exitUsage, "--run"},
		{[]string{"--rounds", "-1"}, exitUsage, "--rounds"},
		{[]string{"--rounds", "0"}, exitUsage, "--rounds: 0 is not 1 to 1000"},
		{[]string{"--run", "nothing-matches"}, exitUsage, `--run: no measurement has a name that matches "nothing-matches"`},
		{[]string{"--compare", writeFile(t, "bench.go", []byte("package main"))}, exitData, "bench.go is not a report of arcavm bench"},
		{[]string{"--compare", writeFile(t, "empty", []byte("{}"))}, exitData, "is not a report of arcavm bench"},
		{[]string{"--compare", fifo(t)}, exitData, "not a regular file"},
		{[]string{"--json", "testdata/nonexistent/b.json"}, exitOS, "--json: open testdata/nonexistent/b.json"},
		{[]string{"--compare", "testdata/nonexistent.json"}, exitNoInput, "nonexistent"},
		{[]string{"extra"}, exitUsage, "extra"},
	}
	for _, test := range tests {
		got := inProcess(append([]string{"bench"}, test.args...)...)
		if got.code != test.code || !strings.Contains(got.err, test.want) {
			t.Errorf("%q: code %d, %q", test.args, got.code, got.err)
		}
	}
}

// fifo makes a FIFO without a writer.
func fifo(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A run that is interrupted before anything was measured says no more, leaves
// no empty file, and doesn't touch one that was there.
func TestBenchInterrupted(t *testing.T) {
	t.Parallel()
	for s, code := range map[unix.Signal]int{unix.SIGINT: 130, unix.SIGTERM: 143} {
		t.Run(s.String(), func(t *testing.T) {
			t.Parallel()
			page, data := filepath.Join(t.TempDir(), "bench.html"), writeFile(t, "bench.json", []byte("old"))
			cmd := command(t, "bench", "--run", "fairness", "--rounds", "1000", "--html", page, "--json", data)
			stderr, err := cmd.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewReader(stderr)
			if line, err := lines.ReadString('\n'); err != nil || !strings.HasPrefix(line, "measuring") {
				t.Errorf("got %q, %v", line, err)
			}
			if err := cmd.Process.Signal(s); err != nil {
				t.Error(err)
			}
			rest, err := io.ReadAll(lines)
			_ = cmd.Wait() // its exit code is checked below
			if got := cmd.ProcessState.ExitCode(); got != code || err != nil || len(rest) > 0 {
				t.Errorf("code %d, %v, %q; want %d and nothing", got, err, rest, code)
			}
			if _, err := os.Stat(page); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the page: %v", err)
			}
			if b, err := os.ReadFile(data); err != nil || string(b) != "old" {
				t.Errorf("the older report: %q, %v", b, err)
			}
		})
	}
}

// A run that is interrupted later reports what it had measured.
func TestBenchKeepsWhatWasMeasured(t *testing.T) {
	t.Parallel()
	page, data := filepath.Join(t.TempDir(), "bench.html"), filepath.Join(t.TempDir(), "bench.json")
	cmd := command(t, "bench", "--quick", "--rounds", "1", "--run", "round trip, guest end in Go|fairness|connections, guest end in Go", "--html", page, "--json", data)
	var out strings.Builder
	cmd.Stdout = &out
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stderr)
	for lines.Scan() && !strings.Contains(lines.Text(), "connections") {
	}
	// The second item has begun, so the first is done.
	if err := cmd.Process.Signal(unix.SIGINT); err != nil {
		t.Error(err)
	}
	for lines.Scan() {
	}
	_ = cmd.Wait() // its exit code is checked below
	if got := cmd.ProcessState.ExitCode(); got != 130 || !strings.Contains(out.String(), "round trip, Go end") || !strings.Contains(out.String(), ", interrupted") {
		t.Errorf("code %d\n%s", got, out.String())
	}
	if b, err := os.ReadFile(page); err != nil || !strings.Contains(string(b), "<svg") {
		t.Errorf("page: %v, %d bytes", err, len(b))
	}
	if r, err := bench.ReadJSON(data); err != nil || !r.Interrupted || len(r.Figures) == 0 {
		t.Errorf("%v, %+v", err, r)
	}
}

func TestBenchList(t *testing.T) {
	t.Parallel()
	got := inProcess("bench", "--list")
	if got.code != 0 || !strings.Contains(got.out, "boot\n") || !strings.Contains(got.out, "round trip, guest end in Go\n") {
		t.Errorf("code %d\n%s", got.code, got.out)
	}
}

// If one file can't be written, the others are.
func TestBenchFullDisk(t *testing.T) {
	t.Parallel()
	page := writeFile(t, "bench.html", make([]byte, 1<<20))
	got := asProcess(t, "bench", "--quick", "--rounds", "1", "--run", "round trip, guest end in Go", "--json", "/dev/full", "--html", page)
	if got.code != exitIO || !strings.Contains(got.out, "round trip, Go end") || !strings.Contains(got.err, "arcavm: --json: ") {
		t.Errorf("code %d\n%s\n%s", got.code, got.out, got.err)
	}
	if b, err := os.ReadFile(page); err != nil || !strings.Contains(string(b), "<svg") || len(b) >= 1<<20 {
		t.Errorf("page: %v, %d bytes", err, len(b))
	}
}
