package pipes

import (
	"log/slog"
	"sync/atomic"
	"time"
)

// The watchdog audits PROTOCOL.md section 8: an end that sleeps although what it waits for is there has lost a wake-up. Between a store and the signal that
// follows it either end may be interrupted, so only what two looks find unchanged is made up for. It is lost, and logged, if all of the guest's CPUs are halted;
// while one is busy, or waits for a processor of this machine, it may just be late. A look that finds nothing sends nothing.
const (
	watchInterval = 2 * time.Second
	// watchBatch is how many slots a look covers: so the cost of looking doesn't grow with the number of idle pipes.
	watchBatch = 1024
)

// startWatchdog is called with mu held when there is a pipe to look at. The watchdog runs until it finds none, or Close.
func (t *Table) startWatchdog() {
	if !t.watching {
		t.watching = true
		t.due = time.Now().Add(t.o.WatchInterval)
		t.watchdog = time.AfterFunc(t.o.WatchInterval, t.watch)
	}
}

// stopWatchdog is called with mu held. A look that is under way ends by itself; Wait waits for it.
func (t *Table) stopWatchdog() {
	if t.watchdog != nil && t.watchdog.Stop() {
		t.watching = false
	}
}

// watch is the timer's.
func (t *Table) watch() {
	t.mu.Lock()
	late := time.Since(t.due) > t.o.WatchInterval/16
	t.mu.Unlock()
	t.auditing.Lock()
	if !t.byHand {
		t.audit(watchBatch, late)
	}
	t.auditing.Unlock()

	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closing.Load() || t.open == 0 {
		t.watching = false
		t.settled.Broadcast()
		return
	}
	t.due = time.Now().Add(t.o.WatchInterval)
	t.watchdog.Reset(t.o.WatchInterval)
}

// Audit has the watchdog look at all pipes until it knows of each that is suspicious whether a wake-up was lost, and counts those in [Stats]. If none is
// suspicious it returns at once, else it takes up to three WatchIntervals. The watchdog doesn't look by itself any more: Audit is for the end of a
// test. It must not run beside [Table.Wait].
func (t *Table) Audit() {
	t.auditing.Lock()
	defer t.auditing.Unlock()
	t.byHand = true
	late := false
	for range 3 {
		if wait := t.o.WatchInterval - time.Since(t.looked); t.suspicious && wait > 0 {
			due := time.Now().Add(wait)
			time.Sleep(wait)
			// Who oversleeps is on a machine too busy to judge a guest by.
			late = late || time.Since(due) > t.o.WatchInterval/16
		}
		if t.audit(len(t.slots), late); !t.suspicious {
			return
		}
	}
}

// audit looks at the next batch of slots. Two looks at a suspicious pipe are a WatchInterval apart. auditing is held.
func (t *Table) audit(batch int, late bool) {
	t.late, t.asked = late, false
	t.mu.Lock()
	used := len(t.generations)
	t.mu.Unlock()
	if t.watched >= used {
		t.watched = 0
	}
	from := t.watched
	if batch >= used {
		from = 0
	}
	t.watched = min(from+batch, used)
	t.looked, t.suspicious = time.Now(), false
	for i := from; i < t.watched; i++ {
		if p := t.slots[i].Load(); p != nil {
			t.suspicious = t.auditPipe(p) || t.suspicious
		}
	}
	for cpu := range t.pending {
		t.suspicious = t.auditInterrupt(cpu) || t.suspicious
	}
}

func (t *Table) auditPipe(p *Pipe) (suspects bool) {
	for _, h := range []*half{&p.rd, &p.wr} {
		suspect, lost := h.auditMine()
		if lost && !t.busy() {
			// What came before the guest was seen idle isn't lost.
			suspect, lost = h.auditMine()
		}
		if lost {
			t.guestForgot(p, h.ring())
			h.wake(false)
		}
		asleep, nudge, forgotten := h.auditTheirs()
		if nudge {
			h.doubt(t.busy())
			p.signal(h)
		}
		if forgotten {
			t.monitorForgot(p, h)
		}
		suspects = suspects || suspect || asleep
	}
	suspect, lost := p.auditEnd()
	if lost && !t.busy() {
		suspect, lost = p.auditEnd()
	}
	if lost {
		t.guestForgot(p, "both")
		p.settle()
	}
	return suspects || suspect
}

// ring is the ring's name, as the guest sees it.
func (h *half) ring() string {
	if h.producer {
		return "incoming"
	}
	return "outgoing"
}

// busy reports whether a wake-up that is missing may be late only. It asks once in a look.
func (t *Table) busy() bool {
	if !t.late && !t.asked {
		t.asked = true
		for cpu := range t.o.CPUs {
			t.late = t.late || !t.halted(cpu)
		}
	}
	return t.late
}

func (t *Table) halted(cpu int) bool { return t.o.Halted == nil || t.o.Halted(cpu) }

// lost counts a wake-up, and logs it if it isn't just late.
func (t *Table) lost(count *atomic.Uint64, late bool, what string, attrs ...slog.Attr) {
	if late {
		t.lateWakeUps.Add(1)
		return
	}
	count.Add(1)
	t.logs.rescued.Log(t.o.Logger, slog.LevelError, "lost wake-up: "+what, attrs...)
}

func (t *Table) guestForgot(p *Pipe, ring string) {
	t.lost(&t.rescued, t.busy(), "the guest didn't notify", slog.Any("stream", p.descriptor.ID), slog.String("ring", ring))
}

