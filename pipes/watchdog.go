package pipes

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fix-project/arcavm/internal/limit"
)

const (
	watchInterval = 2 * time.Second
	// watchBatch is how many slots an audit covers: so the cost of auditing
	// doesn't grow with the number of idle pipes.
	watchBatch = 1024
)

// watchdog audits PROTOCOL.md section 8: an end that sleeps although what it
// waits for is there misses a wake-up. Between a store and the signal that
// follows it either end may be interrupted. So an audit that finds a wake-up
// missing only makes the end, pipe or CPU suspect, and the next audit, a
// WatchInterval later, makes up for what it finds unchanged:
//
//	suspect            the second audit    the wake-up is counted when
//	monitor's end      wakes it            it is woken
//	finished pipe      frees it            it is freed
//	guest's end        signals it: nudged  it has gone on because of that
//	CPU's interrupt    raises it: nudged   the CPU has taken its pending bits
//
// The wake-up was lost, which is logged as an error, if all of the guest's CPUs
// are halted then. While one is busy, or waits for a processor of this machine,
// it may only be late. An audit that finds nothing sends nothing.
type watchdog struct {
	table *Table
	log   *limit.Log

	rescued   atomic.Uint64
	forgotten atomic.Uint64
	late      atomic.Uint64

	auditing sync.Mutex // held during an audit; before all other locks
	byHand   bool       // Audit has taken over
	last     audit      // under way or over
	bells    []bell     // by CPU

	// Table.mu guards these.
	running bool // the timer runs, or an audit is under way
	timer   *time.Timer
	next    time.Time // when the next audit is due
}

// audit is one audit of a batch of slots.
type audit struct {
	began    time.Time
	suspects bool // it found a wake-up missing
	busy     bool // a CPU isn't halted, or the machine kept the watchdog waiting
	asked    bool // the CPUs were asked whether they are halted
	covered  int  // slots that the round of audits has covered
}

func (w *watchdog) init(t *Table) {
	w.table, w.log, w.bells = t, newLog(), make([]bell, t.o.CPUs)
}

// start is called with Table.mu held when there is a pipe to audit. The
// watchdog runs until it finds none, or stop.
func (w *watchdog) start() {
	if !w.running {
		w.running = true
		w.next = time.Now().Add(w.interval())
		w.timer = time.AfterFunc(w.interval(), w.watch)
	}
}

// stop is called with Table.mu held. An audit that is under way ends by itself;
// Table.Wait waits for it.
func (w *watchdog) stop() {
	if w.timer != nil && w.timer.Stop() {
		w.running = false
	}
}

func (w *watchdog) interval() time.Duration { return w.table.o.WatchInterval }

// overdue reports whether the machine was too busy to run the watchdog in time:
// then it is too busy to judge a guest by.
func (w *watchdog) overdue(due time.Time) bool { return time.Since(due) > w.interval()/16 }

// watch is run by the timer.
func (w *watchdog) watch() {
	t := w.table
	t.mu.Lock()
	busy := w.overdue(w.next)
	t.mu.Unlock()
	w.auditing.Lock()
	if !w.byHand {
		w.audit(watchBatch, busy)
	}
	w.auditing.Unlock()

	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closing.Load() || t.slots.open == 0 {
		w.running = false
		t.settled.Broadcast()
		return
	}
	w.next = time.Now().Add(w.interval())
	w.timer.Reset(w.interval())
}

// Audit has the watchdog audit all pipes until it knows of each that is
// suspect whether a wake-up was lost, and counts those in [Stats]. If none is
// suspect it returns at once, else it takes up to three WatchIntervals. The
// watchdog then audits no more by itself: Audit is for the end of a test. It
// must not run beside [Table.Wait].
func (t *Table) Audit() {
	w := &t.watchdog
	w.auditing.Lock()
	defer w.auditing.Unlock()
	w.byHand = true
	busy := false
	for range 3 {
		if wait := w.interval() - time.Since(w.last.began); w.last.suspects && wait > 0 {
			due := time.Now().Add(wait)
			time.Sleep(wait)
			busy = busy || w.overdue(due)
		}
		if w.audit(len(t.slots.pipes), busy); !w.last.suspects {
			return
		}
	}
}

// audit audits the next batch of slots. Two audits of a suspect are a
// WatchInterval apart. auditing is held.
func (w *watchdog) audit(batch int, busy bool) {
	t := w.table
	t.mu.Lock()
	used := t.slots.used()
	t.mu.Unlock()
	from := w.last.covered
	if from >= used || batch >= used {
		from = 0
	}
	w.last = audit{began: time.Now(), busy: busy, covered: min(from+batch, used)}
	for i := from; i < w.last.covered; i++ {
		if p := t.slots.pipes[i].Load(); p != nil {
			w.auditPipe(p)
		}
	}
	for cpu := range w.bells {
		w.auditInterrupt(cpu)
	}
}

