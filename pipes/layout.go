package pipes

import (
	"fmt"
	"log/slog"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Sizes of PROTOCOL.md sections 7 and 8, in bytes.
const (
	HeaderSize  = 256
	MinRingSize = 4 << 10
	MaxRingSize = 64 << 20

	// MaxStreams is the largest stream limit: what the three levels of a
	// pending bitmap can name.
	MaxStreams = 131072
)

const pageSize = 4096

// ID names a pipe: generation<<32 | slot.
type ID uint64

// Slot is the pipe's place in the table, from 0 to the stream limit − 1.
func (id ID) Slot() uint32 { return uint32(id) }

// Generation counts how often the slot was reused before.
func (id ID) Generation() uint32 { return uint32(id >> 32) }

func (id ID) String() string { return fmt.Sprintf("%d.%d", id.Slot(), id.Generation()) }

// LogValue makes an ID look the same in every log: as its String.
func (id ID) LogValue() slog.Value { return slog.StringValue(id.String()) }

// Descriptor tells a guest where a pipe lies, PROTOCOL.md section 7. Header,
// Outgoing and Incoming are offsets into the window; sizes are in bytes.
type Descriptor struct {
	ID                         ID
	Header, Outgoing, Incoming uint64
	OutgoingSize, IncomingSize uint32
}

// layout says where things lie in a window: first the pending bitmaps, then the
// pipe headers, then the data of rings.
type layout struct {
	window  []byte
	stride  uint64 // from one pending bitmap to the next
	headers uint64 // offset of slot 0's pipe header
	rings   uint64 // offset of the rings' data
}

// newLayout refuses, with EINVAL, a window that is too small for a pipe, or
// that isn't aligned to 8 bytes.
func newLayout(window []byte, cpus, streams int) (layout, error) {
	l := layout{window: window, stride: roundUp(bitmapSize(streams), pageSize)}
	l.headers = uint64(cpus) * l.stride
	l.rings = roundUp(l.headers+uint64(streams)*HeaderSize, pageSize)
	if l.rings+2*MinRingSize > uint64(len(window)) || !aligned(window) {
		return layout{}, fmt.Errorf("a window of %d bytes for %d streams: %w", len(window), streams, unix.EINVAL)
	}
	return l, nil
}

func roundUp(n, to uint64) uint64 { return (n + to - 1) / to * to }

func (l *layout) header(slot uint32) uint64 { return l.headers + uint64(slot)*HeaderSize }

func (l *layout) ringPages() uint32 { return uint32((uint64(len(l.window)) - l.rings) / pageSize) }

// line is the part of a ring header that one end writes, but for waiting, which
// the other end clears. It is a cache line of its own, so that the two ends
// don't share one.
type line struct {
	cursor  atomic.Uint64
	state   atomic.Uint32
	waiting atomic.Uint32
	_       [48]byte
}

type ringHeader struct{ producer, consumer line }

type pipeHeader struct{ outgoing, incoming ringHeader }

func (h *pipeHeader) clear() {
	for _, l := range []*line{
		&h.outgoing.producer, &h.outgoing.consumer, &h.incoming.producer, &h.incoming.consumer,
	} {
		l.cursor.Store(0)
		l.state.Store(stateOpen)
		l.waiting.Store(0)
	}
}

const (
	stateOpen   = 0
	stateClosed = 1
	stateReset  = 2
)

func resetState(errno unix.Errno) uint32 { return stateReset | uint32(errno)<<16 }

// resetErrno is the errno that a reset state carries.
func resetErrno(state uint32) unix.Errno {
	if e := unix.Errno(state >> 16); e != 0 {
		return e
	}
	return unix.ECONNRESET
}

// validState reports whether the other end may go from the state last seen to
// this one.
func validState(last, state uint32) bool {
	switch state & 0xffff {
	case stateOpen:
		return state == stateOpen && last == stateOpen
	case stateClosed:
		return state == stateClosed && last&0xffff != stateReset
	case stateReset:
		return last&0xffff != stateReset || last == state
	}
	return false
}
