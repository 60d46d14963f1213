package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/fix-project/arcavm/emulated"
)

// terminal is the terminal that the guest's stdio stream reads, if its input is one. While the guest has the stream open it is in raw mode: keys come as they are
// typed. What is written to it is treated as before, for log records go there as well, and Ctrl-C and Ctrl-Z are still signals.
//
// A second process sees to it that the terminal is as before even if this one ends without a chance to do so.
type terminal struct {
	file *os.File // nil: no terminal
	log  *slog.Logger

	mu      sync.Mutex
	saved   unix.Termios
	raw     unix.Termios
	watcher *watcher // nil: not in raw mode
	left    chan struct{}
	signals sync.WaitGroup
}

// newTerminal returns a terminal that does nothing if in is none, but in an emulated machine tells its host, which may have one.
func newTerminal(in *os.File, log *slog.Logger) *terminal {
	t := &terminal{log: log}
	if in != nil && term.IsTerminal(int(in.Fd())) {
		t.file = in
	}
	return t
}

// use enters raw mode, or leaves it.
func (t *terminal) use(open bool) {
	if t.file == nil {
		t.tell(open)
		return
	}
	if !open {
		t.restore()
		return
	}
	if err := t.enter(); err != nil {
		t.log.Warn("the terminal stays in line mode", "err", err)
	}
}

// What an emulated machine's arcavm tells the one outside.
const (
	stdioOpened = 'o'
	stdioClosed = 'c'
)

func (t *terminal) tell(open bool) {
	news := byte(stdioClosed)
	if open {
		news = stdioOpened
	}
	if err := emulated.Tell([]byte{news}); err != nil {
		t.log.Warn("the terminal outside stays as it is", "err", err)
	}
}

func (t *terminal) enter() (err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.watcher != nil {
		return nil
	}
	saved, err := unix.IoctlGetTermios(int(t.file.Fd()), unix.TCGETS)
	if err != nil {
		return fmt.Errorf("read the terminal's mode: %w", err)
	}
	t.saved, t.raw = *saved, rawMode(*saved)
	if t.watcher, err = startWatcher(t.file, t.saved, t.raw); err != nil {
		return err
	}
	t.left = make(chan struct{})
	caught := make(chan os.Signal, 4)
	signal.Notify(caught, unix.SIGTSTP, unix.SIGCONT)
	t.signals.Go(func() { t.attend(caught, t.left) })
	return t.set(t.raw)
}

// restore leaves raw mode. It may be called at any time and more than once.
func (t *terminal) restore() {
	t.mu.Lock()
	if t.watcher == nil {
		t.mu.Unlock()
		return
	}
	if err := t.set(t.saved); err != nil {
		t.log.Warn("the terminal stays in raw mode; the command reset helps", "err", err)
	}
	t.watcher.dismiss()
	t.watcher = nil
	close(t.left)
	t.mu.Unlock()
	t.signals.Wait()
}

// attend lets the terminal go while this process is stopped.
func (t *terminal) attend(caught chan os.Signal, left chan struct{}) {
	defer signal.Stop(caught)
	for {
		select {
		case <-left:
			return
		case s := <-caught:
			if s == unix.SIGTSTP {
				t.change(t.saved)
				// The rest of the process group has had a SIGTSTP of its own. Go has no way to let a caught signal do what it usually does.
				_ = unix.Kill(unix.Getpid(), unix.SIGSTOP)
				continue
			}
			t.change(t.raw)
		}
	}
}

// change sets the mode unless raw mode has been left.
func (t *terminal) change(mode unix.Termios) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.watcher != nil {
		_ = t.set(mode)
	}
}

// set does nothing in the background: there the terminal is another's, and setting its mode would stop this process. What brings it to the
// foreground sends a SIGCONT.
func (t *terminal) set(mode unix.Termios) error {
	if isBackground(t.file) {
		return nil
	}
	return setMode(t.file, mode)
}

func setMode(f *os.File, mode unix.Termios) error {
	for {
		// At once: waiting for what was written to go out could take for ever.
		err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, &mode)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("set the terminal's mode: %w", err)
		}
		return nil
	}
}

// rawMode hands keys on one by one, as they are, without showing them. Output processing and the keys that make signals stay.
func rawMode(m unix.Termios) unix.Termios {
	m.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	m.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.IEXTEN
	m.Cflag = m.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	m.Cc[unix.VMIN], m.Cc[unix.VTIME] = 1, 0
	return m
}

// isBackground reports whether f is this process's terminal, and another process group has it: reading from it would stop this process.
func isBackground(f *os.File) bool {
	group, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCGPGRP)
	return err == nil && group != unix.Getpgrp()
}

// watcherArgument makes this program the process that restores the terminal. Nobody types it.
const watcherArgument = "__restore-terminal"

// watcher is the process that restores the terminal when this one has ended without having done so: killed, or by a panic. A pipe tells it, whose writing end this
// process alone has.
type watcher struct {
	cmd  *exec.Cmd
	pipe *os.File
}

func startWatcher(terminal *os.File, saved, raw unix.Termios) (*watcher, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start the process that restores the terminal: %w", err)
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe", watcherArgument)
	cmd.Stdin = r
	cmd.ExtraFiles = []*os.File{terminal}
	// The terminal's signals are not for it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		w.Close()
		return nil, fmt.Errorf("start the process that restores the terminal: %w", err)
	}
	if err := binary.Write(w, binary.NativeEndian, []unix.Termios{saved, raw}); err != nil {
		w.Close()
		_ = cmd.Wait()
		return nil, fmt.Errorf("start the process that restores the terminal: %w", err)
	}
	return &watcher{cmd, w}, nil
}

// dismiss ends the watcher without its having done anything.
func (w *watcher) dismiss() {
	// If it is gone already, that is as good.
	_, _ = w.pipe.Write([]byte{0})
	w.pipe.Close()
	_ = w.cmd.Wait()
}

// watch is the watcher's main.
func watch(in io.Reader, terminal *os.File) error {
	// It is in the background, and so would be stopped for setting the mode.
	signal.Ignore(unix.SIGTTOU, unix.SIGHUP, unix.SIGINT, unix.SIGTERM)
	var modes [2]unix.Termios
	if err := binary.Read(in, binary.NativeEndian, &modes); err != nil {
		return err
	}
	if n, _ := io.ReadFull(in, make([]byte, 1)); n == 1 {
		return nil
	}
	// A shell may have been faster; then the mode is its own.
	now, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
	if err != nil || *now != modes[1] {
		return err
	}
	return setMode(terminal, modes[0])
}
