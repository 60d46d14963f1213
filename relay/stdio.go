package relay

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/internal/stdio"
	"github.com/fix-project/arcavm/network"
)

// Stdio returns the handler of protocol 8: a standard input and output as a
// stream. One stream may be open at a time: EBUSY. A nil in is at its end, a
// nil out discards; without both there is nothing to open: EOPNOTSUPP. The
// handler serves one virtual machine and closes neither.
//
// An *[os.File] is read only when it has data, so that no data is lost and no
// goroutine left when the stream ends. A Read of any other reader isn't broken
// off, and its data is for the next stream. Nor is a Write to any other writer.
//
// onOpen, if not nil, is called with true before the guest is told that it has
// the stream, and with false when the stream has ended. It must return soon.
func Stdio(in io.Reader, out io.Writer, onOpen func(open bool)) Handler {
	c := &standardIO{onOpen: onOpen}
	if in != nil {
		c.in = stdio.NewInput(in)
	}
	if out != nil {
		c.out = stdio.NewOutput(out)
	}
	return c
}

type standardIO struct {
	in     *stdio.Input
	out    *stdio.Output
	onOpen func(open bool)

	mu      sync.Mutex
	current *standardStream
}

// standardStream is the stream that is open.
type standardStream struct {
	stream *Stream
	leaves atomic.Bool   // the guest takes no more input
	ended  chan struct{} // closed when another one may open
}

// Serve relays until both directions have ended.
func (c *standardIO) Serve(ctx context.Context, s *Stream) error {
	if err := noPayload(s); err != nil {
		return err
	}
	cs := &standardStream{stream: s, ended: make(chan struct{})}
	if err := c.take(ctx, cs); err != nil {
		s.failed("standard input and output refused", err)
		return s.Opened(network.Errno(err), nil)
	}
	defer c.leave(cs)
	return c.relay(ctx, cs)
}

// take makes cs the stream that is open. If the guest has left the last one
// already, it waits for the end of that.
func (c *standardIO) take(ctx context.Context, cs *standardStream) error {
	if c.in == nil && c.out == nil {
		return unix.EOPNOTSUPP
	}
	for {
		c.mu.Lock()
		before := c.current
		if before == nil {
			c.current = cs
		}
		c.mu.Unlock()
		switch {
		case before == nil:
			return nil
		case !before.leaves.Load():
			return unix.EBUSY
		}
		select {
		case <-before.ended:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (c *standardIO) leave(cs *standardStream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.current = nil
	close(cs.ended)
}

func (c *standardIO) relay(ctx context.Context, cs *standardStream) error {
	s := cs.stream
	// The input also ends when the guest takes no more of it.
	stopIn, err := stdio.NewStop()
	if err != nil {
		return s.Opened(network.Errno(err), nil)
	}
	defer stopIn.Close()
	stopOut, err := stdio.NewStop()
	if err != nil {
		return s.Opened(network.Errno(err), nil)
	}
	defer stopOut.Close()
	defer context.AfterFunc(ctx, func() {
		stopIn.Set()
		stopOut.Set()
	})()
	s.Pipe.OnWriteError(func() {
		cs.leaves.Store(true)
		stopIn.Set()
	})
	if c.onOpen != nil {
		c.onOpen(true)
		defer c.onOpen(false)
	}
	if err := s.Opened(0, nil); err != nil {
		return err
	}
	received := make(chan error, 1)
	go func() { received <- c.receive(s, stopIn) }()
	sent := c.send(s, stopOut)
	if sent != nil {
		stopIn.Set()
	}
	if err := <-received; err != nil {
		return err
	}
	return sent
}

// receive moves the input to the guest until the input ends. An error ends the
// stream.
func (c *standardIO) receive(s *Stream, stop *stdio.Stop) error {
	var err error
	if c.in != nil {
		var n int64
		n, err = s.Pipe.ReadFrom(c.in.Until(stop))
		s.toGuest.Add(uint64(n))
	}
	switch {
	case err == nil:
		_ = s.Pipe.CloseWrite()
		return nil
	case errors.Is(err, stdio.ErrStopped), s.Pipe.Caused(err):
		return nil
	}
	s.server.count.stdioFailed.Add(1)
	s.warn(s.server.logs.stdio, "the standard input failed", slog.Any("err", err))
	// This ends the other direction, too.
	_ = s.Pipe.Reset(network.Errno(err))
	return err
}

// send moves the guest's bytes to the output until the guest closes its writer,
// or the output takes no more. An error ends the stream.
func (c *standardIO) send(s *Stream, stop *stdio.Stop) error {
	out := io.Discard
	if c.out != nil {
		out = c.out.Until(stop)
	}
	n, err := s.Pipe.WriteTo(out)
	s.fromGuest.Add(uint64(n))
	switch {
	case err == nil:
		return nil
	case errors.Is(err, stdio.ErrStopped):
		return unix.ECONNRESET
	case s.Pipe.Caused(err):
		return err
	}
	s.server.count.stdioFailed.Add(1)
	s.warn(s.server.logs.stdio, "the rest of the standard output is lost", slog.Any("err", err))
	// The other direction may go on.
	s.Pipe.OnReadError(nil)
	_ = s.Pipe.CloseRead()
	return nil
}
