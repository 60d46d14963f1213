package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/emulated"
)

// The command runs itself in an emulated machine. The guest's exit code,
// console and log come back.
func TestRunEmulated(t *testing.T) {
	t.Parallel()
	if emulated.Inside() {
		t.Skip("this is the emulated machine already; run the test on the host")
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	program := buildCommand(ctx, t, "CGO_ENABLED=0")
	share := t.TempDir()
	if err := os.WriteFile(filepath.Join(share, "file"), []byte("what the file holds"), 0o600); err != nil {
		t.Fatal(err)
	}
	image := imageFile(t, "cat")
	// The files are read inside, or else the guest isn't started. The pipe
	// gives its content only once, outside.
	cert, key := certificateFiles(t)
	pipe := pipeOf(t, key)
	var stdout, stderr bytes.Buffer
	run := exec.CommandContext(ctx, program, "run", "--emulated", "--share", share, "--tls-ca", cert, "--tls-cert", cert, "--tls-key", "/proc/self/fd/3",
		"--log-format", "json", image, "file", "missing")
	run.ExtraFiles = []*os.File{pipe}
	run.Stdout, run.Stderr = &stdout, &stderr
	err := run.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == exitUnavailable && os.Getenv("ARCAVM_REQUIRE_KVM") == "" {
		t.Skip(strings.TrimSpace(stderr.String()))
	}
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("the command ended with %v, want the guest's exit code 1\n%s", err, &stderr)
	}
	if stdout.String() != "what the file holds" {
		t.Errorf("the console says %q", &stdout)
	}
	if !strings.Contains(stderr.String(), `missing: error 2`) {
		t.Errorf("the log is %q", &stderr)
	}

	// Where there is a C compiler go install builds it so.
	t.Run("dynamically linked", func(t *testing.T) {
		t.Parallel()
		if _, err := exec.LookPath("gcc"); err != nil {
			t.Skip("there is no C compiler to link with: apt-get install gcc libc6-dev")
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		var stderr bytes.Buffer
		run := exec.CommandContext(ctx, buildCommand(ctx, t, "CGO_ENABLED=1"), "run", "--emulated", imageFile(t, "hello"), "bob", "--exit", "7")
		run.Stderr = &stderr
		if err := run.Run(); run.ProcessState.ExitCode() != 7 || !strings.Contains(stderr.String(), "hello, bob") {
			t.Errorf("the command ended with %v and said %q", err, &stderr)
		}
		if !strings.Contains(stderr.String(), "ing Linux ") {
			t.Errorf("it didn't say that it boots or resumes: %q", &stderr)
		}
	})
	t.Run("outcome", func(t *testing.T) {
		t.Parallel()
		file := filepath.Join(t.TempDir(), "exit")
		run := exec.CommandContext(t.Context(), program, "run", "--emulated", "--log-format", "json", "--exit-file", file, imageFile(t, "crash"), "wild")
		var said strings.Builder
		run.Stderr = &said
		_ = run.Run()
		all, last := records(t, said.String())
		if last.Cause != causeCrash || last.Code != exitSoftware || exitFile(t, file) != last || run.ProcessState.ExitCode() != last.Code {
			t.Errorf("%v, %+v, the exit file has %+v", run.ProcessState, last, exitFile(t, file))
		}
		if !slices.ContainsFunc(all, func(r record) bool { return r.Crash != nil }) {
			t.Errorf("no crash report:\n%s", &said)
		}
	})
	t.Run("standard input", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		run := exec.CommandContext(ctx, program, "run", "--emulated", imageFile(t, "stdio"))
		run.Stdin = strings.NewReader("what the user types\n")
		out, err := run.Output()
		if want := "WHAT THE USER TYPES\n20 bytes\n"; err != nil || string(out) != want {
			t.Errorf("the command ended with %v and printed %q, want %q", err, out, want)
		}
	})
	t.Run("output that nobody reads", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		run := exec.CommandContext(ctx, program, "run", "--emulated", imageFile(t, "stdio"))
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
		defer w.Close()
		var stderr bytes.Buffer
		run.Stdin, run.Stdout, run.Stderr = strings.NewReader("what the user types\n"), w, &stderr
		if err := run.Run(); err != nil || !strings.Contains(stderr.String(), "output is lost") {
			t.Errorf("the command ended with %v and said %q", err, &stderr)
		}
	})
	for _, format := range []string{"text", "json"} {
		t.Run("two signals, timing as "+format, func(t *testing.T) {
			t.Parallel()
			image := writeFile(t, "image", machineCode(1, slices.Concat(logStart(), spin)))
			cmd := exec.CommandContext(t.Context(), program, "run", "--emulated", "--timing="+format, image)
			r := startCommand(t, cmd, cmd.StderrPipe)
			r.line("guest started")
			r.signal(syscall.SIGINT)
			// Two signals at once could be seen in any order.
			r.line("asking the guest to stop")
			r.signal(syscall.SIGTERM)
			r.wantTiming(format, "clock and network ready")
			r.wantReport("CPU 0: ", "backtrace")
			if code := r.exitCode(); code != 143 {
				t.Errorf("code %d, want that of the second", code)
			}
		})
	}
	// QEMU connects as a program of this machine does.
	t.Run("an address of the machine outside", func(t *testing.T) {
		t.Parallel()
		local, err := localIPv4()
		if err != nil || len(local) == 0 {
			t.Skip("this machine has no IPv4 address but the loopback one:", err)
		}
		ln, err := net.Listen("tcp4", netip.AddrPortFrom(local[0].Addr(), 0).String())
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		run := exec.CommandContext(ctx, program, "run", "--emulated", imageFile(t, "connect"), ln.Addr().String())
		out, err := run.CombinedOutput()
		if err == nil || !strings.Contains(string(out), ln.Addr().String()+" is denied by policy") {
			t.Errorf("the command ended with %v and said %q", err, out)
		}
	})
	t.Run("UDP", func(t *testing.T) {
		t.Parallel()
		exchangeDatagram(t, program)
	})
	// The port is published when the machine starts to boot.
	t.Run("a signal while it boots", func(t *testing.T) {
		t.Parallel()
		cmd := exec.CommandContext(t.Context(), program, "run", "--emulated", "--log-format", "json", "--publish", "0:80", imageFile(t, "idle"))
		r := startCommand(t, cmd, cmd.StderrPipe)
		for i, hint := range []string{"TCP port 80 of the guest is at ", "asking the guest to stop"} {
			if line := r.line(hint); !json.Valid([]byte(line)) {
				t.Errorf("%q is no JSON", line)
			}
			if i == 0 {
				r.signal(syscall.SIGINT)
			}
		}
		if code := r.exitCode(); code != 130 && code != 0 { // 0: the guest ran already, and stopped
			t.Errorf("code %d", code)
		}
	})
	t.Run("two signals while it boots", func(t *testing.T) {
		t.Parallel()
		cmd := exec.CommandContext(t.Context(), program, "run", "--emulated", "--timing", imageFile(t, "idle"))
		r := startCommand(t, cmd, cmd.StderrPipe)
		r.line("ing Linux ")
		r.signal(syscall.SIGINT)
		r.line("asking the guest to stop")
		r.signal(syscall.SIGTERM)
		r.line("files packed")
		if code := r.exitCode(); code != 143 {
			t.Errorf("code %d, want 143", code)
		}
	})
	// Kernels of the older ABIs may go on when they are asked to stop, so
	// SIGTERM ends them.
	t.Run("SIGTERM, older ABI", func(t *testing.T) {
		t.Parallel()
		cmd := exec.CommandContext(t.Context(), program, "run", "--emulated", imageFile(t, "rpc-httpd"), "127.0.0.1", "8080")
		r := startCommand(t, cmd, cmd.StderrPipe)
		r.line("serving on 1 CPUs")
		r.signal(syscall.SIGTERM)
		if code := r.exitCode(); code != 143 {
			t.Errorf("code %d, want 143", code)
		}
	})
	// While the guest inside has the stdio stream open, the terminal outside is
	// in raw mode.
	t.Run("terminal", func(t *testing.T) {
		t.Parallel()
		s := startSessionOf(t, program, "run", "--emulated", imageFile(t, "stdio"))
		s.see("stdio open")
		// In line mode a key alone doesn't reach the guest.
		s.typeKeys("q")
		s.see("Q")
		s.wantRaw()
		s.typeKeys("\x04")
		s.event("ended 0")
		s.event("nothing is left")
		s.wantBefore()
	})
}

