package pipes_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/pipes/pipestest"
)

// A ring header that breaks the rules resets its pipe with EPROTO, in both
// directions, and nothing else. Before, 100 bytes are sent and 40 read in each
// direction.
func TestBrokenRings(t *testing.T) {
	t.Parallel()
	const open, closed, reset = 0, 1, 2
	for _, c := range []struct {
		what   string
		ring   pipestest.Ring
		cursor uint64
		state  uint32
	}{
		{"more written than the ring holds", pipestest.Outgoing, 100 + 4097, open},
		{"write cursor went back", pipestest.Outgoing, 99, open},
		{"write cursor behind what was read", pipestest.Outgoing, 39, open},
		{"write cursor far away", pipestest.Outgoing, 1 << 63, open},
		{"write cursor at the top", pipestest.Outgoing, ^uint64(0), closed},
		{"read more than was written", pipestest.Incoming, 40 + 4097, open},
		{"read cursor went back", pipestest.Incoming, 39, open},
		{"read cursor far away", pipestest.Incoming, 1 << 63, reset},
		{"writer state 3", pipestest.Outgoing, 100, 3},
		{"reader state 3", pipestest.Incoming, 40, 3},
		{"open with an errno", pipestest.Outgoing, 100, 5 << 16},
		{"closed with an errno", pipestest.Incoming, 40, 5<<16 | closed},
		{"state of all ones", pipestest.Outgoing, 100, ^uint32(0)},
	} {
		for _, waiting := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, waiting %v", c.what, waiting), func(t *testing.T) {
				t.Parallel()
				var log bytes.Buffer
				g := pipestest.New(t, 1<<20, pipes.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
				host, guest, err := g.Pair(4096, 4096)
				if err != nil {
					t.Fatal(err)
				}
				host2, guest2, err := g.Pair(4096, 4096)
				if err != nil {
					t.Fatal(err)
				}
				deadlines(t, host, host2, guest.Pipe, guest2.Pipe)
				for _, way := range [][2]*pipes.Pipe{{host, guest.Pipe}, {guest.Pipe, host}} {
					if _, err := way[0].Write(make([]byte, 100)); err != nil {
						t.Fatal(err)
					}
					if _, err := io.ReadFull(way[1], make([]byte, 40)); err != nil {
						t.Fatal(err)
					}
				}
				host.ReadableLen() // the monitor has seen all cursors
				host.WritableLen()
				poke := func() {
					if err := guest.Poke(c.ring, c.cursor, c.state); err != nil {
						t.Fatal(err)
					}
				}
				failed := make(chan error, 2)
				var started sync.WaitGroup
				started.Add(2)
				if !waiting {
					poke()
				}
				go func() { started.Done(); _, err := host.ReadFrom(endless{}); failed <- err }()
				go func() { started.Done(); _, err := host.WriteTo(io.Discard); failed <- err }()
				started.Wait()
				if waiting {
					poke()
				}
				for range 2 {
					expect(t, "operation", await(t, failed, "failure"), unix.EPROTO)
				}
				// The guest finds both rings reset.
				header := g.Window[host.Descriptor().Header:]
				for _, at := range []int{72, 128 + 8} {
					if s := binary.LittleEndian.Uint32(header[at:]); s != 2|uint32(unix.EPROTO)<<16 {
						t.Errorf("state at %d is %#x", at, s)
					}
				}
				host.Close()
				if s := g.Table.Stats(); s.Broken != 1 || s.Open != 2 {
					t.Errorf("stats %+v, want one broken pipe, two open", s)
				}
				if n := strings.Count(log.String(), "\n"); n != 1 {
					t.Errorf("%d log records:\n%s", n, log.String())
				}
				// The neighbour goes on.
				if _, err := host2.Write([]byte("hello")); err != nil {
					t.Error(err)
				}
				b := make([]byte, 5)
				if _, err := io.ReadFull(guest2, b); err != nil || string(b) != "hello" {
					t.Errorf("neighbour read %q, %v", b, err)
				}
				guest.Close()
				if s := g.Table.Stats(); s.Open != 1 {
					t.Errorf("%d pipes open after the guest gave the broken one up, want 1", s.Open)
				}
			})
		}
	}
}

