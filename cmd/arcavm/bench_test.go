package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fix-project/arcavm/bench"
	"github.com/fix-project/arcavm/vmm"
)

func TestBench(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	page, data := filepath.Join(dir, "bench.html"), filepath.Join(dir, "bench.json")
	args := []string{"bench", "--quick", "--rounds", "1", "--run", "round trip, guest end in Go"}
	got := asProcess(t, append(args, "--html", page, "--json", data)...)
	if got.code != 0 || !strings.Contains(got.out, "plain echo") {
		t.Fatalf("code %d\n%s\n%s", got.code, got.out, got.err)
	}
	if b, err := os.ReadFile(page); err != nil || !strings.Contains(string(b), "<svg") {
		t.Errorf("page: %v, %d bytes", err, len(b))
	}
	got = asProcess(t, append(args, "--compare", data)...)
	if got.code != 0 || !strings.Contains(got.out, "Compared with the run of") {
		t.Errorf("code %d\n%s\n%s", got.code, got.out, got.err)
	}
}

// Each boot is a process of its own, which says by itself when what happened.
func TestBenchBoot(t *testing.T) {
	t.Parallel()
	needKVM(t)
	got := asProcess(t, "bench", "--quick", "--rounds", "1", "--run", "^boot$")
	for _, want := range []string{"128 MiB of guest memory: first instruction of the guest", "1024 MiB of guest memory: first log record"} {
		if got.code != 0 || !strings.Contains(got.out, want) {
			t.Errorf("code %d; %q is not in\n%s\n%s", got.code, want, got.out, got.err)
		}
	}
}

// A program that scripts read writes one line.
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
