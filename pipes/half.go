package pipes

import (
	"errors"
	"io"
	"sync"

	"golang.org/x/sys/unix"
)

// half is one end's part in one ring, as its producer or as its consumer: how
// it waits for the other end, and how it signals it (PROTOCOL.md section 8).
//
// Its flag is shared.mine.waiting: this end sets it, the other end clears it as
// it signals. An end waits in one of two ways, or in both at once:
//
//	state       flag  waiting.bytes  hooks.ready
//	awake       0     0              nil
//	asleep      1     min            nil
//	subscribed  1     0              f
//	both        1     min            f
//
// What the other end does is found by the next operation of an end that is
// awake. It signals one that isn't, and clears the flag before. The signal
// wakes the turn's owner, which looks again; and if a byte can be used, it has
// f called.
//
//	from → to           in         by
//	awake → asleep      sleep      flag, fence, second look, signals kept back
//	asleep → awake      sleep      a look that finds enough, or an error
//	awake → subscribed  subscribe  flag, fence, second look
//	                    onReady    likewise
//	subscribed → awake  due        a look that finds a byte, or an error
//
// Invariants:
//   - One operation at a time owns the turn. It alone moves cursor.own, and
//     only it sleeps.
//   - After an end has set its flag it looks again before it sleeps.
//   - An end doesn't sleep, nor does an operation end, while the other end
//     waits for a signal that was kept back.
//   - An end clears its flag when its wait ends, unless it waits in the other
//     way too. A hook that is removed leaves the flag: it costs one signal.
//   - What comes from shared memory is copied once, checked, then used.
//
// mu guards all fields. It is held for a few loads and stores, never while
// bytes are copied or the other end is signalled. A method is called with mu
// held, unless its comment says "without mu", and returns as it was called. A
// method after which the other end is to be signalled reports that, and its
// caller signals once it has released mu.
type half struct {
	pipe     *Pipe
	producer bool

	mu      sync.Mutex
	turn    turn
	cursor  cursor
	shared  shared
	states  states
	kept    kept
	waiting waiting
	hooks   hooks
	audited audited
	stats   DirectionStats
}

// shared is a ring in the window as one end sees it; zero if it may belong to
// another pipe.
type shared struct {
	data   []byte
	mine   *line // which this end writes
	theirs *line // which the other end writes
}

// states are those of both ends in a ring, PROTOCOL.md section 7.
type states struct {
	own    uint32
	stored uint32 // own, as the other end can see it
	peer   uint32 // the other end's, as last seen and checked
	broken bool   // the other end broke the rules of the ring
}

// kept is what an end keeps signals back for.
type kept struct {
	// reserve: a consumer with more than this left to read keeps signals back,
	// and a producer that goes on writing does for this much.
	reserve uint64
	bytes   uint64 // of a producer, that the consumer wasn't yet told of
}

// waiting is what the turn's owner sleeps for.
type waiting struct {
	bytes    uint32 // 0 if it doesn't sleep, or is being woken
	notified bool   // a signal came since the owner last looked
}

// How many bytes an end keeps signals back for at most. A consumer leaves
// itself something to be busy with while the producer it signals wakes up: a
// third of a millisecond's worth at 3 GB/s. What a large ring holds beyond that
// is filled at one go. A producer lets the consumer wait for half as long.
const (
	maxConsumerReserve = 1 << 20
	maxProducerReserve = 512 << 10
)

func (h *half) init(p *Pipe, producer bool, start uint64, s shared) {
	size := uint64(len(s.data))
	h.pipe, h.producer, h.shared = p, producer, s
	h.cursor = newCursor(size, start, producer)
	h.kept.reserve = min(size/2, maxConsumerReserve)
	if producer {
		h.kept.reserve = min(size/2, maxProducerReserve)
	}
	h.turn.init(&h.mu)
}

func (h *half) open() bool     { return h.states.own == stateOpen }
func (h *half) detached() bool { return h.shared.mine == nil }

// unsettled reports whether the pipe has to be settled when mu is released.
func (h *half) unsettled() bool { return !h.open() || h.states.broken }

// look copies the other end's state and cursor, checks them, and returns how
// many bytes can be used; fewer than min means to wait. The state is read
// first: a closed state's cursor is the last one. io.EOF and
// io.ErrUnexpectedEOF say that a consumer can't get min bytes any more.
func (h *half) look(min int) (int, error) {
	if h.states.broken {
		return 0, unix.EPROTO
	}
	state := h.shared.theirs.state.Load()
	theirs := h.shared.theirs.cursor.Load()
	if !validState(h.states.peer, state) || !h.cursor.follow(theirs) {
		h.states.broken = true
		return 0, unix.EPROTO
	}
	h.states.peer = state
	n := int(h.cursor.available())
	switch {
	case state == stateOpen:
		return n, nil
	case state&0xffff == stateReset:
		return 0, resetErrno(state)
	case h.producer:
		return 0, unix.EPIPE
	case n >= min:
		return n, nil
	case n == 0:
		return 0, io.EOF
	default:
		return 0, io.ErrUnexpectedEOF
	}
}

