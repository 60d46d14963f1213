package bench

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// callCounter counts the system calls of this process, all threads together.
type callCounter struct {
	tracepoint uint64 // raw_syscalls:sys_enter; 0: what /proc/self/io counts
	what       string // is counted
}

// newCallCounter finds out what this process may count. The error says why it's nothing.
func newCallCounter() (*callCounter, error) {
	id, err := syscallTracepoint()
	if err == nil {
		c := &callCounter{tracepoint: id, what: "all (tracepoint raw_syscalls:sys_enter)"}
		if _, err = c.count(func() error { return nil }); err == nil {
			return c, nil
		}
	}
	c := &callCounter{what: "only those of the read and write family, not sendmsg, recvmsg, epoll, futex, ioctl (/proc/self/io; all need root and tracefs)"}
	if _, err2 := ioCalls(); err2 != nil {
		return nil, fmt.Errorf("%w: %w", errMissing, errors.Join(err, err2))
	}
	return c, nil
}

// syscallTracepoint returns the number by which perf knows raw_syscalls:sys_enter. It needs no tracefs that is mounted somewhere: it makes a mount that
// no folder leads to.
func syscallTracepoint() (uint64, error) {
	const file = "events/raw_syscalls/sys_enter/id"
	b, err := os.ReadFile("/sys/kernel/tracing/" + file)
	if err != nil {
		b, err = readUnmounted("tracefs", file)
	}
	if err != nil {
		return 0, fmt.Errorf("tracepoint of system calls: %w", err)
	}
	return strconv.ParseUint(string(bytes.TrimSpace(b)), 10, 64)
}

// readUnmounted reads a file of a file system of that type.
func readUnmounted(fsType, file string) ([]byte, error) {
	fs, err := unix.Fsopen(fsType, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, os.NewSyscallError("fsconfig", err)
	}
	root, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fsmount", err)
	}
	defer unix.Close(root)
	fd, err := unix.Openat(root, file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("openat", err)
	}
	defer unix.Close(fd)
	b := make([]byte, 64)
	n, err := unix.Read(fd, b)
	return b[:max(n, 0)], os.NewSyscallError("read", err)
}

// count returns how many system calls there were while f ran. The tracepoint makes each of them slower: f is not for timing.
func (c *callCounter) count(f func() error) (calls uint64, err error) {
	if c.tracepoint == 0 {
		before, err := ioCalls()
		if err != nil {
			return 0, err
		}
		if err := f(); err != nil {
			return 0, err
		}
		after, err := ioCalls()
		return after - before, err
	}
	events, err := c.open()
	if err != nil {
		return 0, err
	}
	defer closeAll(events)
	before, err := sum(events)
	if err != nil {
		return 0, err
	}
	if err := f(); err != nil {
		return 0, err
	}
	after, err := sum(events)
	return after - before, err
}

// open makes a counter for each thread; threads that these start later inherit it. A thread may be started by one that has no counter yet: then all of
// it is done again.
func (c *callCounter) open() ([]int, error) {
	for range 100 {
		before, err := threads()
		if err != nil {
			return nil, err
		}
		var events []int
		for _, tid := range before {
			fd, err := unix.PerfEventOpen(&unix.PerfEventAttr{
				Type: unix.PERF_TYPE_TRACEPOINT, Size: uint32(reflect.TypeFor[unix.PerfEventAttr]().Size()), Config: c.tracepoint, Bits: unix.PerfBitInherit,
			}, tid, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
			if errors.Is(err, unix.ESRCH) {
				continue
			}
			if err != nil {
				closeAll(events)
				return nil, os.NewSyscallError("perf_event_open", err)
			}
			events = append(events, fd)
		}
		after, err := threads()
		if err == nil && slices.Equal(before, after) {
			return events, nil
		}
		closeAll(events)
		if err != nil {
			return nil, err
		}
	}
	return nil, errors.New("the number of threads doesn't settle")
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

func sum(events []int) (total uint64, err error) {
	b := make([]byte, 8)
	for _, fd := range events {
		if n, err := unix.Read(fd, b); n != len(b) {
			return 0, errors.Join(errors.New("a counter can't be read"), err)
		}
		total += nativeUint64(b)
	}
	return total, nil
}

// threads returns the ids of this process's threads in order.
func threads() ([]int, error) {
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return nil, fmt.Errorf("list threads: %w", err)
	}
	var ids []int
	for _, e := range entries {
		if id, err := strconv.Atoi(e.Name()); err == nil {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// ioCalls is the sum of the two counters of calls in /proc/self/io.
func ioCalls() (uint64, error) {
	reads, err := numberIn("/proc/self/io", "syscr:")
	if err != nil {
		return 0, err
	}
	writes, err := numberIn("/proc/self/io", "syscw:")
	return reads + writes, err
}

// numberIn returns the first number behind a name that begins a line of a file.
func numberIn(path, name string) (uint64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(b) {
		if f := bytes.Fields(line); len(f) >= 2 && string(f[0]) == name {
			return strconv.ParseUint(string(f[1]), 10, 64)
		}
	}
	return 0, fmt.Errorf("%s: no %s", path, name)
}
