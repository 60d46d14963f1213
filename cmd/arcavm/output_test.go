package main

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// filledPipe returns a pipe without room, and how many bytes are in it. Package
// os takes both ends for blocking ones.
func filledPipe(t *testing.T) (r, w *os.File, filled int64) {
	t.Helper()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	r, w = os.NewFile(uintptr(fds[0]), "reader"), os.NewFile(uintptr(fds[1]), "writer")
	t.Cleanup(func() {
		r.Close()
		w.Close()
	})
	setNonblock(t, w, true)
	for {
		n, err := unix.Write(fds[1], make([]byte, 4096))
		if err == unix.EAGAIN {
			setNonblock(t, w, false)
			return r, w, filled
		}
		if err != nil {
			t.Fatal(err)
		}
		filled += int64(n)
	}
}

func setNonblock(t *testing.T, f *os.File, yes bool) {
	t.Helper()
	if err := unix.SetNonblock(int(f.Fd()), yes); err != nil {
		t.Fatal(err)
	}
}

// A command whose output can't be written says so, by a sentence and by its
// exit code.
func TestOutputOnFullDisk(t *testing.T) {
	t.Parallel()
	hello := imageFile(t, "hello")
	for _, args := range [][]string{
		{"--help"}, {"help"}, {"help", "run"}, {"run", "--help"}, {"bench", "--help"}, {"--version"}, {"version"},
		{"inspect", hello}, {"inspect", "--symbols", hello}, {"doctor"}, {"completion"}, {"completion", "bash"},
		{"completion", "zsh"}, {"__complete", "run", "--log-level", ""},
	} {
		t.Run(strings.Join(args[:min(2, len(args))], " "), func(t *testing.T) {
			t.Parallel()
			full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer full.Close()
			var stderr bytes.Buffer
			cmd := command(t, args...)
			cmd.Stdout, cmd.Stderr = full, &stderr
			_ = cmd.Run()
			if code := cmd.ProcessState.ExitCode(); code != exitIO {
				t.Errorf("code %d, want %d", code, exitIO)
			}
			if want := "arcavm: writing standard output: no space left on device\n"; !strings.HasSuffix(stderr.String(), want) {
				t.Errorf("stderr is %q", stderr.String())
			}
		})
	}
}

// A guest goes on when the disk of its console is full. The exit code is 74,
// unless the guest's own isn't 0.
func TestConsoleOnFullDisk(t *testing.T) {
	t.Parallel()
	needKVM(t)
	for code, want := range map[byte]int{0: exitIO, 5: 5} {
		image := writeFile(t, "image", machineCode(1, append(write("hello"), exit(code)...)))
		full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer full.Close()
		var stderr bytes.Buffer
		cmd := command(t, "run", image)
		cmd.Stdout, cmd.Stderr = full, &stderr
		_ = cmd.Run()
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Errorf("code %d, want %d; stderr:\n%s", got, want, stderr.String())
		}
		if !strings.Contains(stderr.String(), "the rest of the console's output is lost") {
			t.Errorf("stderr is %q", stderr.String())
		}
		cmd = command(t, "run", "--timing", image)
		cmd.Stderr = full
		_ = cmd.Run()
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Errorf("without a standard error: code %d, want %d", got, want)
		}
	}
}

// A command whose output's reader has gone ends by SIGPIPE, as others in a
// pipeline do; where that is ignored, by an error.
func TestOutputReaderGone(t *testing.T) {
	t.Parallel()
	hello := imageFile(t, "hello")
	r, w, _ := filledPipe(t)
	r.Close()
	var stderr bytes.Buffer
	cmd := command(t, "inspect", "--symbols", hello)
	cmd.Stdout, cmd.Stderr = w, &stderr
	_ = cmd.Run()
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != unix.SIGPIPE || stderr.Len() > 0 {
		t.Errorf("%v, stderr %q", cmd.ProcessState, stderr.String())
	}
}

