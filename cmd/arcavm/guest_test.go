package main

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/bench"
	"github.com/fix-project/arcavm/network/networktest"
	"github.com/fix-project/arcavm/testdata/images"
)

func TestGuestsExitCode(t *testing.T) {
	t.Parallel()
	needKVM(t)
	hello := imageFile(t, "hello")
	// Words after IMAGE are the guest's, even if they are flags of arcavm's.
	got := asProcess(t, "run", "--cpus", "1", "--mem", "64M", hello, "--cpus", "ada", "--exit", "7")
	if got.code != 7 {
		t.Errorf("code %d, want 7; stderr:\n%s", got.code, got.err)
	}
	for _, want := range []string{"hello, ada", "hello, --cpus", "level=INFO", "file=programs/hello.c", "line="} {
		if !strings.Contains(got.err, want) {
			t.Errorf("%q is not in:\n%s", want, got.err)
		}
	}
	if got.out != "" {
		t.Errorf("stdout is %q", got.out)
	}
}

func TestSockets(t *testing.T) {
	t.Parallel()
	needKVM(t)
	dir, err := os.MkdirTemp("", "unix") // short enough for the address of a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("unix", dir+"/s")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		if c, err := l.Accept(); err == nil {
			c.Write([]byte("from the host"))
			c.Close()
		}
	}()
	got := asProcess(t, "run", "--sockets", dir, imageFile(t, "unix"), "connect", "s")
	l.Close()
	<-served
	if got.code != 0 || got.out != "from the host" {
		t.Errorf("got %+v", got)
	}
	if got := asProcess(t, "run", imageFile(t, "unix"), "connect", "s"); got.code != 1 || !strings.Contains(got.err, "connect: error 2") {
		t.Errorf("without --sockets: %+v", got)
	}
}

// A command of a test fails if a wake-up was lost, whatever else it did.
func TestLostWakeUpIsSeen(t *testing.T) {
	t.Parallel()
	needKVM(t)
	if got := asProcess(t, "run", imageFile(t, "hello"), "lost wake-up"); got.code != exitLostWakeUp {
		t.Errorf("code %d, want %d; stderr:\n%s", got.code, exitLostWakeUp, got.err)
	}
}

func TestLogFormats(t *testing.T) {
	t.Parallel()
	needKVM(t)
	hello := imageFile(t, "hello")
	got := asProcess(t, "run", "--log-format", "json", hello, "ada")
	var record struct {
		Level, Msg, Target, File string
		Line                     int
	}
	found := false
	for line := range strings.Lines(got.err) {
		if err := json.Unmarshal([]byte(line), &record); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		if record.Msg == "hello, ada" {
			found = true
			if record.Level != "INFO" || record.File != "programs/hello.c" || record.Line == 0 || record.Target == "" {
				t.Errorf("got %+v", record)
			}
		}
	}
	if got.code != 0 || !found {
		t.Errorf("code %d, no record of the guest in:\n%s", got.code, got.err)
	}
	if got := asProcess(t, "run", "--log-level", "error", hello); got.code != 0 || got.err != "" {
		t.Errorf("with --log-level error: code %d, stderr %q", got.code, got.err)
	}
}

// Without a rule, a guest doesn't reach what listens on this machine only.
func TestPolicy(t *testing.T) {
	t.Parallel()
	needKVM(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "from outside")
			c.Close()
		}
	}()
	for _, c := range []struct {
		flags []string
		code  int
		out   string
	}{
		{nil, 1, ""},
		{[]string{"--allow", "localhost"}, 0, "from outside"},
		{[]string{"--allow", "out:tcp:127.0.0.0/8:1-65535", "--deny", "*"}, 0, "from outside"},
		{[]string{"--deny", "*", "--allow", "localhost"}, 1, ""},
	} {
		args := slices.Concat([]string{"run"}, c.flags, []string{imageFile(t, "connect"), l.Addr().String()})
		got := asProcess(t, args...)
		if got.code != c.code || got.out != c.out {
			t.Errorf("%q: code %d, stdout %q, want %d and %q; stderr:\n%s", c.flags, got.code, got.out, c.code, c.out, got.err)
		}
		if want := "is denied by policy"; strings.Contains(got.err, want) != (c.code != 0) {
			t.Errorf("%q: stderr:\n%s", c.flags, got.err)
		}
	}
}

