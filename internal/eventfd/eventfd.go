// Package eventfd makes eventfds (eventfd(2)): a counter behind a descriptor,
// which is readable while the counter isn't 0.
package eventfd

import (
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// New returns an eventfd that doesn't block and isn't passed on to a program
// that the process executes. Its counter is 0. The caller closes it.
func New() (fd int, err error) {
	fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return -1, fmt.Errorf("make an eventfd: %w", err)
	}
	return fd, nil
}

// NewFile returns an eventfd as a file, which Go's poller waits for.
func NewFile() (*os.File, error) {
	fd, err := New()
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "eventfd"), nil
}

var one = binary.NativeEndian.AppendUint64(nil, 1)

// Signal adds 1 to the counter of an open eventfd. It neither waits nor fails:
// only a counter at its end takes no more, and then it is far from 0.
func Signal(fd int) { _, _ = unix.Write(fd, one) }

// SignalFile is Signal for a file. A closed one has no reader left to signal,
// and nothing happens.
func SignalFile(f *os.File) { _, _ = f.Write(one) }
