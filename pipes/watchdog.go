package pipes

import (
	"log/slog"
	"time"
)

// The watchdog audits the guest's half of PROTOCOL.md section 8. A monitor's end that sleeps although what it waits for is there, and whose flag the guest
// has taken, or whose guest has changed its state, should have been notified. Between its exchange and its hypercall a guest may be interrupted, so only an
// end that is found so twice in one sleep has lost a wake-up. It is woken, counted and logged.
const (
	watchInterval = 2 * time.Second
	// watchBatch is how many slots a look covers: so the cost of looking doesn't grow with the number of idle pipes.
	watchBatch = 1024
)

// startWatchdog is called with mu held when there is a pipe to look at. The watchdog runs until it finds none, or Close.
func (t *Table) startWatchdog() {
	if !t.watching {
		t.watching = true
		t.watchdog = time.AfterFunc(watchInterval, t.watch)
	}
}

// stopWatchdog is called with mu held. A look that is under way ends by itself; Wait waits for it.
func (t *Table) stopWatchdog() {
	if t.watchdog != nil && t.watchdog.Stop() {
		t.watching = false
	}
}

func (t *Table) watch() {
	t.mu.Lock()
	used := len(t.generations)
	t.mu.Unlock()
	if t.watched >= used {
		t.watched = 0
	}
	from := t.watched
	t.watched = min(from+watchBatch, used)
	for i := from; i < t.watched; i++ {
		if p := t.slots[i].Load(); p != nil {
			t.rescue(p, &p.rd, "outgoing")
			t.rescue(p, &p.wr, "incoming")
		}
	}

	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closing.Load() || t.open == 0 {
		t.watching = false
		t.settled.Broadcast()
		return
	}
	t.watchdog.Reset(watchInterval)
}

// rescue wakes who sleeps on a half that has lost a wake-up.
func (t *Table) rescue(p *Pipe, h *half, ring string) {
	if !h.lost() {
		return
	}
	t.rescued.Add(1)
	t.logs.rescued.Log(t.o.Logger, slog.LevelError, "lost wake-up: the guest didn't notify", slog.Any("stream", p.id), slog.String("ring", ring))
	h.wake(false)
}

// lost reports whether this look is the second in one sleep to find that a notification is missing.
func (h *half) lost() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	before := h.suspect
	h.suspect = h.unnotified()
	return before && h.suspect
}

// unnotified reports whether the other end owes a notification. It leaves what was seen as it is, and a broken ring to those who use it. mu is held.
func (h *half) unnotified() bool {
	want := h.awaited
	if h.onReady != nil {
		want = 1
	}
	if want == 0 || h.detached || h.broken || h.usable() != nil {
		return false
	}
	state := h.theirs.state.Load()
	n := h.theirs.cursor.Load() + h.bias - h.own
	if n > h.size || !validState(h.peer, state) {
		return false
	}
	return state != h.peer || n >= uint64(want) && h.mine.waiting.Load() == 0
}
