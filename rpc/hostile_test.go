package rpc_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/fix-project/arcavm/rpc"
	"github.com/fix-project/arcavm/rpc/message"
	"github.com/fix-project/arcavm/rpc/rpctest"
)

// lines counts log records by message.
type lines struct {
	mu sync.Mutex
	n  map[string]int
}

func (l *lines) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelWarn }
func (l *lines) WithAttrs([]slog.Attr) slog.Handler               { return l }
func (l *lines) WithGroup(string) slog.Handler                    { return l }
func (l *lines) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.n[r.Message]++
	return nil
}

// TestBadPipesEndAlone breaks a pipe in every way and checks that it ends with
// a log line and a counter while another goes on.
func TestBadPipesEndAlone(t *testing.T) {
	t.Parallel()
	frame := func(size uint64, b ...byte) []byte {
		return append(binary.LittleEndian.AppendUint64(nil, size), b...)
	}
	for name, breakIt := range map[string]func(m *machine, p *rpctest.Pipe){
		"length 0":              func(_ *machine, p *rpctest.Pipe) { p.Write(frame(0)) },
		"huge length":           func(_ *machine, p *rpctest.Pipe) { p.Write(frame(1<<63, 1)) },
		"unknown request":       func(_ *machine, p *rpctest.Pipe) { p.Write(frame(1, 77)) },
		"bytes too many":        func(_ *machine, p *rpctest.Pipe) { p.Write(frame(3, 3, 0, 0)) },
		"length does not match": func(_ *machine, p *rpctest.Pipe) { p.Write(frame(4, 1, 9, 0, 0)) },
		"write cursor far ahead": func(m *machine, p *rpctest.Pipe) {
			m.Store(p.TxOffset()+8, 1<<40)
		},
		"write cursor one too far": func(m *machine, p *rpctest.Pipe) {
			m.Store(p.TxOffset()+8, m.Load(p.TxOffset()+8)+p.TxLength())
		},
		"write cursor behind": func(m *machine, p *rpctest.Pipe) {
			m.Store(p.TxOffset()+8, m.Load(p.TxOffset()+8)-1)
		},
		"read cursor ahead": func(m *machine, p *rpctest.Pipe) {
			m.Store(p.RxOffset(), m.Load(p.RxOffset())+1)
			p.Write(frame(3, 0, 1, 0))
		},
		"half a length, then the end": func(m *machine, p *rpctest.Pipe) {
			p.Write(make([]byte, 4))
			p.Drop()
		},
		"half a request, then the end": func(m *machine, p *rpctest.Pipe) {
			p.Write(frame(100, 1, 98, 0))
			p.Drop()
		},
		"no reference left": func(m *machine, p *rpctest.Pipe) {
			m.Store(p.TxOffset()-16, 0)
			m.Store(p.RxOffset()-16, 0)
			p.Write(frame(1, 77))
		},
		"block freed": func(m *machine, p *rpctest.Pipe) {
			m.Allocator.Free(p.TxOffset()-16, p.TxLength()+40)
			m.Store(p.TxOffset()-16, 1)
			p.Write(frame(1, 77))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			log := &lines{n: make(map[string]int)}
			_, share := shared(t, true)
			m := newMachine(t, rpc.Options{Share: share, RAM: rpctest.NewRAM(16 << 20), Logger: slog.New(log)})
			good, _ := m.Open("good", create)
			bad, _ := m.Open("bad", message.Mode{Read: true, Write: true, Create: true})
			bad.Seek(message.SeekStart, 1)
			breakIt(m, bad.Pipe)
			m.until(t, "the pipe to end", func() bool { return m.server.Stats().Pipes == 2 })
			if n := m.server.Stats().Broken; n != 1 {
				t.Errorf("%d pipes are broken", n)
			}
			if diff := cmp.Diff(map[string]int{"pipe ended": 1}, log.n); diff != "" {
				t.Errorf("log: %s", diff)
			}
			if n := good.Write([]byte("still here")); n != 10 {
				t.Errorf("the other pipe wrote %d", n)
			}
			good.Close()
			if len(m.breaks) > 0 {
				t.Error("the allocator counts as broken:", <-m.breaks)
			}
		})
	}
}

// TestLogIsLimited lets a guest break a thousand pipes.
func TestLogIsLimited(t *testing.T) {
	t.Parallel()
	log := &lines{n: make(map[string]int)}
	_, share := shared(t, true)
	m := newMachine(t, rpc.Options{Share: share, Logger: slog.New(log)})
	for range 1000 {
		f, _ := m.Open("f", create)
		f.Write(nil)
		f.Send([]byte{77})
		f.Drop()
	}
	m.until(t, "the pipes to end", func() bool { return m.server.Stats().Pipes == 1 })
	if n := m.server.Stats().Broken; n != 1000 {
		t.Errorf("%d pipes are broken", n)
	}
	if n := log.n["pipe ended"]; n == 0 || n > 200 {
		t.Errorf("%d lines", n)
	}
	if diff := cmp.Diff(m.before, m.Allocator.Snapshot()); diff != "" {
		t.Error(diff)
	}
}