// outcome is what an operation has come to when mu is released: one of n,
// signal and err is set. It has four words, the most that the compiler keeps in
// registers.
type outcome struct {
	n      int   // bytes that can be used
	signal bool  // the other end is to be signalled; then the operation goes on
	settle bool  // with err: the pipe has to be settled
	err    error // the operation has ended, and released the turn
}

// use waits until the turn's owner can use min bytes.
func (h *half) use(min int) outcome {
	if h.turn.refused() {
		return h.giveUp(h.turn.refusal())
	}
	n, err := h.look(min)
	if err == nil && n < min {
		var signal bool
		if n, signal, err = h.sleep(min); signal {
			return outcome{signal: true}
		}
	}
	if err != nil {
		return h.giveUp(err)
	}
	return outcome{n: n}
}

// errWouldWait ends an operation that doesn't wait, where nothing is there yet.
var errWouldWait = errors.New("pipes: nothing there yet")

// useNow is use for a consumer that doesn't wait.
func (h *half) useNow() outcome {
	if h.turn.refused() {
		return h.failed(h.turn.refusal())
	}
	n, err := h.look(1)
	switch {
	case err != nil:
		return h.failed(err)
	case n == 0:
		return h.failed(errWouldWait)
	}
	return outcome{n: n}
}

// giveUp is failed, but for a producer that has kept a signal back: the signal
// is sent first, as long as the turn keeps the pipe's memory from being freed.
func (h *half) giveUp(err error) outcome {
	if h.claimKept() {
		return outcome{signal: true}
	}
	return h.failed(err)
}

// failed ends an operation with an error.
func (h *half) failed(err error) outcome {
	h.turn.release()
	return outcome{err: err, settle: h.unsettled()}
}

// sleep waits until the turn's owner can use min bytes, and returns how many it
// can use. With signal it hasn't slept: the other end is to be signalled first.
func (h *half) sleep(min int) (n int, signal bool, err error) {
	for {
		h.waiting.notified = false
		// Every store and load here is sequentially consistent: flag, then
		// fence, then the second look.
		h.shared.mine.waiting.Store(1)
		if n, err = h.look(min); err != nil || n >= min {
			break
		}
		if signal = h.claimBeforeSleep(n); signal {
			break
		}
		h.waiting.bytes, h.audited.suspect = uint32(min), false
		h.turn.sleep()
		h.waiting.bytes = 0
		if err = h.turn.refusal(); err != nil {
			break
		}
		if n, err = h.look(min); err != nil || n >= min {
			break
		}
		if h.waiting.notified {
			h.stats.SpuriousWakes++
		}
	}
	if h.hooks.ready == nil {
		h.lowerFlag()
	}
	return n, signal, err
}

// lowerFlag clears this end's flag, unless the other end has, or the memory may
// be another pipe's.
func (h *half) lowerFlag() {
	if !h.detached() && h.shared.mine.waiting.Load() != 0 {
		h.shared.mine.waiting.Store(0)
	}
}

// begin takes the turn for one operation, waits until min bytes can be used,
// and returns how many can, without mu. If there is no error, commit must
// follow.
func (h *half) begin(min int) (int, error) {
	h.mu.Lock()
	o := outcome{err: h.turn.take()}
	if o.err == nil {
		o = h.use(min)
	} else {
		o.settle = h.unsettled()
	}
	h.mu.Unlock()
	return h.conclude(o, min)
}

// beginNow is begin for an operation that waits for its turn, but for no byte.
func (h *half) beginNow() (int, error) {
	h.mu.Lock()
	o := outcome{err: h.turn.take()}
	if o.err == nil {
		o = h.useNow()
	} else {
		o.settle = h.unsettled()
	}
	h.mu.Unlock()
	return h.conclude(o, 1)
}

// next moves the cursor by n bytes, waits until min more can be used, and
// returns how many can, without mu. After an error the operation has ended.
func (h *half) next(n, min int) (int, error) {
	h.mu.Lock()
	o := outcome{signal: h.move(n, false)}
	if !o.signal {
		o = h.use(min)
	}
	h.mu.Unlock()
	return h.conclude(o, min)
}