// suspect notes whether the audit found a wake-up missing.
func (w *watchdog) suspect(is bool) { w.last.suspects = w.last.suspects || is }

func (w *watchdog) auditPipe(p *Pipe) {
	for _, h := range p.halves() {
		w.auditMine(h)
		w.auditTheirs(h)
	}
	w.auditEnd(p)
}

// auditMine audits the monitor's end in a ring.
func (w *watchdog) auditMine(h *half) {
	suspect, again := h.auditMine()
	if again && !w.busy() {
		// What came before the guest was seen idle isn't lost.
		suspect, again = h.auditMine()
	}
	w.suspect(suspect)
	if again {
		w.guestForgot(h.pipe, h.ringName())
		h.changed()
	}
}

// auditTheirs audits the guest's end in a ring.
func (w *watchdog) auditTheirs(h *half) {
	suspect, nudge, forgotten := h.auditTheirs()
	w.suspect(suspect)
	if nudge {
		h.excuse(w.busy())
		h.pipe.end.signalState(h)
	}
	if forgotten {
		w.monitorForgot(h)
	}
}

// auditEnd audits a pipe that the monitor is finished with.
func (w *watchdog) auditEnd(p *Pipe) {
	suspect, again := p.auditEnd()
	if again && !w.busy() {
		suspect, again = p.auditEnd()
	}
	w.suspect(suspect)
	if again {
		w.guestForgot(p, "both")
		p.settle()
	}
}

// busy reports whether a wake-up that is missing may only be late. It asks once
// in an audit.
func (w *watchdog) busy() bool {
	if !w.last.busy && !w.last.asked {
		w.last.asked = true
		for cpu := range w.bells {
			w.last.busy = w.last.busy || !w.halted(cpu)
		}
	}
	return w.last.busy
}

func (w *watchdog) halted(cpu int) bool {
	halted := w.table.o.Halted
	return halted == nil || halted(cpu)
}

// count counts a wake-up that the watchdog made up for, as late or as lost, and
// logs a lost one.
func (w *watchdog) count(lost *atomic.Uint64, late bool, what string, attrs ...slog.Attr) {
	if late {
		w.late.Add(1)
		return
	}
	lost.Add(1)
	w.log.Log(w.table.o.Logger, slog.LevelError, "lost wake-up: "+what, attrs...)
}

func (w *watchdog) guestForgot(p *Pipe, ring string) {
	w.count(&w.rescued, w.busy(), "the guest didn't notify",
		slog.Any("stream", p.descriptor.ID), slog.String("ring", ring))
}

func (w *watchdog) monitorForgot(h *half) {
	w.count(&w.forgotten, h.audited.late, "the guest wasn't signalled",
		slog.Any("stream", h.pipe.descriptor.ID), slog.String("ring", h.ringName()))
}

// bell is what the watchdog knows of a CPU's interrupt.
type bell struct {
	state auditState
	late  bool   // it was nudged while it wasn't halted
	rung  uint64 // at the last audit
}

// auditState is what the watchdog takes a guest's end, or a CPU, for.
type auditState uint8

const (
	awake     auditState = iota
	suspected            // the last audit found a wake-up missing
	nudged               // so did the audit before: it was made up for
)

// auditInterrupt does for a CPU that doesn't take its pending bits what
// half.auditTheirs does for an end.
func (w *watchdog) auditInterrupt(cpu int) {
	t, b := w.table, &w.bells[cpu]
	rung := t.raises[cpu].doorbells.Load()
	pending := t.pending[cpu].top.Load() != 0
	still := pending && rung == b.rung
	switch {
	case b.state == nudged && still:
		return
	case b.state == nudged:
		w.count(&w.forgotten, b.late, "the guest didn't get an interrupt", slog.Int("cpu", cpu))
		b.state = awake
		return
	case !pending:
		b.state = awake
		return
	case b.state == suspected && still && t.raises[cpu].underWay.Load() > 0:
		// The goroutine that raises it may be without a processor before the
		// doorbell.
	case b.state == suspected && still:
		b.state, b.late = nudged, w.last.busy || !w.halted(cpu)
		t.o.Doorbell(cpu)
	default:
		*b = bell{state: suspected, rung: rung}
	}
	w.suspect(true)
}
