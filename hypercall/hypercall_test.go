package hypercall

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

const (
	base = 0x1_0000_0000
	size = 1 << 16
)

// ram is guest memory from base on.
type ram []byte

func newRAM() ram { return make(ram, size) }

func (m ram) Bytes(addr, n uint64) ([]byte, error) {
	if addr < base || addr-base > uint64(len(m)) || n > uint64(len(m))-(addr-base) {
		return nil, fmt.Errorf("%#x: %w", addr, unix.EFAULT)
	}
	return m[addr-base:][:n:n], nil
}

func (m ram) Discard(addr, n uint64) error {
	if addr%pageSize != 0 || n%pageSize != 0 || n == 0 {
		return fmt.Errorf("%#x, %d bytes: %w", addr, n, unix.EINVAL)
	}
	for i := range m[addr-base:][:n] {
		m[addr-base:][i] = 0
	}
	return nil
}

func (m ram) put64(at uint64, values ...uint64) {
	for i, v := range values {
		binary.LittleEndian.PutUint64(m[at-base+8*uint64(i):], v)
	}
}

func (m ram) put(at uint64, s string) uint64 {
	copy(m[at-base:], s)
	return uint64(len(s))
}

// putLog writes a full log record to base, its texts behind it.
func (m ram) putLog() {
	m.put64(base, uint64(LevelWarn), base+0x100, m.put(base+0x100, "net::tcp"))
	m.put64(base+24, 1, base+0x200, m.put(base+0x200, "src/tcp.rs"))
	m.put64(base+48, 1|42<<32)
	m.put64(base+56, 1, base+0x300, m.put(base+0x300, "kernel::net"))
	m.put64(base+80, base+0x400, m.put(base+0x400, "no route\n"))
}

// guest records what the handlers saw.
type guest struct {
	t      *Table
	c      Counters
	logs   []LogRecord
	exits  []int
	panics []PanicRecord
	errs   []error
	stop   bool
	clocks [2]int64
}

const (
	symbolStart = 0xFFFF_8001_0000_1000
	symbolName  = "core::fmt::write"
)

func newGuest(m Memory) *guest {
	g := new(guest)
	g.t = NewTable(m, Handlers{
		Exit: func(_ int, code int) { g.exits = append(g.exits, code) },
		Log:  func(_ int, r LogRecord) { g.logs = append(g.logs, r) },
		Symbol: func(a uint64) (string, uint64, bool) {
			return symbolName, symbolStart, a >= symbolStart && a < symbolStart+0x100
		},
		Panic: func(_ int, r PanicRecord, err error) {
			g.panics, g.errs = append(g.panics, r), append(g.errs, err)
		},
		NotifyRead: func(id uint64) error {
			if id != 3 {
				return fmt.Errorf("pipe %d: %w", id, unix.ENOENT)
			}
			return nil
		},
		NotifyWrite: func(id uint64) error { return errors.New("no errno") },
		Clock:       func(c Clock) (int64, error) { return g.clocks[c], nil },
		Stopping:    func() bool { return g.stop },
	})
	return g
}

func (g *guest) call(n Number, arguments ...uint64) (uint64, bool) {
	c := Call{Number: n}
	copy(c.Arguments[:], arguments)
	return g.t.Dispatch(0, &g.c, &c)
}

func minus(e unix.Errno) uint64 { return -uint64(e) }

