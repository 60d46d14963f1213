package rpc

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/fix-project/arcavm/rpc/rpctest"
)

func mustAllocator(t testing.TB, size int, reserved ...Range) *allocator {
	t.Helper()
	a, err := newAllocator(rpctest.NewRAM(size), reserved, func(err error) { t.Errorf("told: %v", err) })
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// TestAllocatorLayout checks every word that the guest reads at its start, for
// 1 GiB.
func TestAllocatorLayout(t *testing.T) {
	t.Parallel()
	const size = 1 << 30
	a := mustAllocator(t, size)
	ram := a.ram
	u64 := func(off uint64) uint64 { return binary.LittleEndian.Uint64(ram[off:]) }
	raw := a.place
	inner, counts := u64(raw+16), u64(raw+32)
	// The page at 0 leaves the second block of every level free: 67,168 bytes
	// go to 128 KiB, the counts to 2 MiB, the raw data to a page.
	if inner != 128<<10 || counts != 2<<20 || raw != 4096 {
		t.Errorf("inner at %#x, counts at %#x, raw data at %#x", inner, counts, raw)
	}
	for _, c := range []struct {
		name      string
		off, want uint64
	}{
		{"base", raw, 0},
		{"RAM size", raw + 8, size},
		{"words", raw + 24, 8197},
		{"counts", raw + 40, size / 4096},
		{"refcnt", inner, 1},
		{"used", inner + 8, 4096 + 128<<10 + 2<<20 + 4096},
		{"raw size", inner + 16, size},
		{"total size", inner + 24, size},
		{"alignment", inner + 32, 1 << 32},
		{"levels", inner + 40, 12 | 31<<32},
		{"requests of level 12", inner + 48 + 12*8, 2}, // the page at 0, the raw data
		{"requests of level 17", inner + 48 + 17*8, 1},
		{"requests of level 21", inner + 48 + 21*8, 1},
		{"requests of level 30", inner + 48 + 30*8, 0},
		{"lock", inner + 560, 0},
		{"head of level 30", inner + 568 + 16*30, 0},
		{"bit of the whole", inner + 1592, 0},
		{"bits of the halves", inner + 1592 + 8, 0b10},
		{"bits of the quarters", inner + 1592 + 16, 0b10},
		{"bits of the eighths", inner + 1592 + 24, 0b10},
	} {
		if got := u64(c.off); got != c.want {
			t.Errorf("%s is %#x, want %#x", c.name, got, c.want)
		}
	}
	if n := len(a.inner); n != 67168 {
		t.Errorf("inner takes %d bytes", n)
	}
	rpctest.NewAllocator(ram, raw).Snapshot()
}

// What was loaded before the allocator was made is still there.
func TestAllocatorKeepsWhatIsReserved(t *testing.T) {
	t.Parallel()
	const size = 8 << 20
	for _, reserved := range [][]Range{
		{{0, 4096}},
		{{0x100000, 0x5220}},
		{{0x100000, 0x570}, {0x100570, 0x3390}, {0x2ff000, 0x200001}, {size - 4096, 4096}},
		{{0, size / 2}},
	} {
		ram := rpctest.NewRAM(size)
		for _, r := range reserved {
			for i := range r.Size {
				ram[r.Offset+i] = 0x5A
			}
		}
		if _, err := newAllocator(ram, reserved, func(err error) { t.Errorf("told: %v", err) }); err != nil {
			t.Fatal(err)
		}
		for _, r := range reserved {
			for i, b := range ram[r.Offset : r.Offset+r.Size] {
				if b != 0x5A {
					t.Errorf("reserving %v changed the byte at offset %#x to %#x", reserved, r.Offset+uint64(i), b)
					break
				}
			}
		}
	}
}

func TestAllocatorReserves(t *testing.T) {
	t.Parallel()
	a := mustAllocator(t, 4<<20, Range{0x100010, 0x1ff0}, Range{0x101800, 0x1000}, Range{0x180000, 1}, Range{0x200000, 0})
	g := rpctest.NewAllocator(a.ram, a.place)
	g.Snapshot()
	for _, off := range []uint64{0, 0x100000, 0x101000, 0x102000, 0x180000} {
		if err := a.reserve(off, 4096); !errors.Is(err, errInUse) {
			t.Errorf("reserving %#x: %v", off, err)
		}
	}
	// Five pages, the inner block, the counts, the raw data.
	if used := g.Used(); used != 5*4096+4096+8192+4096 {
		t.Errorf("%d bytes are used", used)
	}
	for _, r := range []Range{{4 << 20, 1}, {1, 4 << 20}, {1, ^uint64(0)}} {
		if _, err := newAllocator(rpctest.NewRAM(4<<20), []Range{r}, nil); !errors.Is(err, unix.EINVAL) {
			t.Errorf("reserving %+v: %v", r, err)
		}
	}
}

func TestAllocatorSizes(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1 << 20, 1<<20 + 4096, 3 << 20, 1<<24 - 4096} {
		a := mustAllocator(t, size)
		s := rpctest.NewAllocator(a.ram, a.place).Snapshot()
		// Every block can be had, and then no more.
		var blocks []uint64
		for {
			off, err := a.alloc(1)
			if err != nil {
				if !errors.Is(err, unix.ENOMEM) {
					t.Fatal(err)
				}
				break
			}
			if off == 0 || off+4096 > uint64(size) {
				t.Fatalf("block at %#x of %#x", off, size)
			}
			blocks = append(blocks, off)
		}
		for _, off := range blocks {
			if err := a.free(off, 4096); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(s, rpctest.NewAllocator(a.ram, a.place).Snapshot()); diff != "" {
			t.Error(diff)
		}
	}
	for _, size := range []int{0, 4096, 1<<20 - 4096, 1<<20 + 1} {
		if _, err := newAllocator(rpctest.NewRAM(size), nil, nil); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

// model is the allocator of the description, on slices: lists with their heads
// in front.
type model struct {
	top      uint32
	lists    map[uint32][]uint64
	used     uint64
	requests [64]uint64
}

func (m *model) has(level uint32, i uint64) bool { return slices.Contains(m.lists[level], i) }

func (m *model) drop(level uint32, i uint64) {
	m.lists[level] = slices.DeleteFunc(slices.Clone(m.lists[level]), func(j uint64) bool { return i == j })
}

func (m *model) push(level uint32, i uint64) {
	m.lists[level] = append([]uint64{i}, m.lists[level]...)
}

func (m *model) alloc(level uint32) (uint64, bool) {
	if level > m.top {
		return 0, false
	}
	if l := m.lists[level]; len(l) > 0 {
		m.lists[level] = l[1:]
		return l[0], true
	}
	i, ok := m.alloc(level + 1)
	if ok {
		m.push(level, 2*i)
	}
	return 2*i + 1, ok
}

func (m *model) free(level uint32, i uint64) {
	if level < m.top && m.has(level, i^1) {
		m.drop(level, i^1)
		m.free(level+1, i/2)
		return
	}
	m.push(level, i)
}

func (m *model) reserve(level uint32, i uint64) bool {
	if level > m.top {
		return false
	}
	if m.has(level, i) {
		m.drop(level, i)
		return true
	}
	if !m.reserve(level+1, i/2) {
		return false
	}
	m.free(level, i^1)
	return true
}

// TestAllocatorAgainstModel lets monitor and guest take turns and compares
// lists in their order, bitmap, sizes and request counts with the model.
func TestAllocatorAgainstModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		const size = 2 << 20
		a, err := newAllocator(rpctest.NewRAM(size), nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		g := rpctest.NewAllocator(a.ram, a.place)
		m := &model{top: a.top, lists: make(map[uint32][]uint64), used: g.Used()}
		for l := uint32(firstLevel); l <= a.top; l++ {
			m.lists[l] = g.List(l)
			m.requests[l] = g.Requests(l)
		}
		type block struct{ off, size uint64 }
		var held []block
		t.Repeat(map[string]func(*rapid.T){
			"alloc": func(t *rapid.T) {
				n := rapid.Uint64Range(1, size).Draw(t, "size")
				n >>= rapid.IntRange(0, 20).Draw(t, "shift")
				n = max(n, 1)
				level := levelOf(n)
				m.requests[level]++
				i, ok := m.alloc(level)
				var off uint64
				var err error
				if rapid.Bool().Draw(t, "guest") {
					if off = g.Alloc(n); off == 0 {
						err = unix.ENOMEM
					}
				} else {
					off, err = a.alloc(n)
				}
				if ok != (err == nil) || ok && off != i<<level {
					t.Fatalf("allocating %d: %#x, %v; want block %d of level %d, %v", n, off, err, i, level, ok)
				}
				if ok {
					m.used += 1 << level
					held = append(held, block{off, n})
				}
			},
			"free": func(t *rapid.T) {
				if len(held) == 0 {
					t.Skip()
				}
				k := rapid.IntRange(0, len(held)-1).Draw(t, "block")
				b := held[k]
				held = slices.Delete(held, k, k+1)
				level := levelOf(b.size)
				m.requests[level]++
				m.used -= 1 << level
				m.free(level, b.off>>level)
				if rapid.Bool().Draw(t, "guest") {
					g.Free(b.off, b.size)
				} else if err := a.free(b.off, b.size); err != nil {
					t.Fatal(err)
				}
			},
			"reserve": func(t *rapid.T) {
				level := rapid.Uint32Range(firstLevel, a.top).Draw(t, "level")
				i := rapid.Uint64Range(0, 1<<(a.top-level)-1).Draw(t, "index")
				m.requests[level]++
				ok := m.reserve(level, i)
				err := a.reserve(i<<level, 1<<level)
				if ok != (err == nil) {
					t.Fatalf("reserving block %d of level %d: %v, want %v", i, level, err, ok)
				}
				if ok {
					m.used += 1 << level
					held = append(held, block{i << level, 1 << level})
				}
			},
			"free again": func(t *rapid.T) {
				for l := uint32(firstLevel); l <= a.top; l++ {
					for _, i := range m.lists[l] {
						if err := a.free(i<<l, 4096); !errors.Is(err, errNotOurs) {
							t.Fatalf("freeing the free page %#x: %v", i<<l, err)
						}
					}
				}
			},
			"": func(t *rapid.T) {
				g.Snapshot()
				for l := uint32(firstLevel); l <= a.top; l++ {
					if got := g.List(l); !slices.Equal(got, m.lists[l]) {
						t.Fatalf("list of level %d is %v, want %v", l, got, m.lists[l])
					}
					if got := g.Requests(l); got != m.requests[l] {
						t.Fatalf("%d requests of level %d, want %d", got, l, m.requests[l])
					}
				}
				if g.Used() != m.used {
					t.Fatalf("used %d, want %d", g.Used(), m.used)
				}
			},
		})
	})
}

// TestAllocatorConcurrently lets four guest CPUs and two goroutines of the
// monitor allocate, write and free at once.
func TestAllocatorConcurrently(t *testing.T) {
	t.Parallel()
	a := mustAllocator(t, 16<<20)
	g := rpctest.NewAllocator(a.ram, a.place)
	before := g.Snapshot()
	var running sync.WaitGroup
	var overlaps atomic.Int64
	for worker := range 6 {
		running.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(worker)))
			type block struct{ off, size uint64 }
			var held []block
			free := func(b block) {
				if !a.ram.word(b.off).CompareAndSwap(uint64(worker)+1000, 0) {
					overlaps.Add(1)
				}
				if worker < 4 {
					g.Free(b.off, b.size)
				} else if err := a.free(b.off, b.size); err != nil {
					t.Error(err)
				}
			}
			for range 2000 {
				if len(held) > 0 && r.IntN(2) == 0 {
					k := r.IntN(len(held))
					free(held[k])
					held = slices.Delete(held, k, k+1)
					continue
				}
				n := uint64(1) << r.IntN(18)
				var off uint64
				if worker < 4 {
					off = g.Alloc(n)
				} else {
					off, _ = a.alloc(n)
				}
				if off != 0 {
					a.ram.word(off).Store(uint64(worker) + 1000)
					held = append(held, block{off, n})
				}
			}
			for _, b := range held {
				free(b)
			}
		})
	}
	running.Wait()
	if n := overlaps.Load(); n > 0 {
		t.Errorf("%d blocks were somebody else's too", n)
	}
	if diff := cmp.Diff(before, g.Snapshot()); diff != "" {
		t.Error(diff)
	}
}

