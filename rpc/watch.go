package rpc

import (
	"errors"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/internal/eventfd"
)

const (
	// A ring that has been quiet for some time is looked at in intervals of about half of that time: of firstInterval at first, doubled from tier to
	// tier, up to 33 ms in tier lastTier, or if there are many rings up to half a second.
	firstInterval = 16 * time.Microsecond
	lastTier      = 11
	tierCount     = 16

	// crowd is how many rings a tier from lastTier on keeps. Rings that have long been quiet are in no cache: a look costs up to a microsecond.
	crowd = 16

	// After something has happened anywhere, something may happen anywhere: all rings are looked at again when everything has been quiet for as long
	// as since then, but no more often than costs some percent of a processor.
	scanInterval = 250 * time.Microsecond
	scanTime     = 6 * time.Microsecond // for each ring

	// quietIntervals is for how many intervals of a tier a ring has been quiet when it goes there.
	quietIntervals = 2

	// On a machine with one processor each look takes it away from the guest, so looks may cost one part in lookShare of the time: intervals are that many
	// times as long as what a look has cost of late, up to maxFirstInterval.
	lookShare        = 4
	maxFirstInterval = time.Millisecond

	// deepSleep is from when on a sleep gives Go's processor back at once, on a machine with one processor. That costs more to wake from than a system call,
	// in which Go's processor stays for another 10 ms; but all the while the scheduler looks after it, each time in the guest's place.
	deepSleep = 5 * time.Millisecond

	// spinTime is how long one goroutine at a time looks at its own ring before it parks it.
	spinTime = 20 * time.Microsecond
)

var errStopped = errors.New("the server has stopped")

// watch is something that a pipe waits for: that the guest moves a cursor by some bytes, 1 at least, or sets a flag.
type watch struct {
	word  *atomic.Uint64
	seen  uint64
	bytes uint64
	flag  *flag
}

// ready is true for a cursor that has moved backwards, too: that is for who waits to find out.
func (w *watch) ready() bool { return w.word.Load()-w.seen >= w.bytes || w.flag.isSet() }

type parked struct {
	watch
	since time.Duration
	wake  chan<- struct{}
}

// tier holds the rings that are looked at in the same interval.
type tier struct {
	rings []parked
	due   time.Duration
}

// watcher finds out what guests have done that never say so. It looks at the
// rings of those pipes that wait for their guest, and at no others: one
// goroutine for all of them, which sleeps in between. A guest that notifies
// even once is looked at only when it notifies, from then on.
type watcher struct {
	start    time.Time
	spin     bool // there is a processor to spare for it
	spinning atomic.Bool
	active   atomic.Int64 // when something last happened
	notified atomic.Bool  // the guest notifies
	stopped  atomic.Bool

	mu       sync.Mutex
	tiers    [tierCount]tier
	count    int           // of rings in tiers
	scanned  time.Duration // when all rings were last looked at
	shortest time.Duration // interval
	until    time.Duration // when the goroutine wakes by itself; 0 if it is awake
	event    *os.File      // eventfd that wakes it; nil before it runs and afterwards

	looks, wakes, sleeps atomic.Uint64
}

const forever = time.Duration(1<<63 - 1)

func newWatcher() *watcher {
	return &watcher{
		start: time.Now(), spin: runtime.NumCPU() > 1 && runtime.GOMAXPROCS(0) > 1, shortest: firstInterval,
	}
}

// await waits until w is ready. wake is the caller's own, with room for one. errStopped: the watcher has stopped.
func (s *watcher) await(w watch, wake chan struct{}) error {
	if w.ready() || s.spinFor(&w) {
		return nil
	}
	s.mu.Lock()
	if s.stopped.Load() {
		s.mu.Unlock()
		return errStopped
	}
	// A guest that notifies may have done so before the ring was in the list, but not before this.
	if w.ready() {
		s.mu.Unlock()
		return nil
	}
	s.park(parked{w, time.Since(s.start), wake})
	s.mu.Unlock()
	<-wake
	return s.running()
}

// park puts a ring where it is looked at. mu is held.
func (s *watcher) park(p parked) {
	t := &s.tiers[0]
	if len(t.rings) == 0 {
		t.due = s.dueAfter(p.since, 0)
	}
	t.rings = append(t.rings, p)
	s.count++
	if !s.notified.Load() && s.until > t.due {
		s.rouse()
	}
}

// running returns errStopped after the end.
func (s *watcher) running() error {
	if s.stopped.Load() {
		return errStopped
	}
	return nil
}

// spinFor looks for a short while: under traffic the guest is about to move.
func (s *watcher) spinFor(w *watch) bool {
	if !s.spin || s.notified.Load() || !s.spinning.CompareAndSwap(false, true) {
		return false
	}
	defer s.spinning.Store(false)
	now := time.Since(s.start)
	for end := now + spinTime; now < end; now = time.Since(s.start) {
		for range 20 {
			if w.ready() {
				s.active.Store(int64(now))
				return true
			}
		}
		runtime.Gosched()
	}
	return false
}

// rouse wakes the goroutine. mu is held.
func (s *watcher) rouse() {
	s.until = 0
	if s.event != nil {
		eventfd.SignalFile(s.event)
	}
}

