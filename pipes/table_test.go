package pipes

import (
	"bytes"
	"errors"
	"io"
	"math/bits"
	"net"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	tab := newTestTable(t, 8<<20, Options{CPUs: 2, StreamLimit: 2})
	for _, c := range []struct {
		out, in uint32
		cpu     int
	}{
		{0, 4096, 0}, {4096, 0, 0}, {2048, 4096, 0}, {4097, 4096, 0}, {4096, 12288, 0}, {128 << 20, 4096, 0},
		{1 << 31, 4096, 0}, {4096, 4096, -1}, {4096, 4096, 2},
	} {
		if _, err := tab.New(c.out, c.in, c.cpu); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%+v: %v, want EINVAL", c, err)
		}
	}
	if _, err := tab.New(64<<20, 4096, 0); !errors.Is(err, unix.ENOMEM) {
		t.Errorf("64 MiB: %v, want ENOMEM", err)
	}
	if _, err := tab.New(4096, 64<<20, 0); !errors.Is(err, unix.ENOMEM) {
		t.Errorf("64 MiB: %v, want ENOMEM", err)
	}
	for range 2 {
		if _, err := tab.New(4096, 4096, 1); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := tab.New(4096, 4096, 0); !errors.Is(err, unix.EMFILE) {
		t.Errorf("third of two slots: %v, want EMFILE", err)
	}
	if s := tab.Stats(); s.Open != 2 || s.RingBytes != 4*4096 {
		t.Errorf("stats after refusals: %+v", s)
	}
}

func TestNewTableRefuses(t *testing.T) {
	t.Parallel()
	bell := func(int) {}
	for _, c := range []struct {
		what string
		size int
		o    Options
	}{
		{"no CPU", 1 << 20, Options{CPUs: 0, StreamLimit: 8, Doorbell: bell}},
		{"65 CPUs", 1 << 20, Options{CPUs: 65, StreamLimit: 8, Doorbell: bell}},
		{"no stream", 1 << 20, Options{CPUs: 1, StreamLimit: 0, Doorbell: bell}},
		{"too many streams", 64 << 20, Options{CPUs: 1, StreamLimit: MaxStreams + 1, Doorbell: bell}},
		{"no doorbell", 1 << 20, Options{CPUs: 1, StreamLimit: 8, Doorbell: nil}},
		{"no window", 0, Options{CPUs: 1, StreamLimit: 8, Doorbell: bell}},
		{"negative ring limit", 1 << 20, Options{CPUs: 1, StreamLimit: 8, Doorbell: bell, RingLimit: -1}},
		{"room for headers only", 12 << 10, Options{CPUs: 1, StreamLimit: 8, Doorbell: bell}},
	} {
		if _, err := NewTable(make([]byte, c.size), c.o); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%s: %v, want EINVAL", c.what, err)
		}
	}
	tab := newTestTable(t, 16<<10, Options{CPUs: 1, StreamLimit: 8})
	p, err := tab.New(4096, 4096, 0)
	if err != nil {
		t.Fatal(err)
	}
	good := p.Descriptor()
	for i, spoil := range []func(*Descriptor){
		func(d *Descriptor) { d.Header++ },
		func(d *Descriptor) { d.Header = 16 << 10 },
		func(d *Descriptor) { d.Outgoing = 16 << 10 },
		func(d *Descriptor) { d.Incoming = ^uint64(0) },
		func(d *Descriptor) { d.OutgoingSize = 8192 << 3 },
		func(d *Descriptor) { d.IncomingSize = 5000 },
	} {
		d := good
		spoil(&d)
		if _, err := Attach(tab.layout.window, d, tab); !errors.Is(err, unix.EINVAL) {
			t.Errorf("descriptor %d: %v, want EINVAL", i, err)
		}
	}
}