type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

// A guest that breaks rings all the time doesn't flood the log.
func TestLogIsRateLimited(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	g := pipestest.New(t, 1<<20, pipes.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	const n = 1000
	for range n {
		host, guest, err := g.Pair(4096, 4096)
		if err != nil {
			t.Fatal(err)
		}
		if err := guest.Poke(pipestest.Outgoing, 1<<40, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := host.Read(make([]byte, 1)); !errors.Is(err, unix.EPROTO) {
			t.Fatal(err)
		}
		guest.Close()
	}
	if s := g.Table.Stats(); s.Broken != n || s.Open != 0 {
		t.Errorf("stats %+v, want %d broken, none open", s, n)
	}
	if lines := strings.Count(log.String(), "\n"); lines < 1 || lines > n/2 {
		t.Errorf("%d log records", lines)
	}
}

// The hooks run when they should, once, and cost no signals.
func TestHooks(t *testing.T) {
	t.Parallel()
	type ends struct {
		g     *pipestest.Guest
		host  *pipes.Pipe
		guest *pipestest.GuestConn
	}
	write := func(e ends) { e.guest.Write([]byte("bytes")) }
	guestCloses := func(e ends) { e.guest.CloseWrite() }
	guestLeaves := func(e ends) { e.guest.CloseRead() }
	guestResets := func(e ends) { e.guest.Reset(unix.ECONNRESET) }
	guestBreaks := func(e ends) { e.guest.Poke(pipestest.Outgoing, 1<<40, 0) }
	hostReads := func(e ends) { e.host.CloseRead() }
	hostWrites := func(e ends) { e.host.CloseWrite() }
	hostCloses := func(e ends) { e.host.Close() }
	hostResets := func(e ends) { e.host.Reset(unix.EIO) }
	tableCloses := func(e ends) { e.g.Table.Close() }
	for _, c := range []struct {
		what                             string
		do                               func(ends)
		readable, readFailed, writeFails int
	}{
		{"guest writes", write, 1, 0, 0},
		{"guest closes writer", guestCloses, 1, 0, 0},
		{"guest closes reader", guestLeaves, 0, 0, 1},
		{"guest resets", guestResets, 1, 1, 1},
		{"guest breaks a ring", guestBreaks, 1, 1, 1},
		{"monitor closes reader", hostReads, 1, 1, 0},
		{"monitor closes writer", hostWrites, 0, 0, 1},
		{"monitor closes", hostCloses, 1, 1, 1},
		{"monitor resets", hostResets, 1, 1, 1},
		{"table closes", tableCloses, 1, 1, 1},
	} {
		for _, late := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, hook set late %v", c.what, late), func(t *testing.T) {
				t.Parallel()
				e := ends{g: pipestest.New(t, 1<<20, pipes.Options{})}
				var err error
				if e.host, e.guest, err = e.g.Pair(4096, 4096); err != nil {
					t.Fatal(err)
				}
				// All of this happens on this goroutine: a hook runs before its
				// cause returns.
				var readable, readFailed, writeFailed int
				if late {
					c.do(e)
				}
				e.host.OnReadable(func() { readable++ })
				e.host.OnReadError(func() { readFailed++ })
				e.host.OnWriteError(func() { writeFailed++ })
				if !late {
					if readable+readFailed+writeFailed != 0 {
						t.Fatal("a hook ran before anything happened")
					}
					c.do(e)
					c.do(e)
				}
				if readable != c.readable || readFailed != c.readFailed || writeFailed != c.writeFails {
					t.Errorf("hooks ran %d, %d, %d times; want %d, %d, %d",
						readable, readFailed, writeFailed, c.readable, c.readFailed, c.writeFails)
				}
			})
		}
	}
}

