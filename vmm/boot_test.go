package vmm

import (
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/internal/guestmap"
	"github.com/fix-project/arcavm/pipes"
)

func newTestMemory(t *testing.T, ram, window uint64) *memory {
	t.Helper()
	m, err := newMemory(ram, window)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// Both shapes of the direct map must send every byte of RAM and window to
// itself, and nothing else anywhere.
func TestDirectMap(t *testing.T) {
	t.Parallel()
	for name, gibPages := range map[string]bool{"1 GiB pages": true, "2 MiB pages": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newTestMemory(t, 3*gib/2, 6<<20)
			l, err := layOut(m, gibPages, 2, []string{"image"})
			if err != nil {
				t.Fatal(err)
			}
			if err := writeTables(m, gibPages, l.tables); err != nil {
				t.Fatal(err)
			}
			for _, r := range []*region{m.ram, m.window} {
				for _, physical := range []uint64{r.base, r.base + 8, r.base + hugePage - 8, r.base + 5<<20, r.end() - 8} {
					got, ok := translate(m, l.tables, guestmap.DirectMap+physical)
					if !ok || got != physical {
						t.Errorf("%#x is mapped to %#x, %v", guestmap.DirectMap+physical, got, ok)
					}
				}
			}
			unmapped := []uint64{0, 0x1000, guestmap.DirectMap, guestmap.DirectMap + 0xFEE0_0000, guestmap.DirectMap + m.window.base + gib, guestmap.DirectMap + guestmap.MaxPhysical - 8, ^uint64(7)}
			if !gibPages {
				unmapped = append(unmapped, guestmap.DirectMap+m.ram.end(), guestmap.DirectMap+m.window.end())
			}
			for _, v := range unmapped {
				if got, ok := translate(m, l.tables, v); ok {
					t.Errorf("%#x is mapped, to %#x", v, got)
				}
			}
		})
	}
}

func TestMemoryBytes(t *testing.T) {
	t.Parallel()
	m := newTestMemory(t, MinMemory, MinWindow)
	window := m.window.base
	for _, c := range []struct {
		name    string
		addr, n uint64
		ok      bool
	}{
		{"start of RAM", guestmap.RAMBase, 1, true},
		{"all of RAM", guestmap.RAMBase, MinMemory, true},
		{"end of RAM", guestmap.RAMBase + MinMemory - 1, 1, true},
		{"nothing at the end of RAM", guestmap.RAMBase + MinMemory, 0, true},
		{"below RAM", guestmap.RAMBase - 1, 1, false},
		{"across the start of RAM", guestmap.RAMBase - 1, 2, false},
		{"across the end of RAM", guestmap.RAMBase + MinMemory - 1, 2, false},
		{"after RAM", guestmap.RAMBase + MinMemory, 1, false},
		{"from RAM to window", guestmap.RAMBase, window + 1 - guestmap.RAMBase, false},
		{"window", window, MinWindow, true},
		{"across the end of the window", window + MinWindow - 4, 8, false},
		{"address zero", 0, 8, false},
		{"length wraps round", guestmap.RAMBase + 16, ^uint64(0), false},
		{"end wraps round", ^uint64(0), 2, false},
		{"length wraps to the start", guestmap.RAMBase + 1, ^uint64(0) - guestmap.RAMBase + 1, false},
	} {
		b, err := m.Bytes(c.addr, c.n)
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
		if err != nil && !errors.Is(err, unix.EFAULT) {
			t.Errorf("%s: %v is not EFAULT", c.name, err)
		}
		if err == nil && (uint64(len(b)) != c.n || uint64(cap(b)) != c.n) {
			t.Errorf("%s: length %d, capacity %d, want %d", c.name, len(b), cap(b), c.n)
		}
	}
}

