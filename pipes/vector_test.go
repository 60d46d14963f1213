package pipes_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/pipes/guest"
	"github.com/fix-project/arcavm/pipes/pipestest"
)

// vectors plays a socket. As a reader it fills what it is given as long as it
// has bytes left, then waits for more.
type vectors struct {
	left  []byte
	more  chan []byte // closed: the end
	calls [][2]int    // lengths of the parts that it was given
	took  bytes.Buffer
}

func (v *vectors) Read([]byte) (int, error)    { panic("a vector reader is asked for vectors") }
func (v *vectors) Write(b []byte) (int, error) { return v.WriteVector(b, nil) }

func (v *vectors) ReadVector(a, b []byte, wait func()) (int, error) {
	v.calls = append(v.calls, [2]int{len(a), len(b)})
	if len(v.left) == 0 {
		wait()
		v.left = <-v.more
		if v.left == nil {
			return 0, io.EOF
		}
	}
	n := copy(a, v.left)
	n += copy(b, v.left[n:])
	v.left = v.left[n:]
	return n, nil
}

func (v *vectors) WriteVector(a, b []byte) (int, error) {
	v.calls = append(v.calls, [2]int{len(a), len(b)})
	v.took.Write(a)
	v.took.Write(b)
	return len(a) + len(b), nil
}

func numbered(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i ^ i>>8)
	}
	return b
}

// A reader that has just filled all that it was given may have more: its pipe
// keeps the signal back, but not while the reader waits.
func TestReadFromSignalsBeforeItWaits(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1, 4096, 64 << 10, 100_000, 256 << 10, 512<<10 - 1, 512 << 10} {
		host, guest := pipestest.NewPair(t, 512<<10)
		v := &vectors{more: make(chan []byte)}
		done := make(chan error, 1)
		go func() {
			_, err := host.ReadFrom(v)
			done <- err
		}()
		for range 20 {
			sent := numbered(size)
			v.more <- sent
			got := make([]byte, size)
			if _, err := io.ReadFull(guest, got); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, sent) {
				t.Fatalf("pieces of %d bytes: other bytes arrived", size)
			}
		}
		close(v.more)
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// While the other end sleeps, a signal stands for half of the ring, not for
// each chunk.
func TestReadFromSignalsOncePerReserve(t *testing.T) {
	t.Parallel()
	const ring, chunks = 1 << 20, 7 // of 128 KiB; the reserve is 512 KiB
	host, guest := pipestest.NewPair(t, ring)
	v := &vectors{more: make(chan []byte, 1)}
	v.more <- make([]byte, chunks*ring/8)
	close(v.more)
	// The guest sleeps until the end: its hook is set once.
	woken := make(chan struct{}, 100)
	guest.OnReadable(func() { woken <- struct{}{} })
	if _, err := host.ReadFrom(v); err != nil {
		t.Fatal(err)
	}
	<-woken
	s := host.Stats().Write
	if s.Chunks != chunks || s.Signals+s.Suppressed < chunks || s.Signals != 1 {
		t.Errorf("%d chunks, %d signals, %d suppressed", s.Chunks, s.Signals, s.Suppressed)
	}
}

// A deadline that ends ReadFrom doesn't drop a signal that is kept back.
func TestReadFromExpires(t *testing.T) {
	t.Parallel()
	host, guest := pipestest.NewPair(t, 64<<10)
	v := &vectors{left: make([]byte, 1<<20)}
	if err := host.SetWriteDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() {
		// The ring's whole content, whenever it comes.
		_, _, err := guest.ReserveRead(64 << 10)
		got <- err
	}()
	if _, err := host.ReadFrom(v); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if err := <-got; err != nil {
		t.Error(err)
	}
	guest.CommitRead(0)
}

// expiring is a reader that fills all that it is given, and whose second call
// sets a deadline that has passed.
type expiring struct {
	calls int
	pipe  *pipes.Pipe
}

func (e *expiring) Read([]byte) (int, error) { panic("a vector reader is asked for vectors") }

