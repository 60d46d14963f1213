package pipes_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"

	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/pipes/pipestest"
)

// Any sequence of reads, writes, reservations and closes does to a ring what it
// does to a queue of bytes, from any cursor on.
func TestRingIsAQueue(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		g, err := pipestest.NewGuest(1<<20, pipes.Options{StreamLimit: 2})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := g.Close(); err != nil {
				t.Error(err)
			}
		}()
		size := 4096 << rapid.IntRange(0, 2).Draw(t, "size")
		host, err := g.Table.New(uint32(size), uint32(size), 0)
		if err != nil {
			t.Fatal(err)
		}
		host.StartAt(rapid.OneOf(rapid.Uint64(), rapid.Map(rapid.Uint64Range(0, 20_000), func(n uint64) uint64 { return -n })).Draw(t, "cursor"))
		guest, err := g.Attach(host.Descriptor())
		if err != nil {
			t.Fatal(err)
		}
		type way struct {
			from, to *pipes.Pipe
			queue    []byte
			closed   bool
		}
		ways := []*way{{from: host, to: guest.Pipe}, {from: guest.Pipe, to: host}}
		pick := func(t *rapid.T) *way { return ways[rapid.IntRange(0, 1).Draw(t, "way")] }
		next := byte(0)
		fresh := func(n int) []byte {
			b := make([]byte, n)
			for i := range b {
				b[i] = next
				next = next*5 + 1
			}
			return b
		}
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				w := pick(t)
				if w.closed {
					t.Skip("closed")
				}
				b := fresh(rapid.IntRange(0, size-len(w.queue)).Draw(t, "n"))
				if n, err := w.from.Write(b); n != len(b) || err != nil {
					t.Fatal(n, err)
				}
				w.queue = append(w.queue, b...)
			},
			"reserve write": func(t *rapid.T) {
				w := pick(t)
				room := size - len(w.queue)
				if w.closed || room == 0 {
					t.Skip("closed or full")
				}
				x, y, err := w.from.ReserveWrite(rapid.IntRange(1, room).Draw(t, "min"))
				if err != nil || len(x)+len(y) != room {
					t.Fatalf("%d and %d bytes of room, %v, want %d", len(x), len(y), err, room)
				}
				b := fresh(rapid.IntRange(0, room).Draw(t, "n"))
				copy(y, b[copy(x, b):])
				w.from.CommitWrite(len(b))
				w.queue = append(w.queue, b...)
			},
			"read": func(t *rapid.T) {
				w := pick(t)
				b := make([]byte, rapid.IntRange(1, size+10).Draw(t, "n"))
				want := w.queue[:min(len(b), len(w.queue))]
				if len(want) == 0 && !w.closed {
					t.Skip("would wait")
				}
				n, err := w.to.Read(b)
				if len(want) == 0 {
					if n != 0 || err != io.EOF {
						t.Fatalf("%d, %v; want end of file", n, err)
					}
					return
				}
				if err != nil || !bytes.Equal(b[:n], want) {
					t.Fatalf("read %d bytes, %v, want %d or their contents differ", n, err, len(want))
				}
				w.queue = w.queue[n:]
			},
			"reserve read": func(t *rapid.T) {
				w := pick(t)
				if len(w.queue) == 0 {
					t.Skip("would wait")
				}
				x, y, err := w.to.ReserveRead(rapid.IntRange(1, len(w.queue)).Draw(t, "min"))
				if err != nil || !bytes.Equal(append(bytes.Clone(x), y...), w.queue) {
					t.Fatalf("%d and %d bytes, %v, want %d or their contents differ", len(x), len(y), err, len(w.queue))
				}
				n := rapid.IntRange(0, len(w.queue)).Draw(t, "n")
				w.to.CommitRead(n)
				w.queue = w.queue[n:]
			},
			"close": func(t *rapid.T) {
				w := pick(t)
				if err := w.from.CloseWrite(); (err != nil) != w.closed {
					t.Fatal(err)
				}
				w.closed = true
			},
			"": func(t *rapid.T) {
				for _, w := range ways {
					room := size - len(w.queue)
					if w.closed {
						room = 0
					}
					if n := w.to.ReadableLen(); n != len(w.queue) {
						t.Fatalf("readable %d, want %d", n, len(w.queue))
					}
					if n := w.from.WritableLen(); n != room {
						t.Fatalf("writable %d, want %d", n, room)
					}
				}
			},
		})
	})
}

// bubble runs a test for both assignments of monitor and guest to two names. In
// it synctest.Wait returns when all goroutines sleep.
func bubble(t *testing.T, test func(t *testing.T, a, b *pipes.Pipe)) {
	for _, first := range []string{"monitor", "guest"} {
		t.Run(first, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				host, guest := pipestest.NewPair(t, 4096)
				if first == "monitor" {
					test(t, host, guest.Pipe)
				} else {
					test(t, guest.Pipe, host)
				}
			})
		})
	}
}

