package pipes

// cursor is how far one end has come in a ring, and how far it may go: as the
// consumer to the producer's cursor, as the producer one ring size beyond the
// consumer's. It knows nothing of memory, locks and states.
//
// Cursors count bytes since the pipe was made, modulo 2^64. Invariants, in that
// arithmetic:
//   - own ≤ limit ≤ own + size,
//   - neither own nor limit ever goes back.
type cursor struct {
	size  uint64 // of the ring, a power of two
	lead  uint64 // from the other end's cursor to limit: 0 for a consumer, size for a producer
	own   uint64 // the copy in shared memory is never read back
	limit uint64 // as the other end's cursor last allowed it
}

// newCursor is the cursor of an end in an empty ring whose cursors are at
// start.
func newCursor(size, start uint64, producer bool) cursor {
	c := cursor{size: size, own: start, limit: start}
	if producer {
		c.lead = size
		c.limit += size
	}
	return c
}

// available is how many bytes can be used.
func (c *cursor) available() uint64 { return c.limit - c.own }

// distance is how many bytes could be used if the other end's cursor were at
// theirs. More than size means that it can't be there.
func (c *cursor) distance(theirs uint64) uint64 { return theirs + c.lead - c.own }

// follow moves limit after the other end's cursor. It reports false, and leaves
// limit alone, if the other end broke the rules: its cursor went back, or
// overtook this end's.
func (c *cursor) follow(theirs uint64) bool {
	n := c.distance(theirs)
	if n > c.size || n < c.available() {
		return false
	}
	c.limit = c.own + n
	return true
}

// advance moves own by n bytes. It reports false, and leaves own alone, if
// fewer are available.
func (c *cursor) advance(n uint64) bool {
	if n > c.available() {
		return false
	}
	c.own += n
	return true
}

// spans returns the next n bytes of the ring's data, in two parts if they wrap.
func (c *cursor) spans(data []byte, n int) (a, b []byte) {
	size := int(c.size)
	from := int(c.own & (c.size - 1))
	to := from + n
	if to <= size {
		return data[from:to:to], nil
	}
	return data[from:size:size], data[: to-size : to-size]
}