// Output that another program makes non-blocking while the command writes isn't
// lost.
func TestOutputNonblocking(t *testing.T) {
	t.Parallel()
	hello := imageFile(t, "hello")
	want := asProcess(t, "inspect", "--symbols", hello).out
	r, w, filled := filledPipe(t)
	cmd := command(t, "inspect", "--symbols", hello)
	cmd.Stdout = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// The open file is shared: the command's next write finds it so, whether
	// the command waits already or hasn't begun.
	setNonblock(t, w, true)
	w.Close()
	if _, err := io.CopyN(io.Discard, r, filled); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if err != nil || string(got) != want {
		t.Errorf("%v; got %d bytes, want %d", err, len(got), len(want))
	}
}

// A guest's console isn't lost either where its output becomes non-blocking
// while it is in use, and then full.
func TestConsoleNonblocking(t *testing.T) {
	t.Parallel()
	needKVM(t)
	const more = 5000
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	r, w := os.NewFile(uintptr(fds[0]), "reader"), os.NewFile(uintptr(fds[1]), "writer")
	defer r.Close()
	defer w.Close()
	if _, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 4096); err != nil {
		t.Fatal(err)
	}
	// mov $more, %ecx; mov $'y', %al; out %al, $0xE9; dec %ecx; jnz to the out
	loop := []byte{0xB9, more & 0xFF, more >> 8, 0, 0, 0xB0, 'y', 0xE6, 0xE9, 0xFF, 0xC9, 0x75, 0xFA}
	var stderr bytes.Buffer
	cmd := command(t, "run", writeFile(t, "image", machineCode(1, slices.Concat(write("x"), loop, exit(0)))))
	cmd.Stdout, cmd.Stderr = w, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	setNonblock(t, w, true)
	w.Close()
	// This waits until the guest gets no further. Where it goes on too early,
	// the test sees less, and passes.
	for full, same := 0, 0; same < 20000; same++ {
		n, err := unix.IoctlGetInt(fds[0], unix.TIOCINQ)
		if err != nil {
			t.Fatal(err)
		}
		if n != full {
			full, same = n, 0
		}
		runtime.Gosched()
	}
	got, err := io.ReadAll(r)
	if werr := cmd.Wait(); err != nil || werr != nil || len(got) != more {
		t.Errorf("%v, %v; got %d of %d bytes; stderr:\n%s", err, werr, len(got), more, stderr.String())
	}
}

// A standard error that isn't read holds up neither the guest nor the first
// SIGTERM.
func TestUnreadLog(t *testing.T) {
	t.Parallel()
	needKVM(t)
	for _, format := range []string{"text", "json"} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			_, w, _ := filledPipe(t)
			cmd := command(t, "demo", "--log-level", "trace", "--log-format", format)
			cmd.Stderr = w
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(out).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			url := regexp.MustCompile(`http://\S+`).FindString(line)
			client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
			resp, err := client.Get(url)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("%v", err)
			}
		})
	}
}

// Records for which a log had no room are counted, and a record in the log's
// own form says how many.
func TestDroppedRecords(t *testing.T) {
	t.Parallel()
	needKVM(t)
	const records = 20000
	r, w, filled := filledPipe(t)
	// A loop that logs, and then a byte on the console.
	cmd := command(t, "run", "--log-format", "json", "--limit", "log=100M",
		writeFile(t, "image", machineCode(1, append(append(logTimes(records), write("x")...), spin...))))
	cmd.Stderr = w
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, r, filled); err != nil {
		t.Fatal(err)
	}
	kept := 0
	notice := regexp.MustCompile(`^{.*"msg":"(\d+) records dropped: standard error took no more","dropped":\d+}$`)
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if notice.MatchString(lines.Text()) {
			break
		}
		kept++
	}
	if lines.Err() != nil || kept == 0 || kept >= records {
		t.Errorf("%d records were kept of %d, %v", kept, records, lines.Err())
	}
	go io.Copy(io.Discard, r)
	if err := cmd.Process.Signal(unix.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
}

// logTimes returns logStart and its hypercall n times more.
func logTimes(n uint32) []byte {
	code := append(logStart(), 0xBB, byte(n), byte(n>>8), byte(n>>16), byte(n>>24)) // mov $n, %ebx
	// mov $1, %eax; xor %edx, %edx; out %al, %dx; dec %ebx; jnz to the first
	return append(code, 0xB8, 1, 0, 0, 0, 0x31, 0xD2, 0xEE, 0xFF, 0xCB, 0x75, 0xF4)
}