// buildCommand builds the command, or skips the test where the go command can't
// work. It asks git nothing, which refuses a clone of another user's.
func buildCommand(ctx context.Context, t *testing.T, env ...string) string {
	t.Helper()
	if out, err := exec.CommandContext(ctx, "go", "list", "-buildvcs=false", ".").CombinedOutput(); err != nil {
		t.Skipf("the go command is needed, with a HOME or a GOCACHE: %v: %s", err, bytes.TrimSpace(out))
	}
	program := filepath.Join(t.TempDir(), "arcavm")
	build := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-o", program, ".")
	build.Env = append(os.Environ(), env...)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the command: %v\n%s", err, out)
	}
	return program
}

// A wrong command line is refused before anything boots.
func TestEmulatedBadInput(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	hello := imageFile(t, "hello")
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--publish", listener.Addr().String() + ":80", hello}, exitOS, "publish port 80: listen tcp4 " + listener.Addr().String()},
		{[]string{"--publish", "192.0.2.1:0:53/udp", hello}, exitOS, "cannot assign requested address"},
		{[]string{"--publish", "[::1]:8080:80", hello}, exitUsage, "IPv4"},
		{[]string{t.TempDir()}, exitData, "not a regular file"},
		{[]string{fifo}, exitData, fifo + ": is not a regular file"},
		{[]string{"--cpus", "0", hello}, exitUsage, "--cpus: 0 is not in 1 to 64"},
		{[]string{"--cpus", "9999", hello}, exitUsage, "--cpus: 9999 is not in 1 to 64"},
		{[]string{"--mem", "0M", hello}, exitUsage, "--mem: a guest needs some"},
		{[]string{"--mem", "1M", hello}, exitUsage, "--mem: 1 MiB is not between 4 MiB and 256 GiB"},
		{[]string{"--mem", "4097K", hello}, exitUsage, "--mem: 4097 KiB is not a multiple of 2 MiB"},
		{[]string{"--mem", "7T", hello}, exitUsage, "--mem: 7168 GiB is not between 4 MiB and 256 GiB"},
		{[]string{"--window", "1M", hello}, exitUsage, "--window: 1 MiB is not between"},
		{[]string{"--limit", "streams=200000", hello}, exitUsage, "--limit streams: 200000 is not in 1 to 131072"},
		{[]string{"--limit", "accepts=5", imageFile(t, "rpc-hello")}, exitUsage, "--limit accepts: "},
		{[]string{writeFile(t, "later", machineCode(9, exit(0)))}, exitData, "speaks the ABI of unknown version 9"},
		{[]string{writeFile(t, "text", []byte("#!/bin/sh\n"))}, exitData, "not an ELF file"},
		{[]string{filepath.Join(t.TempDir(), "none")}, exitNoInput, "no such file"},
	} {
		got := inProcess(append([]string{"run", "--emulated"}, test.args...)...)
		if got.code != test.code || got.out != "" {
			t.Errorf("%q: code %d and output %q, want code %d and none", test.args, got.code, got.out, test.code)
		}
		wantLine(t, got.err, test.want)
	}
}

