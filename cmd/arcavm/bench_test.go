package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
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