func TestAllocatorLockHeld(t *testing.T) {
	t.Parallel()
	var told []error
	a, err := newAllocator(rpctest.NewRAM(1<<20), nil, func(err error) { told = append(told, err) })
	if err != nil {
		t.Fatal(err)
	}
	a.patience = time.Millisecond
	g := rpctest.NewAllocator(a.ram, a.place)
	g.Lock()
	for range maxStuck - 1 {
		if _, err := a.alloc(1); !errors.Is(err, errStuck) {
			t.Fatal(err)
		}
	}
	g.Unlock()
	if _, err := a.alloc(1); err != nil {
		t.Fatal("after the lock was given up:", err)
	}
	g.Lock()
	for range maxStuck + 1 {
		if _, err := a.alloc(1); !errors.Is(err, errStuck) {
			t.Fatal(err)
		}
	}
	if len(told) != 1 {
		t.Errorf("told %v", told)
	}
}

// TestAllocatorCorrupted overwrites words of the allocator at random: the
// monitor gets errors at worst, and says so once.
func TestAllocatorCorrupted(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		told := 0
		a, err := newAllocator(rpctest.NewRAM(1<<20), nil, func(error) { told++ })
		if err != nil {
			t.Fatal(err)
		}
		a.patience = 0
		var held []uint64
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			switch rapid.IntRange(0, 3).Draw(t, "step") {
			case 0:
				if off, err := a.alloc(1 << rapid.IntRange(0, 18).Draw(t, "size")); err == nil {
					if off >= 1<<20 {
						t.Fatalf("block at %#x", off)
					}
					held = append(held, off)
				}
			case 1:
				if len(held) > 0 {
					_ = a.free(held[len(held)-1], 4096)
					held = held[:len(held)-1]
				}
			case 2:
				off := rapid.Uint64Range(0, uint64(len(a.inner))/8-1).Draw(t, "word") * 8
				a.inner.word(off).Store(rapid.Uint64().Draw(t, "value"))
			case 3:
				off := rapid.Uint64Range(0, 255).Draw(t, "page")*4096 + rapid.Uint64Range(0, 3).Draw(t, "word")*8
				a.ram.word(off).Store(rapid.Uint64Range(0, 300).Draw(t, "value"))
			}
		}
		if (a.broken != nil) != (told == 1) {
			t.Fatalf("told %d times of %v", told, a.broken)
		}
	})
}
