package relay_test

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network/outside"
	"github.com/fix-project/arcavm/pipes/pipestest"
	"github.com/fix-project/arcavm/wire"
)

func (m *machine) tryStdio() (*pipestest.GuestConn, error) {
	m.t.Helper()
	c, err := m.tryPipe(4096, 4096, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	_, err = open(c, wire.ProtocolStdio, nil)
	return c, err
}

func (m *machine) stdio() *pipestest.GuestConn {
	m.t.Helper()
	c, err := m.tryStdio()
	if err != nil {
		m.t.Fatal(err)
	}
	return c
}

func mustWrite(t testing.TB, w io.Writer, text string) {
	t.Helper()
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
}

// Files and other readers and writers carry the same bytes, and the end of the
// input.
func TestStdio(t *testing.T) {
	t.Parallel()
	in, out := pattern(1, 100_000), pattern(2, 100_000)
	for name, kind := range map[string]func(t *testing.T) (io.Reader, io.Writer, func() []byte){
		"files": func(t *testing.T) (io.Reader, io.Writer, func() []byte) {
			r, typed := outside.Pipe(t)
			printed, w := outside.Pipe(t)
			go func() {
				typed.Write(in)
				typed.Close()
			}()
			got := make(chan []byte)
			go func() {
				b, _ := io.ReadAll(printed)
				got <- b
			}()
			return r, w, func() []byte { w.Close(); return <-got }
		},
		"others": func(*testing.T) (io.Reader, io.Writer, func() []byte) {
			var b bytes.Buffer
			return iotest.HalfReader(bytes.NewReader(in)), &b, b.Bytes
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, w, printed := kind(t)
			var calls []bool
			m := start(t, setup{input: r, output: w, onStdio: func(open bool) { calls = append(calls, open) }})
			c := m.stdio()
			var writing sync.WaitGroup
			writing.Go(func() {
				c.Write(out)
				c.CloseWrite()
			})
			wantBytes(t, c, in)
			wantEOF(t, c)
			writing.Wait()
			c.CloseRead()
			m.wantFree()
			if got := printed(); !bytes.Equal(got, out) {
				t.Errorf("%d bytes came out, not those that the guest wrote", len(got))
			}
			m.stop()
			if !slices.Equal(calls, []bool{true, false}) {
				t.Errorf("onOpen was called with %v", calls)
			}
			if s := m.server.Stats(); s.ToGuest != uint64(len(in)) || s.FromGuest != uint64(len(out)) {
				t.Errorf("%d bytes to the guest and %d from it are counted", s.ToGuest, s.FromGuest)
			}
		})
	}
}

func TestStdioWithout(t *testing.T) {
	t.Parallel()
	t.Run("both", func(t *testing.T) {
		t.Parallel()
		if _, err := start(t, setup{}).tryStdio(); !errors.Is(err, unix.EOPNOTSUPP) {
			t.Error(err)
		}
	})
	t.Run("input", func(t *testing.T) {
		t.Parallel()
		var out strings.Builder
		m := start(t, setup{output: &out})
		c := m.stdio()
		wantEOF(t, c)
		mustWrite(t, c, "text")
		c.Close()
		m.wantFree()
		if out.String() != "text" {
			t.Errorf("got %q", &out)
		}
	})
	t.Run("output", func(t *testing.T) {
		t.Parallel()
		c := start(t, setup{input: strings.NewReader("text")}).stdio()
		mustWrite(t, c, strings.Repeat("lost", 10_000))
		wantBytes(t, c, []byte("text"))
		wantEOF(t, c)
	})
}

// These protocols have no payload in an Open.
func TestOpenWithPayload(t *testing.T) {
	t.Parallel()
	m := start(t, setup{input: strings.NewReader("")})
	for _, protocol := range []uint16{wire.ProtocolFileSystem, wire.ProtocolResolver, wire.ProtocolStdio} {
		if _, err := open(m.pipe(), protocol, []byte("x")); !errors.Is(err, unix.EPROTO) {
			t.Errorf("protocol %d: %v", protocol, err)
		}
	}
}

// One stream has the standard input and output. When the guest has closed it
// the next one may open at once, and gets the input that the first one didn't
// take.
func TestStdioOneAtATime(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"files", "others"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			r, w := outside.Pipe(t)
			var in io.Reader = r
			if kind == "others" {
				in = struct{ io.Reader }{r}
			}
			m := start(t, setup{input: in, output: io.Discard})
			for range 50 {
				c := m.stdio()
				if _, err := m.tryStdio(); !errors.Is(err, unix.EBUSY) {
					t.Fatalf("the second: %v", err)
				}
				mustWrite(t, w, "a")
				wantBytes(t, c, []byte("a"))
				c.Close()
				mustWrite(t, w, "b")
				c = m.stdio()
				wantBytes(t, c, []byte("b"))
				c.Reset(unix.ECONNRESET)
			}
			w.Close() // ends a Read of another reader that waits
		})
	}
}

// The virtual machine ends, though no input comes and no output is read.
func TestStdioStops(t *testing.T) {
	t.Parallel()
	r, _ := outside.Pipe(t)
	_, w := outside.Pipe(t)
	size, err := unix.FcntlInt(w.Fd(), unix.F_GETPIPE_SZ, 0)
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, w, strings.Repeat("x", size))
	m := start(t, setup{input: r, output: w})
	mustWrite(t, m.stdio(), "more than the pipe takes")
	m.stop()
}

// The reader of the output has ended: the guest's writes fail, its input goes
// on.
func TestStdioOutputGone(t *testing.T) {
	t.Parallel()
	r, typed := outside.Pipe(t)
	printed, w := outside.Pipe(t)
	m := start(t, setup{input: r, output: w})
	c := m.stdio()
	mustWrite(t, c, "read")
	wantBytes(t, printed, []byte("read"))
	printed.Close()
	var err error
	for err == nil {
		_, err = c.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.EPIPE) {
		t.Errorf("writing fails with %v", err)
	}
	mustWrite(t, typed, "still here")
	wantBytes(t, c, []byte("still here"))
	if n := m.log.count("the rest of the standard output is lost"); n != 1 {
		t.Errorf("%d log records", n)
	}
	if s := m.server.Stats(); s.StdioFailed != 1 {
		t.Errorf("%+v", s)
	}
	c.Close()
	m.wantFree()
}

func TestStdioInputFails(t *testing.T) {
	t.Parallel()
	r, w := io.Pipe()
	m := start(t, setup{input: r})
	c := m.stdio()
	w.CloseWithError(unix.EIO)
	wantReadError(t, c, unix.EIO)
	if s := m.server.Stats(); s.StdioFailed != 1 {
		t.Errorf("%+v", s)
	}
	c.Close()
	m.wantFree()
}
