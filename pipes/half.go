package pipes

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// half is one end's part in one ring, as its producer or as its consumer. Both are the same but for bias: what an end may use is the distance
// from its own cursor to a limit, which is the other's cursor for the consumer, and one ring size more for the producer.
//
// One operation at a time owns a half (busy): it alone moves own, and only it waits on moved. mu guards all fields and is held for a few loads
// and stores, never while bytes are copied, and never while the other end is signalled by a move.
type half struct {
	pipe     *Pipe
	producer bool
	size     uint64
	reserve  uint64 // a consumer with more than this to read keeps signals back, a producer that goes on writing does for this much
	data     []byte
	bias     uint64
	mine     *line
	theirs   *line

	mu    sync.Mutex
	moved sync.Cond // for the owner: the other end moved or changed state, the deadline passed, this end closed
	turn  sync.Cond // for the next owner

	own      uint64 // own cursor; the copy in shared memory is never read
	limit    uint64 // how far own may go, as last seen and checked
	peer     uint32 // the other's state, as last seen and checked
	local    uint32 // own state
	stored   uint32 // own state as the other end can see it
	cause    error  // what operations fail with when local isn't open
	kept     uint64 // a producer's bytes that the consumer was not yet told of
	busy     bool
	queued   int  // how many wait for their turn
	given    bool // busy is held for one of them
	notified bool // a signal came since the owner last looked
	awaited  int  // how many bytes the owner sleeps for; 0 if it doesn't, or is being woken
	suspect  bool // the watchdog's last look found that a notification is missing
	sleeper  sleeper
	broken   bool // the other end broke the rules of the ring
	detached bool // the memory may belong to another pipe: don't touch

	deadline time.Time
	expired  bool
	timer    *time.Timer

	onReady func()
	onError func()

	stats DirectionStats
}

// How many bytes an end keeps signals back for at most. A consumer leaves itself something to be busy with while the producer it signals wakes up: a third
// of a millisecond's worth at 3 GB/s. What a large ring holds beyond that is filled at one go. A producer lets the consumer wait for half as long.
const (
	maxConsumerReserve = 1 << 20
	maxProducerReserve = 512 << 10
)

func (h *half) init(p *Pipe, producer bool, start uint64, data []byte, mine, theirs *line) {
	h.pipe, h.producer, h.data, h.mine, h.theirs = p, producer, data, mine, theirs
	h.size = uint64(len(data))
	h.reserve = min(h.size/2, maxConsumerReserve)
	if producer {
		h.reserve = min(h.size/2, maxProducerReserve)
		h.bias = h.size
	}
	h.moved.L, h.turn.L = &h.mu, &h.mu
	h.own = start
	h.limit = h.own + h.bias
}

// look copies the other's state and cursor, checks them, and returns how many bytes can be used. The state is read first: a closed state's
// cursor is the last one. io.EOF and io.ErrUnexpectedEOF say that a consumer can't get min bytes any more.
func (h *half) look(min int) (int, error) {
	if h.broken {
		return 0, unix.EPROTO
	}
	state := h.theirs.state.Load()
	limit := h.theirs.cursor.Load() + h.bias
	n := limit - h.own
	if n > h.size || n < h.limit-h.own || !validState(h.peer, state) {
		h.broken = true
		return 0, unix.EPROTO
	}
	h.limit, h.peer = limit, state
	switch {
	case state&0xffff == stateReset:
		return 0, resetErrno(state)
	case state == stateOpen || !h.producer && n >= uint64(min):
		return int(n), nil
	case h.producer:
		return 0, unix.EPIPE
	case n == 0:
		return 0, io.EOF
	default:
		return 0, io.ErrUnexpectedEOF
	}
}

// usable returns why no operation may go on at this end, if so.
func (h *half) usable() error {
	if h.local != stateOpen {
		return h.cause
	}
	if h.expired {
		return os.ErrDeadlineExceeded
	}
	return nil
}

// errLater says that an operation has ended because it would have to wait: its later function is called instead.
var errLater = errors.New("pipes: nothing there yet")

// begin takes the half for one operation and waits until min bytes can be used. If there is no error, end must follow. Unless later is nil it waits
// only for its turn: later becomes onReady then, and the error is errLater.
func (h *half) begin(min int, later func()) (a, b []byte, err error) {
	h.mu.Lock()
	if err = h.usable(); err == nil && h.busy {
		err = h.queue()
	}
	if err != nil {
		h.unlock()
		return nil, nil, err
	}
	h.busy = true
	return h.await(min, later)
}