func TestLayout(t *testing.T) {
	t.Parallel()
	tab := newTestTable(t, 8<<20, Options{CPUs: 3, StreamLimit: 100})
	if tab.PendingOffset()%64 != 0 || tab.PendingStride() < 576+8*4 || tab.PendingStride()%64 != 0 {
		t.Errorf("pending bitmaps at %d, every %d bytes", tab.PendingOffset(), tab.PendingStride())
	}
	type span struct{ from, to uint64 }
	taken := []span{{tab.PendingOffset(), tab.PendingOffset() + 3*tab.PendingStride()}}
	for i := range 100 {
		p, err := tab.New(4096, 8192, i%3)
		if err != nil {
			t.Fatal(err)
		}
		d := p.Descriptor()
		if d.ID != ID(i) || d.Header%256 != 0 || d.Outgoing%4096 != 0 || d.Incoming%4096 != 0 {
			t.Fatalf("descriptor %+v of pipe %d", d, i)
		}
		taken = append(taken, span{d.Header, d.Header + 256}, span{d.Outgoing, d.Outgoing + 4096}, span{d.Incoming, d.Incoming + 8192})
	}
	slices.SortFunc(taken, func(a, b span) int { return int(a.from) - int(b.from) })
	for i := 1; i < len(taken); i++ {
		if taken[i].from < taken[i-1].to {
			t.Fatalf("%+v overlaps %+v", taken[i], taken[i-1])
		}
	}
	if last := taken[len(taken)-1]; last.to > 8<<20 {
		t.Fatalf("%+v ends outside the window", last)
	}
}

// A slot is reused under a new generation, with a clean header. An id of the
// old generation finds nothing.
func TestReuse(t *testing.T) {
	t.Parallel()
	tab := newTestTable(t, 1<<20, Options{StreamLimit: 1})
	for generation := range 5 {
		p, err := tab.New(4096, 4096, 0)
		if err != nil {
			t.Fatal(err)
		}
		id := p.ID()
		if id.Slot() != 0 || id.Generation() != uint32(generation) {
			t.Fatalf("id %v, want 0.%d", id, generation)
		}
		h := tab.layout.window[p.descriptor.Header : p.descriptor.Header+HeaderSize]
		if !bytes.Equal(h, make([]byte, HeaderSize)) {
			t.Fatalf("header % x is not zero", h)
		}
		if q, err := tab.Pipe(id); err != nil || q != p {
			t.Fatalf("pipe %v is %v, %v", id, q, err)
		}
		g, err := Attach(tab.layout.window, p.descriptor, tab)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.Write([]byte("abc")); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Write([]byte("defg")); err != nil {
			t.Fatal(err)
		}
		p.Close()
		if _, err := tab.New(4096, 4096, 0); !errors.Is(err, unix.EMFILE) {
			t.Fatalf("the slot is free before the guest has closed: %v", err)
		}
		g.CloseRead()
		if err := tab.NotifyRead(id); err != nil {
			t.Fatalf("notification before the last close: %v", err)
		}
		g.CloseWrite()
		if n := tab.Stats().Open; n != 0 {
			t.Fatal("the last close didn't free the pipe")
		}
		for _, stale := range []ID{id, id + 1<<32, 1, 1 << 31, ^ID(0)} {
			if err := tab.NotifyRead(stale); err != unix.ENOENT {
				t.Errorf("NotifyRead(%v): %v, want ENOENT", stale, err)
			}
			if err := tab.NotifyWrite(stale); err != unix.ENOENT {
				t.Errorf("NotifyWrite(%v): %v, want ENOENT", stale, err)
			}
		}
		// The old ends touch nothing of the next pipe.
		before := bytes.Clone(tab.layout.window)
		p.Reset(unix.EIO)
		g.Reset(unix.EIO)
		p.WakeReader()
		g.WakeWriter()
		if _, err := p.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write to a freed pipe: %v", err)
		}
		if _, _, err := g.ReserveRead(1); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read from a freed pipe: %v", err)
		}
		if p.ReadableLen() != 0 || p.WritableLen() != 0 {
			t.Error("a freed pipe has bytes or room")
		}
		if !bytes.Equal(before, tab.layout.window) {
			t.Error("an end wrote to memory after its pipe was free")
		}
	}
	if s := tab.Stats(); s.Pipes.Write.Bytes != 5*4 || s.Pipes.Read.Bytes != 0 {
		t.Errorf("sums of freed pipes: %+v", s.Pipes)
	}
}

func TestCursorsWrap(t *testing.T) {
	t.Parallel()
	for _, before := range []uint64{0, 1, 1000, 4096, 10_000} {
		tab := newTestTable(t, 1<<20, Options{StreamLimit: 1})
		p, err := tab.New(4096, 4096, 0)
		if err != nil {
			t.Fatal(err)
		}
		p.StartAt(-before)
		g, err := Attach(tab.layout.window, p.descriptor, tab)
		if err != nil {
			t.Fatal(err)
		}
		// An end looks before it waits, so no signal is needed where enough is
		// there.
		for _, way := range [][2]*Pipe{{p, g}, {g, p}} {
			var sent, got []byte
			for i := range 30 {
				b := bytes.Repeat([]byte{byte(i + 1)}, 1+i*137%4096)
				if n, err := way[0].Write(b); n != len(b) || err != nil {
					t.Fatal(n, err)
				}
				sent = append(sent, b...)
				c := make([]byte, len(b))
				if _, err := io.ReadFull(way[1], c); err != nil {
					t.Fatal(err)
				}
				got = append(got, c...)
			}
			if !bytes.Equal(sent, got) {
				t.Errorf("bytes changed around 2^64 − %d", before)
			}
		}
	}
}

