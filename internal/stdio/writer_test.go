package stdio

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// newPipe returns both ends of a pipe whose writing end is an ordinary file for
// package os, as a standard stream is, whatever the descriptor's flags become.
func newPipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	r, w = os.NewFile(uintptr(fds[0]), "reader"), os.NewFile(uintptr(fds[1]), "writer")
	t.Cleanup(func() {
		r.Close()
		w.Close()
	})
	return r, w
}

func newWriter(t *testing.T, f *os.File) *Writer {
	t.Helper()
	w := NewWriter(f)
	t.Cleanup(func() { w.Close() })
	return w
}

// fill fills a pipe and returns how much that took.
func fill(t *testing.T, w *os.File) int {
	t.Helper()
	setNonblock(t, w, true)
	n := 0
	for {
		m, err := unix.Write(int(w.Fd()), make([]byte, 4096))
		if err == unix.EAGAIN {
			return n
		}
		if err != nil {
			t.Fatal(err)
		}
		n += m
	}
}

func setNonblock(t *testing.T, f *os.File, yes bool) {
	t.Helper()
	if err := unix.SetNonblock(int(f.Fd()), yes); err != nil {
		t.Fatal(err)
	}
}

// A file that another program has made non-blocking gets all the same.
func TestWriterNonblocking(t *testing.T) {
	t.Parallel()
	for name, writer := range map[string]func(*testing.T, *os.File) io.Writer{
		"Writer": func(t *testing.T, f *os.File) io.Writer { return newWriter(t, f) },
		"Output": func(t *testing.T, f *os.File) io.Writer { return NewOutput(f).Until(newStop(t)) },
		"Output of a Writer": func(t *testing.T, f *os.File) io.Writer {
			return NewOutput(newWriter(t, f)).Until(newStop(t))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, f := newPipe(t)
			w := writer(t, f)
			setNonblock(t, f, true)
			want := bytes.Repeat([]byte("0123456789abcde\n"), 1<<16)
			got := make(chan []byte)
			go func() {
				b, _ := io.ReadAll(r)
				got <- b
			}()
			if n, err := w.Write(want); n != len(want) || err != nil {
				t.Errorf("wrote %d of %d bytes, %v", n, len(want), err)
			}
			f.Close()
			if b := <-got; !bytes.Equal(b, want) {
				t.Errorf("%d of %d bytes arrived", len(b), len(want))
			}
		})
	}
}

// A Write that waits for its reader ends soon after Hurry, those to come too.
func TestWriterHurry(t *testing.T) {
	t.Parallel()
	_, f := newPipe(t)
	fill(t, f)
	w := newWriter(t, f)
	ended := make(chan error)
	go func() {
		_, err := w.Write([]byte("x"))
		ended <- err
	}()
	w.Hurry(time.Millisecond)
	if err := <-ended; !errors.Is(err, ErrStalled) {
		t.Errorf("the Write under way: %v", err)
	}
	if _, err := w.Write([]byte("x")); !errors.Is(err, ErrStalled) {
		t.Errorf("the next: %v", err)
	}
	if !errors.Is(w.Err(), ErrStalled) {
		t.Errorf("kept: %v", w.Err())
	}
}

func TestWriterErrors(t *testing.T) {
	t.Parallel()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	r, broken := newPipe(t)
	r.Close()
	for f, want := range map[*os.File]error{full: unix.ENOSPC, broken: unix.EPIPE} {
		w := newWriter(t, f)
		_, err := w.Write([]byte("x"))
		if !errors.Is(err, want) || w.Err() != err {
			t.Errorf("%s: %v, kept %v; want %v", f.Name(), err, w.Err(), want)
		}
		if n := strings.Count(err.Error(), f.Name()); n != 1 {
			t.Errorf("%v names the file %d times, want once", err, n)
		}
	}
}

// A reader that takes nothing holds up no record; the queue drops what it has
// no room for, and says how many when it can write again.
func TestQueueDrops(t *testing.T) {
	t.Parallel()
	r, f := newPipe(t)
	filled := fill(t, f)
	q := NewQueue(newWriter(t, f))
	record := func(i int) string { return fmt.Sprintf("%07d%s\n", i, strings.Repeat(".", 120)) }
	const most = 4 * queueSize / 128
	for i := range most {
		if n, err := io.WriteString(q, record(i)); n != 128 || err != nil {
			t.Fatalf("%d, %v", n, err)
		}
	}
	text := make(chan string)
	go func() {
		b, _ := io.ReadAll(r)
		text <- string(b[filled:])
	}()
	q.Close(-1)
	f.Close()

	lines := strings.SplitAfter(<-text, "\n")
	kept := len(lines) - 2 // the last is empty, the one before says what is missing
	for i, line := range lines[:kept] {
		if line != record(i) {
			t.Fatalf("record %d is %q", i, line)
		}
	}
	if want := fmt.Sprintf("%d records dropped: the file took no more\n", most-kept); lines[kept] != want {
		t.Errorf("the last record is %q, want %q", lines[kept], want)
	}
	if size := kept * 128; size < queueSize/2 || size > 3*queueSize {
		t.Errorf("%d bytes of records were kept", size)
	}
}

// Records that couldn't be written are counted as well.
func TestQueueCountsFailed(t *testing.T) {
	t.Parallel()
	r, f := newPipe(t)
	filled := fill(t, f)
	w := newWriter(t, f)
	w.Hurry(time.Millisecond)
	q := NewQueue(w)
	told := make(chan uint64, 100)
	q.OnDropped(func(n uint64) []byte {
		told <- n
		return fmt.Appendf(nil, "%d dropped\n", n)
	})
	io.WriteString(q, "one\n")
	io.WriteString(q, "two\n")
	// Each record wakes the queue to try again.
	for n := uint64(0); n < 3; n = <-told {
		io.WriteString(q, "more\n")
	}
	if _, err := io.CopyN(io.Discard, r, int64(filled)); err != nil {
		t.Fatal(err)
	}
	q.Close(time.Minute)
	f.Close()
	rest, err := io.ReadAll(r)
	if err != nil || !strings.HasSuffix(string(rest), " dropped\n") {
		t.Errorf("%q, %v", rest, err)
	}
}

// A queue is closed in time, whether its reader is slow, gone or asleep.
func TestQueueClose(t *testing.T) {
	t.Parallel()
	_, asleep := newPipe(t)
	fill(t, asleep)
	r, gone := newPipe(t)
	r.Close()
	for _, f := range []*os.File{asleep, gone} {
		q := NewQueue(newWriter(t, f))
		io.WriteString(q, "record\n")
		q.Close(time.Millisecond)
	}
}