func TestResults(t *testing.T) {
	t.Parallel()
	const end = base + size
	tests := []struct {
		name string
		n    Number
		args []uint64
		want uint64
	}{
		{"unknown", 6, nil, minus(unix.ENOSYS)},
		{"unknown 15", 15, nil, minus(unix.ENOSYS)},
		{"unknown 19", 19, nil, minus(unix.ENOSYS)},
		{"unknown 2^64-1", 1<<64 - 1, nil, minus(unix.ENOSYS)},
		{"log at 0", Log, []uint64{0}, minus(unix.EFAULT)},
		{"log near 2^64", Log, []uint64{1<<64 - 8}, minus(unix.EFAULT)},
		{"log straddles the end", Log, []uint64{end - logRecordSize + 1}, minus(unix.EFAULT)},
		{"log before the start", Log, []uint64{base - 1}, minus(unix.EFAULT)},
		{"log of level 0", Log, []uint64{base + 0x8000}, minus(unix.EINVAL)},
		{"log", Log, []uint64{base}, 0},
		{"symbol at 0", SymName, []uint64{0}, minus(unix.EFAULT)},
		{"symbol straddles the end", SymName, []uint64{end - symbolRecordSize + 1}, minus(unix.EFAULT)},
		{"symbol not found", SymName, []uint64{base + 0x8000}, 0},
		{"set", MemSet, []uint64{base + 0x9000, 7, 16}, 0},
		{"set nothing anywhere", MemSet, []uint64{0, 7, 0}, 0},
		{"set all", MemSet, []uint64{base + 0xA000, 0, size - 0xA000}, 0},
		{"set one more", MemSet, []uint64{base + 0xA000, 0, size - 0xA000 + 1}, minus(unix.EFAULT)},
		{"set 2^64-1", MemSet, []uint64{base, 0, 1<<64 - 1}, minus(unix.EINVAL)},
		{"set wraps", MemSet, []uint64{1<<64 - 8, 0, 16}, minus(unix.EFAULT)},
		{"clear", MemClr, []uint64{base + 0x9000, 16}, 0},
		{"clear more than can be", MemClr, []uint64{base, 512<<30 + 1}, minus(unix.EINVAL)},
		{"clear outside", MemClr, []uint64{base, 512 << 30}, minus(unix.EFAULT)},
		{"notify", NotifyRead, []uint64{3}, 0},
		{"notify nobody", NotifyRead, []uint64{4}, minus(unix.ENOENT)},
		{"a clock that isn't", ReadClock, []uint64{2}, minus(unix.EINVAL)},
		{"a clock that isn't, 2^63", ReadClock, []uint64{1 << 63}, minus(unix.EINVAL)},
		{"error without errno", NotifyWrite, []uint64{3}, minus(unix.EINVAL)},
	}
	m := newRAM()
	m.putLog()
	g := newGuest(m)
	refused := uint64(0)
	for _, test := range tests {
		got, ended := g.call(test.n, test.args...)
		if got != test.want || ended {
			t.Errorf("%s: got %d, ended %v; want %d", test.name, int64(got), ended, int64(test.want))
		}
		if test.want != 0 {
			refused++
		}
	}
	if g.c.Calls(NotifyRead) != 2 || g.c.Unknown() != 4 || g.c.Refused() != refused {
		t.Errorf("counted %d, %d unknown, %d refused of %d", g.c.Calls(NotifyRead), g.c.Unknown(), g.c.Refused(), refused)
	}
	if len(g.logs) != 1 {
		t.Errorf("%d records logged, want 1", len(g.logs))
	}
}

func TestExit(t *testing.T) {
	t.Parallel()
	g := newGuest(newRAM())
	for _, code := range []uint64{0, 7, 255, 256 + 3, 1<<64 - 1} {
		if _, ended := g.call(Exit, code); !ended {
			t.Errorf("Exit(%d) didn't end", code)
		}
	}
	if diff := cmp.Diff([]int{0, 7, 255, 3, 255}, g.exits); diff != "" {
		t.Error(diff)
	}
}

