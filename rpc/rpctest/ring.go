package rpctest

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// ring is one end of a ring as the kernel has it: an Arc of the ring, in which
// cursors are read afresh every time.
type ring struct {
	guest *Guest
	off   uint64 // of the ring; its block starts 16 bytes before
	len   uint64
	freed bool
}

func (r *ring) readCursor() uint64  { return word(r.guest.RAM, r.off).Load() }
func (r *ring) writeCursor() uint64 { return word(r.guest.RAM, r.off+8).Load() }

func (r *ring) data(at, n uint64) []byte { return r.guest.RAM[r.off+18+at : r.off+18+at+n] }

func (r *ring) flag(n uint64) *byte { return &r.guest.RAM[r.off+16+n] }

// read takes what lies in one piece, at most len(b) bytes. A writer that has
// closed is an error even if there is something left.
func (r *ring) read(b []byte) int {
	for i := 0; r.readCursor() == r.writeCursor(); i++ {
		r.guest.yield(i)
	}
	assert(loadByte(r.flag(0)) == 0, "Result::unwrap() on Closed while reading")
	start, end := r.readCursor()%r.len, r.writeCursor()%r.len
	if end < start {
		end = r.len
	}
	n := copy(b, r.data(start, end-start))
	word(r.guest.RAM, r.off).Store(r.readCursor() + uint64(n))
	r.guest.notifyWrite()
	return n
}

// write puts what fits in one piece.
func (r *ring) write(b []byte) int {
	for i := 0; (r.readCursor()+r.len-1)%r.len == r.writeCursor()%r.len; i++ {
		r.guest.yield(i)
	}
	assert(loadByte(r.flag(1)) == 0, "Result::unwrap() on Closed while writing")
	start, end := r.writeCursor()%r.len, (r.readCursor()+r.len-1)%r.len
	if end < start {
		end = r.len
	}
	n := copy(r.data(start, end-start), b)
	word(r.guest.RAM, r.off+8).Store(r.writeCursor() + uint64(n))
	r.guest.notifyRead()
	return n
}

// drop drops the end: its flag, 0 for the writer's and 1 for the reader's, then
// its reference.
func (r *ring) drop(flag uint64) {
	assert(!r.freed, "dropped once")
	r.freed = true
	storeByte(r.flag(flag), 1)
	if word(r.guest.RAM, r.off-16).Add(^uint64(0)) != 0 {
		return
	}
	if word(r.guest.RAM, r.off-8).Add(^uint64(0)) == 0 {
		r.guest.Allocator.Free(r.off-16, 16+(18+r.len+7)/8*8)
	}
}

// yield is what a kernel thread does while it waits. A virtual CPU may spin, as
// it has a processor of its own. This guest shares one with the monitor, so it
// gives the processor up when it has waited for a while.
func (g *Guest) yield(waited int) {
	if waited > 50 {
		_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
	}
	runtime.Gosched()
}