// While no end sleeps no end signals. A full ring costs its producer one signal
// for half of it.
func TestSignalsAreSaved(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, a, b *pipes.Pipe) {
		buf := make([]byte, 16)
		for range 10_000 {
			if _, err := a.Write(buf); err != nil {
				t.Fatal(err)
			}
			if _, err := b.Read(buf); err != nil {
				t.Fatal(err)
			}
		}
		if s, r := a.Stats().Write, b.Stats().Read; s.Signals != 0 || r.Signals != 0 || s.Chunks != 10_000 || r.Bytes != 160_000 {
			t.Errorf("%+v\n%+v; want no signals", s, r)
		}

		// The writer sleeps in a full ring. Small reads wake it once half of
		// the ring is free.
		if _, err := a.Write(make([]byte, 4096)); err != nil {
			t.Fatal(err)
		}
		written := make(chan error, 1)
		go func() { _, err := a.Write(make([]byte, 16)); written <- err }()
		synctest.Wait()
		for i := range 127 {
			if _, err := b.Read(buf); err != nil {
				t.Fatal(err)
			}
			if n := b.Stats().Read.Signals; n != 0 {
				t.Fatalf("signal after %d reads of 16 bytes from a full ring of 4096", i+1)
			}
		}
		if _, err := b.Read(buf); err != nil {
			t.Fatal(err)
		}
		if n := b.Stats().Read.Signals; n != 1 {
			t.Errorf("%d signals at half of the ring, want 1", n)
		}
		if err := await(t, written, "end of the write"); err != nil {
			t.Error(err)
		}

		// A reader that kept the signal back gives it before it sleeps for more
		// than there is.
		if _, err := a.Write(make([]byte, a.WritableLen())); err != nil {
			t.Fatal(err)
		}
		go func() { _, err := a.Write(make([]byte, 100)); written <- err }()
		synctest.Wait()
		if _, err := b.Read(buf); err != nil {
			t.Fatal(err)
		}
		if _, _, err := b.ReserveRead(4096); err != nil {
			t.Fatal(err)
		}
		b.CommitRead(4096)
		if err := await(t, written, "end of the write"); err != nil {
			t.Error(err)
		}
	})
}

// A byte goes to and fro, and each end sleeps each time: one wake-up that is
// lost in all these tries hangs the test.
func TestPingPong(t *testing.T) {
	t.Parallel()
	host, guest := pipestest.NewPair(t, 4096)
	deadlines(t, host, guest.Pipe)
	const tries = 30_000
	echoed := make(chan error, 1)
	go func() { _, err := guest.WriteTo(guest); echoed <- err }()
	var b [1]byte
	for i := range tries {
		b[0] = byte(i)
		if _, err := host.Write(b[:]); err != nil {
			t.Fatal(err)
		}
		if _, err := host.Read(b[:]); err != nil || b[0] != byte(i) {
			t.Fatalf("try %d: %d, %v", i, b[0], err)
		}
	}
	if err := host.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if err := await(t, echoed, "end of the echo"); err != nil {
		t.Error(err)
	}
}

// A wake-up isn't lost wherever the write falls into the wait: the delay before
// it sweeps over the time that a Read takes to fall asleep.
func TestWakeUpRace(t *testing.T) {
	t.Parallel()
	ends(t, 4096, func(t *testing.T, g *pipestest.Guest, a, b *pipes.Pipe) {
		const tries = 50_000
		var ready, sink atomic.Int64
		failed := make(chan error, 1)
		go func() {
			var x [1]byte
			for i := range int64(tries) {
				ready.Store(i + 1)
				if _, err := b.Read(x[:]); err != nil {
					failed <- fmt.Errorf("try %d: %w", i, err)
					return
				}
			}
			failed <- nil
		}()
		for i := range int64(tries) {
			for ready.Load() <= i {
				select {
				case err := <-failed:
					t.Fatal(err)
				default:
					runtime.Gosched()
				}
			}
			for range i % 256 {
				sink.Add(1)
			}
			if _, err := a.Write([]byte{1}); err != nil {
				t.Fatal(err)
			}
		}
		if err := await(t, failed, "last read"); err != nil {
			t.Fatal(err)
		}
	})
}