func TestExitError(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		exit emulated.Exit
		want result
	}{
		{emulated.Exit{}, result{}},
		{emulated.Exit{Code: 2}, result{code: 2, err: "exit code 2"}}, // it has told no outcome
		{emulated.Exit{Code: 130, Signal: syscall.SIGINT}, result{code: 130, err: "exit code 130"}},
		{emulated.Exit{Code: 137, Signal: syscall.SIGKILL}, result{code: 137, err: "--mem"}},
	} {
		var said bytes.Buffer
		if code := finish(&said, exitError(test.exit, nil)); code != test.want.code {
			t.Errorf("%+v: code %d", test.exit, code)
		}
		if test.want.err == "" && said.Len() != 0 {
			t.Errorf("%+v: %q", test.exit, &said)
		}
		if test.want.err != "" {
			wantLine(t, said.String(), test.want.err)
		}
	}
}

// exchangeDatagram sends a datagram in, and receives the answer.
func exchangeDatagram(t *testing.T, program string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	run := exec.CommandContext(ctx, program, "run", "--emulated", "--publish", "0:5353/udp", imageFile(t, "udp"), "echo", "0.0.0.0:5353")
	said, err := run.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(said)
	const published = "arcavm: UDP port 5353 of the guest is at "
	var at string
	for lines.Scan() && !strings.Contains(lines.Text(), "bound to 0.0.0.0:5353") {
		if address, ok := strings.CutPrefix(lines.Text(), published); ok {
			at = address
		}
	}
	c := dialed(t, "udp", at)
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Error(err)
	}
	answer := make([]byte, 100)
	if n, err := c.Read(answer); err != nil || string(answer[:n]) != "hello" {
		t.Errorf("the answer to the datagram is %q, %v", answer[:n], err)
	}
	if err := run.Process.Signal(os.Interrupt); err != nil {
		t.Error(err)
	}
	for lines.Scan() {
	}
	if err := run.Wait(); err != nil {
		t.Errorf("asked to stop, the command ended with %v", err)
	}
}