// nextOfMore is next for a producer that goes on at once, or calls flush before
// it waits for anything but room: it may keep signals back.
func (h *half) nextOfMore(n, min int) (int, error) {
	h.mu.Lock()
	o := outcome{signal: h.move(n, true)}
	if !o.signal {
		o = h.use(min)
	}
	h.mu.Unlock()
	return h.conclude(o, min)
}

// nextNow is next for an operation that was begun by beginNow.
func (h *half) nextNow(n int) (int, error) {
	h.mu.Lock()
	if h.move(n, false) {
		h.mu.Unlock()
		h.pipe.end.signalMove(h)
		h.mu.Lock()
	}
	o := h.useNow()
	h.mu.Unlock()
	return h.conclude(o, 1)
}

// conclude returns what an outcome comes to, without mu.
func (h *half) conclude(o outcome, min int) (int, error) {
	if o.n > 0 {
		return o.n, nil
	}
	return h.goOn(o, min)
}

// goOn does what an outcome asks for, without mu.
func (h *half) goOn(o outcome, min int) (int, error) {
	for o.signal {
		h.pipe.end.signalMove(h)
		h.mu.Lock()
		o = h.use(min)
		h.mu.Unlock()
	}
	if o.settle {
		h.pipe.settle()
	}
	return o.n, o.err
}

// spans returns the next n bytes of ring memory, in two parts where it wraps.
// The turn's owner calls it without mu: only the owner moves the cursor, and
// its turn keeps the memory.
func (h *half) spans(n int) (a, b []byte) { return h.cursor.spans(h.shared.data, n) }

// commit moves the cursor by n bytes and ends the operation, without mu. It
// fails if this end was closed meanwhile: the bytes don't count. It panics if
// fewer bytes were available.
func (h *half) commit(n int) (err error) {
	h.mu.Lock()
	if uint64(n) > h.cursor.available() {
		h.mu.Unlock()
		panic("pipes: committed more bytes than were reserved")
	}
	if n > 0 {
		err = h.turn.closed
	}
	if h.move(n, false) {
		h.mu.Unlock()
		h.pipe.end.signalMove(h)
		h.mu.Lock()
	}
	h.turn.release()
	settle := h.unsettled()
	h.mu.Unlock()
	if settle {
		h.pipe.settle()
	}
	return err
}

// flush sends the signal that a producer has kept back, if there is one. Its
// owner calls it, without mu.
func (h *half) flush() {
	h.mu.Lock()
	signal := h.claimKept()
	h.mu.Unlock()
	if signal {
		h.pipe.end.signalMove(h)
	}
}

// move advances the cursor by n bytes, which are available, and reports whether
// the other end has to be signalled. Nothing moves after a close: that cursor
// was the last. more: a producer goes on writing, and may keep the signal back.
func (h *half) move(n int, more bool) (signal bool) {
	if !h.open() || n == 0 && h.kept.bytes == 0 {
		return false
	}
	if n > 0 {
		h.cursor.advance(uint64(n))
		h.shared.mine.cursor.Store(h.cursor.own)
		h.stats.Bytes += uint64(n)
		h.stats.Chunks++
	}
	if h.producer {
		h.kept.bytes += uint64(n)
		more = more && h.kept.bytes < h.kept.reserve
	} else {
		more = h.cursor.available() > h.kept.reserve
	}
	if !more {
		h.kept.bytes = 0
		signal = h.claim()
	}
	if !signal {
		h.stats.Suppressed++
	}
	return signal
}

// claimBeforeSleep is claim for a signal that was kept back by an end that is
// about to sleep. A consumer has kept one back if it sleeps with more than its
// reserve to read, n bytes, because it waits for more than these.
func (h *half) claimBeforeSleep(n int) bool {
	if h.producer {
		return h.claimKept()
	}
	return uint64(n) > h.kept.reserve && h.claim()
}

// claimKept is claim for bytes that a producer has kept back.
func (h *half) claimKept() bool {
	if h.kept.bytes == 0 || !h.open() {
		return false
	}
	h.kept.bytes = 0
	return h.claim()
}

// claim reports whether the other end waits; if so, it is to be signalled,
// once.
func (h *half) claim() bool {
	theirs := &h.shared.theirs.waiting
	if theirs.Load() == 0 || theirs.Swap(0) == 0 {
		return false
	}
	h.stats.Signals++
	return true
}

// available returns the number of bytes that can be used now, 0 after a close
// or an error, without mu.
func (h *half) available() int {
	h.mu.Lock()
	n := 0
	if h.open() {
		n, _ = h.look(1)
	}
	settle := h.unsettled()
	h.mu.Unlock()
	if settle {
		h.pipe.settle()
	}
	return n
}
