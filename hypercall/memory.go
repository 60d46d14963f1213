package hypercall

import (
	"golang.org/x/sys/unix"
)

// maxLength is the size of all the memory that a guest can map: 512 GiB. A longer range can't exist anywhere.
const maxLength = 512 << 30

// Memory is guest-physical memory. Bytes returns the n bytes at addr, or an error if they don't lie as a whole within
// one region that the guest may use. The guest may change them at any time. Bytes is called concurrently.
type Memory interface {
	Bytes(addr, n uint64) ([]byte, error)
}

// bytes is Bytes with the errors of a hypercall: EINVAL for a length that can't be meant, EFAULT for a range outside
// memory. An empty range is in memory wherever it is.
func bytes(m Memory, addr, n uint64) ([]byte, error) {
	switch {
	case n == 0:
		return nil, nil
	case n > maxLength:
		return nil, unix.EINVAL
	}
	b, err := m.Bytes(addr, n)
	if err != nil || uint64(len(b)) != n {
		return nil, unix.EFAULT
	}
	return b, nil
}