func TestDecodeLog(t *testing.T) {
	t.Parallel()
	full := LogRecord{Level: LevelWarn, Target: "net::tcp", File: "src/tcp.rs", Line: 42, Module: "kernel::net", Message: "no route"}
	change := func(f func(r *LogRecord)) LogRecord {
		r := full
		f(&r)
		return r
	}
	const far = 1<<64 - 4
	tests := []struct {
		name string
		edit func(m ram)
		want LogRecord
		err  error
	}{
		{name: "full", edit: func(m ram) {}, want: full},
		{name: "garbage behind level", edit: func(m ram) { m.put64(base, uint64(LevelError)|0xFFFF_FF00) }, want: change(func(r *LogRecord) { r.Level = LevelError })},
		{name: "no file, garbage behind", edit: func(m ram) { m.put64(base+24, 0, far, far) }, want: change(func(r *LogRecord) { r.File = "" })},
		{name: "no line, garbage behind", edit: func(m ram) { m.put64(base+48, 99<<32) }, want: change(func(r *LogRecord) { r.Line = 0 })},
		{name: "no module, garbage behind", edit: func(m ram) { m.put64(base+56, 0, far, far) }, want: change(func(r *LogRecord) { r.Module = "" })},
		{name: "empty text anywhere", edit: func(m ram) { m.put64(base+80, 1, 0) }, want: change(func(r *LogRecord) { r.Message = "" })},
		{name: "target cut", edit: func(m ram) {
			m.put64(base+8, base+0x1000, m.put(base+0x1000, strings.Repeat("x", maxName+1)))
		}, want: change(func(r *LogRecord) { r.Target = strings.Repeat("x", maxName) })},
		{name: "message cut", edit: func(m ram) {
			m.put64(base+80, base+0x1000, m.put(base+0x1000, strings.Repeat("y", maxMessage+1)))
		}, want: change(func(r *LogRecord) { r.Message = strings.Repeat("y", maxMessage) })},
		{name: "level 6", edit: func(m ram) { m.put64(base, 6) }, err: unix.EINVAL},
		{name: "file tag 2", edit: func(m ram) { m.put64(base+24, 2) }, err: unix.EINVAL},
		{name: "line tag 2", edit: func(m ram) { m.put64(base+48, 2) }, err: unix.EINVAL},
		{name: "module tag 2^63", edit: func(m ram) { m.put64(base+56, 1<<63) }, err: unix.EINVAL},
		{name: "target address", edit: func(m ram) { m.put64(base+8, far) }, err: unix.EFAULT},
		{name: "file address", edit: func(m ram) { m.put64(base+32, base-1) }, err: unix.EFAULT},
		{name: "module length", edit: func(m ram) { m.put64(base+72, 1<<64-1) }, err: unix.EINVAL},
		{name: "message longer than memory", edit: func(m ram) { m.put64(base+88, size) }, err: unix.EFAULT},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := newRAM()
			m.putLog()
			test.edit(m)
			got, err := decodeLog(m, base)
			if !errors.Is(err, test.err) {
				t.Fatalf("got error %v, want %v", err, test.err)
			}
			if test.err == nil {
				if diff := cmp.Diff(test.want, got); diff != "" {
					t.Error(diff)
				}
			}
		})
	}
}

func TestSymbol(t *testing.T) {
	t.Parallel()
	const buffer = base + 0x100
	for _, capacity := range []uint64{0, 4, 16, 64} {
		m := newRAM()
		for i := range m {
			m[i] = 0xAA
		}
		m.put64(base, symbolStart+5)
		m.put64(base+24, buffer, capacity)
		if got, _ := newGuest(m).call(SymName, base); got != 0 {
			t.Fatalf("capacity %d: got %d", capacity, int64(got))
		}
		le := binary.LittleEndian
		if le.Uint64(m[0:]) != symbolStart || le.Uint64(m[8:]) != 5 || m[16] != 1 || m[17] != 0xAA || le.Uint64(m[40:]) != uint64(len(symbolName)) {
			t.Errorf("capacity %d: record % x", capacity, m[:symbolRecordSize])
		}
		n := min(capacity, uint64(len(symbolName)))
		if got := string(m[buffer-base:][:n]); got != symbolName[:n] || m[buffer-base+n] != 0xAA {
			t.Errorf("capacity %d: buffer %q, then %x", capacity, got, m[buffer-base+n])
		}
	}
	m := newRAM()
	m.put64(base, 99, 99)
	m[16] = 1
	before := append(ram(nil), m...)
	before[16] = 0
	if got, _ := newGuest(m).call(SymName, base); got != 0 {
		t.Errorf("not found: got %d", int64(got))
	}
	if diff := cmp.Diff(before, m); diff != "" {
		t.Errorf("not found: more than the flag was written: %s", diff)
	}
	m.put64(base+24, base+size-8, 9)
	if got, _ := newGuest(m).call(SymName, base); got != minus(unix.EFAULT) {
		t.Errorf("buffer straddles the end: got %d", int64(got))
	}
}