// notify looks at all rings, on the thread of the virtual CPU, and has the watcher rely on notifications from now on.
func (s *watcher) notify() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notified.Store(true)
	s.look(time.Since(s.start))
}

// run looks until stop is called. It returns an error if it could not begin.
func (s *watcher) run() error {
	fd, err := eventfd.New()
	if err != nil {
		return err
	}
	event := os.NewFile(uintptr(fd), "eventfd")
	s.mu.Lock()
	s.event = event
	for !s.stopped.Load() {
		now := time.Since(s.start)
		woken, next := 0, forever
		if !s.notified.Load() {
			woken, next = s.look(now)
		}
		if woken > 0 {
			s.mu.Unlock()
			// Those that were woken run on this thread at once.
			runtime.Gosched()
			s.mu.Lock()
			continue
		}
		s.until = next
		s.mu.Unlock()
		slept := time.Since(s.start)
		s.sleep(event, fd, next)
		s.mu.Lock()
		if s.until != 0 && !s.spin {
			s.pay(slept - now + time.Since(s.start) - next)
		}
		s.until = 0
	}
	s.event = nil
	s.mu.Unlock()
	return event.Close()
}

// stop ends run, and every await with errStopped.
func (s *watcher) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped.Store(true)
	for i := range s.tiers {
		for _, p := range s.tiers[i].rings {
			p.wake <- struct{}{}
		}
		s.tiers[i].rings = nil
	}
	s.count = 0
	s.rouse()
}

// look wakes whoever waits for something that has happened, and returns how many these are and when to look again. mu is held.
func (s *watcher) look(now time.Duration) (woken int, next time.Duration) {
	notified := s.notified.Load()
	next = forever
	all := notified || now >= s.scanDue()
	if all {
		s.scanned = now
	}
	for k := range s.tiers {
		t := &s.tiers[k]
		if len(t.rings) == 0 {
			continue
		}
		if t.due <= now || all {
			woken += s.lookAt(k, now)
			t.due = s.dueAfter(now, k)
		}
		if len(t.rings) > 0 && !notified {
			next = min(next, t.due, s.scanDue())
		}
	}
	if woken > 0 {
		s.active.Store(int64(now))
	}
	return woken, next
}

// scanDue is when all rings are looked at again: as long after the last time as that was after something had happened. mu is held.
func (s *watcher) scanDue() time.Duration {
	quiet := s.scanned - time.Duration(s.active.Load())
	return s.scanned + max(quiet, scanInterval+time.Duration(s.count)*scanTime)
}

func interval(k int) time.Duration { return firstInterval << k }

// dueAfter is when a tier is looked at next. Tiers meet at common multiples of their intervals, so that they wake the goroutine once for all. mu is held.
func (s *watcher) dueAfter(now time.Duration, k int) time.Duration {
	d := max(interval(k), s.shortest)
	return (now/d + 1) * d
}

// pay takes what a look has cost, its wake-up being late included, into account. mu is held.
func (s *watcher) pay(cost time.Duration) {
	s.shortest += (lookShare*cost - s.shortest) / 8
	s.shortest = min(max(s.shortest, firstInterval), maxFirstInterval)
}

func (s *watcher) lookAt(k int, now time.Duration) (woken int) {
	t := &s.tiers[k]
	s.looks.Add(uint64(len(t.rings)))
	kept := t.rings[:0]
	for i := range t.rings {
		p := &t.rings[i]
		switch {
		case p.ready():
			p.wake <- struct{}{}
			woken++
		case now-p.since >= quietIntervals*interval(k+1) && (k < lastTier || k+1 < tierCount && len(kept) >= crowd):
			up := &s.tiers[k+1]
			if len(up.rings) == 0 {
				up.due = s.dueAfter(now, k+1)
			}
			up.rings = append(up.rings, *p)
		default:
			kept = append(kept, *p)
		}
	}
	clear(t.rings[len(kept):])
	t.rings = kept
	s.count -= woken
	s.wakes.Add(uint64(woken))
	return woken
}

// sleep returns at the given time, or when the eventfd, whose descriptor is fd, says so.
func (s *watcher) sleep(event *os.File, fd int, until time.Duration) {
	s.sleeps.Add(1)
	d := until - time.Since(s.start)
	var deadline time.Time
	if until != forever {
		deadline = s.start.Add(until)
	}
	// Go's poller may have had no room for the eventfd: then there are no deadlines, and a Read would return at once.
	if d >= deepSleep && (until == forever || !s.spin) && event.SetReadDeadline(deadline) == nil {
		var b [8]byte
		_, _ = event.Read(b[:]) // It fails by the deadline only: nobody else closes it.
	} else if d > 0 {
		s.nap(fd, d)
	}
}

// nap is a short sleep. A Go timer would be late by a millisecond, the kernel's by 50 microseconds unless the thread asks for better.
func (s *watcher) nap(fd int, d time.Duration) {
	if d < time.Millisecond {
		_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0) // Without it the timer is late, no more.
	}
	timeout := unix.NsecToTimespec(int64(d))
	fds := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if n, err := unix.Ppoll(fds[:], &timeout, nil); err == nil && n > 0 {
		var b [8]byte
		_, _ = unix.Read(fd, b[:])
	}
}
