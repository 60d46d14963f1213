package pipes

import (
	"errors"
	"maps"
	"slices"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// freeBlocks is the allocator's state in an order that doesn't depend on its
// history.
func (a *buddy) freeBlocks() map[block]bool {
	m := make(map[block]bool)
	for order, list := range a.free {
		for _, page := range list {
			m[block{page, uint8(order)}] = true
		}
	}
	return m
}

func TestBuddy(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		pages := rapid.Uint32Range(1, 3<<maxOrder).Draw(t, "pages")
		a := newBuddy(pages)
		fresh := a.freeBlocks()
		owner := make([]bool, pages)
		var live []block
		check := func(b block, set bool) {
			if b.page%(1<<b.order) != 0 || b.page+1<<b.order > pages {
				t.Fatalf("block %+v outside its place", b)
			}
			for i := b.page; i < b.page+1<<b.order; i++ {
				if owner[i] == set {
					t.Fatalf("page %d given twice", i)
				}
				owner[i] = set
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"alloc": func(t *rapid.T) {
				order := rapid.Uint8Range(0, maxOrder).Draw(t, "order")
				b, ok := a.alloc(order)
				if !ok {
					t.Skip("exhausted")
				}
				if b.order != order {
					t.Fatalf("order %d, want %d", b.order, order)
				}
				check(b, true)
				live = append(live, b)
			},
			"release": func(t *rapid.T) {
				if len(live) == 0 {
					t.Skip("nothing to release")
				}
				i := rapid.IntRange(0, len(live)-1).Draw(t, "block")
				check(live[i], false)
				a.release(live[i])
				live = slices.Delete(live, i, i+1)
			},
		})
		for _, b := range live {
			a.release(b)
		}
		if !maps.Equal(a.freeBlocks(), fresh) {
			t.Fatal("after all was released the blocks are not what they were")
		}
	})
}

// finishBoth plays a guest that closes a pipe whose monitor's end is closed.
func finishBoth(t testing.TB, tab *Table, p *Pipe) {
	t.Helper()
	g, err := Attach(tab.layout.window, p.descriptor, tab)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
}

func newTestTable(t testing.TB, size int, o Options) *Table {
	t.Helper()
	o.CPUs = max(o.CPUs, 1)
	if o.StreamLimit == 0 {
		o.StreamLimit = 1024
	}
	if o.Doorbell == nil {
		o.Doorbell = func(int) {}
	}
	tab, err := NewTable(make([]byte, size), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tab.Close(); err != nil {
			t.Error(err)
		}
		tab.Wait()
	})
	return tab
}

// After 10,000 pipes, hundreds at a time, the allocator is as it was, all pages
// but a bounded rest are released, and that in far fewer calls than blocks were
// freed.
func TestChurn(t *testing.T) {
	t.Parallel()
	var calls, bytes atomic.Int64
	tab := newTestTable(t, 256<<20, Options{Release: func(off, n int64) error {
		calls.Add(1)
		bytes.Add(n)
		if off%pageSize != 0 || n%pageSize != 0 {
			t.Errorf("release of %d bytes at %d", n, off)
		}
		return nil
	}})
	fresh := tab.memory.buddy.freeBlocks()
	const rounds, each = 50, 200
	for round := range rounds {
		var live []*Pipe
		for i := range each {
			p, err := tab.New(MinRingSize<<(i%5), MinRingSize<<((i+round)%7), 0)
			if err != nil {
				t.Fatal(err)
			}
			if p.descriptor.ID.Slot() != uint32(p.descriptor.ID) || p.descriptor.ID.Slot() >= each {
				t.Fatalf("slot %d used with %d pipes at a time", p.descriptor.ID.Slot(), each)
			}
			live = append(live, p)
		}
		for _, p := range live {
			finishBoth(t, tab, p)
			// How many blocks are given back together must not depend on how
			// fast the last trim was.
			tab.mu.Lock()
			settle(tab)
			tab.mu.Unlock()
		}
	}
	tab.mu.Lock()
	hot := tab.memory.hotSize
	tab.memory.trim(0)
	settle(tab)
	left := tab.memory.buddy.freeBlocks()
	tab.mu.Unlock()
	if hot > hotBytes {
		t.Errorf("%d bytes stay hot, more than %d", hot, hotBytes)
	}
	if !maps.Equal(left, fresh) {
		t.Errorf("after churn %d free blocks, before %d", len(left), len(fresh))
	}
	if n := calls.Load(); n > rounds*each/5 {
		t.Errorf("%d calls to release for %d freed rings", n, 2*rounds*each)
	}
	if s := tab.Stats(); s.Open != 0 || s.Opened != rounds*each || s.RingBytes != 0 {
		t.Errorf("stats %+v", s)
	}
}

// settle waits until no pages are on their way back. mu is held.
func settle(tab *Table) {
	for tab.memory.trimming {
		tab.settled.Wait()
	}
}

// The last bytes of the window can be had, whatever is hot or on its way back.
func TestExhaustion(t *testing.T) {
	t.Parallel()
	for name, release := range map[string]func(off, n int64) error{
		"kept": nil, "released": func(off, n int64) error { return nil }, "refused": func(off, n int64) error { return unix.ENOTSUP },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tab := newTestTable(t, 40<<20, Options{Release: release})
			for _, size := range []uint32{64 << 10, 8 << 20, 4 << 10, 16 << 20} {
				var live []*Pipe
				for {
					p, err := tab.New(size, size, 0)
					if errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.EMFILE) {
						break
					}
					if err != nil {
						t.Fatal(err)
					}
					live = append(live, p)
				}
				if len(live) == 0 {
					t.Fatalf("no pipe with rings of %d bytes", size)
				}
				for _, p := range live {
					finishBoth(t, tab, p)
				}
			}
		})
	}
}
