package vmm

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/hypercall"
)

// hostClock is what the CLOCK call reads.
type hostClock struct {
	// read returns a clock's nanoseconds; tests set and step it.
	read func(id int32) (int64, error)
	// start is when the VM was made, by the clock that goes on while the host
	// is suspended.
	start int64
}

func newHostClock(read func(id int32) (int64, error)) (*hostClock, error) {
	start, err := read(unix.CLOCK_BOOTTIME)
	if err != nil {
		return nil, err
	}
	return &hostClock{read: read, start: start}, nil
}

// now returns what a clock shows. It is called on the CPUs' threads,
// concurrently.
func (c *hostClock) now(clock hypercall.Clock) (int64, error) {
	if clock == hypercall.WallTime {
		return c.read(unix.CLOCK_REALTIME)
	}
	ns, err := c.read(unix.CLOCK_BOOTTIME)
	return ns - c.start, err
}

func readHostClock(id int32) (int64, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(id, &t); err != nil {
		return 0, fmt.Errorf("reading the host's clock: clock_gettime: %w", err)
	}
	return t.Nano(), nil
}