// A limit of the command line reaches the guest as an errno, and its user as a
// line and a number.
func TestLimit(t *testing.T) {
	t.Parallel()
	needKVM(t)
	const args = "run --log-format json --timing --share . --limit streams=1,bytes=1G"
	got := asProcess(t, append(strings.Fields(args), imageFile(t, "cat"), "limits.go")...)
	if got.code != 1 || got.out != "" {
		t.Errorf("code %d, stdout %q", got.code, got.out)
	}
	for _, want := range []string{`"msg":"guest has reached a limit","stream":"0.0","limit":"streams"}`, `"Reached":{"Streams":1,`} {
		if !strings.Contains(got.err, want) {
			t.Errorf("%q is not in:\n%s", want, got.err)
		}
	}
}

// A hypercall with an unknown number is logged.
func TestBadHypercall(t *testing.T) {
	t.Parallel()
	needKVM(t)
	// mov $99, %eax; xor %edx, %edx; out %al, %dx
	code := []byte{0xB8, 99, 0, 0, 0, 0x31, 0xD2, 0xEE}
	got := asProcess(t, "run", writeFile(t, "bad", machineCode(1, append(code, exit(7)...))))
	if want := `msg="hypercall refused" cpu=0 call="hypercall 99"`; got.code != 7 || !strings.Contains(got.err, want) || !strings.Contains(got.err, "function not implemented") {
		t.Errorf("code %d; %q is not in:\n%s", got.code, want, got.err)
	}
}

func TestTiming(t *testing.T) {
	t.Parallel()
	needKVM(t)
	got := asProcess(t, "run", "--timing", imageFile(t, "hello"), "--exit", "3")
	if got.code != 3 {
		t.Errorf("code %d", got.code)
	}
	for _, want := range []string{
		`(?m)^ +\d+\.\d{3}  command line and image headers read$`, `(?m)^ +\d+\.\d{3}  first log record of the guest$`,
		`(?m)^ +1  EXIT$`, `(?m)^ +1  LOG$`, `(?m)^ +\d+  KVM_EXIT_IO$`, `(?m)^ +\d+  interrupts raised for them$`, `(?m)^ +0  bytes relayed from the guest$`,
		`(?m)^ +0  signals from the guest that found nothing to do$`, `(?m)^ +0  wake-ups lost that the guest owed$`, `(?m)^ +0  wake-ups lost that arcavm owed$`,
	} {
		if !regexp.MustCompile(want).MatchString(got.err) {
			t.Errorf("%s is not in:\n%s", want, got.err)
		}
	}
}

func TestConsole(t *testing.T) {
	t.Parallel()
	needKVM(t)
	path := writeFile(t, "image", machineCode(1, slices.Concat(write("a\x00\xffb\n"), exit(4))))
	if got := asProcess(t, "run", path); got.code != 4 || got.out != "a\x00\xffb\n" || got.err != "" {
		t.Errorf("got %+v", got)
	}
}

// A console whose reader is gone neither kills the guest nor holds it up.
func TestConsoleClosed(t *testing.T) {
	t.Parallel()
	needKVM(t)
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	reader.Close()
	defer writer.Close()
	cmd := command(t, "run", writeFile(t, "image", machineCode(1, slices.Concat(write("abc"), exit(4)))))
	cmd.Stdout = writer
	_ = cmd.Run()
	if code := cmd.ProcessState.ExitCode(); code != 4 {
		t.Errorf("%v, want code 4", cmd.ProcessState)
	}
}

// Output for which the console has no room is lost, and the log says so.
func TestConsoleFull(t *testing.T) {
	t.Parallel()
	needKVM(t)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip("there is no /dev/full: mount a whole /dev")
	}
	defer full.Close()
	var said strings.Builder
	cmd := command(t, "run", writeFile(t, "image", machineCode(1, slices.Concat(write("abc"), exit(4)))))
	cmd.Stdout, cmd.Stderr = full, &said
	_ = cmd.Run()
	if code := cmd.ProcessState.ExitCode(); code != 4 {
		t.Errorf("%v, want code 4", cmd.ProcessState)
	}
	if got := said.String(); strings.Count(got, "the rest of the console's output is lost") != 1 || !strings.Contains(got, "no space left") {
		t.Errorf("stderr is %q", got)
	}
}

// The guest's stdio stream is this process's standard input and output.
func TestStandardInput(t *testing.T) {
	t.Parallel()
	needKVM(t)
	for _, c := range []struct {
		in   io.Reader
		want string
	}{
		{strings.NewReader("some text\n"), "SOME TEXT\n10 bytes\n"},
		{nil, "0 bytes\n"}, // /dev/null
	} {
		cmd := command(t, "run", imageFile(t, "stdio"))
		cmd.Stdin = c.in
		if out, err := cmd.Output(); err != nil || string(out) != c.want {
			t.Errorf("%v, stdout %q, want %q", err, out, c.want)
		}
	}
}

