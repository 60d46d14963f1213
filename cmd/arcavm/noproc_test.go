package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// withoutProc runs a command line where /proc isn't mounted.
func withoutProc(t *testing.T, input string, args ...string) result {
	t.Helper()
	var out, err bytes.Buffer
	cmd := command(t, args...)
	cmd.Env = append(cmd.Env, noProcVariable+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &err
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	if uid := os.Geteuid(); uid != 0 {
		cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}}
	}
	if err := cmd.Start(); err != nil {
		t.Skipf("a mount namespace can't be made: %v; run as root, or let users make user namespaces", err)
	}
	_ = cmd.Wait() // a code other than 0 is an error here, too
	if code := cmd.ProcessState.ExitCode(); code == exitNoProc {
		t.Skipf("/proc can't be hidden: %s; run as root, or let users make user namespaces", &err)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), err.String()}
}

// Without /proc a command that needs it says so in a sentence, and all others
// work.
func TestWithoutProc(t *testing.T) {
	t.Parallel()
	needKVM(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("shared"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, input string
		args        []string
		code        int
		out, err    string
	}{
		{"boot", "", []string{"run", imageFile(t, "hello"), "bob"}, 0, "", "hello, bob"},
		{"files", "", []string{"run", "--share", dir, imageFile(t, "cat"), "file"}, 0, "shared", ""},
		{"stdio", "abc", []string{"run", imageFile(t, "stdio")}, 0, "ABC", ""},
		{"names", "", []string{"run", imageFile(t, "resolve"), "127.0.0.1"}, 0, "", ""},
		{"streams", "", []string{"run", "--timing", imageFile(t, "smp")}, 0, "", ""},
		{"sockets", "", []string{"run", "--sockets", dir, imageFile(t, "unix"), "connect", "s"}, exitUsage, "",
			"UNIX sockets need /proc, which isn't mounted here"},
		{"emulated", "", []string{"run", "--emulated", imageFile(t, "hello")}, exitOS, "", "needs /proc, which isn't mounted here"},
		{"doctor", "", []string{"doctor"}, 0, "no --sockets, no --emulated", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := withoutProc(t, c.input, c.args...)
			if r.code != c.code || !strings.Contains(r.out, c.out) || !strings.Contains(r.err, c.err) {
				t.Errorf("code %d, want %d with %q and %q; output %q, log %q", r.code, c.code, c.out, c.err, r.out, r.err)
			}
		})
	}
}
