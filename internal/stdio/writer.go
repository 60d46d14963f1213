package stdio

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// ErrStalled is why a Write fails whose file took nothing for as long as
// [Writer.Hurry] allows.
var ErrStalled = fmt.Errorf("its reader takes nothing: %w", os.ErrDeadlineExceeded)

// piece is what a pipe that poll calls writable takes without waiting:
// PIPE_BUF.
const piece = 4096

// Writer writes to a file that other programs may share, as a standard output
// or error is: where one of them has made it non-blocking, a Write that finds
// no room waits for some all the same. A broken pipe ends the process by
// SIGPIPE where Go has that signal do so, which is for standard output and
// error, and is an error else.
//
// Its methods may be called by several goroutines at once.
type Writer struct {
	file *os.File

	// hurry is set by Hurry; nil: there is none.
	hurry    *Stop
	patience time.Duration // written before hurry is set

	moved atomic.Uint64 // bytes

	mu  sync.Mutex
	err error // the first
}

// NewWriter returns a Writer for a file, which it doesn't close. On a machine
// without a descriptor to spare its Hurry does nothing.
func NewWriter(f *os.File) *Writer {
	w := &Writer{file: f}
	w.hurry, _ = NewStop()
	return w
}

// Close gives up what NewWriter has made. No Write may be under way.
func (w *Writer) Close() error {
	if w.hurry == nil {
		return nil
	}
	return w.hurry.Close()
}

// Hurry lets every Write, the one under way included, fail with [ErrStalled]
// when the file takes nothing for the given time. Only the first call counts.
func (w *Writer) Hurry(patience time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.hurry == nil || w.hurry.stopped() {
		return
	}
	w.patience = patience
	w.hurry.Set()
}

// Err returns the first error of a Write, nil if there was none.
func (w *Writer) Err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// Write writes all of b, and waits for room. Errors are [*os.PathError].
func (w *Writer) Write(b []byte) (int, error) { return w.write(b, nil) }

// write is Write until stop is set, unless that is nil: then it returns
// ErrStopped.
func (w *Writer) write(b []byte, stop *Stop) (total int, err error) {
	for total < len(b) {
		n, err := w.next(b[total:min(total+piece, len(b))], stop)
		total += n
		w.moved.Add(uint64(n))
		switch {
		case err == unix.EAGAIN || err == unix.EINTR:
			// Another writer of the same file was faster.
		case err != nil:
			return total, w.failed(wrap("write", w.file, err))
		}
	}
	return total, nil
}

// next writes what the file takes of b when it has room. It returns 0 and no
// error when there is a reason to look again.
func (w *Writer) next(b []byte, stop *Stop) (n int, err error) {
	limit := time.Duration(-1)
	var events []*os.File
	if stop != nil {
		if stop.stopped() {
			return 0, ErrStopped
		}
		events = append(events, stop.event)
	}
	hurried := w.hurry != nil && w.hurry.stopped()
	if hurried {
		limit = w.patience
	} else if w.hurry != nil {
		events = append(events, w.hurry.event)
	}
	ready, err := poll(w.file, unix.POLLOUT, limit, func(fd int) (err error) {
		n, err = unix.Write(fd, b)
		if err == unix.EPIPE {
			// This raises SIGPIPE where it is to be raised.
			n, err = w.file.Write(b)
			if errors.Is(err, unix.EPIPE) {
				err = unix.EPIPE // the caller names the file
			}
		}
		n = max(n, 0)
		return err
	}, events...)
	if err == nil && !ready && hurried && (stop == nil || !stop.stopped()) {
		err = ErrStalled
	}
	return n, err
}

func (w *Writer) failed(err error) error {
	if err == ErrStopped {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
	return err
}
