package stdio

import (
	"errors"
	"io"
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newStop(t *testing.T) *Stop {
	t.Helper()
	stop, err := NewStop()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop.Close() })
	return stop
}

// A Read that waits is broken off, whether it has begun or not; what comes
// later isn't lost.
func TestInput(t *testing.T) {
	t.Parallel()
	for name, reader := range map[string]func(*os.File) io.Reader{
		"file":  func(f *os.File) io.Reader { return f },
		"other": func(f *os.File) io.Reader { return struct{ io.Reader }{f} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			in := NewInput(reader(r))
			b := make([]byte, 3)
			for range 100 {
				stop := newStop(t)
				go stop.Set()
				if n, err := in.Until(stop).Read(b); n != 0 || err != ErrStopped {
					t.Fatalf("read %d bytes, %v", n, err)
				}
			}
			stop := newStop(t)
			if _, err := io.WriteString(w, "hello"); err != nil {
				t.Fatal(err)
			}
			w.Close()
			got, err := io.ReadAll(in.Until(stop))
			if string(got) != "hello" || err != nil {
				t.Errorf("read %q, %v", got, err)
			}
			if n, err := in.Until(stop).Read(b); n != 0 || err != io.EOF {
				t.Errorf("after the end: %d bytes, %v", n, err)
			}
		})
	}
}

func TestOutput(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	defer r.Close()
	out := NewOutput(w)
	stop := newStop(t)
	go func() {
		// When the pipe is full.
		_, _ = io.ReadFull(r, make([]byte, 100_000))
		stop.Set()
	}()
	n, err := out.Until(stop).Write(make([]byte, 1<<20))
	if n < 100_000 || n == 1<<20 || !errors.Is(err, ErrStopped) {
		t.Errorf("wrote %d bytes, %v", n, err)
	}
	if n, err := out.Until(stop).Write([]byte("x")); n != 0 || err != ErrStopped {
		t.Errorf("after that %d bytes, %v", n, err)
	}
}

func TestClosedFile(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	w.Close()
	stop := newStop(t)
	if _, err := NewInput(r).Until(stop).Read(make([]byte, 1)); !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
	if _, err := NewOutput(w).Until(stop).Write(make([]byte, 1)); !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
	stop.Close()
	stop.Set()
}
