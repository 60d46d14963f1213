package main

import (
	"strings"
	"testing"
)

// The help has each command with its usage line and examples.
func TestHelp(t *testing.T) {
	t.Parallel()
	tests := []struct {
		args  string
		wants []string
	}{
		{"--help", []string{"arcavm COMMAND", "arcavm doctor", "arcavm demo", "arcavm run", "completion", "Exit codes"}},
		{"help", []string{"arcavm COMMAND"}},
		{"run --help", []string{"arcavm run [flags] IMAGE [ARGS…]", "--cpus N", "--mem SIZE", "--window SIZE", "--share DIR", "--sockets DIR", "--abi", "--log-level", "--log-format", "--exit-file FILE", "--timing", "--limit NAME=VALUE", "ring-memory", "operations", "--allow RULE", "--deny RULE", "--publish [ADDRESS:]HOSTPORT:PORT", "169.254.0.0/16", "Ctrl-C", "Examples:", "default 256M"}},
		{"help run", []string{"arcavm run [flags] IMAGE [ARGS…]"}},
		{"demo -h", []string{"arcavm demo [flags]", "--port PORT", "curl"}},
		{"doctor --help", []string{"Exit code 0 if guests can run, 69"}},
		{"inspect --help", []string{"--symbols", "Examples:"}},
		{"completion --help", []string{"bash", "zsh", "fish"}},
	}
	for _, test := range tests {
		t.Run(test.args, func(t *testing.T) {
			t.Parallel()
			got := inProcess(strings.Fields(test.args)...)
			if got.code != 0 || got.err != "" {
				t.Errorf("code %d, stderr %q", got.code, got.err)
			}
			for _, want := range test.wants {
				if !strings.Contains(got.out, want) {
					t.Errorf("%q is not in:\n%s", want, got.out)
				}
			}
			for _, line := range strings.Split(got.out, "\n") {
				if len([]rune(line)) > 120 {
					t.Errorf("a line of %d characters: %s", len([]rune(line)), line)
				}
			}
		})
	}
}

func TestCompletion(t *testing.T) {
	t.Parallel()
	tests := []struct {
		args []string
		want string
	}{
		{[]string{""}, "demo\t"},
		{[]string{"in"}, "inspect\t"},
		{[]string{"run", "--c"}, "--cpus\t"},
		{[]string{"run", "--abi", ""}, "rpc\n"},
		{[]string{"run", "--log-level", ""}, "trace\n"},
		{[]string{"run", "--limit", ""}, "operations=\n"},
		{[]string{"demo", "--log-format", ""}, "json\n"},
	}
	for _, test := range tests {
		got := inProcess(append([]string{"__complete"}, test.args...)...)
		if got.code != 0 || !strings.Contains(got.out, test.want) {
			t.Errorf("%q: code %d, %q is not in %q", test.args, got.code, test.want, got.out)
		}
	}
	// A flag's usage is whole, and has none of the quotes that the help takes
	// off.
	for _, cmd := range []string{"run", "demo", "bench", "inspect", "doctor"} {
		got := inProcess("__complete", cmd, "--")
		for line := range strings.Lines(got.out) {
			flag, usage, described := strings.Cut(strings.TrimSpace(line), "\t")
			if described && (usage == "" || strings.Contains(usage, "`") || strings.Count(usage, "(") != strings.Count(usage, ")")) {
				t.Errorf("%s %s: %q", cmd, flag, usage)
			}
		}
		if got.code != 0 || !strings.Contains(got.out, "\t") && cmd != "doctor" {
			t.Errorf("%s: %+v", cmd, got)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if got := inProcess("completion", shell); got.code != 0 || !strings.Contains(got.out, "arcavm") {
			t.Errorf("completion %s: code %d, %d bytes", shell, got.code, len(got.out))
		}
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	for _, args := range []string{"version", "--version"} {
		got := inProcess(args)
		if got.code != 0 || !strings.HasPrefix(got.out, "arcavm ") || strings.Count(got.out, "\n") != 1 {
			t.Errorf("%s: code %d, %q", args, got.code, got.out)
		}
	}
}

func TestInspect(t *testing.T) {
	t.Parallel()
	path := imageFile(t, "hello")
	got := inProcess("inspect", path)
	for _, want := range []string{path, "entry", "_start", "stream, version 1", "symbols", "r-x", "0x100100000"} {
		if got.code != 0 || !strings.Contains(got.out, want) {
			t.Errorf("code %d, %q is not in:\n%s", got.code, want, got.out)
		}
	}
	if strings.Contains(got.out, "program_main") {
		t.Error("symbols are listed without --symbols")
	}
	if got := inProcess("inspect", "--symbols", path); !strings.Contains(got.out, "program_main\n") {
		t.Errorf("program_main is not in:\n%s", got.out)
	}
	later := inProcess("inspect", writeFile(t, "later", machineCode(9, exit(0))))
	if later.code != 0 || !strings.Contains(later.out, "unknown version 9") || !strings.Contains(later.out, "symbols       0") || !strings.Contains(later.out, "source lines  0") {
		t.Errorf("code %d:\n%s", later.code, later.out)
	}
}