// The wall clock may go back; what a clock shows is never an errno.
func TestClock(t *testing.T) {
	t.Parallel()
	g := newGuest(newRAM())
	for _, c := range []struct{ wall, elapsed, wantWall int64 }{
		{1_700_000_000_123_456_789, 5, 1_700_000_000_123_456_789},
		{1_600_000_000_000_000_000, 6, 1_600_000_000_000_000_000},
		{-1, 1 << 62, 0},
		{0, 1<<63 - 1, 0},
	} {
		g.clocks = [2]int64{c.wall, c.elapsed}
		if got, ended := g.call(ReadClock, uint64(WallTime)); int64(got) != c.wantWall || ended {
			t.Errorf("the wall clock at %d shows %d, %v", c.wall, int64(got), ended)
		}
		if got, ended := g.call(ReadClock, uint64(ElapsedTime)); int64(got) != c.elapsed || ended {
			t.Errorf("elapsed time of %d shows %d, %v", c.elapsed, int64(got), ended)
		}
	}
	if n := g.c.Refused(); n != 0 {
		t.Errorf("%d calls refused", n)
	}
}

// discards is memory that keeps what went back to the host.
type discards struct {
	ram
	ranges [][2]uint64
	err    error
}

func (d *discards) Discard(addr, n uint64) error {
	d.ranges = append(d.ranges, [2]uint64{addr - base, n})
	if d.err != nil {
		return d.err
	}
	return d.ram.Discard(addr, n)
}

// MEMCLR gives back the whole pages of what is large, and clears everything
// else by hand, and all of it where the host keeps the pages. MEMSET keeps all.
func TestClearGivesBack(t *testing.T) {
	t.Parallel()
	const chunk, page = discardChunk, pageSize
	for _, c := range []struct {
		name         string
		from, length uint64
		err          error
		want         [][2]uint64
	}{
		{"a page", page, page, nil, nil},
		{"a byte less than large", 0, discardSize - 1, nil, nil},
		{"large", page, discardSize, nil, [][2]uint64{{page, discardSize}}},
		{"edges", page - 1, discardSize + 2, nil, [][2]uint64{{page, discardSize}}},
		{"all but edges", 1, discardSize, nil, [][2]uint64{{page, discardSize - page}}},
		{"chunks", 2 * page, chunk + page + 5, nil, [][2]uint64{{2 * page, chunk}, {2*page + chunk, page}}},
		{"a host that keeps them", 3, 2*discardSize + 3, unix.EOPNOTSUPP, [][2]uint64{{page, 2*discardSize - page}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := &discards{ram: make(ram, chunk+discardSize), err: c.err}
			for i := range m.ram {
				m.ram[i] = 0xAA
			}
			g := newGuest(m)
			if got, _ := g.call(MemClr, base+c.from, c.length); got != 0 {
				t.Fatalf("MEMCLR: %d", int64(got))
			}
			if diff := cmp.Diff(c.want, m.ranges); diff != "" {
				t.Error(diff)
			}
			for i, b := range m.ram {
				if inside := uint64(i) >= c.from && uint64(i) < c.from+c.length; inside != (b == 0) {
					t.Fatalf("byte %d is %#x", i, b)
				}
			}
			m.ranges = nil
			if got, _ := g.call(MemSet, base+c.from, 0, c.length); got != 0 || m.ranges != nil {
				t.Errorf("MEMSET: %d, gave back %v", int64(got), m.ranges)
			}
		})
	}
	m := &discards{ram: make(ram, 3*chunk)}
	g := newGuest(m)
	g.stop = true
	if got, _ := g.call(MemClr, base, 3*chunk); got != minus(unix.EINTR) || len(m.ranges) != 1 {
		t.Errorf("while stopping: %d after %v", int64(got), m.ranges)
	}
}

func TestFill(t *testing.T) {
	t.Parallel()
	m := make(ram, 3*fillChunk)
	g := newGuest(m)
	for _, length := range []uint64{1, 2, 3, 63, 4097, 3*fillChunk - 2} {
		if got, _ := g.call(MemSet, base+1, 0x1_5A, length); got != 0 {
			t.Fatalf("MEMSET of %d: %d", length, int64(got))
		}
		for i, b := range m {
			if inside := i >= 1 && uint64(i) <= length; inside != (b == 0x5A) {
				t.Fatalf("MEMSET of %d: byte %d is %#x", length, i, b)
			}
		}
		if got, _ := g.call(MemClr, base+1, length); got != 0 {
			t.Fatalf("MEMCLR of %d: %d", length, int64(got))
		}
		for i, b := range m {
			if b != 0 {
				t.Fatalf("MEMCLR of %d: byte %d is %#x", length, i, b)
			}
		}
	}
	g.stop = true
	if got, _ := g.call(MemSet, base, 1, 3*fillChunk); got != minus(unix.EINTR) {
		t.Errorf("while stopping: got %d", int64(got))
	}
	if m[fillChunk] != 0 {
		t.Error("while stopping: more than one piece was filled")
	}
}

