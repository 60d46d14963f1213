package pipes

import (
	"os"
	"sync"
	"time"
)

// turn says which operation may use one direction of an end of a pipe: one at a
// time, in the order in which they came. An operation that waits for its turn,
// or that owns it and sleeps, is woken when the deadline passes and when this
// end closes.
//
//	state  busy   given  queued
//	free   false  false  0
//	taken  true   false  any
//	given  true   true   at least 1
//
//	from → to      in       by
//	free → taken   take     the next operation
//	taken → free   release  the owner, with an empty queue
//	taken → given  release  the owner, to the first in the queue
//	given → taken  queue    the first in the queue, when it has woken
//	given → given  queue    one that was refused, to the next in the queue
//	given → free   queue    likewise, with an empty queue
//
// Invariants:
//   - A turn that is given is busy: an operation that comes meanwhile waits
//     behind those in the queue.
//   - No operation takes the turn once closed is set, or while expired is. One
//     that owns it keeps it until it releases it.
//   - A timer runs only while this end is open and has a deadline to come.
//
// The half's mutex, which both conditions have as their L, guards all fields
// and is held in all methods but expire.
type turn struct {
	busy    bool
	given   bool
	expired bool
	queued  int32
	closed  error // what operations fail with; nil while this end is open

	owner sync.Cond // wakes the operation that owns the turn
	next  sync.Cond // wakes the first in the queue

	deadline time.Time
	timer    *time.Timer
}

func (t *turn) init(mu *sync.Mutex) { t.owner.L, t.next.L = mu, mu }

// refused reports whether no operation may go on at this end.
func (t *turn) refused() bool { return t.expired || t.closed != nil }

// refusal is why no operation may go on at this end, or nil.
func (t *turn) refusal() error {
	switch {
	case t.closed != nil:
		return t.closed
	case t.expired:
		return os.ErrDeadlineExceeded
	}
	return nil
}

// take waits for the turn and takes it. After success release must follow.
func (t *turn) take() error {
	if t.busy || t.refused() {
		return t.queue()
	}
	t.busy = true
	return nil
}

// queue is take for a turn that is busy or refused.
func (t *turn) queue() (err error) {
	if err = t.refusal(); err != nil {
		return err
	}
	t.queued++
	for {
		// At least once: a turn that is given already is for one that came
		// before.
		t.next.Wait()
		if err = t.refusal(); err != nil || t.given {
			break
		}
	}
	t.queued--
	switch {
	case err == nil:
		t.given = false
	case t.given:
		t.release() // to the next in the queue, refused or not
	}
	return err
}

// release ends an operation: the turn goes to the one that has waited longest.
func (t *turn) release() {
	t.given = t.queued > 0
	t.busy = t.given
	t.next.Signal()
}

// sleep lets the owner wait for wake, for the deadline or for close. It may
// return early.
func (t *turn) sleep() { t.owner.Wait() }

// wake wakes the owner, if it sleeps.
func (t *turn) wake() { t.owner.Signal() }

// wakeAll wakes owner and queue, all of whom find a refusal.
func (t *turn) wakeAll() {
	t.owner.Signal()
	t.next.Broadcast()
}

// close lets operations, under way and future, fail with cause. The cause of
// the first call stays.
func (t *turn) close(cause error) {
	if t.closed == nil {
		t.closed = cause
	}
	if t.timer != nil {
		t.timer.Stop()
	}
	t.wakeAll()
}

// setDeadline sets the deadline of all operations, under way and future; the
// zero time is none.
func (t *turn) setDeadline(at time.Time) {
	if t.timer != nil {
		t.timer.Stop()
	}
	t.deadline, t.expired = at, false
	t.watchDeadline()
}

// watchDeadline lets operations fail if the deadline has passed, else it starts
// the timer.
func (t *turn) watchDeadline() {
	if t.closed != nil || t.expired || t.deadline.IsZero() {
		return
	}
	d := time.Until(t.deadline)
	switch {
	case d <= 0:
		t.expired = true
		t.wakeAll()
	case t.timer == nil:
		t.timer = time.AfterFunc(d, t.expire)
	default:
		t.timer.Reset(d)
	}
}

// expire is run by the timer. One that fired while the deadline was being
// changed finds a later one, or none.
func (t *turn) expire() {
	t.owner.L.Lock()
	defer t.owner.L.Unlock()
	t.watchDeadline()
}
