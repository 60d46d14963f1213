package pipes_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/pipes/pipestest"
)

// collector takes what a pipe brings by WriteAvailable. It has no goroutine
// while there is nothing.
type collector struct {
	pipe *pipes.Pipe
	got  bytes.Buffer
	runs int // each run hands over to the next by the pipe
	end  chan error
}

func (c *collector) collect() {
	c.runs++
	if err := drain(c.pipe, &c.got, c.collect); err != nil {
		c.end <- err
	}
}

// drain tries, then subscribes, as often as it takes. After nil f is called, or
// was.
func drain(p *pipes.Pipe, w io.Writer, f func()) error {
	for {
		if _, err := p.WriteAvailable(w); err != nil || p.SubscribeReadable(f) {
			return err
		}
	}
}

// All bytes arrive, each once, on whichever goroutine the collector runs: that
// of the guest's write, or another that races with it.
func TestWriteAvailable(t *testing.T) {
	t.Parallel()
	for name, goes := range map[string]func(func()){
		"on the waker's goroutine": func(f func()) { f() },
		"on one of its own":        func(f func()) { go f() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host, guest := pipestest.NewPair(t, 4096)
			sent := make([]byte, 1<<20)
			for i := range sent {
				sent[i] = byte(rand.Uint32())
			}
			c := &collector{pipe: host, end: make(chan error, 1)}
			var next func()
			next = func() {
				goes(func() {
					if err := drain(host, &c.got, next); err != nil {
						c.end <- err
					}
				})
			}
			next()
			for left := sent; len(left) > 0; {
				n := min(len(left), 1+rand.IntN(3000))
				if _, err := guest.Write(left[:n]); err != nil {
					t.Fatal(err)
				}
				left = left[n:]
			}
			guest.CloseWrite()
			if err := <-c.end; err != io.EOF {
				t.Fatalf("got %v, want end of file", err)
			}
			if !bytes.Equal(c.got.Bytes(), sent) {
				t.Errorf("%d bytes arrived that differ from the %d sent", c.got.Len(), len(sent))
			}
		})
	}
}

// The end of a pipe is told at once to a subscriber, and else by the next call.
func TestWriteAvailableEnds(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		end  func(host *pipes.Pipe, guest *pipestest.GuestConn)
		want error
	}{
		"guest closes":  {func(_ *pipes.Pipe, g *pipestest.GuestConn) { g.Close() }, io.EOF},
		"guest resets":  {func(_ *pipes.Pipe, g *pipestest.GuestConn) { g.Reset(unix.ETIMEDOUT) }, unix.ETIMEDOUT},
		"guest breaks":  {func(_ *pipes.Pipe, g *pipestest.GuestConn) { g.Poke(pipestest.Outgoing, 1<<40, 0) }, unix.EPROTO},
		"monitor ends":  {func(h *pipes.Pipe, _ *pipestest.GuestConn) { h.Close() }, net.ErrClosed},
		"guest is gone": {func(h *pipes.Pipe, _ *pipestest.GuestConn) { h.Table().EndGuest() }, io.EOF},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host, guest := pipestest.NewPair(t, 4096)
			col := &collector{pipe: host, end: make(chan error, 1)}
			col.collect()
			c.end(host, guest)
			select {
			case err := <-col.end:
				if !errors.Is(err, c.want) {
					t.Errorf("got %v, want %v", err, c.want)
				}
			default:
				t.Fatal("not told")
			}
			if _, err := host.WriteAvailable(io.Discard); err == nil {
				t.Error("no error after the end")
			}
			if host.SubscribeReadable(func() { t.Error("called again") }) {
				t.Error("subscribed after the end")
			}
			if col.runs != 2 {
				t.Errorf("ran %d times, want 2", col.runs)
			}
		})
	}
}

// A writer that takes no more leaves the rest where it is, for another.
func TestWriteAvailableStops(t *testing.T) {
	t.Parallel()
	host, guest := pipestest.NewPair(t, 4096)
	if _, err := guest.Write([]byte("abcdef")); err != nil {
		t.Fatal(err)
	}
	enough := errors.New("enough")
	n, err := host.WriteAvailable(writerFunc(func([]byte) (int, error) { return 2, enough }))
	if n != 2 || err != enough {
		t.Errorf("%d, %v", n, err)
	}
	var rest bytes.Buffer
	if host.SubscribeReadable(func() { t.Error("called though there is more") }) {
		t.Error("subscribed though there is more")
	}
	if _, err := host.WriteAvailable(&rest); err != nil || rest.String() != "cdef" {
		t.Errorf("%q, %v", rest.String(), err)
	}
	called := make(chan struct{})
	if !host.SubscribeReadable(func() { close(called) }) {
		t.Error("not subscribed")
	}
	guest.Close()
	<-called
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
