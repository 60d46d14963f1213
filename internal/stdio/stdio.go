// Package stdio reads and writes standard streams so that it can be broken off. A descriptor of a terminal has no deadlines unless it is non-blocking, and that is
// shared with the shell and whoever else has the terminal open. So a file is waited for with poll, beside an eventfd.
package stdio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrStopped is what a Read or Write returns that was broken off.
var ErrStopped = errors.New("stdio: stopped")

// Stop breaks off every Read and Write that looks at it, those under way and those to come.
type Stop struct {
	once  sync.Once
	done  chan struct{}
	event *os.File
}

// NewStop returns a Stop, to be closed.
func NewStop() (*Stop, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make an eventfd: %w", err)
	}
	return &Stop{done: make(chan struct{}), event: os.NewFile(uintptr(fd), "eventfd")}, nil
}

// Set breaks off. It doesn't wait. It may be called at any time, also after Close, and more than once.
func (s *Stop) Set() {
	s.once.Do(func() {
		close(s.done)
		// On a closed file this fails: then nobody waits.
		_, _ = s.event.Write(binary.NativeEndian.AppendUint64(nil, 1))
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

// wait waits until the file is ready, or the stop is set: ErrStopped. Holding both descriptors, it works on the right ones, whoever closes the files meanwhile.
func (s *Stop) wait(f *os.File, events int16, then func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	event, err := s.event.SyscallConn()
	if err != nil {
		return err
	}
	// Control itself fails only for a closed file.
	done := os.ErrClosed
	_ = raw.Control(func(fd uintptr) {
		_ = event.Control(func(stop uintptr) {
			done = s.poll(int(fd), int(stop), events, then)
		})
	})
	return done
}

func (s *Stop) poll(fd, stop int, events int16, then func(fd int) error) error {
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: events}, {Fd: int32(stop), Events: unix.POLLIN}}
		_, err := unix.Poll(fds, -1)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return err
		case fds[1].Revents != 0:
			return ErrStopped
		}
		// Another reader or writer of the same file may have been faster.
		if err := then(fd); err != unix.EAGAIN && err != unix.EINTR {
			return err
		}
	}
}

// Input is where a standard input is read from.
//
// An *[os.File] is read when there is something. For any other reader a Read that is broken off goes on on a goroutine of its own until the reader returns; what it
// read is what the next Read returns.
type Input struct {
	r    io.Reader
	file *os.File // r, if it is one

	// For any other reader.
	results chan result
	pending bool   // a Read of r is under way
	buf     []byte // that it reads into
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

// Until returns a reader that ends with stop. One goroutine at a time may use the readers of an Input.
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
// An *[os.File] is written to when it has room; a terminal may take the last piece of some KiB late, and then it isn't broken off before. Any other writer isn't broken off
// at all.
type Output struct {
	w    io.Writer
	file *os.File // w, if it is one
}

// NewOutput returns an Output for w.
func NewOutput(w io.Writer) *Output {
	file, _ := w.(*os.File)
	return &Output{w: w, file: file}
}

// Until returns a writer that ends with stop.
func (o *Output) Until(stop *Stop) io.Writer { return outputWriter{o, stop} }

type outputWriter struct {
	*Output
	stop *Stop
}

// piece is what a pipe that poll calls writable takes without waiting: PIPE_BUF.
const piece = 4096

func (o outputWriter) Write(b []byte) (total int, err error) {
	if o.stop.stopped() {
		return 0, ErrStopped
	}
	if o.file == nil {
		return o.w.Write(b)
	}
	for total < len(b) {
		n := 0
		err := o.stop.wait(o.file, unix.POLLOUT, func(fd int) (err error) {
			n, err = unix.Write(fd, b[total:min(total+piece, len(b))])
			return err
		})
		if err != nil {
			return total, wrap("write", o.file, err)
		}
		total += n
	}
	return total, nil
}

func wrap(op string, f *os.File, err error) error {
	if errors.Is(err, ErrStopped) {
		return ErrStopped
	}
	return &os.PathError{Op: op, Path: f.Name(), Err: err}
}