func TestHookCanBeRemoved(t *testing.T) {
	t.Parallel()
	host, guest := pipestest.NewPair(t, 4096)
	host.OnWriteError(func() { t.Error("removed hook ran") })
	host.OnWriteError(nil)
	host.OnReadable(func() { t.Error("replaced hook ran") })
	ran := false
	host.OnReadable(func() { ran = true })
	guest.Close()
	if !ran {
		t.Error("the second hook didn't run")
	}
}

// A goroutine in ReadFrom that waits for a silent socket learns of the guest's
// reset through its hook. It can tell the socket's error from the pipe's.
func TestReadFromSilentSocket(t *testing.T) {
	t.Parallel()
	for what, leave := range map[string]struct {
		do   func(*pipestest.GuestConn) error
		want error
	}{
		"reset":       {func(g *pipestest.GuestConn) error { return g.Reset(unix.ECONNRESET) }, unix.ECONNRESET},
		"reader gone": {func(g *pipestest.GuestConn) error { return g.CloseRead() }, unix.EPIPE},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			host, guest := pipestest.NewPair(t, 4096)
			near, far := net.Pipe()
			defer near.Close()
			defer far.Close()
			host.OnWriteError(func() { near.SetReadDeadline(time.Unix(1, 0)) })
			failed := make(chan error, 1)
			reading := make(chan struct{}, 1)
			go func() { _, err := host.ReadFrom(announced{near, reading}); failed <- err }()
			await(t, reading, "call of Read")
			if err := leave.do(guest); err != nil {
				t.Fatal(err)
			}
			err := await(t, failed, "end of ReadFrom")
			var timeout net.Error
			if host.Caused(err) || !errors.As(err, &timeout) || !timeout.Timeout() {
				t.Errorf("ReadFrom: %v; want the socket's timeout", err)
			}
			_, err = host.Write([]byte{1})
			if !host.Caused(err) || !errors.Is(err, leave.want) {
				t.Errorf("write: %v, want the pipe's %v", err, leave.want)
			}
		})
	}
}

// announced says when Read is about to wait.
type announced struct {
	io.Reader
	reading chan<- struct{}
}

func (a announced) Read(b []byte) (int, error) {
	a.reading <- struct{}{}
	return a.Reader.Read(b)
}

var errSocket = errors.New("socket failed")

type failing struct{ after int }

func (f *failing) Read(b []byte) (int, error) {
	if f.after == 0 {
		return 0, errSocket
	}
	n := min(f.after, len(b))
	f.after -= n
	return n, nil
}

func (f *failing) Write(b []byte) (int, error) {
	n := min(f.after, len(b))
	f.after -= n
	if f.after == 0 {
		return n, errSocket
	}
	return n, nil
}

// Bytes that came before an error count, and those that a writer didn't take
// stay.
func TestCopyErrors(t *testing.T) {
	t.Parallel()
	ends(t, 4096, func(t *testing.T, g *pipestest.Guest, a, b *pipes.Pipe) {
		n, err := a.ReadFrom(&failing{after: 3000})
		if n != 3000 || err != errSocket || a.Caused(err) {
			t.Errorf("ReadFrom: %d, %v", n, err)
		}
		n, err = b.WriteTo(&failing{after: 1000})
		if n != 1000 || err != errSocket || b.Caused(err) {
			t.Errorf("WriteTo: %d, %v", n, err)
		}
		if n := b.ReadableLen(); n != 2000 {
			t.Errorf("%d bytes left, want 2000", n)
		}
		for what, f := range map[string]func() error{
			"no progress": func() error { _, err := a.ReadFrom(stuck{}); return err },
			"bad count":   func() error { _, err := a.ReadFrom(liar{}); return err },
			"bad writer":  func() error { _, err := b.WriteTo(liar{}); return err },
		} {
			if err := f(); err == nil || a.Caused(err) || b.Caused(err) {
				t.Errorf("%s: %v", what, err)
			}
		}
	})
}

type stuck struct{}

func (stuck) Read(b []byte) (int, error) { return 0, nil }

type liar struct{}