// queue waits for its turn, after those that came before. mu is held.
func (h *half) queue() (err error) {
	h.queued++
	for {
		// At least once: what is given now is for who waits already.
		h.turn.Wait()
		if err = h.usable(); err != nil || h.given {
			break
		}
	}
	h.queued--
	switch {
	case err == nil:
		h.given = false
	case h.given:
		h.release()
	}
	return err
}

// next moves the cursor by n bytes and waits until min more can be used, or as begin does with later. After an error the operation has ended.
func (h *half) next(n, min int, later func()) (a, b []byte, err error) {
	h.mu.Lock()
	h.move(n, false)
	return h.await(min, later)
}

// nextOfMore is next for a producer that goes on at once, or calls flush before it waits for anything but room: it may keep signals back.
func (h *half) nextOfMore(n, min int) (a, b []byte, err error) {
	h.mu.Lock()
	h.move(n, true)
	return h.await(min, nil)
}

// flush sends the signal that a producer has kept back, if there is one. Its owner calls it.
func (h *half) flush() {
	h.mu.Lock()
	h.tell()
	h.mu.Unlock()
}

// tell sends what was kept back, and reports whether there was a signal to send: then mu was released meanwhile. mu is held.
func (h *half) tell() bool {
	if h.kept == 0 || h.local != stateOpen {
		return false
	}
	h.kept = 0
	return h.signalled()
}

// signalled signals the other end if it waits, and reports whether it did: then mu was released meanwhile; busy keeps the pipe alive. mu is held.
func (h *half) signalled() bool {
	if !h.claim() {
		return false
	}
	h.mu.Unlock()
	h.pipe.signalUnlocked(h)
	h.mu.Lock()
	return true
}

// end moves the cursor by n bytes and ends the operation. It fails if this end was closed meanwhile: the bytes don't count.
func (h *half) end(n int) (err error) {
	h.mu.Lock()
	if n > 0 && h.local != stateOpen {
		err = h.cause
	}
	h.move(n, false)
	h.release()
	h.unlock()
	return err
}

// release gives the half to who has waited longest: who comes back at once waits behind the others.
func (h *half) release() {
	h.given = h.queued > 0
	h.busy = h.given
	h.turn.Signal()
}

// unlock releases mu and then does what a closed or broken half still needs.
func (h *half) unlock() {
	attention := h.local != stateOpen || h.broken
	h.mu.Unlock()
	if attention {
		h.pipe.settle()
	}
}

// await is called with mu held by the owner and releases mu.
func (h *half) await(min int, later func()) (a, b []byte, err error) {
	n := 0
	waited, slept := false, false
	for {
		if err = h.usable(); err != nil {
			break
		}
		if n, err = h.look(min); err != nil || n >= min {
			break
		}
		if slept && h.notified {
			h.stats.SpuriousWakes++
		}
		h.notified = false

		// Every store and load here is sequentially consistent: flag, then fence, then the second look.
		h.mine.waiting.Store(1)
		waited = true
		if n, err = h.look(min); err != nil || n >= min {
			break
		}
		// Who kept signals back must not sleep on them.
		if h.producer && h.tell() || !h.producer && uint64(n) > h.reserve && h.signalled() {
			continue
		}
		if later != nil {
			h.onReady, h.suspect = later, false
			err = errLater
			break
		}
		h.awaited, h.suspect = min, false
		h.moved.Wait()
		h.awaited = 0
		slept = true
	}
	if waited && h.onReady == nil && h.mine.waiting.Load() != 0 {
		h.mine.waiting.Store(0)
	}
	if err != nil {
		h.tell()
		h.release()
		h.unlock()
		return nil, nil, err
	}
	a, b = h.spans(n)
	h.mu.Unlock()
	return a, b, nil
}

// spans returns the n bytes that begin at own, in two parts if they wrap.
func (h *half) spans(n int) (a, b []byte) {
	size := int(h.size)
	from := int(h.own & (h.size - 1))
	if to := from + n; to <= size {
		return h.data[from:to:to], nil
	} else {
		return h.data[from:size:size], h.data[: to-size : to-size]
	}
}