func TestPanic(t *testing.T) {
	t.Parallel()
	const record, message, frame = base, base + 0x100, base + 0x200
	tests := []struct {
		name  string
		edit  func(m ram)
		addr  uint64
		text  string
		frame bool
		err   error
	}{
		{name: "full", addr: record, text: "index out\n\tof bounds\\x1b[31m", frame: true},
		{name: "no frame", addr: record, edit: func(m ram) { m.put64(record+16, 0) }, text: "index out\n\tof bounds\\x1b[31m"},
		{name: "record outside", addr: 8, err: unix.EFAULT},
		{name: "message outside", addr: record, edit: func(m ram) { m.put64(record, 1) }, frame: true, err: unix.EFAULT},
		{name: "message of 2^64-1", addr: record, edit: func(m ram) { m.put64(record+8, 1<<64-1) }, frame: true, err: unix.EINVAL},
		{name: "frame straddles the end", addr: record, edit: func(m ram) { m.put64(record+16, base+size-frameSize+1) }, text: "index out\n\tof bounds\\x1b[31m", err: unix.EFAULT},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := newRAM()
			m.put64(record, message, m.put(message, "index out\n\tof bounds\x1b[31m\r\n"), frame)
			for i := range uint64(frameSize / 8) {
				m.put64(frame+8*i, 100+i)
			}
			if test.edit != nil {
				test.edit(m)
			}
			g := newGuest(m)
			if _, ended := g.call(Panic, test.addr); !ended {
				t.Error("the guest goes on")
			}
			if len(g.panics) != 1 {
				t.Fatalf("%d panics", len(g.panics))
			}
			r := g.panics[0]
			if r.Message != test.text || (r.Frame != nil) != test.frame || !errors.Is(g.errs[0], test.err) {
				t.Errorf("got %q, frame %v, error %v", r.Message, r.Frame, g.errs[0])
			}
			if r.Frame != nil && (r.Frame.RAX != 100 || r.Frame.RSP != 106 || r.Frame.R8 != 108 || r.Frame.RIP != 116 || r.Frame.CR2 != 120) {
				t.Errorf("frame %+v", *r.Frame)
			}
		})
	}
}

func TestPrintable(t *testing.T) {
	t.Parallel()
	tests := []struct{ in, want, lines string }{
		{"", "", ""},
		{"plain ASCII ~", "plain ASCII ~", "plain ASCII ~"},
		{"grüße 世界", "grüße 世界", "grüße 世界"},
		{"a\nb\tc\r\n\n", `a\nb\tc`, "a\nb\tc"},
		{"\x1b]0;x\x07", `\x1b]0;x\a`, `\x1b]0;x\a`},
		{"\x00\x7f\u0085", `\x00\x7f\u0085`, `\x00\x7f\u0085`},
		{"a\u202eb\u2028c", `a\u202eb\u2028c`, `a\u202eb\u2028c`},
		{"a\xff\xc3", "a\uFFFD\uFFFD", "a\uFFFD\uFFFD"},
	}
	for _, test := range tests {
		if got := Printable(test.in); got != test.want {
			t.Errorf("Printable(%q) = %q, want %q", test.in, got, test.want)
		}
		if got := printableLines(test.in); got != test.lines {
			t.Errorf("printableLines(%q) = %q, want %q", test.in, got, test.lines)
		}
	}
}

