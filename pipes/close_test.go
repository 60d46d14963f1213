package pipes_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/pipes/pipestest"
)

const testTimeout = 20 * time.Second

// deadlines makes a test fail with an error where it would hang.
func deadlines(t testing.TB, conns ...*pipes.Pipe) {
	t.Helper()
	for _, c := range conns {
		if err := c.SetDeadline(time.Now().Add(testTimeout)); err != nil {
			t.Fatal(err)
		}
	}
}

// await fails the test if nothing comes.
func await[T any](t testing.TB, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(testTimeout):
		t.Fatalf("no %s after %v", what, testTimeout)
		panic("unreachable")
	}
}

func fill(n int, salt byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7) ^ byte(i>>8) ^ salt
	}
	return b
}

// ends runs a test twice: a is the monitor's end and b the guest's, and the
// other way round.
func ends(t *testing.T, size uint32, test func(t *testing.T, g *pipestest.Guest, a, b *pipes.Pipe)) {
	for _, first := range []string{"monitor", "guest"} {
		t.Run(first, func(t *testing.T) {
			t.Parallel()
			g := pipestest.New(t, 4<<20, pipes.Options{})
			host, guest, err := g.Pair(size, size)
			if err != nil {
				t.Fatal(err)
			}
			a, b := host, guest.Pipe
			if first == "guest" {
				a, b = b, a
			}
			deadlines(t, a, b)
			test(t, g, a, b)
		})
	}
}

func expect(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// Each end sends its bytes, up to many rings full, and closes its writer when
// all are sent, whatever the other end is at by then.
func TestHalfCloseMatrix(t *testing.T) {
	t.Parallel()
	for _, sizes := range [][2]int{{0, 0}, {1, 0}, {0, 100_000}, {5000, 100_000}, {100_000, 100_000}, {4096, 4096}} {
		for _, closeRead := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d and %d bytes, close reader %v", sizes[0], sizes[1], closeRead), func(t *testing.T) {
				t.Parallel()
				ends(t, 4096, func(t *testing.T, g *pipestest.Guest, a, b *pipes.Pipe) {
					var wg sync.WaitGroup
					for i, p := range []*pipes.Pipe{a, b} {
						send, receive := fill(sizes[i], byte(i)), fill(sizes[1-i], byte(1-i))
						wg.Go(func() {
							if _, err := p.Write(send); err != nil {
								t.Error(err)
							}
							if err := p.CloseWrite(); err != nil {
								t.Error(err)
							}
						})
						wg.Go(func() {
							got, err := io.ReadAll(p)
							if err != nil {
								t.Error(err)
							}
							if !bytes.Equal(got, receive) {
								t.Errorf("%v got %d bytes, not the %d that were sent", p.LocalAddr(), len(got), len(receive))
							}
							if closeRead {
								if err := p.CloseRead(); err != nil {
									t.Error(err)
								}
							}
						})
					}
					wg.Wait()
					if !closeRead {
						a.CloseRead()
						b.CloseRead()
					}
					if n := g.Table.Stats().Open; n != 0 {
						t.Errorf("%d pipes are open after all four closes", n)
					}
				})
			})
		}
	}
}

func TestWriteAfterReaderIsGone(t *testing.T) {
	t.Parallel()
	for what, leave := range map[string]struct {
		do   func(p *pipes.Pipe) error
		want error
	}{
		"closed": {func(p *pipes.Pipe) error { return p.CloseRead() }, unix.EPIPE},
		"reset":  {func(p *pipes.Pipe) error { return p.Reset(unix.ETIMEDOUT) }, unix.ETIMEDOUT},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			ends(t, 4096, func(t *testing.T, g *pipestest.Guest, a, b *pipes.Pipe) {
				// The first write fills the ring and waits; the other end
				// leaves while it does.
				failed := make(chan error, 1)
				n := 0
				go func() {
					var err error
					n, err = a.Write(make([]byte, 5000))
					failed <- err
				}()
				if _, _, err := b.ReserveRead(4096); err != nil {
					t.Fatal(err)
				}
				b.CommitRead(0)
				if err := leave.do(b); err != nil {
					t.Fatal(err)
				}
				expect(t, "write under way", await(t, failed, "failed write"), leave.want)
				if n != 4096 {
					t.Errorf("%d bytes written, want 4096", n)
				}
				_, err := a.Write([]byte{1})
				expect(t, "later write", err, leave.want)
				expect(t, "second close of the reader", b.CloseRead(), net.ErrClosed)
			})
		})
	}
}