func TestAllocatorBroken(t *testing.T) {
	t.Parallel()
	_, share := shared(t, true)
	m := newMachine(t, rpc.Options{Share: share, RAM: rpctest.NewRAM(16 << 20)})
	f, _ := m.Open("f", create)
	first, end := m.Allocator.Levels()
	for level := first; level < end; level++ {
		m.Store(m.Allocator.HeadOffset(level), 1)
		m.Store(m.Allocator.HeadOffset(level)+8, 1<<50)
	}
	if _, kind := m.Open("g", create); kind != message.Other {
		t.Errorf("kind %d", kind)
	}
	wait(t, m.breaks, "OnBroken")
	if _, kind := m.Open("g", create); kind != message.Other {
		t.Errorf("kind %d", kind)
	}
	// What needs no allocation goes on until the machine is stopped.
	if n := f.Write([]byte("x")); n != 1 {
		t.Errorf("wrote %d", n)
	}
	m.stop()
	if len(m.breaks) > 0 {
		t.Error("told twice")
	}
}

func TestMemoryExhausted(t *testing.T) {
	t.Parallel()
	_, share := shared(t, true)
	m := newMachine(t, rpc.Options{Share: share, RAM: rpctest.NewRAM(2 << 20)})
	var files []*rpctest.File
	for {
		f, kind := m.Open("f", create)
		if f == nil {
			if kind != message.OutOfMemory {
				t.Errorf("kind %d", kind)
			}
			break
		}
		files = append(files, f)
	}
	if len(files) < 100 {
		t.Errorf("2 MiB were full after %d files", len(files))
	}
	want := pattern(100_000)
	for _, f := range files[:3] {
		f.Seek(message.SeekStart, 0)
		if n := f.Write(want); n != len(want) {
			t.Errorf("wrote %d through a small ring", n)
		}
	}
	for _, f := range files {
		f.Close()
	}
	m.settled(t)
}

// TestTooManyPipes frees the rings of pipes that stay open: the monitor makes
// no more pipes than RAM has room for.
func TestTooManyPipes(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	m := newMachine(t, rpc.Options{RAM: rpctest.NewRAM(size)})
	refused := false
	for i := 0; i < size/4096 && !refused; i++ {
		switch r := m.Ask(message.Connect{}).(type) {
		case message.Pipe:
			m.Allocator.Free(r.RxOffset-16, r.RxLength+40)
			m.Allocator.Free(r.TxOffset-16, r.TxLength+40)
		case message.Err:
			refused = r.Kind == message.OutOfMemory
		}
	}
	if n := m.server.Stats().Pipes; !refused || n > size/8192 {
		t.Errorf("%d pipes, refused: %v", n, refused)
	}
}

// TestRandomDamage lets a guest write nonsense wherever it likes while it uses
// pipes: the monitor lives, and stops when told to.
func TestRandomDamage(t *testing.T) {
	if raceEnabled {
		t.Skip("this guest races on purpose: run it without -race")
	}
	t.Parallel()
	_, share := shared(t, true)
	rapid.Check(t, func(r *rapid.T) {
		const size = 1 << 20
		ram := rpctest.NewRAM(size)
		s, err := rpc.New(rpc.Options{RAM: ram, Share: share, Args: []string{"k"}})
		if err != nil {
			r.Fatal(err)
		}
		e := s.Entry()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Serve(ctx) }()
		g := rpctest.NewGuest(ram, rpctest.Entry(e))
		f, _ := g.Open("f", message.Mode{Read: true, Write: true, Create: true})
		places := []uint64{
			f.TxOffset() - 16, f.TxOffset() - 8, f.TxOffset(), f.TxOffset() + 8, f.TxOffset() + 16, f.TxOffset() + 24,
			f.RxOffset() - 16, f.RxOffset(), f.RxOffset() + 8, e.TxOffset, e.TxOffset + 8, e.TxOffset + 24, e.RxOffset, e.Allocator + 16,
		}
		for range rapid.IntRange(1, 30).Draw(r, "steps") {
			off := rapid.Uint64Range(0, size/8-1).Draw(r, "word") * 8
			if rapid.Bool().Draw(r, "aimed") {
				off = rapid.SampledFrom(places).Draw(r, "place")
			}
			g.Store(off, rapid.OneOf(rapid.Uint64(), rapid.Uint64Range(0, 300), rapid.Just(^uint64(0))).Draw(r, "value"))
		}
		cancel()
		if err := wait(t, done, "Serve to return"); err != nil {
			r.Fatal(err)
		}
	})
}