func TestABIByHand(t *testing.T) {
	t.Parallel()
	needKVM(t)
	path := writeFile(t, "image", machineCode(0, exit(9)))
	if got := asProcess(t, "run", "--abi", "stream", path); got.code != 9 {
		t.Errorf("got %+v", got)
	}
}

func TestTooLittle(t *testing.T) {
	t.Parallel()
	needKVM(t)
	far := machineCode(1, exit(0))
	far[64+24+3] = 8 // p_paddr: 0x1_0810_0000, 129 MiB into RAM
	far[24+3] = 8    // e_entry
	got := asProcess(t, "run", "--mem", "64M", writeFile(t, "image", far))
	if got.code != exitUsage {
		t.Errorf("code %d, want %d", got.code, exitUsage)
	}
	wantLine(t, got.err, "too little memory, the image alone needs 130 MiB; give it more with --mem")

	outside := machineCode(1, exit(0))
	outside[64+24+4] = 0 // p_paddr: 0x10_0000, below RAM
	outside[24+4] = 0
	got = asProcess(t, "run", writeFile(t, "image", outside))
	if got.code != exitData {
		t.Errorf("code %d, want %d", got.code, exitData)
	}
	wantLine(t, got.err, "segment 0 (0x100000–0x10000a) lies outside RAM (0x100000000–")
}

func TestCrash(t *testing.T) {
	t.Parallel()
	needKVM(t)
	for _, how := range []string{"panic", "wild", "port"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			got := asProcess(t, "run", imageFile(t, "crash"), how)
			if got.code != exitSoftware {
				t.Errorf("code %d, want %d", got.code, exitSoftware)
			}
			for _, want := range []string{"arcavm: guest died on CPU 0: ", "rip ", "backtrace", "crashing by: " + how} {
				if !strings.Contains(got.err, want) {
					t.Errorf("%q is not in:\n%s", want, got.err)
				}
			}
			if strings.Contains(got.err, "goroutine ") {
				t.Errorf("a Go panic:\n%s", got.err)
			}
		})
	}
}

// running is a command that was started, and the lines of its output.
type running struct {
	*exec.Cmd
	t      *testing.T
	output *bufio.Scanner
}

// start starts a command and reads its standard error, or its standard output.
func start(t *testing.T, stdout bool, args ...string) *running {
	t.Helper()
	cmd := command(t, args...)
	pipe := cmd.StderrPipe
	if stdout {
		pipe = cmd.StdoutPipe
	}
	return startCommand(t, cmd, pipe)
}

func startCommand(t *testing.T, cmd *exec.Cmd, pipe func() (io.ReadCloser, error)) *running {
	t.Helper()
	output, err := pipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return &running{cmd, t, bufio.NewScanner(output)}
}

// line reads up to a line that contains text, and returns it.
func (r *running) line(text string) string {
	r.t.Helper()
	var all []string
	for r.output.Scan() {
		all = append(all, r.output.Text())
		if strings.Contains(r.output.Text(), text) {
			return r.output.Text()
		}
	}
	r.t.Fatalf("the command ended without %q; it printed\n%s", text, strings.Join(all, "\n"))
	return ""
}

func (r *running) signal(s syscall.Signal) {
	r.t.Helper()
	if err := r.Process.Signal(s); err != nil {
		r.t.Fatal(err)
	}
}

// signalTwice sends a signal, and a second one when the first has been taken.
func (r *running) signalTwice(s syscall.Signal) {
	r.t.Helper()
	r.line("guest started")
	r.signal(s)
	r.line("asking the guest to stop")
	r.signal(s)
}

func (r *running) exitCode() int {
	for r.output.Scan() {
	}
	_ = r.Wait()
	return r.ProcessState.ExitCode()
}

func TestCtrlC(t *testing.T) {
	t.Parallel()
	needKVM(t)
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run(s.String(), func(t *testing.T) {
			t.Parallel()
			r := start(t, false, "run", imageFile(t, "idle"))
			r.line("idle with")
			r.signal(s)
			r.line("asking the guest to stop")
			r.line("asked to stop")
			if code := r.exitCode(); code != 0 {
				t.Errorf("code %d, want the guest's 0", code)
			}
		})
	}
}

// needHangup skips a test that is run by nohup: its children ignore SIGHUP.
func needHangup(t *testing.T) {
	t.Helper()
	if signal.Ignored(syscall.SIGHUP) {
		t.Skip("SIGHUP is ignored here; run it without nohup")
	}
}

