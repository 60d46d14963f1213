package vmm

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/internal/guestmap"
)

const (
	pageSize = 4 << 10
	hugePage = 2 << 20
	gib      = 1 << 30
)

// region is guest-physical memory: a memfd, mapped once in the monitor.
type region struct {
	base uint64
	fd   int
	mem  []byte
}

// newRegion makes size bytes of zeroed, sparse memory for guest-physical
// address base.
func newRegion(name string, base, size uint64) (*region, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("making memory %q: memfd_create: %w", name, err)
	}
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("making memory %q of %d MiB: ftruncate: %w", name, size>>20, err)
	}
	mem, err := unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("making memory %q of %d MiB: mmap: %w", name, size>>20, err)
	}
	return &region{base: base, fd: fd, mem: mem}, nil
}

func (r *region) end() uint64 { return r.base + uint64(len(r.mem)) }

// bytes returns the n bytes at guest-physical address addr, if all of them lie
// in r.
func (r *region) bytes(addr, n uint64) ([]byte, bool) {
	if addr < r.base || n > uint64(len(r.mem)) || addr-r.base > uint64(len(r.mem))-n {
		return nil, false
	}
	off := addr - r.base
	return r.mem[off : off+n : off+n], true
}

// release gives the pages of n bytes at offset off back to the host; they read
// as zero afterwards.
func (r *region) release(off, n int64) error {
	err := unix.Fallocate(r.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if err != nil {
		return fmt.Errorf("releasing %d bytes: fallocate: %w", n, err)
	}
	return nil
}

func (r *region) close() error {
	return errors.Join(unix.Munmap(r.mem), unix.Close(r.fd))
}

// memory is all that the guest can reach: RAM and, if there is one, the shared
// window.
type memory struct {
	ram, window *region
}

// newMemory maps RAM and, above it and aligned to 1 GiB, the window; no window
// if its size is 0.
func newMemory(ramSize, windowSize uint64) (*memory, error) {
	ram, err := newRegion("arcavm-ram", guestmap.RAMBase, ramSize)
	if err != nil {
		return nil, err
	}
	if windowSize == 0 {
		return &memory{ram: ram}, nil
	}
	window, err := newRegion("arcavm-window", alignUp(ram.end(), gib), windowSize)
	if err != nil {
		return nil, errors.Join(err, ram.close())
	}
	return &memory{ram: ram, window: window}, nil
}

// regions returns what there is, ascending by address.
func (m *memory) regions() []*region {
	if m.window == nil {
		return []*region{m.ram}
	}
	return []*region{m.ram, m.window}
}

// end is the first physical address behind all memory.
func (m *memory) end() uint64 {
	all := m.regions()
	return all[len(all)-1].end()
}

// Bytes returns the n bytes at guest-physical address addr as a slice of guest
// memory. It fails with EFAULT unless all of them lie in RAM or all in the
// window. The guest can change them at any time: copy once, then check.
func (m *memory) Bytes(addr, n uint64) ([]byte, error) {
	if b, ok := m.ram.bytes(addr, n); ok {
		return b, nil
	}
	if m.window != nil {
		if b, ok := m.window.bytes(addr, n); ok {
			return b, nil
		}
	}
	return nil, fmt.Errorf("guest memory at %#x, %d bytes: %w", addr, n, unix.EFAULT)
}

// Discard zeroes whole pages of guest memory by giving them back to the host,
// as [hypercall.Memory] has it. Virtual CPUs and streams may be using them:
// each access sees the old page or the new one.
func (m *memory) Discard(addr, n uint64) error {
	for _, r := range m.regions() {
		if _, ok := r.bytes(addr, n); ok {
			return r.release(int64(addr-r.base), int64(n))
		}
	}
	return fmt.Errorf("guest memory at %#x, %d bytes: %w", addr, n, unix.EFAULT)
}

func (m *memory) close() error {
	var errs []error
	for _, r := range m.regions() {
		errs = append(errs, r.close())
	}
	return errors.Join(errs...)
}

func alignUp(n, to uint64) uint64 { return (n + to - 1) &^ (to - 1) }