func (e *expiring) ReadVector(a, b []byte, _ func()) (int, error) {
	if e.calls++; e.calls == 2 {
		if err := e.pipe.SetWriteDeadline(time.Unix(1, 0)); err != nil {
			return 0, err
		}
	}
	return len(a) + len(b), nil
}

// An operation that ends with an error where there is room signals for what it
// has kept back.
func TestReadFromFailsWithKeptSignal(t *testing.T) {
	t.Parallel()
	host, guest := pipestest.NewPair(t, 1<<20) // chunks of 128 KiB, 512 KiB are kept back
	woken := make(chan struct{}, 1)
	guest.OnReadable(func() { woken <- struct{}{} })
	n, err := host.ReadFrom(&expiring{pipe: host})
	if n != 256<<10 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%d bytes, %v", n, err)
	}
	select {
	case <-woken:
	default:
		t.Error("the guest isn't woken")
	}
}

// Where ring memory wraps, both parts go in one call.
func TestVectorsWrap(t *testing.T) {
	t.Parallel()
	const ring = 64 << 10
	host, guest := pipestest.NewPair(t, ring)
	for _, way := range []struct {
		name string
		to   io.Writer
		from io.Reader
	}{{"to the guest", host, guest}, {"from the guest", guest, host}} {
		if _, err := way.to.Write(make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(way.from, make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
	}
	sent := numbered(ring)
	v := &vectors{more: make(chan []byte, 1)}
	v.more <- sent
	close(v.more)
	done := make(chan error, 1)
	go func() {
		_, err := host.ReadFrom(v)
		done <- err
	}()
	got := make([]byte, ring)
	if _, err := io.ReadFull(guest, got); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("other bytes arrived, %v", err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	want := [2]int{ring - 1000, 1000}
	if v.calls[0] != want {
		t.Errorf("a reader got %v, want %v", v.calls[0], want)
	}

	if _, err := guest.Write(sent); err != nil {
		t.Fatal(err)
	}
	guest.CloseWrite()
	w := &vectors{}
	if _, err := host.WriteTo(w); err != nil {
		t.Fatal(err)
	}
	if w.calls[0] != want || !bytes.Equal(w.took.Bytes(), sent) {
		t.Errorf("a writer got %v, want %v; or other bytes", w.calls[0], want)
	}
}

// starved is a reader whose goroutine gets no processor between two calls.
type starved struct {
	calls int
	goOn  chan struct{}
}

func (s *starved) Read([]byte) (int, error) { panic("a vector reader is asked for vectors") }

func (s *starved) ReadVector(a, b []byte, _ func()) (int, error) {
	if s.calls++; s.calls == 1 {
		return len(a) + len(b), nil
	}
	<-s.goOn
	return 0, io.EOF
}

// A signal that is kept back for a moment is late, not lost, however long a
// busy machine makes that moment.
func TestKeptSignalIsLateNotLost(t *testing.T) {
	t.Parallel()
	g := pipestest.New(t, 2<<20, pipes.Options{WatchInterval: 20 * time.Millisecond})
	host, end, err := g.Pair(4<<10, 512<<10)
	if err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	go func() {
		_, err := end.Read(make([]byte, 1))
		read <- err
	}()
	// The consumer's state, and its flag.
	waiting := end.Descriptor().Header + uint64(guest.Incoming) + 72
	for g.Load(waiting)>>32 == 0 {
		runtime.Gosched()
	}
	s := &starved{goOn: make(chan struct{})}
	done := make(chan error, 1)
	go func() {
		_, err := host.ReadFrom(s)
		done <- err
	}()
	// The watchdog wakes it.
	if err := <-read; err != nil {
		t.Fatal(err)
	}
	for g.Table.Stats().Late+g.Table.Stats().Forgotten == 0 {
		runtime.Gosched()
	}
	if n := g.Table.Stats().Forgotten; n != 0 {
		t.Errorf("%d wake-ups are called lost", n)
	}
	close(s.goOn)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
