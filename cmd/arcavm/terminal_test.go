package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// leaderVariable, if set, makes the test binary what a shell is to the command
// that it names: the leader of the terminal's session, which starts the command
// in the foreground.
const leaderVariable = "ARCAVM_TEST_LEADER"

// lead starts the command, and waits for it and for the processes that it
// leaves behind. It says on descriptor 3 what happens, and touches no terminal
// mode.
func lead() error {
	report := os.NewFile(3, "report")
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return err
	}
	command := os.Getenv(leaderVariable)
	os.Unsetenv(leaderVariable)
	p, err := os.StartProcess(command, os.Args, &os.ProcAttr{
		Env: append(os.Environ(), mainVariable+"=1"), Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys: &syscall.SysProcAttr{Setpgid: true, Foreground: true, Ctty: 0},
	})
	if err != nil {
		return err
	}
	fmt.Fprintln(report, "started", p.Pid)
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WUNTRACED, nil)
		switch {
		case err == unix.ECHILD:
			fmt.Fprintln(report, "nothing is left")
			return nil
		case err == unix.EINTR || pid != p.Pid:
		case err != nil:
			return err
		case status.Stopped():
			fmt.Fprintln(report, "stopped")
		case status.Signaled():
			fmt.Fprintln(report, "killed")
		default:
			fmt.Fprintln(report, "ended", status.ExitStatus())
		}
	}
}

// session is a terminal on which the command runs.
type session struct {
	t       *testing.T
	master  *os.File
	shown   *screen
	events  *bufio.Scanner
	before  unix.Termios
	command int // process id
}

func startSession(t *testing.T, args ...string) *session {
	t.Helper()
	return startSessionOf(t, "/proc/self/exe", args...)
}

// startSessionOf is startSession with a command other than the test binary.
func startSessionOf(t *testing.T, command string, args ...string) *session {
	t.Helper()
	master, slave := openPTY(t)
	s := &session{t: t, master: master, shown: &screen{changed: make(chan struct{}, 1)}}
	s.before = s.mode()

	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Env = append(os.Environ(), leaderVariable+"="+command, "TERM=dumb")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	w.Close()
	reading := make(chan struct{})
	go func() {
		defer close(reading)
		// It ends with EIO, when no process has the other side open.
		_, _ = io.Copy(s.shown, master)
	}()
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait()
		<-reading
	})
	s.events = bufio.NewScanner(r)
	if _, err := fmt.Sscanf(s.event("started"), "started %d", &s.command); err != nil {
		t.Fatal(err)
	}
	return s
}

func openPTY(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo-terminal: %v", err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprint("/dev/pts/", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return master, slave
}

// mode returns the mode of the terminal, which its slave has.
func (s *session) mode() unix.Termios {
	s.t.Helper()
	mode, err := unix.IoctlGetTermios(int(s.master.Fd()), unix.TCGETS)
	if err != nil {
		s.t.Fatal(err)
	}
	return *mode
}

func (s *session) event(text string) string {
	s.t.Helper()
	if !s.events.Scan() || !strings.HasPrefix(s.events.Text(), text) {
		s.t.Fatalf("%q, %v; want %q; the terminal shows:\n%s", s.events.Text(), s.events.Err(), text, s.shown)
	}
	return s.events.Text()
}

func (s *session) typeKeys(keys string) {
	s.t.Helper()
	mustWriteString(s.t, s.master, keys)
}

func mustWriteString(t *testing.T, w io.Writer, text string) {
	t.Helper()
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
}

// see waits until the terminal shows a text, after what was seen before.
func (s *session) see(text string) {
	s.t.Helper()
	late := time.After(patience)
	for !s.shown.find(text) {
		select {
		case <-s.shown.changed:
		case <-late:
			s.t.Fatalf("the terminal never showed %q, but:\n%s", text, s.shown)
		}
	}
}

// screen is what a terminal has shown.
type screen struct {
	mu      sync.Mutex
	text    strings.Builder
	seen    int
	changed chan struct{}
}

func (c *screen) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case c.changed <- struct{}{}:
	default:
	}
	return c.text.Write(b)
}

func (c *screen) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String()
}

func (c *screen) find(text string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := strings.Index(c.text.String()[c.seen:], text)
	if at >= 0 {
		c.seen += at + len(text)
	}
	return at >= 0
}

func (s *session) wantRaw() {
	s.t.Helper()
	m := s.mode()
	if m.Lflag&(unix.ICANON|unix.ECHO) != 0 || m.Iflag&unix.ICRNL != 0 || m.Lflag&unix.ISIG == 0 || m.Oflag&unix.OPOST == 0 {
		s.t.Errorf("the mode is %+v", m)
	}
}

func (s *session) wantBefore() {
	s.t.Helper()
	if m := s.mode(); m != s.before {
		s.t.Errorf("the mode is %+v, before it was %+v", m, s.before)
	}
}

// While the guest has the stdio stream open it gets keys as they are typed.
// However that ends, the terminal is as before.
func TestTerminal(t *testing.T) {
	t.Parallel()
	needKVM(t)
	for _, c := range []struct {
		name string
		args []string
		end  func(s *session)
		want string
	}{
		{"the guest ends", nil, func(s *session) { s.typeKeys("\x04") }, "ended 0"},
		{"the guest crashes", []string{"crash"}, func(s *session) { s.typeKeys("\x04") }, "ended 70"},
		{"Ctrl-C", []string{"wait"}, func(s *session) {
			s.typeKeys("\x04")
			s.see("waiting") // Ctrl-C drops what was typed before it and hasn't been read
			s.typeKeys("\x03")
		}, "ended 0"},
		{"Ctrl-C twice", nil, func(s *session) {
			s.typeKeys("\x03")
			s.see("press Ctrl-C again")
			s.typeKeys("\x03")
		}, "ended 130"},
		{"SIGTERM twice", nil, func(s *session) {
			s.signal(unix.SIGTERM)
			s.see("press Ctrl-C again")
			s.signal(unix.SIGTERM)
		}, "ended 143"},
		{"SIGQUIT", nil, func(s *session) { s.typeKeys("\x1c") }, "ended 131"},
		// A panic ends it so.
		{"SIGABRT", nil, func(s *session) { s.signal(unix.SIGABRT) }, "ended 2"},
		{"SIGKILL", nil, func(s *session) { s.signal(unix.SIGKILL) }, "killed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := startSession(t, append([]string{"run", imageFile(t, "stdio")}, c.args...)...)
			s.see("stdio open")
			s.wantRaw()
			s.typeKeys("q\r")
			s.see("Q\r")
			c.end(s)
			s.event(c.want)
			s.event("nothing is left")
			s.wantBefore()
		})
	}
}

func (s *session) signal(signal syscall.Signal) {
	s.t.Helper()
	if err := unix.Kill(s.command, signal); err != nil {
		s.t.Fatal(err)
	}
}

// Ctrl-Z restores the terminal, and a return to the foreground enters raw mode
// again.
func TestTerminalStopped(t *testing.T) {
	t.Parallel()
	needKVM(t)
	s := startSession(t, "run", imageFile(t, "stdio"))
	s.see("stdio open")
	for range 2 {
		s.typeKeys("\x1a")
		s.event("stopped")
		s.wantBefore()
		s.signal(unix.SIGCONT)
		s.typeKeys("q")
		s.see("Q")
		s.wantRaw()
	}
	s.typeKeys("\x04")
	s.event("ended 0")
	s.event("nothing is left")
	s.wantBefore()
}