// Released pages read as zero, and the host has them back.
func TestRegionRelease(t *testing.T) {
	t.Parallel()
	m := newTestMemory(t, MinMemory, MinWindow)
	b, err := m.Bytes(m.window.base, hugePage)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(b); i += pageSize {
		b[i] = 1
	}
	before := blocks(t, m.window.fd)
	if err := m.window.release(pageSize, hugePage-pageSize); err != nil {
		t.Fatal(err)
	}
	if b[0] != 1 || b[pageSize] != 0 {
		t.Errorf("first page %d, second page %d, want 1 and 0", b[0], b[pageSize])
	}
	if after := blocks(t, m.window.fd); after >= before {
		t.Errorf("%d blocks in use before, %d after", before, after)
	}
}

func blocks(t *testing.T, fd int) int64 {
	t.Helper()
	var s unix.Stat_t
	if err := unix.Fstat(fd, &s); err != nil {
		t.Fatal(err)
	}
	return s.Blocks
}

// The boot block to the byte, as PROTOCOL.md section 5 says it.
func TestBootBlock(t *testing.T) {
	t.Parallel()
	m := newTestMemory(t, MinMemory, MinWindow)
	const at = guestmap.RAMBase + 1<<20
	wall := time.Unix(1_700_000_000, 123_456_789)
	err := writeBlock(m, at, bootInfo{
		cpus: 3, limit: 1000, freeBase: guestmap.RAMBase + 0x5000, freeSize: 0x6000,
		control: pipes.Descriptor{ID: 7<<32 | 5, Header: 0x100, Outgoing: 0x2000, Incoming: 0x3000, OutgoingSize: 0x1000, IncomingSize: 0x800},
		pending: 0x40, stride: 0x1000, args: []string{"hello", "", "wörld"},
		wall: wall, wallTSC: 99, tscHz: 2_000_000_000, features: featureSMEP | featureInvariantTSC,
	})
	if err != nil {
		t.Fatal(err)
	}
	b, err := m.Bytes(at, 4096)
	if err != nil {
		t.Fatal(err)
	}
	if string(b[:8]) != "ARCABOOT" {
		t.Errorf("magic %q", b[:8])
	}
	le := binary.LittleEndian
	for _, f := range []struct {
		name   string
		offset int
		size   int
		want   uint64
	}{
		{"version", 8, 4, 1}, {"size", 12, 4, 192}, {"cpu_count", 16, 4, 3}, {"stream_limit", 20, 4, 1000},
		{"ram_base", 24, 8, guestmap.RAMBase}, {"ram_size", 32, 8, MinMemory},
		{"free_base", 40, 8, guestmap.RAMBase + 0x5000}, {"free_size", 48, 8, 0x6000},
		{"window_base", 56, 8, 5 * gib}, {"window_size", 64, 8, MinWindow},
		{"control id", 72, 8, 7<<32 | 5}, {"control header", 80, 8, 0x100}, {"control outgoing", 88, 8, 0x2000},
		{"control incoming", 96, 8, 0x3000}, {"outgoing size", 104, 4, 0x1000}, {"incoming size", 108, 4, 0x800},
		{"pending_offset", 112, 8, 0x40}, {"pending_stride", 120, 8, 0x1000},
		{"stream_vector", 128, 1, streamVector}, {"stop_vector", 129, 1, stopVector}, {"reserved", 130, 2, 0},
		{"arg_count", 132, 4, 3}, {"args", 136, 8, at + 192},
		{"wall_seconds", 144, 8, 1_700_000_000}, {"wall_nanoseconds", 152, 4, 123_456_789}, {"reserved", 156, 4, 0},
		{"wall_tsc", 160, 8, 99}, {"tsc_hz", 168, 8, 2_000_000_000}, {"features", 176, 8, 1<<2 | 1<<6}, {"reserved", 184, 8, 0},
	} {
		var got uint64
		for i := range f.size {
			got |= uint64(b[f.offset+i]) << (8 * i)
		}
		if got != f.want {
			t.Errorf("%s is %#x, want %#x", f.name, got, f.want)
		}
	}
	for i, want := range []string{"hello", "", "wörld"} {
		address, length := le.Uint64(b[192+16*i:]), le.Uint64(b[192+16*i+8:])
		got, err := m.Bytes(address, length+1)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != want+"\x00" {
			t.Errorf("argument %d is %q, want %q and a NUL", i, got, want)
		}
	}
}
