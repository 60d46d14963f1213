package message

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"unicode/utf8"
)

// VarintSize is how many bytes the varint of n takes, 1 to 10.
func VarintSize(n uint64) int { return (bits.Len64(n|1) + 6) / 7 }

func appendVarint(b []byte, n uint64) []byte { return binary.AppendUvarint(b, n) }

func appendZigzag(b []byte, n int64) []byte { return binary.AppendVarint(b, n) }

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

func appendString(b []byte, s string) []byte { return append(appendVarint(b, uint64(len(s))), s...) }

// decoder takes values off the front of b. After the first error it returns
// zeros.
type decoder struct {
	b   []byte
	err error
	// strict refuses integers that are longer than they need be, which no
	// encoder writes.
	strict bool
}

func (d *decoder) fail(what string) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: %s", ErrMalformed, what)
	}
	d.b = nil
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.fail("too short")
		return 0
	}
	v := d.b[0]
	d.b = d.b[1:]
	return v
}

// varint takes an unsigned integer of at most size bits. Like postcard it takes
// one that is longer than it need be, up to the length of the largest.
func (d *decoder) varint(size int) uint64 {
	var v uint64
	for shift := 0; shift < size; shift += 7 {
		c := d.byte()
		part := uint64(c & 0x7f)
		if left := size - shift; left < 7 && part>>left != 0 {
			d.fail("integer out of range")
			return 0
		}
		v |= part << shift
		if d.strict && c == 0 && shift > 0 {
			d.fail("integer longer than it need be")
			return 0
		}
		if c < 0x80 {
			return v
		}
	}
	d.fail("integer too long")
	return 0
}

func (d *decoder) zigzag(size int) int64 {
	v := d.varint(size)
	return int64(v>>1) ^ -int64(v&1)
}

func (d *decoder) bool() bool {
	v := d.byte()
	if v > 1 {
		d.fail("no bool")
	}
	return v == 1
}

// bytes takes a byte vector, which aliases the input.
func (d *decoder) bytes() []byte {
	n := d.varint(64)
	if n > uint64(len(d.b)) {
		d.fail("too short")
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) string() string {
	b := d.bytes()
	if !utf8.Valid(b) {
		d.fail("string is not UTF-8")
		return ""
	}
	return string(b)
}

// end returns the first error. Bytes that are left over are an error, too.
func (d *decoder) end() error {
	if len(d.b) > 0 {
		d.fail("too long")
	}
	return d.err
}
