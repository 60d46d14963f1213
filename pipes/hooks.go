package pipes

import "io"

// hooks are functions that are called once, without locks, when something
// happens at an end.
type hooks struct {
	ready  func() // an operation that needs one byte wouldn't wait
	failed func() // operations fail, other than by a deadline or an end of file
}

// dues is what is to be done for a half once its mu is released.
type dues struct {
	ready, failed func() // hooks whose time has come
	settle        bool
}

func (d *dues) none() bool { return d.ready == nil && d.failed == nil && !d.settle }

// pay does what is due, without mu.
func (h *half) pay(d dues) {
	if d.settle {
		h.pipe.settle()
	}
	if d.ready != nil {
		d.ready()
	}
	if d.failed != nil {
		d.failed()
	}
}

// onReady sets the hook for readiness, and has it called at once if its time
// has come already, without mu.
func (h *half) onReady(f func()) {
	h.mu.Lock()
	h.hooks.ready, h.audited.suspect = f, false
	d := h.due()
	h.mu.Unlock()
	h.pay(d)
}

// subscribe sets the hook for readiness, without mu, for a caller that has
// tried to use the half and found nothing. It reports false, and sets nothing,
// if its time has come already: the caller tries again.
func (h *half) subscribe(f func()) bool {
	h.mu.Lock()
	h.audited.suspect = false
	n, err := h.arm()
	subscribed := n == 0 && err == nil
	if subscribed {
		h.hooks.ready = f
	} else if h.hooks.ready == nil && h.waiting.bytes == 0 {
		h.lowerFlag()
	}
	settle := h.unsettled()
	h.mu.Unlock()
	if settle {
		h.pipe.settle()
	}
	return subscribed
}

// onFailure sets the hook for failures, and has it called at once if its time
// has come already, without mu.
func (h *half) onFailure(f func()) {
	h.mu.Lock()
	h.hooks.failed, h.audited.suspect = f, false
	d := h.due()
	h.mu.Unlock()
	h.pay(d)
}

// signalled is called, without mu, when the other end's signal has arrived.
func (h *half) signalled() {
	h.mu.Lock()
	h.stats.Wakes++
	h.waiting.notified = true
	d := h.wake()
	h.mu.Unlock()
	if !d.none() {
		h.pay(d)
	}
}

// changed is called, without mu, when a state has changed at this end, or when
// the watchdog makes up for a signal.
func (h *half) changed() {
	h.mu.Lock()
	d := h.wake()
	h.mu.Unlock()
	h.pay(d)
}

// wake wakes what waits at this end. The owner comes last: it needs mu.
func (h *half) wake() dues {
	h.waiting.bytes, h.audited.suspect = 0, false
	d := h.due()
	h.turn.wake()
	return d
}

// due takes out the hooks whose time has come. If hooks.ready stays, the flag
// is set: the other end signals when its time comes.
func (h *half) due() (d dues) {
	if h.hooks.ready != nil || h.hooks.failed != nil {
		n, err := h.outlook()
		if n > 0 || err != nil {
			d.ready, h.hooks.ready = h.hooks.ready, nil
			if d.ready != nil && h.waiting.bytes == 0 {
				h.lowerFlag()
			}
		}
		if err != nil && err != io.EOF {
			d.failed, h.hooks.failed = h.hooks.failed, nil
		}
	}
	d.settle = h.unsettled()
	return d
}

// outlook returns what an operation would find now. If that is nothing, and
// hooks.ready waits for it, the flag was set before the last look.
func (h *half) outlook() (int, error) {
	if !h.open() {
		return 0, h.turn.closed
	}
	n, err := h.look(1)
	if n == 0 && err == nil && h.hooks.ready != nil {
		return h.arm()
	}
	return n, err
}

// arm sets the flag, and returns what an operation finds afterwards.
func (h *half) arm() (int, error) {
	if !h.open() {
		return 0, h.turn.closed
	}
	h.shared.mine.waiting.Store(1)
	return h.look(1)
}