func (liar) Read(b []byte) (int, error)  { return len(b) + 1, nil }
func (liar) Write(b []byte) (int, error) { return len(b) + 1, nil }

// Table.Close ends all operations under way. Wait returns when the last
// reservation is given back; the window isn't touched after that.
func TestTableClose(t *testing.T) {
	t.Parallel()
	g := pipestest.New(t, 8<<20, pipes.Options{})
	const each = 10
	failed := make(chan error, 4*each)
	var reserved []*pipes.Pipe
	for range each {
		host, guest, err := g.Pair(4096, 4096)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := host.Write(make([]byte, 4096)); err != nil {
			t.Fatal(err)
		}
		go func() { _, err := host.Read(make([]byte, 1)); failed <- err }()
		go func() { _, err := host.Write(make([]byte, 1)); failed <- err }()
		// Closed halfway by the monitor, and not at all by the guest.
		half, _, err := g.Pair(4096, 4096)
		if err != nil {
			t.Fatal(err)
		}
		half.CloseWrite()
		if _, err := guest.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		third, _, err := g.Pair(4096, 4096)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := third.ReserveWrite(1); err != nil {
			t.Fatal(err)
		}
		reserved = append(reserved, third)
	}
	for range 2 {
		if err := g.Table.Close(); err != nil {
			t.Fatal(err)
		}
	}
	ended := make(chan struct{})
	go func() { g.Table.Wait(); close(ended) }()
	for range each {
		// A write may have found room before.
		if err := await(t, failed, "end of an operation"); err != nil {
			expect(t, "operation", err, net.ErrClosed)
		}
	}
	for i, p := range reserved {
		select {
		case <-ended:
			t.Fatalf("Wait returned while %d reservations are out", len(reserved)-i)
		default:
		}
		p.CommitWrite(1)
	}
	await(t, ended, "return of Wait")
	if _, err := g.Table.New(4096, 4096, 0); !errors.Is(err, net.ErrClosed) {
		t.Errorf("new pipe in a closed table: %v", err)
	}
	if err := g.Table.NotifyRead(0); err != unix.ENOENT {
		t.Errorf("notification after close: %v", err)
	}
	if s := g.Table.Stats(); s.Open != 0 {
		t.Errorf("%d pipes open", s.Open)
	}
}

// FuzzHostileGuest lets a guest write anything into its headers and notify for
// any pipe. The monitor must go on, and a pipe that the guest leaves alone must
// work.
func FuzzHostileGuest(f *testing.F) {
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{0x12, 0x80, 0xff, 0x03}, 8))
	f.Add([]byte{0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 8, 1, 1, 1, 1, 1, 1, 1, 1, 1})
	f.Fuzz(func(t *testing.T, script []byte) {
		g := pipestest.New(t, 1<<20, pipes.Options{StreamLimit: 8})
		good, goodGuest, err := g.Pair(4096, 4096)
		if err != nil {
			t.Fatal(err)
		}
		var bad []*pipes.Pipe
		var wg sync.WaitGroup
		for range 3 {
			p, err := g.Table.New(4096, 4096, 0)
			if err != nil {
				t.Fatal(err)
			}
			bad = append(bad, p)
			wg.Go(func() { p.ReadFrom(endless{}) })
			wg.Go(func() { p.WriteTo(io.Discard) })
		}
		for len(script) >= 10 {
			op, at, value := script[0], script[1], script[2:10]
			script = script[10:]
			d := bad[op%3].Descriptor()
			g.Store(d.Header+uint64(at)&^7, binary.LittleEndian.Uint64(value))
			id := d.ID ^ pipes.ID(op>>6)
			_ = g.Table.NotifyRead(id)
			_ = g.Table.NotifyWrite(id)
		}
		go func() { goodGuest.Write([]byte("fine")); goodGuest.CloseWrite() }()
		deadlines(t, good)
		if b, err := io.ReadAll(good); err != nil || string(b) != "fine" {
			t.Errorf("the good pipe read %q, %v", b, err)
		}
		g.Table.Close()
		wg.Wait()
		g.Table.Wait()
	})
}