// A closed terminal ends the machine at once, but in good order: the socket's
// file goes, too. With nohup the machine goes on.
func TestHangup(t *testing.T) {
	t.Parallel()
	needKVM(t)
	needHangup(t)
	sockets := t.TempDir()
	r := start(t, false, "run", "--sockets", sockets+":rw", imageFile(t, "unix"), "listen", "s")
	r.line("listening")
	r.signal(syscall.SIGHUP)
	if code := r.exitCode(); code != 129 {
		t.Errorf("code %d, want 129", code)
	}
	if names, err := os.ReadDir(sockets); err != nil || len(names) > 0 {
		t.Errorf("left behind: %v, %v", names, err)
	}

	cmd := command(t, "run", imageFile(t, "idle"))
	cmd.Env = append(cmd.Env, nohupVariable+"=1")
	n := startCommand(t, cmd, cmd.StderrPipe)
	n.line("idle with")
	n.signal(syscall.SIGHUP)
	n.signal(syscall.SIGINT)
	if code := n.exitCode(); code != 0 {
		t.Errorf("with nohup: code %d, want the guest's 0", code)
	}
}

func TestCtrlCWithJSON(t *testing.T) {
	t.Parallel()
	needKVM(t)
	r := start(t, false, "run", "--log-format", "json", imageFile(t, "idle"))
	r.line("idle with")
	r.signal(syscall.SIGINT)
	if line := r.line("asking the guest to stop"); !json.Valid([]byte(line)) {
		t.Errorf("not JSON: %s", line)
	}
	if code := r.exitCode(); code != 0 {
		t.Errorf("code %d, want 0", code)
	}
}

// A guest that doesn't stop when it is asked is ended, with a report of what
// each of its CPUs was doing.
func TestCtrlCTwice(t *testing.T) {
	t.Parallel()
	needKVM(t)
	r := start(t, false, "run", writeFile(t, "image", machineCode(1, slices.Concat(logStart(), spin))))
	r.signalTwice(syscall.SIGINT)
	r.wantReport("CPU 0: running at 0xffff8001", "rip ", "backtrace", "guest started")
	if code := r.exitCode(); code != 130 {
		t.Errorf("code %d, want 130", code)
	}
}

// The timing is printed after the second signal as well, before the report of
// what the guest was doing.
func TestTimingAfterTwoSignals(t *testing.T) {
	t.Parallel()
	needKVM(t)
	spins := writeFile(t, "image", machineCode(1, slices.Concat(logStart(), spin)))
	for _, format := range []string{"text", "json"} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			r := start(t, false, "run", "--timing="+format, spins)
			r.signalTwice(syscall.SIGINT)
			r.wantTiming(format, "first log record of the guest")
			r.wantReport("CPU 0: running")
			if code := r.exitCode(); code != 130 {
				t.Errorf("code %d, want 130", code)
			}
		})
	}
}

// wantTiming reads the timing, which has a step and ends with the statistics.
func (r *running) wantTiming(format, step string) {
	r.t.Helper()
	if format == "text" {
		r.line(step)
		r.line("exits by reason")
		return
	}
	line := r.line(`"steps"`)
	var timing timingJSON
	if err := json.Unmarshal([]byte(line), &timing); err != nil || timing.Stats == nil {
		r.t.Fatalf("%q has no statistics: %v", line, err)
	}
	if !slices.ContainsFunc(timing.Steps, func(s bench.TimingStep) bool { return s.Name == step }) {
		r.t.Errorf("%q is missing in %v", step, timing.Steps)
	}
}

// wantReport reads lines up to those that have these words, in this order.
func (r *running) wantReport(words ...string) {
	r.t.Helper()
	r.line("arcavm: what the guest was doing")
	for _, w := range words {
		r.line(w)
	}
}

// SIGQUIT ends a guest at once, the built-in one too, with a report.
func TestQuit(t *testing.T) {
	t.Parallel()
	needKVM(t)
	r := start(t, false, "run", "--cpus", "2", imageFile(t, "idle"))
	r.line("idle with")
	r.signal(syscall.SIGQUIT)
	r.wantReport("CPU 0: ", "backtrace", "CPU 1: ", "idle with 0 streams")
	if code := r.exitCode(); code != 131 {
		t.Errorf("code %d, want 131", code)
	}
	demo := command(t, "demo")
	errors, err := demo.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	d := startCommand(t, demo, demo.StdoutPipe)
	d.line("open http://")
	d.signal(syscall.SIGQUIT)
	said := &running{demo, t, bufio.NewScanner(errors)}
	said.wantReport("CPU 0: ", "backtrace")
	if code := said.exitCode(); code != 131 {
		t.Errorf("demo: code %d, want 131", code)
	}
}

