package pipes

import (
	"bytes"
	"testing"
)

// What the other end's cursor may do, and what it lets this end use: from any
// cursor on, around 2^64 too.
func TestCursorFollows(t *testing.T) {
	t.Parallel()
	const size = 16
	for _, c := range []struct {
		what      string
		producer  bool
		used      uint64 // by this end before, of all that it saw
		seen      uint64 // the other end's cursor before, from the start
		theirs    uint64 // now, from the start
		ok        bool
		available uint64
	}{
		{"an empty ring has nothing to read", false, 0, 0, 0, true, 0},
		{"an empty ring is all room", true, 0, 0, 0, true, size},
		{"some was written", false, 0, 0, 5, true, 5},
		{"some was written before and read", false, 3, 5, 7, true, 4},
		{"a full ring", false, 0, 0, size, true, size},
		{"a full ring has no room", true, size, 0, 0, true, 0},
		{"some was read", true, size, 0, 5, true, 5},
		{"all was read", true, 9, 0, 9, true, size},
		{"nothing new", false, 5, 5, 5, true, 0},
		{"more written than the ring holds", false, 0, 0, size + 1, false, 0},
		{"more written than the rest of the ring holds", false, 3, 5, 3 + size + 1, false, 2},
		{"the producer went back", false, 3, 5, 4, false, 2},
		{"the producer went back behind what was read", false, 3, 5, 2, false, 2},
		{"more read than was written", true, 9, 0, 10, false, size - 9},
		{"the consumer went back", true, 9, 4, 3, false, size - 5},
		{"far away", false, 0, 0, 1 << 63, false, 0},
		{"one before the start", false, 0, 0, ^uint64(0), false, 0},
		{"one before the start, for a producer", true, 0, 0, ^uint64(0), false, size},
	} {
		for _, start := range []uint64{0, 1, 1 << 40, ^uint64(0), 1<<64 - size, 1<<64 - 7} {
			cur := newCursor(size, start, c.producer)
			if !cur.follow(start) {
				t.Fatalf("%s: the start is refused", c.what)
			}
			// A producer uses room before the consumer can free it.
			if c.producer && !cur.advance(c.used) {
				t.Fatalf("%s: no room for %d", c.what, c.used)
			}
			if !cur.follow(start + c.seen) {
				t.Fatalf("%s: the cursor before is refused", c.what)
			}
			if !c.producer && !cur.advance(c.used) {
				t.Fatalf("%s: %d bytes aren't there", c.what, c.used)
			}
			before := cur
			if ok := cur.follow(start + c.theirs); ok != c.ok || cur.available() != c.available {
				t.Errorf("%s, from %#x: %v with %d available, want %v with %d", c.what, start, ok, cur.available(), c.ok, c.available)
			}
			if !c.ok && cur != before {
				t.Errorf("%s: %+v became %+v", c.what, before, cur)
			}
		}
	}
}

// No cursor goes further than its limit.
func TestCursorAdvances(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		available, n uint64
		ok           bool
	}{{0, 0, true}, {0, 1, false}, {5, 0, true}, {5, 4, true}, {5, 5, true}, {5, 6, false}, {16, 16, true}, {16, 17, false}, {5, ^uint64(0), false}} {
		for _, start := range []uint64{0, 1<<64 - 3} {
			cur := newCursor(16, start, false)
			if !cur.follow(start + c.available) {
				t.Fatal("refused")
			}
			want := start
			if c.ok {
				want += c.n
			}
			if ok := cur.advance(c.n); ok != c.ok || cur.own != want {
				t.Errorf("%d of %d: %v, own cursor %d, want %v, %d", c.n, c.available, ok, cur.own, c.ok, want)
			}
		}
	}
}

// The parts of ring memory are those after the cursor, and no longer than asked
// for, with no room to append over the rest.
func TestCursorSpans(t *testing.T) {
	t.Parallel()
	data := []byte("0123456789abcdef")
	for _, c := range []struct {
		own  uint64
		n    int
		a, b string
	}{
		{0, 0, "", ""}, {0, 3, "012", ""}, {0, 16, "0123456789abcdef", ""},
		{5, 4, "5678", ""}, {12, 4, "cdef", ""}, {12, 5, "cdef", "0"},
		{12, 16, "cdef", "0123456789ab"}, {15, 2, "f", "0"},
		{16, 2, "01", ""}, {1<<40 + 14, 3, "ef", "0"}, {1<<64 - 2, 3, "ef", "0"},
	} {
		cur := newCursor(16, c.own, true)
		a, b := cur.spans(data, c.n)
		if string(a) != c.a || string(b) != c.b || cap(a) != len(a) || cap(b) != len(b) {
			t.Errorf("%d from %d: %q and %q, want %q and %q", c.n, c.own, a, b, c.a, c.b)
		}
		if len(a) > 0 && !bytes.Equal(a, data[c.own%16:][:len(a)]) {
			t.Errorf("%d from %d: the first part is a copy", c.n, c.own)
		}
	}
}
