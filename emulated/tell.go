package emulated

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// tellName is the FIFO in which programs tell their host something.
const tellName = "/tell"

// MaxTold is how many bytes Tell takes.
const MaxTold = 4096

// Tell passes up to MaxTold bytes to Config.OnTold of the Run that this process
// is in, which may join those of several calls. It waits if the host doesn't
// listen. Outside of emulated machines it does nothing.
func Tell(b []byte) error {
	if !Inside() {
		return nil
	}
	f, err := os.OpenFile(tellName, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("tell the host: %w", err)
	}
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		return fmt.Errorf("tell the host: %w", err)
	}
	return nil
}

// telling is the FIFO's other end.
type telling struct {
	f      *os.File
	frames *frameWriter
	mu     sync.Mutex // held from a read until its frame is sent
}

// hear passes on what programs tell, to the machine's end.
func hear(frames *frameWriter) (*telling, error) {
	if err := unix.Mkfifo(tellName, 0o600); err != nil {
		return nil, fmt.Errorf("make the FIFO for what programs tell: %w", err)
	}
	// Open for writing as well, the FIFO has no end when a program closes it.
	f, err := os.OpenFile(tellName, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open the FIFO for what programs tell: %w", err)
	}
	t := &telling{f: f, frames: frames}
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("open the FIFO for what programs tell: %w", err)
	}
	go func() {
		// It fails when the host is gone: there is no listener then.
		_ = raw.Read(func(fd uintptr) bool { return t.pass(int(fd)) != nil })
	}()
	return t, nil
}

// all passes on the rest that an ended program has told: its outcome comes
// before its exit code.
func (t *telling) all() error {
	raw, err := t.f.SyscallConn()
	if err != nil {
		return err
	}
	var passed error
	if err := raw.Control(func(fd uintptr) { passed = t.pass(int(fd)) }); err != nil {
		return err
	}
	return passed
}

// pass passes on what is there, without waiting for more.
func (t *telling) pass(fd int) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := make([]byte, MaxTold)
	for {
		n, err := unix.Read(fd, b)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN || n == 0:
			return nil
		case err != nil:
			return err
		}
		if err := t.frames.send(frameTold, b[:n]); err != nil {
			return err
		}
	}
}
