package rpc

import "reflect"

// memory is a part of the guest's RAM, or something that has its form. The
// guest changes it at any time: words are accessed by sync/atomic only, copied
// once, then checked, then used.
type memory []byte

// clear zeroes the words from off to off+n, both multiples of 8.
func (m memory) clear(off, n uint64) {
	for end := off + n; off < end; off += 8 {
		m.word(off).Store(0)
	}
}

// aligned reports whether the first byte lies on a multiple of 8.
func (m memory) aligned() bool { return reflect.ValueOf(m).Pointer()%8 == 0 }

// span returns n bytes from off on, which the guest has named. nil: they don't
// lie in RAM.
func (m memory) span(off, n uint64) []byte {
	if off > uint64(len(m)) || n > uint64(len(m))-off {
		return nil
	}
	return m[off : off+n : off+n]
}
