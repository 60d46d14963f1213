package hypercall

import (
	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/internal/guestmap"
)

// Memory is guest-physical memory. Its methods are called concurrently, and the
// guest may change what it holds at any time.
type Memory interface {
	// Bytes returns the n bytes at addr, or an error if they don't lie as a
	// whole within one region that the guest may use.
	Bytes(addr, n uint64) ([]byte, error)
	// Discard makes the n bytes at addr zero by giving their pages back to the
	// host. Both are multiples of 4 KiB, and Bytes has taken the range. After
	// an error some of the bytes may be what they were.
	Discard(addr, n uint64) error
}

// pageSize is the unit in which memory goes back to the host.
const pageSize = 4096

// bytes is Bytes with the errors of a hypercall: EINVAL for a length beyond all
// memory, EFAULT for a range outside memory. An empty range is in memory
// wherever it is.
func bytes(m Memory, addr, n uint64) ([]byte, error) {
	switch {
	case n == 0:
		return nil, nil
	case n > guestmap.MaxPhysical:
		return nil, unix.EINVAL
	}
	b, err := m.Bytes(addr, n)
	if err != nil || uint64(len(b)) != n {
		return nil, unix.EFAULT
	}
	return b, nil
}
