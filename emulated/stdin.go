package emulated

import (
	"errors"
	"io"
	"os"
	"sync"

	"github.com/fix-project/arcavm/internal/stdio"
)

// stdinChunk is the most that one frame carries of the standard input, in
// bytes. The next chunk is read when the programs' pipe has taken this one: so
// a program that doesn't read holds up nothing else on the link.
const stdinChunk = 32 << 10

// stdin passes the standard input into the machine. A nil *stdin does nothing.
type stdin struct {
	in      *stdio.Input
	stop    *stdio.Stop
	taken   chan struct{}
	running sync.WaitGroup
}

// newStdin returns nil for a nil r.
func newStdin(r io.Reader) (*stdin, error) {
	if r == nil {
		return nil, nil
	}
	stop, err := stdio.NewStop()
	if err != nil {
		return nil, err
	}
	return &stdin{in: stdio.NewInput(r), stop: stop, taken: make(chan struct{}, 1)}, nil
}

// start begins to pass it on, when init is ready.
func (s *stdin) start(m *machine) {
	if s != nil {
		s.running.Go(func() { s.forward(m) })
	}
}

func (s *stdin) forward(m *machine) {
	in, buf := s.in.Until(s.stop), make([]byte, stdinChunk)
	for {
		n, err := in.Read(buf)
		if n > 0 {
			if m.frames.send(frameStdin, buf[:n]) != nil {
				return
			}
			select {
			case <-s.taken:
			case <-m.ended:
				return
			}
		}
		switch {
		case errors.Is(err, stdio.ErrStopped):
			return
		case err != nil:
			// An error ends the input for the programs, too. The send fails
			// only if the machine is off.
			_ = m.frames.send(frameStdin, nil)
			return
		}
	}
}

// more lets the next chunk come.
func (s *stdin) more() {
	if s == nil {
		return
	}
	select {
	case s.taken <- struct{}{}:
	default:
	}
}

// end ends the passing on, when QEMU is gone.
func (s *stdin) end() {
	if s == nil {
		return
	}
	s.stop.Set()
	s.running.Wait()
	s.stop.Close()
}

// feed is init's side: it writes chunks into the pipe that the programs read,
// and closes it after an empty chunk.
func feed(frames *frameWriter, pipe *os.File, chunks <-chan []byte) {
	defer pipe.Close()
	for chunk := range chunks {
		if len(chunk) == 0 {
			return
		}
		if _, err := pipe.Write(chunk); err != nil {
			return
		}
		if err := frames.send(frameTaken, nil); err != nil {
			return
		}
	}
}
