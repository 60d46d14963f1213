// Package stdio reads and writes standard streams, so that a Read or a Write
// can be broken off. A terminal's descriptor has deadlines only if it is
// non-blocking, which the shell and all others that have the terminal open
// would share. So a file is waited for by poll, beside an eventfd.
//
// The words of this package:
//
//   - stop: breaks off Reads and Writes; see [Stop]
//   - hurry: from then on a Write that makes no progress fails; see [Writer]
//   - record: what a [Queue] writes whole or drops
package stdio

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/internal/eventfd"
)

// ErrStopped is returned by a Read or Write that was broken off.
var ErrStopped = errors.New("stdio: stopped")

// Stop breaks off every Read and Write that heeds it, those under way and those
// to come.
type Stop struct {
	once  sync.Once
	done  chan struct{}
	event *os.File
}

// NewStop returns a Stop, to be closed.
func NewStop() (*Stop, error) {
	event, err := eventfd.NewFile()
	if err != nil {
		return nil, err
	}
	return &Stop{done: make(chan struct{}), event: event}, nil
}

// Set breaks off. It doesn't wait. It may be called at any time, also after
// Close, and more than once.
func (s *Stop) Set() {
	s.once.Do(func() {
		close(s.done)
		eventfd.SignalFile(s.event)
	})
}

// Close gives the eventfd back. No Read and no Write may be under way.
func (s *Stop) Close() error { return s.event.Close() }

func (s *Stop) stopped() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// wait waits until the file is ready and then has done what succeeds, or until
// the stop is set: ErrStopped.
func (s *Stop) wait(f *os.File, events int16, then func(fd int) error) error {
	for {
		ready, err := poll(f, events, -1, then, s.event)
		switch {
		case err == unix.EAGAIN || err == unix.EINTR:
			// Another reader or writer of the same file was faster.
		case err != nil:
			return err
		case ready:
			return nil
		case s.stopped():
			return ErrStopped
		}
	}
}

// poll waits until the file is ready, one of events is readable, or the time
// is over; a negative time is no limit. Where the file is ready, it calls then
// and returns its error. Holding all descriptors, it works on the right ones,
// even if the files are closed meanwhile.
func poll(f *os.File, mask int16, limit time.Duration, then func(fd int) error, events ...*os.File) (ready bool, err error) {
	held := false
	err = os.ErrClosed
	var fds []unix.PollFd
	look := func() {
		held = true
		if ready, err = ppoll(fds, limit); ready {
			err = then(int(fds[0].Fd))
		}
	}
	add := func(f *os.File, mask int16, next func()) func() {
		return func() {
			raw, rerr := f.SyscallConn()
			if rerr != nil {
				return
			}
			// Control itself fails only for a closed file.
			_ = raw.Control(func(fd uintptr) {
				fds = append(fds, unix.PollFd{Fd: int32(fd), Events: mask})
				next()
			})
		}
	}
	chain := look
	for _, e := range events {
		if e != nil {
			chain = add(e, unix.POLLIN, chain)
		}
	}
	add(f, mask, chain)()
	if !held {
		return false, os.ErrClosed
	}
	return ready, err
}

// ppoll reports whether the first descriptor is ready, and none of the others.
func ppoll(fds []unix.PollFd, limit time.Duration) (bool, error) {
	var end time.Time
	if limit >= 0 {
		end = time.Now().Add(limit)
	}
	for {
		var timeout *unix.Timespec
		if limit >= 0 {
			left := unix.NsecToTimespec(max(0, time.Until(end)).Nanoseconds())
			timeout = &left
		}
		_, err := unix.Ppoll(fds, timeout, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return false, err
		}
		for _, other := range fds[1:] {
			if other.Revents != 0 {
				return false, nil
			}
		}
		return fds[0].Revents != 0, nil
	}
}

// Input is where a standard input is read from.
//
// An *[os.File] is read when there is something to read. A Read of another
// reader that is broken off goes on, on a goroutine of its own, until the
// reader returns; the next Read returns what it has read.
type Input struct {
	r    io.Reader
	file *os.File // r, if it is one

	// For other readers than files.
	results chan result
	pending bool   // a Read of r is under way
	buf     []byte // what that Read reads into
	left    []byte // of buf, unread
	err     error  // comes after left
}

type result struct {
	n   int
	err error
}

// NewInput returns an Input for r.
func NewInput(r io.Reader) *Input {
	file, _ := r.(*os.File)
	return &Input{r: r, file: file, results: make(chan result, 1)}
}

// Until returns a reader that ends with stop. One goroutine at a time may use
// the readers of an Input.
func (i *Input) Until(stop *Stop) io.Reader { return inputReader{i, stop} }

type inputReader struct {
	*Input
	stop *Stop
}

func (i inputReader) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	if i.stop.stopped() {
		return 0, ErrStopped
	}
	if i.file == nil {
		return i.readOther(b)
	}
	n := 0
	err := i.stop.wait(i.file, unix.POLLIN, func(fd int) (err error) {
		n, err = unix.Read(fd, b)
		return err
	})
	if err != nil {
		return 0, wrap("read", i.file, err)
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (i inputReader) readOther(b []byte) (int, error) {
	if len(i.left) == 0 && i.err == nil {
		if !i.pending {
			i.pending = true
			if i.buf == nil {
				i.buf = make([]byte, 16<<10)
			}
			go func() {
				n, err := i.r.Read(i.buf)
				i.results <- result{n, err}
			}()
		}
		select {
		case <-i.stop.done:
			return 0, ErrStopped
		case r := <-i.results:
			i.pending, i.left, i.err = false, i.buf[:r.n], r.err
		}
	}
	n := copy(b, i.left)
	i.left = i.left[n:]
	if n > 0 {
		return n, nil
	}
	err := i.err
	if err != io.EOF {
		i.err = nil
	}
	return 0, err
}

// Output is where a standard output is written to.
//
// An *[os.File], and a [Writer]'s, is written to when it has room; a terminal
// may take the last piece of some KiB late, and then it isn't broken off
// before. Any other writer isn't broken off at all.
type Output struct {
	w      io.Writer
	writer *Writer // w, if it is one or a file
}

// NewOutput returns an Output for w.
func NewOutput(w io.Writer) *Output {
	o := &Output{w: w}
	switch w := w.(type) {
	case *os.File:
		o.writer = &Writer{file: w}
	case *Writer:
		o.writer = w
	}
	return o
}

// Until returns a writer that ends with stop.
func (o *Output) Until(stop *Stop) io.Writer { return outputWriter{o, stop} }

type outputWriter struct {
	*Output
	stop *Stop
}

func (o outputWriter) Write(b []byte) (int, error) {
	if o.stop.stopped() {
		return 0, ErrStopped
	}
	if o.writer == nil {
		return o.w.Write(b)
	}
	return o.writer.write(b, o.stop)
}

func wrap(op string, f *os.File, err error) error {
	if errors.Is(err, ErrStopped) {
		return ErrStopped
	}
	return &os.PathError{Op: op, Path: f.Name(), Err: err}
}