func TestCutRune(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"": "", "a": "a", "aä": "aä", "a\xc3": "a", "世": "世", "\xe4\xb8": "", "x\xf0\x9f\x98": "x", "\x80\x80\x80\x80": "\x80\x80\x80\x80",
	} {
		if got := cutRune(in); got != want {
			t.Errorf("cutRune(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	var got []string
	table := NewTable(newRAM(), Handlers{})
	for _, n := range table.Numbers() {
		got = append(got, fmt.Sprintf("%d %v", n, table.Name(n)))
	}
	want := []string{"0 EXIT", "1 LOG", "2 SYMNAME", "3 MEMSET", "4 MEMCLR", "5 PANIC", "16 NOTIFY_READ", "17 NOTIFY_WRITE", "18 CLOCK"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got := Number(9).String(); got != "hypercall 9" {
		t.Error(got)
	}
	levels := []slog.Level{slog.LevelError, slog.LevelWarn, slog.LevelInfo, slog.LevelDebug, SlogTrace}
	for i, want := range levels {
		if got := Level(i + 1).Slog(); got != want {
			t.Errorf("level %d: %v, want %v", i+1, got, want)
		}
	}
}

// The calls of an older ABI come before those of the same numbers.
func TestHostCalls(t *testing.T) {
	t.Parallel()
	var did []string
	table := NewTable(newRAM(), Handlers{HostCalls: &HostCalls{
		First: 5, Last: 7,
		Do: func(n Number, offset uint64) error {
			did = append(did, fmt.Sprintf("%d at %#x", n, offset))
			if offset == 0 {
				return fmt.Errorf("no record: %w", unix.EFAULT)
			}
			return nil
		},
		Name: func(n Number) string { return fmt.Sprintf("HOST_%d", n) },
	}})
	var c Counters
	for _, call := range []struct {
		n, offset, want uint64
	}{{5, 0x10, 0}, {7, 0, negative(unix.EFAULT)}, {8, 0x10, negative(unix.ENOSYS)}} {
		got, ended := table.Dispatch(0, &c, &Call{Number: Number(call.n), Arguments: [6]uint64{call.offset}})
		if got != call.want || ended {
			t.Errorf("call %d: %#x, %v; want %#x", call.n, got, ended, call.want)
		}
	}
	if diff := cmp.Diff([]string{"5 at 0x10", "7 at 0x0"}, did); diff != "" {
		t.Error(diff)
	}
	if c.Calls(5) != 1 || c.Refused() != 2 || c.Unknown() != 1 || table.Name(6) != "HOST_6" || len(table.Numbers()) != 11 {
		t.Errorf("%d calls, %d refused, %d unknown, %s, %v", c.Calls(5), c.Refused(), c.Unknown(), table.Name(6), table.Numbers())
	}
}

func TestNotifyDoesNotAllocate(t *testing.T) {
	g := newGuest(newRAM())
	call := Call{Number: NotifyRead, Arguments: [6]uint64{3}}
	if n := testing.AllocsPerRun(100, func() { g.t.Dispatch(0, &g.c, &call) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzDispatch(f *testing.F) {
	m := newRAM()
	m.putLog()
	for n := range uint64(numberLimit) {
		f.Add(n, uint64(base), uint64(base+0x100), uint64(16), []byte(m[:0x500]))
	}
	f.Fuzz(func(t *testing.T, n, a, b, c uint64, content []byte) {
		m := newRAM()
		copy(m, content)
		g := newGuest(m)
		result, ended := g.call(Number(n), a, b, c)
		if ended != (Number(n) == Exit || Number(n) == Panic) {
			t.Errorf("%v: ended = %v", Number(n), ended)
		}
		if int64(result) > 0 || int64(result) < -133 {
			t.Errorf("%v: result %d", Number(n), int64(result))
		}
		for _, r := range g.logs {
			for _, s := range []string{r.Target, r.File, r.Module, r.Message} {
				if !utf8.ValidString(s) || strings.ContainsAny(s, "\n\x1b\x00") {
					t.Errorf("unclean text %q", s)
				}
			}
		}
	})
}

func BenchmarkNotify(b *testing.B) {
	g := newGuest(newRAM())
	call := Call{Number: NotifyRead, Arguments: [6]uint64{3}}
	for b.Loop() {
		g.t.Dispatch(0, &g.c, &call)
	}
}

func BenchmarkLog(b *testing.B) {
	m := newRAM()
	m.putLog()
	for b.Loop() {
		if _, err := decodeLog(m, base); err != nil {
			b.Fatal(err)
		}
	}
}