func TestResetDropsWhatIsUnread(t *testing.T) {
	t.Parallel()
	for _, errno := range []unix.Errno{0, unix.ECONNRESET, unix.ETIMEDOUT, unix.EHOSTUNREACH} {
		want := errno
		if errno == 0 {
			want = unix.ECONNRESET
		}
		t.Run(want.Error(), func(t *testing.T) {
			t.Parallel()
			ends(t, 4096, func(t *testing.T, g *pipestest.Guest, a, b *pipes.Pipe) {
				if _, err := a.Write([]byte("unread")); err != nil {
					t.Fatal(err)
				}
				if err := a.CloseWrite(); err != nil { // a reset goes beyond a close
					t.Fatal(err)
				}
				if err := a.Reset(errno); err != nil {
					t.Fatal(err)
				}
				_, err := b.Read(make([]byte, 10))
				expect(t, "read", err, want)
				_, err = b.Write([]byte{1})
				expect(t, "write", err, want)
				_, err = a.Read(make([]byte, 10))
				expect(t, "own read", err, net.ErrClosed)
				_, err = a.Write([]byte{1})
				expect(t, "own write", err, net.ErrClosed)
				b.Close()
				if n := g.Table.Stats().Open; n != 0 {
					t.Errorf("%d pipes are open after reset and close", n)
				}
			})
		})
	}
}