// TestDropWithoutClose drops pipes in every state, the monitor's Serve ending
// before or after.
func TestDropWithoutClose(t *testing.T) {
	t.Parallel()
	for name, stopFirst := range map[string]bool{"guest first": false, "monitor first": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, share := shared(t, true)
			m := newMachine(t, rpc.Options{Share: share})
			before := m.before
			f, _ := m.Open("f", create)
			l, address := m.listen(t)
			dial(t, address)
			s := l.Accept()
			conn := dial(t, address)
			busy := l.Accept()
			busy.Ask(10)
			l2, address2 := m.listen(t)
			l2.Send([]byte{0})
			if !stopFirst {
				l2.Drop()
				dial(t, address2)
				l2 = m.Listen(loopback, 0)
			}
			if stopFirst {
				m.stop()
			}
			drops := []*rpctest.Pipe{l2.Pipe, f.Pipe, l.Pipe, s.Pipe, busy.Pipe}
			for _, p := range drops {
				p.Drop()
			}
			if !stopFirst {
				// The monitor hears of the one whose turn it isn't when the
				// peer speaks.
				conn.Close()
				m.settled(t)
				m.stop()
			}
			if n := m.server.Stats().Pipes; n != 0 {
				t.Errorf("%d pipes are open", n)
			}
			if diff := cmp.Diff(before, m.Allocator.Snapshot()); diff != "" {
				t.Error(diff)
			}
			m.Control.Drop()
			if used := m.Allocator.Snapshot().Used; used >= before.Used {
				t.Errorf("the control pipe's rings are not freed: %d bytes used, %d before", used, before.Used)
			}
		})
	}
}

func TestServeTwice(t *testing.T) {
	t.Parallel()
	m := newMachine(t, rpc.Options{})
	m.Args()
	if err := m.server.Serve(t.Context()); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Error(err)
	}
	s, err := rpc.New(rpc.Options{RAM: rpctest.NewRAM(1 << 20)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("at once"))
	if err := s.Serve(ctx); err != nil {
		t.Error("with a context that is done:", err)
	}
}

// TestPipelined sends many requests before reading the first response: they are
// answered in order.
func TestPipelined(t *testing.T) {
	t.Parallel()
	_, share := shared(t, true)
	m := newMachine(t, rpc.Options{Share: share})
	f, _ := m.Open("f", message.Mode{Read: true, Write: true, Create: true})
	for i := range 100 {
		f.Send(message.AppendFileRequest(nil, message.FileRequest{Op: message.FileSeek, Offset: int64(i)}))
	}
	for i := range 100 {
		want := message.AppendFileOffset(nil, uint64(i))
		if got := f.Receive(); !bytes.Equal(got, want) {
			t.Fatalf("response %d is % x", i, got)
		}
	}
	f.Close()
	m.settled(t)
}

// FuzzRequests sends bytes to a file's pipe and to a stream's, then drops them:
// both ends are gone afterwards, and their memory is free.
func FuzzRequests(f *testing.F) {
	f.Add([]byte("\x02\x00\x00\x00\x00\x00\x00\x00\x00\x05"))
	f.Add([]byte("\x05\x00\x00\x00\x00\x00\x00\x00\x01\x03abc"))
	f.Add([]byte("\x03\x00\x00\x00\x00\x00\x00\x00\x02\x01\x03"))
	f.Add([]byte("\x01\x00\x00\x00\x00\x00\x00\x00\x02"))
	_, share := shared(f, true)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 4000 {
			return
		}
		m := newMachine(t, rpc.Options{Share: share, RAM: rpctest.NewRAM(1 << 20), Signal: func() {}})
		if len(b)%2 == 1 {
			m.notify()
		}
		file, _ := m.Open("f", message.Mode{Read: true, Write: true, Create: true, Truncate: true})
		stream := m.Connect("", 0)
		for _, p := range []*rpctest.Pipe{file.Pipe, stream.Pipe} {
			p.Write(b)
			p.Drop()
		}
		m.until(t, "the pipes to end", func() bool { return m.server.Stats().Pipes == 1 })
		if diff := cmp.Diff(m.before, m.Allocator.Snapshot()); diff != "" {
			t.Error(diff)
		}
		m.stop()
	})
}

// TestStopWithLockHeld stops while a virtual CPU that runs no more holds the
// allocator's lock.
func TestStopWithLockHeld(t *testing.T) {
	t.Parallel()
	_, share := shared(t, true)
	m := newMachine(t, rpc.Options{Share: share})
	for range 5 {
		f, _ := m.Open("f", create)
		// The monitor's reference is the last.
		m.Store(f.TxOffset()-16, 1)
		m.Store(f.RxOffset()-16, 1)
	}
	m.Allocator.Lock()
	m.stop()
	if len(m.breaks) > 0 {
		t.Error("told that the allocator is broken:", <-m.breaks)
	}
}
