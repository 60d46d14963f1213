package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// cgroupOf makes a cgroup that holds at most that many processes and threads.
func cgroupOf(t *testing.T, most int) (dir string) {
	t.Helper()
	for _, controller := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup"} {
		var err error
		if dir, err = os.MkdirTemp(controller, "arcavm-test-"); err != nil {
			continue
		}
		t.Cleanup(func() { os.Remove(dir) })
		if os.WriteFile(filepath.Join(dir, "pids.max"), fmt.Append(nil, most), 0) == nil {
			return dir
		}
	}
	t.Skip("no cgroup with a pids controller can be made here; run as root, outside of a container")
	return ""
}

// inCgroup runs a command line in a cgroup to its end.
func inCgroup(t *testing.T, dir string, args ...string) result {
	t.Helper()
	cmd := command(t, args...)
	var out, err bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &err
	cmd.Args = append([]string{"sh", "-c", `echo $$ >"$0" && exec "$@"`, filepath.Join(dir, "cgroup.procs"), cmd.Path}, args...)
	cmd.Path = "/bin/sh"
	_ = cmd.Run()
	return result{cmd.ProcessState.ExitCode(), out.String(), err.String()}
}

// Where there is room for few threads one sentence says so, instead of a panic
// of Go's runtime.
func TestFewThreads(t *testing.T) {
	t.Parallel()
	hello := imageFile(t, "hello")
	for _, c := range []struct {
		most int
		args []string
		code int
	}{
		{6, []string{"version"}, exitOS},
		{7, []string{"run", hello}, exitOS},
		{10, []string{"run", hello}, exitOS},
		{20, []string{"run", "--cpus", "8", hello}, exitOS},
		{30, []string{"run", hello}, 0},
	} {
		t.Run(fmt.Sprint(c.most, " ", c.args[0]), func(t *testing.T) {
			t.Parallel()
			if c.code == 0 {
				needKVM(t)
			}
			got := inCgroup(t, cgroupOf(t, c.most), c.args...)
			if got.code != c.code {
				t.Errorf("%+v, want code %d", got, c.code)
			}
			if c.code != 0 {
				wantLine(t, got.err, "more threads")
			}
		})
	}
}

// With --log-format json it is a record, and the exit file has it, too.
func TestFewThreadsAsJSON(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "exit")
	got := inCgroup(t, cgroupOf(t, 6), "run", "--exit-file", file, "--log-format", "json", "image")
	_, last := records(t, got.err)
	if got.code != exitOS || last.Cause != causeMonitor || last.Code != exitOS || exitFile(t, file) != last {
		t.Errorf("%+v", got)
	}
}

// doctor says how many threads there may be, and what bounds them.
func TestDoctorThreads(t *testing.T) {
	t.Parallel()
	dir := cgroupOf(t, 60)
	got := inCgroup(t, dir, "doctor")
	if want := "pids.max of " + dir + " is 60"; !strings.Contains(got.out, want) {
		t.Errorf("%q is not in:\n%s", want, got.out)
	}
}