// A CPU that waits for the console's reader can't be made to leave. The process
// ends all the same.
func TestCtrlCTwiceWithBlockedConsole(t *testing.T) {
	t.Parallel()
	needKVM(t)
	cmd := command(t, "run", writeFile(t, "image", machineCode(1, slices.Concat(logStart(), write("blocked"), spin))))
	cmd.Stdout = fullPipe(t)
	r := startCommand(t, cmd, cmd.StderrPipe)
	r.signalTwice(syscall.SIGINT)
	r.wantReport("CPU 0: ", "rip ", "guest started")
	if code := r.exitCode(); code != 130 {
		t.Errorf("code %d, want 130", code)
	}
}

// The process ends, too, if its own standard error has no reader.
func TestCtrlCTwiceWithBlockedLog(t *testing.T) {
	t.Parallel()
	needKVM(t)
	cmd := command(t, "run", writeFile(t, "image", machineCode(1, slices.Concat(write("started\n"), spin))))
	cmd.Stderr = fullPipe(t)
	r := startCommand(t, cmd, cmd.StdoutPipe)
	r.line("started")
	// Two signals of a kind could be delivered as one, and the first leaves no
	// trace that could be waited for.
	r.signal(syscall.SIGINT)
	r.signal(syscall.SIGTERM)
	if code := r.exitCode(); code != 130 && code != 143 {
		t.Errorf("code %d, want 130 or 143", code)
	}
}

// fullPipe returns the writing end of a pipe that has no room and isn't read.
func fullPipe(t *testing.T) *os.File {
	t.Helper()
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		reader.Close()
		writer.Close()
	})
	if _, err := writer.Write(make([]byte, pipeSize(t, writer))); err != nil {
		t.Fatal(err)
	}
	return writer
}

func pipeSize(t *testing.T, f *os.File) int {
	t.Helper()
	n, err := unix.FcntlInt(f.Fd(), unix.F_GETPIPE_SZ, 0)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestDemo(t *testing.T) {
	t.Parallel()
	needKVM(t)
	if !slices.Contains(images.Names(), "httpd") {
		t.Skip("there is no image httpd; build it with: make images")
	}
	r := start(t, true, "demo", "--cpus", "2")
	line := r.line("http://127.0.0.1:")
	url := regexp.MustCompile(`http://127\.0\.0\.1:\d+/`).FindString(line)
	response, err := (&http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}).Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != 200 || len(body) == 0 {
		t.Errorf("%v, status %d, %d bytes", err, response.StatusCode, len(body))
	}
	r.signal(syscall.SIGINT)
	if code := r.exitCode(); code != 0 {
		t.Errorf("code %d, want 0", code)
	}
}

// The guest is a TLS client that trusts the authority in a file.
func TestTLSFlags(t *testing.T) {
	t.Parallel()
	needKVM(t)
	a := networktest.NewAuthority(t)
	ca := writeFile(t, "ca", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Cert.Raw}))
	cert, key := pemFiles(t, a.Issue(t, nil))
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			io.Copy(c, c)
			c.Close()
		}
	}()
	image := imageFile(t, "tls")
	target := ln.Addr().String()
	got := asProcess(t, "run", "--allow", "localhost", "--tls-ca", ca, image, "get", target)
	if want := "Host: " + target; got.code != 0 || !strings.Contains(got.out, want) {
		t.Errorf("code %d and %q, want 0 and %q\n%s", got.code, got.out, want, got.err)
	}
	got = asProcess(t, "run", "--allow", "localhost", image, "get", target)
	if want := "connect: error 126"; got.code != 1 || !strings.Contains(got.err, want) {
		t.Errorf("without --tls-ca: code %d, want 1 and %q\n%s", got.code, want, got.err)
	}
}

// The guest is a TLS server with the certificate in a file.
func TestTLSCertFlags(t *testing.T) {
	t.Parallel()
	needKVM(t)
	a := networktest.NewAuthority(t)
	cert, key := pemFiles(t, a.Issue(t, nil))
	r := start(t, false, "run", "--tls-cert", cert, "--tls-key", key, imageFile(t, "tls"), "serve", "127.0.0.1:0")
	c := tls.Client(dialed(t, "tcp", after(t, r.line("listening on "), "listening on ")), &tls.Config{RootCAs: a.Pool, ServerName: "server.test"})
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); err != nil || string(got) != "hello" {
		t.Errorf("%q came back, %v", got, err)
	}
	r.signal(syscall.SIGINT)
	if code := r.exitCode(); code != 0 {
		t.Errorf("code %d", code)
	}
}
