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
	// deepSleep is from when on a sleep gives Go's processor back at once, on a
	// machine with one processor. That costs more to wake from than a system
	// call, in which Go's processor stays for another 10 ms; but all the while
	// the scheduler looks after it, each time in the guest's place.
	deepSleep = 5 * time.Millisecond

	// spinTime is how long one goroutine at a time looks at its own ring before
	// it parks it.
	spinTime = 20 * time.Microsecond
)

var errStopped = errors.New("the server has stopped")

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

	mu    sync.Mutex
	rings schedule      // those that wait
	until time.Duration // when the goroutine wakes by itself; 0 if it is awake
	event *os.File      // eventfd that wakes it; nil before it runs and afterwards

	sleeps atomic.Uint64
}

func newWatcher() *watcher {
	return &watcher{
		start: time.Now(), spin: runtime.NumCPU() > 1 && runtime.GOMAXPROCS(0) > 1,
		rings: schedule{shortest: firstInterval},
	}
}

// await waits until w is ready. wake is the caller's own, with room for one.
// errStopped: the watcher has stopped.
func (s *watcher) await(w watch, wake chan struct{}) error {
	if w.ready() || s.spinFor(&w) {
		return nil
	}
	s.mu.Lock()
	if s.stopped.Load() {
		s.mu.Unlock()
		return errStopped
	}
	// A guest that notifies may have done so before the ring was in the list,
	// but not before this.
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
	if due := s.rings.add(p); !s.notified.Load() && s.until > due {
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

// notify looks at all rings, on the thread of the virtual CPU, and has the
// watcher rely on notifications from now on.
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
			s.rings.pay(slept - now + time.Since(s.start) - next)
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
	s.rings.empty()
	s.rouse()
}

// look wakes the pipes for which something has happened, and returns how many
// these are and when to look again. mu is held.
func (s *watcher) look(now time.Duration) (woken int, next time.Duration) {
	notified := s.notified.Load()
	woken, next = s.rings.look(now, time.Duration(s.active.Load()), notified)
	if woken > 0 {
		s.active.Store(int64(now))
	}
	if notified {
		next = forever
	}
	return woken, next
}

// sleep returns at the given time, or when the eventfd, whose descriptor is fd,
// says so.
func (s *watcher) sleep(event *os.File, fd int, until time.Duration) {
	s.sleeps.Add(1)
	d := until - time.Since(s.start)
	var deadline time.Time
	if until != forever {
		deadline = s.start.Add(until)
	}
	// Go's poller may have had no room for the eventfd: then there are no
	// deadlines, and a Read would return at once.
	if d >= deepSleep && (until == forever || !s.spin) && event.SetReadDeadline(deadline) == nil {
		var b [8]byte
		_, _ = event.Read(b[:]) // It fails by the deadline only: no other goroutine closes it.
	} else if d > 0 {
		s.nap(fd, d)
	}
}

// nap is a short sleep. A Go timer would be late by a millisecond, the kernel's
// by 50 microseconds unless the thread asks for better.
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