// Each event of the largest table finds its way through the three levels, with
// one interrupt until the guest has looked.
func TestPendingBitmap(t *testing.T) {
	t.Parallel()
	const streams = MaxStreams
	b := bitmapAt(make([]byte, bitmapSize(streams)), 0, streams)
	take := func() (events []uint64) {
		for top := b.top.Swap(0); top != 0; top &= top - 1 {
			m := bits.TrailingZeros64(top)
			for mid := b.mid[m].Swap(0); mid != 0; mid &= mid - 1 {
				l := 64*m + bits.TrailingZeros64(mid)
				for leaf := b.leaf[l].Swap(0); leaf != 0; leaf &= leaf - 1 {
					events = append(events, uint64(64*l+bits.TrailingZeros64(leaf)))
				}
			}
		}
		return events
	}
	for e := range uint64(2 * streams) {
		if !b.set(e) {
			t.Fatalf("no interrupt for event %d on an empty bitmap", e)
		}
		if b.set(e) || b.set(e^1) || b.set((e+4096)%(2*streams)) {
			t.Fatalf("second interrupt while event %d is pending", e)
		}
		if n := len(take()); n != 3 {
			t.Fatalf("%d events taken, want 3", n)
		}
	}
	for e := range uint64(2 * streams) {
		b.set(e)
	}
	for i, e := range take() {
		if uint64(i) != e {
			t.Fatalf("event %d came as number %d", e, i)
		}
	}
}

// No event is lost when several goroutines set bits while the guest takes them.
func TestPendingBitmapConcurrently(t *testing.T) {
	t.Parallel()
	const streams, setters, each = 5000, 4, 20_000
	b := bitmapAt(make([]byte, bitmapSize(streams)), 0, streams)
	bell := make(chan struct{}, 1)
	var set sync.WaitGroup
	// Each event is set again only after it came back.
	back := make([]chan uint64, setters)
	for i := range setters {
		back[i] = make(chan uint64, 8)
		set.Go(func() {
			for n := range uint64(each) {
				e := (n*37*setters + uint64(i)) % (2 * streams)
				e -= e % setters
				e += uint64(i)
				if b.set(e) {
					select {
					case bell <- struct{}{}:
					default:
					}
				}
				if got := <-back[i]; got != e {
					t.Errorf("event %d came, want %d", got, e)
					return
				}
			}
		})
	}
	done := make(chan struct{})
	var cpu sync.WaitGroup
	cpu.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-bell:
			}
			for top := b.top.Swap(0); top != 0; top &= top - 1 {
				m := bits.TrailingZeros64(top)
				for mid := b.mid[m].Swap(0); mid != 0; mid &= mid - 1 {
					l := 64*m + bits.TrailingZeros64(mid)
					for leaf := b.leaf[l].Swap(0); leaf != 0; leaf &= leaf - 1 {
						e := uint64(64*l + bits.TrailingZeros64(leaf))
						back[e%setters] <- e
					}
				}
			}
		}
	})
	set.Wait()
	close(done)
	cpu.Wait()
}

// A ring limit counts what is in use, down to the last byte.
func TestRingLimit(t *testing.T) {
	tab := newTestTable(t, 8<<20, Options{StreamLimit: 64, RingLimit: 40 << 10})
	if _, err := tab.New(16<<10, 16<<10, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := tab.New(4<<10, 8<<10, 0); !errors.Is(err, unix.ENOMEM) {
		t.Errorf("got %v, want ENOMEM", err)
	}
	if s := tab.Stats(); s.RingBytes != 32<<10 {
		t.Errorf("%d bytes in use after a failure", s.RingBytes)
	}
	if _, err := tab.New(4<<10, 4<<10, 0); err != nil {
		t.Error(err)
	}
	if s := tab.Stats(); s.RingBytes != 40<<10 {
		t.Errorf("%d bytes in use", s.RingBytes)
	}
}
