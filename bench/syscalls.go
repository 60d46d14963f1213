package bench

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// calls are numbers of system calls.
type calls struct {
	all    float64 // that can be counted
	moving float64 // of these, those of movingCalls
}

// callCounter counts the system calls of this process, all threads together.
type callCounter struct {
	tracepoint uint64 // perf's number of raw_syscalls:sys_enter; 0: /proc/self/io counts
	what       string // what is counted, for the report
}

// newCallCounter finds out what this process may count. The error says why it
// may count nothing.
func newCallCounter() (*callCounter, error) {
	id, err := syscallTracepoint()
	if err == nil {
		c := &callCounter{tracepoint: id, what: "all (tracepoint raw_syscalls:sys_enter)"}
		if _, err = c.count(func() error { return nil }); err == nil {
			return c, nil
		}
	}
	c := &callCounter{what: "only those of the read and write family, not sendmsg, recvmsg, epoll, " +
		"futex, ioctl (/proc/self/io; all need root and tracefs)"}
	if _, err2 := ioCalls(); err2 != nil {
		return nil, fmt.Errorf("%w: %w", errMissing, errors.Join(err, err2))
	}
	return c, nil
}

// syscallTracepoint returns perf's number of raw_syscalls:sys_enter. Where no
// tracefs is mounted it makes a mount that isn't attached to any folder.
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

// readUnmounted reads a short file of a file system of that type.
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

// count returns how many system calls there were while f ran. The tracepoint
// slows each of them, so f shouldn't be timed.
func (c *callCounter) count(f func() error) (calls, error) {
	look := func() (calls, error) {
		n, err := ioCalls()
		return calls{n, n}, err
	}
	if c.tracepoint != 0 {
		events, err := c.open()
		defer events.close()
		if err != nil {
			return calls{}, err
		}
		look = events.look
	}
	before, err := look()
	if err != nil {
		return calls{}, err
	}
	if err := f(); err != nil {
		return calls{}, err
	}
	after, err := look()
	return calls{after.all - before.all, after.moving - before.moving}, err
}

// events are the descriptors of perf events, one of each kind for each thread.
type events struct{ all, moving []int }

func (e *events) look() (c calls, err error) {
	if c.all, err = sum(e.all); err == nil {
		c.moving, err = sum(e.moving)
	}
	return c, err
}

func (e *events) close() {
	for _, fd := range slices.Concat(e.all, e.moving) {
		_ = unix.Close(fd)
	}
	*e = events{}
}

// add opens the events of a thread.
func (e *events) add(tracepoint uint64, tid int) error {
	for _, of := range []struct {
		to     *[]int
		filter string
	}{{&e.all, ""}, {&e.moving, movingCalls()}} {
		fd, err := unix.PerfEventOpen(&unix.PerfEventAttr{
			Type:   unix.PERF_TYPE_TRACEPOINT,
			Size:   uint32(reflect.TypeFor[unix.PerfEventAttr]().Size()),
			Config: tracepoint,
			Bits:   unix.PerfBitInherit,
		}, tid, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
		if err != nil {
			return os.NewSyscallError("perf_event_open", err)
		}
		*of.to = append(*of.to, fd)
		if of.filter != "" {
			if err := filterEvent(fd, of.filter); err != nil {
				return err
			}
		}
	}
	return nil
}

// movingCalls is a tracepoint's filter for the system calls that move bytes or
// ring doorbells.
func movingCalls() string {
	var terms []string
	for _, n := range []int{
		unix.SYS_READ, unix.SYS_WRITE, unix.SYS_READV, unix.SYS_WRITEV,
		unix.SYS_SENDTO, unix.SYS_RECVFROM, unix.SYS_SENDMSG, unix.SYS_RECVMSG, unix.SYS_SPLICE,
	} {
		terms = append(terms, fmt.Sprintf("id == %d", n))
	}
	return strings.Join(terms, " || ")
}

// open makes events for each thread, which the threads that it starts later
// inherit. A thread without events may start one meanwhile: then all of them
// are made again.
func (c *callCounter) open() (*events, error) {
	e := new(events)
	for range 100 {
		before, err := threads()
		if err != nil {
			return e, err
		}
		for _, tid := range before {
			if err := e.add(c.tracepoint, tid); err != nil && !errors.Is(err, unix.ESRCH) {
				return e, err
			}
		}
		after, err := threads()
		if err != nil || slices.Equal(before, after) {
			return e, err
		}
		e.close()
	}
	return e, errors.New("the number of threads doesn't settle")
}

func sum(fds []int) (total float64, err error) {
	b := make([]byte, 8)
	for _, fd := range fds {
		if n, err := unix.Read(fd, b); n != len(b) {
			return 0, errors.Join(errors.New("a counter can't be read"), err)
		}
		total += float64(nativeUint64(b))
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

// ioCalls is the sum of both counters of calls in /proc/self/io.
func ioCalls() (float64, error) {
	reads, err := numberIn("/proc/self/io", "syscr:")
	if err != nil {
		return 0, err
	}
	writes, err := numberIn("/proc/self/io", "syscw:")
	return float64(reads + writes), err
}

// numberIn returns the number behind a name that begins a line of a file.
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