// A Write goes into the ring in one piece, however many wait for their turn and
// however small the ring is.
func TestWritersTakeTurns(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, a, b *pipes.Pipe) {
		const writers, size = 20, 1000
		if _, _, err := a.ReserveWrite(1); err != nil {
			t.Fatal(err)
		}
		for w := range writers {
			record := bytes.Repeat([]byte{byte(w)}, size)
			go func() {
				if n, err := a.Write(record); n != size || err != nil {
					t.Error(n, err)
				}
			}()
		}
		synctest.Wait() // all wait for their turn
		a.CommitWrite(0)
		got := make([]byte, size)
		for i := range writers {
			if _, err := io.ReadFull(b, got); err != nil {
				t.Fatal(i, err)
			}
			if !bytes.Equal(got, bytes.Repeat(got[:1], size)) {
				t.Fatalf("record %d holds bytes of several writers", i)
			}
		}
		synctest.Wait()
		if n := b.ReadableLen(); n != 0 {
			t.Errorf("%d more bytes", n)
		}
	})
}

// A writer that comes back at once doesn't keep out those that wait.
func TestTurnsAreFair(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, a, b *pipes.Pipe) {
		var order []byte
		write := func(who byte, times int) {
			for range times {
				if _, _, err := a.ReserveWrite(1); err != nil {
					t.Error(err)
					return
				}
				order = append(order, who) // the reservation is the lock
				synctest.Wait()            // the earlier writer waits again
				a.CommitWrite(0)
			}
		}
		if _, _, err := a.ReserveWrite(1); err != nil {
			t.Fatal(err)
		}
		var writers sync.WaitGroup
		for who := range byte(3) {
			writers.Go(func() { write('a'+who, 4) })
			synctest.Wait()
		}
		a.CommitWrite(0)
		writers.Wait()
		if string(order) != "abcabcabcabc" {
			t.Errorf("the turns were %s", order)
		}
	})
}

// Many pipes at once, each with its own content both ways, in pieces of all
// sizes.
func TestManyPipes(t *testing.T) {
	t.Parallel()
	const n, each = 60, 200_000
	g := pipestest.New(t, 16<<20, pipes.Options{CPUs: 4})
	var wg sync.WaitGroup
	for i := range n {
		host, err := g.Table.New(4096<<(i%3), 4096<<(i%4), i%4)
		if err != nil {
			t.Fatal(err)
		}
		guest, err := g.Attach(host.Descriptor())
		if err != nil {
			t.Fatal(err)
		}
		deadlines(t, host, guest.Pipe)
		for j, way := range [][2]*pipes.Pipe{{host, guest.Pipe}, {guest.Pipe, host}} {
			content := fill(each, byte(2*i+j))
			wg.Go(func() {
				if err := send(way[0], content, i%3); err != nil {
					t.Error(err)
				}
				way[0].CloseWrite()
			})
			wg.Go(func() {
				var got bytes.Buffer
				var err error
				if i%2 == 0 {
					_, err = way[1].WriteTo(&got)
				} else {
					_, err = io.Copy(&got, struct{ io.Reader }{way[1]})
				}
				if err != nil || !bytes.Equal(got.Bytes(), content) {
					t.Errorf("pipe %d: %d bytes, %v; want %d or their contents differ", i, got.Len(), err, each)
				}
				way[1].CloseRead()
			})
		}
	}
	wg.Wait()
	s := g.Table.Stats()
	if s.Open != 0 || s.Pipes.Read.Bytes != n*each || s.Pipes.Write.Bytes != n*each || s.Broken != 0 {
		t.Errorf("%+v", s)
	}
}

func send(p *pipes.Pipe, content []byte, how int) error {
	switch how {
	case 0:
		_, err := p.Write(content)
		return err
	case 1:
		_, err := p.ReadFrom(bytes.NewReader(content))
		return err
	}
	for len(content) > 0 {
		n := min(1+rand.IntN(5000), len(content))
		if m, err := p.Write(content[:n]); err != nil || m != n {
			return fmt.Errorf("%d of %d: %w", m, n, err)
		}
		content = content[n:]
	}
	return nil
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

// Moving bytes and waking ends allocate no memory.
func TestNoAllocations(t *testing.T) {
	host, guest := pipestest.NewPair(t, 4096)
	buf := make([]byte, 512)
	id := host.ID()
	tab := host.Table()
	hook := func() {}
	for what, f := range map[string]func(){
		"write and read": func() { host.Write(buf); guest.Read(buf) },
		"reserve and commit": func() {
			a, _, _ := guest.ReserveWrite(1)
			guest.CommitWrite(len(a))
			a, _, _ = host.ReserveRead(1)
			host.CommitRead(len(a))
		},
		"notifications": func() { tab.NotifyRead(id); tab.NotifyWrite(id) },
		"hooks":         func() { host.OnReadable(hook); tab.NotifyRead(id); host.OnWriteError(hook) },
		"lengths":       func() { host.ReadableLen(); host.WritableLen() },
		"write what is available": func() {
			guest.Write(buf)
			host.WriteAvailable(discard{})
			host.SubscribeReadable(hook)
			host.OnReadable(nil)
		},
	} {
		if n := testing.AllocsPerRun(200, f); n != 0 {
			t.Errorf("%s: %v allocations", what, n)
		}
	}
}
