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

// terminal is the terminal that the guest's stdio stream reads, if standard
// input is one. While the guest has the stream open the terminal is in raw
// mode: keys come as they are typed. Output is processed as in line mode, for
// log records go to the terminal as well, and Ctrl-C and Ctrl-Z are signals.
//
// A second process, the watcher, restores the terminal if this process ends
// without a chance to do so.
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

// newTerminal returns the terminal that in is. If in is none, the result does
// nothing but, in an emulated machine, to tell the arcavm outside, whose input
// may be one.
func newTerminal(in *os.File, log *slog.Logger) *terminal {
	t := &terminal{log: log}
	if in != nil && term.IsTerminal(int(in.Fd())) {
		t.file = in
	}
	return t
}

// use enters raw mode when the guest opens the stream, and leaves it when that
// has ended.
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

// What the arcavm in an emulated machine tells the arcavm outside.
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

// attend restores the terminal's mode while this process is stopped.
func (t *terminal) attend(caught chan os.Signal, left chan struct{}) {
	defer signal.Stop(caught)
	for {
		select {
		case <-left:
			return
		case s := <-caught:
			if s == unix.SIGTSTP {
				t.change(t.saved)
				// This stops the process as SIGTSTP would have: Go has no way
				// to let a signal that it caught have its usual effect. The
				// rest of the process group has had a SIGTSTP of its own.
				_ = unix.Kill(unix.Getpid(), unix.SIGSTOP)
				continue
			}
			t.change(t.raw)
		}
	}
}

// change sets a mode, unless raw mode has been left meanwhile.
func (t *terminal) change(mode unix.Termios) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.watcher != nil {
		_ = t.set(mode)
	}
}

// set sets the terminal's mode. In the background it does nothing: there the
// terminal is another process group's, and setting its mode would stop this
// process. A shell that brings it to the foreground sends a SIGCONT, and attend
// sets the mode.
func (t *terminal) set(mode unix.Termios) error {
	if isBackground(t.file) {
		return nil
	}
	return setMode(t.file, mode)
}

func setMode(f *os.File, mode unix.Termios) error {
	for {
		// TCSETS doesn't wait for output to leave the terminal, which could
		// take for ever.
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

// rawMode returns m for reading keys one by one, as they are, without an echo.
// Output processing and the keys that make signals stay.
func rawMode(m unix.Termios) unix.Termios {
	m.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	m.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.IEXTEN
	m.Cflag = m.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	m.Cc[unix.VMIN], m.Cc[unix.VTIME] = 1, 0
	return m
}

// isBackground reports whether f is this process's terminal, and another
// process group is in its foreground: then a read from it would stop this
// process.
func isBackground(f *os.File) bool {
	group, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCGPGRP)
	return err == nil && group != unix.Getpgrp()
}

// watcherArgument, as the only argument, makes this program the watcher. It is
// not for users.
const watcherArgument = "__restore-terminal"

// watcher is the process that restores the terminal when this one has ended
// without doing so: killed, or by a panic. It reads a pipe whose only writing
// end this process has: the end of this process is the pipe's.
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
	// In a process group of its own it doesn't get the terminal's signals.
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

// dismiss ends the watcher, which then leaves the terminal alone.
func (w *watcher) dismiss() {
	// An error is that it has ended already, which is as good.
	_, _ = w.pipe.Write([]byte{0})
	w.pipe.Close()
	_ = w.cmd.Wait()
}

// watch is what the watcher does: it reads the mode to restore and the raw mode
// from in and, if in then ends without another byte, restores the terminal.
func watch(in io.Reader, terminal *os.File) error {
	// SIGTTOU would stop it for setting the mode from the background.
	signal.Ignore(unix.SIGTTOU, unix.SIGHUP, unix.SIGINT, unix.SIGTERM)
	var modes [2]unix.Termios
	if err := binary.Read(in, binary.NativeEndian, &modes); err != nil {
		return err
	}
	if n, _ := io.ReadFull(in, make([]byte, 1)); n == 1 {
		return nil
	}
	// A mode that a shell has set since stays.
	now, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
	if err != nil || *now != modes[1] {
		return err
	}
	return setMode(terminal, modes[0])
}