func TestCloseEndsWhatIsUnderWay(t *testing.T) {
	t.Parallel()
	ends(t, 4096, func(t *testing.T, g *pipestest.Guest, a, b *pipes.Pipe) {
		const each = 3
		failed := make(chan error, 2*each)
		if _, err := a.Write(make([]byte, 4096)); err != nil {
			t.Fatal(err)
		}
		for range each {
			go func() { _, err := a.Read(make([]byte, 1)); failed <- err }()
			go func() { _, err := a.Write(make([]byte, 1)); failed <- err }()
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		for range 2 * each {
			expect(t, "operation", await(t, failed, "end of an operation"), net.ErrClosed)
		}
		expect(t, "second close", a.Close(), net.ErrClosed)
		got, err := io.ReadAll(b)
		if err != nil || len(got) != 4096 {
			t.Errorf("the other end read %d bytes, %v; want 4096 and end of file", len(got), err)
		}
		expect(t, "deadline after close", a.SetDeadline(time.Time{}), net.ErrClosed)
	})
}

// A deadline also ends an operation that waits for its turn.
func TestDeadlineWhileAnotherOwnsTheDirection(t *testing.T) {
	t.Parallel()
	ends(t, 4096, func(t *testing.T, g *pipestest.Guest, a, b *pipes.Pipe) {
		if _, _, err := a.ReserveWrite(1); err != nil {
			t.Fatal(err)
		}
		failed := make(chan error, 1)
		go func() { _, err := a.Write([]byte{1}); failed <- err }()
		if err := a.SetWriteDeadline(time.Now().Add(time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		err := await(t, failed, "timeout")
		expect(t, "write", err, os.ErrDeadlineExceeded)
		var ne net.Error
		if !errors.As(err, &ne) || !ne.Timeout() {
			t.Errorf("%v is no timeout", err)
		}
		a.CommitWrite(0)
		if err := a.SetWriteDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Write([]byte{1}); err != nil {
			t.Errorf("write after the deadline was taken away: %v", err)
		}
	})
}

// An end whose wait has ended at a deadline clears its flag: it isn't signalled
// for nothing.
func TestExpiredEndDoesNotWait(t *testing.T) {
	t.Parallel()
	ends(t, 4096, func(t *testing.T, g *pipestest.Guest, a, b *pipes.Pipe) {
		if err := a.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		_, err := a.Read(make([]byte, 1))
		expect(t, "read", err, os.ErrDeadlineExceeded)
		header := a.Descriptor().Header
		for _, flag := range []uint64{header + 72, header + 128 + 72} { // a reader's state and flag
			if g.Load(flag)>>32 != 0 {
				t.Errorf("the flag at %d is up", flag-header+4)
			}
		}
		if _, err := b.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		if s := b.Stats().Write; s.Signals != 0 {
			t.Errorf("%d signals to an end that doesn't wait", s.Signals)
		}
	})
}

func TestReserve(t *testing.T) {
	t.Parallel()
	ends(t, 4096, func(t *testing.T, g *pipestest.Guest, a, b *pipes.Pipe) {
		for _, min := range []int{-1, 0, 4097} {
			_, _, err := a.ReserveWrite(min)
			expect(t, "reserve", err, unix.EINVAL)
			_, _, err = a.ReserveRead(min)
			expect(t, "reserve", err, unix.EINVAL)
		}
		// Move both cursors so that the next reservation wraps.
		if _, err := a.Write(make([]byte, 4000)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(b, make([]byte, 4000)); err != nil {
			t.Fatal(err)
		}
		x, y, err := a.ReserveWrite(4096)
		if err != nil || len(x) != 96 || len(y) != 4000 {
			t.Fatalf("spans of %d and %d bytes, %v; want 96 and 4000", len(x), len(y), err)
		}
		want := fill(200, 3)
		copy(y, want[copy(x, want):])
		a.CommitWrite(200)
		x, y, err = b.ReserveRead(200)
		if err != nil || !bytes.Equal(append(bytes.Clone(x), y...), want) {
			t.Fatalf("%d and %d bytes, %v; not what was written", len(x), len(y), err)
		}
		b.CommitRead(150)
		if n, m := b.ReadableLen(), a.WritableLen(); n != 50 || m != 4046 {
			t.Errorf("readable %d, writable %d; want 50, 4046", n, m)
		}
		if err := a.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		_, _, err = b.ReserveRead(51)
		expect(t, "more than will ever come", err, io.ErrUnexpectedEOF)
		x, y, err = b.ReserveRead(50)
		if err != nil || !bytes.Equal(append(bytes.Clone(x), y...), want[150:]) {
			t.Fatalf("the rest: %v", err)
		}
		b.CommitRead(50)
		_, _, err = b.ReserveRead(1)
		expect(t, "at the end", err, io.EOF)
	})
}

// A cursor stands still once its end has closed.
func TestCursorAfterClose(t *testing.T) {
	t.Parallel()
	ends(t, 4096, func(t *testing.T, g *pipestest.Guest, a, b *pipes.Pipe) {
		if _, _, err := a.ReserveWrite(1); err != nil {
			t.Fatal(err)
		}
		if err := a.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		a.CommitWrite(5)
		header := a.Descriptor().Header
		if out, in := g.Load(header), g.Load(header+128); out != 0 || in != 0 {
			t.Errorf("write cursors %d and %d after the close", out, in)
		}
	})
}

// What is committed after a close doesn't reach the other end: the close was
// the end. The pipe lives until the commit.
func TestCommitAfterClose(t *testing.T) {
	t.Parallel()
	ends(t, 4096, func(t *testing.T, g *pipestest.Guest, a, b *pipes.Pipe) {
		if _, err := a.Write([]byte("before")); err != nil {
			t.Fatal(err)
		}
		x, _, err := a.ReserveWrite(1)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(b)
		if err != nil || string(got) != "before" {
			t.Errorf("read %q, %v", got, err)
		}
		b.Close()
		if n := g.Table.Stats().Open; n != 1 {
			t.Errorf("%d pipes open while ring memory is reserved, want 1", n)
		}
		a.CommitWrite(copy(x, "after"))
		if n := g.Table.Stats().Open; n != 0 {
			t.Errorf("%d pipes open after the commit, want 0", n)
		}
	})
}