// move advances the cursor and wakes the other end if that one sleeps. Nothing moves after a close: that cursor was the last. A producer that has more
// to write may keep the signal back, and owes it then.
func (h *half) move(n int, more bool) {
	if uint64(n) > h.limit-h.own {
		h.mu.Unlock()
		panic("pipes: committed more bytes than were reserved")
	}
	if h.local != stateOpen || n == 0 && h.kept == 0 {
		return
	}
	if n > 0 {
		h.own += uint64(n)
		h.mine.cursor.Store(h.own)
		h.stats.Bytes += uint64(n)
		h.stats.Chunks++
	}
	if h.producer {
		h.kept += uint64(n)
		more = more && h.kept < h.reserve
	} else {
		more = h.limit-h.own > h.reserve
	}
	if !more {
		h.kept = 0
		more = !h.signalled()
	}
	if more {
		h.stats.Suppressed++
	}
}

// claim reports whether the other end waits; if so, the caller has to signal it.
func (h *half) claim() bool {
	if h.theirs.waiting.Load() == 0 || h.theirs.waiting.Swap(0) == 0 {
		return false
	}
	h.stats.Signals++
	return true
}

// wake is called when something may have happened to this half: a signal from the other end, or a change at this end.
func (h *half) wake(signal bool) {
	h.mu.Lock()
	if signal {
		h.stats.Wakes++
		h.notified = true
	}
	h.awaited, h.suspect = 0, false
	h.moved.Signal()
	h.unlockAndCall()
}

// hook sets onReady or onError, which is called at once if its time has come already.
func (h *half) hook(field *func(), f func()) {
	h.mu.Lock()
	*field = f
	h.suspect = false
	h.unlockAndCall()
}

// unlockAndCall releases mu and calls the hooks whose time has come.
func (h *half) unlockAndCall() {
	ready, failed := h.due()
	h.unlock()
	if ready != nil {
		ready()
	}
	if failed != nil {
		failed()
	}
}

// due takes the hooks whose time has come, and waits for the other end on behalf of onReady if that one's has not.
func (h *half) due() (ready, failed func()) {
	if h.onReady == nil && h.onError == nil {
		return nil, nil
	}
	var n int
	var err error
	if h.local != stateOpen {
		err = h.cause
	} else if n, err = h.look(1); n == 0 && err == nil && h.onReady != nil {
		h.mine.waiting.Store(1)
		n, err = h.look(1)
	}
	if n > 0 || err != nil {
		ready, h.onReady = h.onReady, nil
		if ready != nil && h.awaited == 0 && !h.detached {
			h.mine.waiting.Store(0)
		}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		failed, h.onError = h.onError, nil
	}
	return ready, failed
}

// available returns the number of bytes that can be used now, 0 after a close or an error.
func (h *half) available() int {
	h.mu.Lock()
	n := 0
	if h.local == stateOpen {
		n, _ = h.look(1)
	}
	h.unlock()
	return n
}

func (h *half) setDeadline(t time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.local != stateOpen {
		return net.ErrClosed
	}
	if h.timer != nil {
		h.timer.Stop()
	}
	h.deadline, h.expired = t, false
	if !t.IsZero() {
		h.arm()
	}
	return nil
}

// arm starts the timer for the deadline, or lets it expire. mu is held.
func (h *half) arm() {
	d := time.Until(h.deadline)
	switch {
	case d <= 0:
		h.expired = true
		h.moved.Signal()
		h.turn.Broadcast()
	case h.timer == nil:
		h.timer = time.AfterFunc(d, h.expire)
	default:
		h.timer.Reset(d)
	}
}

// expire is run by the timer. A timer that fired while the deadline was being changed finds a later one, or none.
func (h *half) expire() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.local == stateOpen && !h.deadline.IsZero() && !h.expired {
		h.arm()
	}
}

// shut sets this end's state in the ring, in private only if deferred is set, and lets waiting operations fail with cause. It reports whether the
// other end is to be told. Pipe.life is held. A closed state may still become reset, no other may change.
func (h *half) shut(state uint32, cause error, deferred bool) (tell bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.local == state || h.local&0xffff == stateReset || h.local != stateOpen && state == stateClosed {
		return false
	}
	if h.local == stateOpen {
		h.cause = cause
	}
	h.local = state
	if h.timer != nil {
		h.timer.Stop()
	}
	h.moved.Signal()
	h.turn.Broadcast()
	if h.detached || deferred {
		return false
	}
	return h.publish()
}

// publish stores the state for the other end to see. mu is held.
func (h *half) publish() (tell bool) {
	h.mine.state.Store(h.local)
	h.stored = h.local
	if h.pipe.table != nil && h.theirs.state.Load() != stateOpen {
		return false
	}
	h.stats.Signals++
	return true
}