func (t *Table) monitorForgot(p *Pipe, h *half) {
	t.lost(&t.forgotten, h.sleeper.late, "the guest wasn't signalled", slog.Any("stream", p.descriptor.ID), slog.String("ring", h.ring()))
}

// auditMine reports whether a notification for this end is missing, and whether this look is the second in one sleep to find that.
func (h *half) auditMine() (suspect, lost bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	before := h.suspect
	h.suspect = h.unnotified()
	return h.suspect, before && h.suspect
}

// unnotified reports whether the other end owes a notification. It leaves what was seen as it is, and a broken ring to those who use it. mu is held.
func (h *half) unnotified() bool {
	want := uint64(h.awaited)
	if h.onReady != nil {
		want = 1
	}
	if want == 0 && h.onError == nil || h.detached || h.broken || h.local != stateOpen {
		return false
	}
	state := h.theirs.state.Load()
	n := h.theirs.cursor.Load() + h.bias - h.own
	if n > h.size || !validState(h.peer, state) {
		return false
	}
	if state != h.peer {
		return true
	}
	if want == 0 || n < want {
		return false
	}
	// A guest that has bytes left to read needn't have looked at the flag yet.
	return h.mine.waiting.Load() == 0 || !h.producer || n == h.size
}

// sleeper is what the watchdog knows of the other end of a ring, if that one seems to sleep although something is there. Whether it does, only it knows: it
// may wait for more than is there. So it is woken once, which is always allowed, and if it goes on then, it was asleep.
type sleeper struct {
	looks       sleeperState
	late        bool   // it was nudged while the guest's CPUs were busy
	theirs, own uint64 // the cursors at the last look
}

type sleeperState uint8

const (
	awake sleeperState = iota
	suspected
	nudged
)

// auditTheirs reports whether the other end seems to be asleep, whether the caller has to signal it now, and whether it has gone on since it was signalled so.
func (h *half) auditTheirs() (asleep, nudge, forgotten bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.detached {
		return false, false, false
	}
	last, theirs := h.sleeper, h.theirs.cursor.Load()
	still := theirs == last.theirs && h.own == last.own
	switch {
	case last.looks == nudged && still:
		return h.theirs.waiting.Load() == 0 && h.theirs.state.Load() == stateOpen, false, false
	case last.looks == nudged:
		forgotten = h.wentOn()
		h.sleeper.looks = awake
	case !h.owes():
		h.sleeper.looks = awake
	case last.looks == suspected && still:
		if nudge = h.claim(); nudge {
			h.sleeper.looks = nudged
			// Who keeps a signal back and doesn't sleep here is on the way to send it, or to more bytes.
			h.sleeper.late = h.kept > 0 && h.awaited == 0
		}
	default:
		h.sleeper = sleeper{suspected, false, theirs, h.own}
	}
	return h.sleeper.looks != awake, nudge, forgotten
}

// doubt notes whether the other end that is being nudged may have been awake.
func (h *half) doubt(busy bool) {
	h.mu.Lock()
	h.sleeper.late = h.sleeper.late || busy
	h.mu.Unlock()
}

// owes reports whether the other end waits, something is there for it, and this end may not keep the signal back. mu is held.
func (h *half) owes() bool {
	if h.local != stateOpen || h.broken || h.theirs.waiting.Load() == 0 || h.theirs.state.Load() != stateOpen {
		return false
	}
	n := h.theirs.cursor.Load() + h.bias - h.own
	return n < h.size && (h.producer || n <= h.reserve || h.awaited != 0)
}

// wentOn reports whether the other end has gone on after it was nudged, because of that: nothing else can have woken it, or it found all there that a ring
// holds. mu is held.
func (h *half) wentOn() bool {
	s := h.sleeper
	full := s.theirs+h.bias-s.own == 0
	return s.looks == nudged && h.theirs.cursor.Load() != s.theirs && (h.own == s.own || full)
}

// auditEnd reports whether the pipe waits for nothing but the guest's last notification, and whether this look is the second to find that.
func (p *Pipe) auditEnd() (suspect, lost bool) {
	p.life.Lock()
	defer p.life.Unlock()
	p.rd.mu.Lock()
	p.wr.mu.Lock()
	defer p.rd.mu.Unlock()
	defer p.wr.mu.Unlock()
	before := p.suspect
	p.suspect = !p.over && p.quiet()
	return p.suspect, before && p.suspect
}

// bell is what the watchdog knows of a CPU's interrupt.
type bell struct {
	looks sleeperState
	late  bool   // it was nudged while it wasn't halted
	rung  uint64 // at the last look
}

// auditInterrupt does for a CPU that doesn't take its pending bits what auditTheirs does for an end. It reports whether it looks like that.
func (t *Table) auditInterrupt(cpu int) (suspect bool) {
	b := &t.bells[cpu]
	rung := t.raises[cpu].doorbells.Load()
	pending := t.pending[cpu].top.Load() != 0
	still := pending && rung == b.rung
	switch {
	case b.looks == nudged && still:
	case b.looks == nudged:
		t.lost(&t.forgotten, b.late, "the guest didn't get an interrupt", slog.Int("cpu", cpu))
		b.looks = awake
	case !pending:
		b.looks = awake
	case b.looks == suspected && still && t.raises[cpu].underWay.Load() > 0:
		// Who raises it may be without a processor before the doorbell.
		return true
	case b.looks == suspected && still:
		b.looks, b.late = nudged, t.late || !t.halted(cpu)
		t.o.Doorbell(cpu)
		return true
	default:
		*b = bell{suspected, false, rung}
		return true
	}
	return false
}
