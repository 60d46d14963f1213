package hypercall

import (
	"errors"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// fillChunk is how much memory MEMSET and MEMCLR fill before they look whether
// the VM is stopping. A longer fill would also keep the Go runtime from
// stopping the thread.
const fillChunk = 1 << 20

const (
	// discardSize is the least that MEMCLR gives back to the host. A page that
	// goes back costs some hundred nanoseconds, and a microsecond or two when
	// it is touched again; to clear it costs a tenth of that. So what is small,
	// and likely to be used at once, is only cleared.
	discardSize = 1 << 20
	// discardChunk is how much goes back before MEMCLR looks whether the VM is
	// stopping.
	discardChunk = 16 << 20
)

// Handlers are the monitor's half of the calls. Every field but HostCalls must
// be set. They are called on the thread of the virtual CPU cpu, concurrently
// for different CPUs, and while one runs its CPU doesn't.
type Handlers struct {
	// Exit ends the VM; code is 0 to 255.
	Exit func(cpu int, code int)
	// Log takes one log record.
	Log func(cpu int, r LogRecord)
	// Symbol returns the name and the start of the symbol that holds the
	// virtual address.
	Symbol func(address uint64) (name string, start uint64, found bool)
	// Panic ends the VM with a crash report. If err isn't nil, r holds what
	// could be read of the record.
	Panic func(cpu int, r PanicRecord, err error)
	// NotifyRead and NotifyWrite wake the host's end of a pipe. An errno within
	// their error becomes the call's result. They must not block.
	NotifyRead, NotifyWrite func(id uint64) error
	// Clock returns what the clock shows, in nanoseconds from 0 on, or an errno
	// within its error. It must not block.
	Clock func(clock Clock) (int64, error)
	// Stopping reports whether the VM is ending; a long fill then fails with
	// EINTR.
	Stopping func() bool
	// HostCalls, if not nil, are calls of the oldest ABI. They come first where
	// another call has the same number.
	HostCalls *HostCalls
}

// HostCalls are the calls First to Last of the oldest ABI, none beyond the
// largest number that there is. They take one argument, which is the record's
// offset in RAM.
type HostCalls struct {
	First, Last Number
	// Do begins a call. An errno within its error becomes the call's result.
	Do func(n Number, offset uint64) error
	// Name is what a call is called in counts and logs.
	Name func(n Number) string
}

func (h *HostCalls) has(n Number) bool { return h != nil && n >= h.First && n <= h.Last }

// Counters counts one virtual CPU's calls. Any goroutine may read them at any
// time; only that CPU's thread counts.
type Counters struct {
	calls   [numberLimit]atomic.Uint64
	unknown atomic.Uint64
	refused atomic.Uint64
}

// Calls returns how often the call n was made; 0 for a number that isn't a
// call.
func (c *Counters) Calls(n Number) uint64 {
	if n >= numberLimit {
		return 0
	}
	return c.calls[n].Load()
}

// Unknown returns how many calls had a number that isn't a call.
func (c *Counters) Unknown() uint64 { return c.unknown.Load() }

// Refused returns how many calls got a negative result, those of an unknown
// number included.
func (c *Counters) Refused() uint64 { return c.refused.Load() }

// Table dispatches calls. It may be used by all virtual CPUs at once.
type Table struct {
	memory   Memory
	handlers Handlers
}

// NewTable returns a table of calls that act on memory and handlers.
func NewTable(memory Memory, handlers Handlers) *Table {
	return &Table{memory: memory, handlers: handlers}
}

// Numbers returns all the calls, ascending.
func (t *Table) Numbers() []Number {
	var all []Number
	for n := range Number(numberLimit) {
		if functions[n] != nil || t.handlers.HostCalls.has(n) {
			all = append(all, n)
		}
	}
	return all
}

// Name returns what a call is called.
func (t *Table) Name(n Number) string {
	if h := t.handlers.HostCalls; h.has(n) {
		return h.Name(n)
	}
	return n.String()
}

type function func(t *Table, cpu int, a *[6]uint64) (uint64, error)

var functions = [numberLimit]function{
	Exit:        (*Table).exit,
	Log:         (*Table).log,
	SymName:     (*Table).symName,
	MemSet:      (*Table).memSet,
	MemClr:      (*Table).memClr,
	Panic:       (*Table).panic,
	NotifyRead:  (*Table).notifyRead,
	NotifyWrite: (*Table).notifyWrite,
	ReadClock:   (*Table).readClock,
}

// errEnded is the result of a call that ended the VM.
var errEnded = errors.New("the call ended the VM")

// Dispatch does call for virtual CPU cpu, counts it in c, and returns what RAX
// becomes. If ended is true, the call ended the VM, and the CPU must not run
// again.
func (t *Table) Dispatch(cpu int, c *Counters, call *Call) (result uint64, ended bool) {
	if h := t.handlers.HostCalls; h.has(call.Number) {
		c.calls[call.Number].Add(1)
		if err := h.Do(call.Number, call.Arguments[0]); err != nil {
			c.refused.Add(1)
			return negative(err), false
		}
		return 0, false
	}
	if call.Number >= numberLimit || functions[call.Number] == nil {
		c.unknown.Add(1)
		c.refused.Add(1)
		return negative(unix.ENOSYS), false
	}
	c.calls[call.Number].Add(1)
	result, err := functions[call.Number](t, cpu, &call.Arguments)
	switch err {
	case nil:
		return result, false
	case errEnded:
		return 0, true
	}
	c.refused.Add(1)
	return negative(err), false
}

// negative is -errno as the guest sees it; EINVAL if err holds no errno.
func negative(err error) uint64 {
	var errno unix.Errno
	if !errors.As(err, &errno) || errno == 0 {
		errno = unix.EINVAL
	}
	return -uint64(errno)
}

func (t *Table) exit(cpu int, a *[6]uint64) (uint64, error) {
	t.handlers.Exit(cpu, int(a[0]&0xFF))
	return 0, errEnded
}

func (t *Table) log(cpu int, a *[6]uint64) (uint64, error) {
	r, err := decodeLog(t.memory, a[0])
	if err != nil {
		return 0, err
	}
	t.handlers.Log(cpu, r)
	return 0, nil
}

func (t *Table) symName(_ int, a *[6]uint64) (uint64, error) {
	r, err := decodeSymbol(t.memory, a[0])
	if err != nil {
		return 0, err
	}
	name, start, found := t.handlers.Symbol(r.Address)
	if !found {
		return 0, writeNoSymbol(t.memory, a[0])
	}
	return 0, writeSymbol(t.memory, a[0], r, name, start)
}

func (t *Table) panic(cpu int, a *[6]uint64) (uint64, error) {
	r, err := decodePanic(t.memory, a[0])
	t.handlers.Panic(cpu, r, err)
	return 0, errEnded
}

func (t *Table) memSet(_ int, a *[6]uint64) (uint64, error) {
	return 0, t.fill(a[0], a[2], byte(a[1]))
}

func (t *Table) memClr(_ int, a *[6]uint64) (uint64, error) {
	return 0, t.clear(a[0], a[1])
}

// clear zeroes memory. The whole pages of a large range go back to the host.
func (t *Table) clear(addr, length uint64) error {
	if length < discardSize {
		return t.fill(addr, length, 0)
	}
	if _, err := bytes(t.memory, addr, length); err != nil {
		return err
	}
	first := (addr + pageSize - 1) &^ (pageSize - 1)
	last := (addr + length) &^ (pageSize - 1)
	if err := t.fill(addr, first-addr, 0); err != nil {
		return err
	}
	for at := first; at < last; {
		n := min(last-at, discardChunk)
		if err := t.memory.Discard(at, n); err != nil {
			// A host that keeps the pages: they are zero all the same.
			if err := t.fill(at, n, 0); err != nil {
				return err
			}
		}
		at += n
		if t.handlers.Stopping() {
			return unix.EINTR
		}
	}
	return t.fill(last, addr+length-last, 0)
}

func (t *Table) fill(addr, length uint64, value byte) error {
	b, err := bytes(t.memory, addr, length)
	if err != nil {
		return err
	}
	for len(b) > 0 {
		n := min(len(b), fillChunk)
		fillBytes(b[:n], value)
		b = b[n:]
		if len(b) > 0 && t.handlers.Stopping() {
			return unix.EINTR
		}
	}
	return nil
}

func fillBytes(b []byte, value byte) {
	if value == 0 {
		clear(b)
		return
	}
	b[0] = value
	for n := 1; n < len(b); n *= 2 {
		copy(b[n:], b[:n])
	}
}

func (t *Table) notifyRead(_ int, a *[6]uint64) (uint64, error) {
	return 0, t.handlers.NotifyRead(a[0])
}

func (t *Table) notifyWrite(_ int, a *[6]uint64) (uint64, error) {
	return 0, t.handlers.NotifyWrite(a[0])
}

func (t *Table) readClock(_ int, a *[6]uint64) (uint64, error) {
	if a[0] > uint64(ElapsedTime) {
		return 0, unix.EINVAL
	}
	ns, err := t.handlers.Clock(Clock(a[0]))
	// What is negative would be an errno.
	return uint64(max(ns, 0)), err
}
