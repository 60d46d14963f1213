// Package regular opens regular files of the host without ever waiting in the
// kernel for another process.
package regular

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Patience is how long an open is tried again while another process has a lease
// on the file. Linux takes a lease away after /proc/sys/fs/lease-break-time, 45
// seconds by default.
const Patience = 2 * time.Minute

// How long Retry pauses: at first, and at most.
const (
	minPause = time.Millisecond
	maxPause = 100 * time.Millisecond
)

// Open opens a regular file to read. Anything else comes back open, too, with
// what it is: the caller refuses it by its mode. A FIFO doesn't wait for its
// writer. While another process has a lease on the file Open waits, for
// Patience at most: then the error is EAGAIN. Errors are *[fs.PathError].
func Open(path string) (*os.File, fs.FileInfo, error) {
	var f *os.File
	err := Retry(context.Background(), func() (err error) {
		f, err = Once("open", path, func(flags int) (int, error) {
			return unix.Open(path, unix.O_RDONLY|flags, 0)
		})
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, info, nil
}

// Once calls open with the flags that keep an open from waiting and from taking
// a terminal, and makes a file of the descriptor. The error is an EAGAIN where
// another process has a lease; see [Retry]. From then on the descriptor of a
// regular file waits, as others do: O_NONBLOCK was for the open alone.
func Once(op, path string, open func(flags int) (fd int, err error)) (*os.File, error) {
	const flags = unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
	fd, err := open(flags)
	for err == unix.EINTR {
		fd, err = open(flags)
	}
	var stat unix.Stat_t
	if err == nil {
		if err = unix.Fstat(fd, &stat); err == nil && stat.Mode&unix.S_IFMT == unix.S_IFREG {
			err = unix.SetNonblock(fd, false)
		}
		if err != nil {
			unix.Close(fd)
		}
	}
	if err != nil {
		return nil, &fs.PathError{Op: op, Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// Retry calls open again as long as its error is EAGAIN, with pauses, until
// Patience or ctx ends. The first call has told the holder of the lease to give
// it up. An open without O_NONBLOCK would wait for that in the kernel, but
// also, without end, for the writer of a FIFO that has taken the file's place;
// and a second look at the descriptor needs /proc. So the wait is here, and
// costs no thread.
func Retry(ctx context.Context, open func() error) error {
	late := time.Now().Add(Patience)
	for pause := minPause; ; pause = min(2*pause, maxPause) {
		err := open()
		if !errors.Is(err, unix.EAGAIN) || time.Now().After(late) {
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}
