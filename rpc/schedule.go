package rpc

import (
	"sync/atomic"
	"time"
)

const (
	// A ring that has been quiet for some time is looked at in intervals of
	// about half of that time: of firstInterval at first, doubled from tier to
	// tier, up to 33 ms in tier lastTier, or if there are many rings up to half
	// a second.
	firstInterval = 16 * time.Microsecond
	lastTier      = 11
	tierCount     = 16

	// crowd is how many rings a tier from lastTier on keeps. Rings that have
	// long been quiet are in no cache: a look costs up to a microsecond.
	crowd = 16

	// After something has happened anywhere, something may happen anywhere: all
	// rings are looked at again when everything has been quiet for as long as
	// since then, but no more often than costs some percent of a processor.
	scanInterval = 250 * time.Microsecond
	scanTime     = 6 * time.Microsecond // for each ring

	// quietIntervals is for how many intervals of a tier a ring has been quiet
	// when it goes there.
	quietIntervals = 2

	// On a machine with one processor each look takes it away from the guest,
	// so looks may cost one part in lookShare of the time: intervals are that
	// many times as long as what a look has cost of late, up to
	// maxFirstInterval.
	lookShare        = 4
	maxFirstInterval = time.Millisecond
)

const forever = time.Duration(1<<63 - 1)

// watch is what a pipe waits for: that the guest moves a cursor by some bytes,
// 1 at least, or sets a flag.
type watch struct {
	word  *atomic.Uint64
	seen  uint64
	bytes uint64
	flag  *flag
}

// ready is true for a cursor that has moved backwards, too: the pipe finds out.
func (w *watch) ready() bool { return w.word.Load()-w.seen >= w.bytes || w.flag.isSet() }

// parked is a ring whose pipe waits since a time, which counts, as all here,
// from the watcher's start. It is woken by wake.
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

// schedule says which of the parked rings are looked at when. The watcher's mu
// guards all but the counts.
type schedule struct {
	tiers    [tierCount]tier
	count    int           // of rings
	scanned  time.Duration // when all rings were last looked at
	shortest time.Duration // interval

	looks, wakes atomic.Uint64
}

// add takes a ring, and returns when it is looked at.
func (s *schedule) add(p parked) (due time.Duration) {
	t := &s.tiers[0]
	if len(t.rings) == 0 {
		t.due = s.dueAfter(p.since, 0)
	}
	t.rings = append(t.rings, p)
	s.count++
	return t.due
}

// empty wakes all.
func (s *schedule) empty() {
	for i := range s.tiers {
		for _, p := range s.tiers[i].rings {
			p.wake <- struct{}{}
		}
		s.tiers[i].rings = nil
	}
	s.count = 0
}

// look wakes the pipes of rings whose time has come, or of all, at which what
// they wait for has happened. It returns how many these are, and when to look
// again. Something last happened at active.
func (s *schedule) look(now, active time.Duration, all bool) (woken int, next time.Duration) {
	if all = all || now >= s.scanDue(active); all {
		s.scanned = now
	}
	next = forever
	for k := range s.tiers {
		t := &s.tiers[k]
		if len(t.rings) == 0 {
			continue
		}
		if t.due <= now || all {
			woken += s.lookAt(k, now)
			t.due = s.dueAfter(now, k)
		}
		if len(t.rings) > 0 {
			next = min(next, t.due, s.scanDue(active))
		}
	}
	return woken, next
}

// lookAt looks at the rings of a tier, and moves up those that have been quiet
// for long.
func (s *schedule) lookAt(k int, now time.Duration) (woken int) {
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

// scanDue is when all rings are looked at again: as long after the last time as
// that was after something had happened.
func (s *schedule) scanDue(active time.Duration) time.Duration {
	return s.scanned + max(s.scanned-active, scanInterval+time.Duration(s.count)*scanTime)
}

func interval(k int) time.Duration { return firstInterval << k }

// dueAfter is when a tier is looked at next. Tiers meet at common multiples of
// their intervals, so that they wake the goroutine once for all.
func (s *schedule) dueAfter(now time.Duration, k int) time.Duration {
	d := max(interval(k), s.shortest)
	return (now/d + 1) * d
}

// pay takes what a look has cost, its wake-up being late included, into
// account.
func (s *schedule) pay(cost time.Duration) {
	s.shortest += (lookShare*cost - s.shortest) / 8
	s.shortest = min(max(s.shortest, firstInterval), maxFirstInterval)
}
