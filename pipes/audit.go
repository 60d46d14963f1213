package pipes

// audited is what the watchdog's last audit found at a half of the monitor's
// end, about both ends of the ring.
type audited struct {
	suspect bool // this end waits, and the signal for it is missing

	// Whether the other end sleeps, only it knows: it may wait for more than is
	// there. So it is nudged, once, which is always allowed, and if it goes on
	// then, it was asleep.
	other  auditState
	late   bool   // the other end was nudged while the guest's CPUs were busy
	theirs uint64 // its cursor at the last audit
	own    uint64 // this end's
}

// ringName is the ring's name, as the guest sees it.
func (h *half) ringName() string {
	if h.producer {
		return "incoming"
	}
	return "outgoing"
}

// auditMine reports, without mu, whether a notification for this end is
// missing, and whether the last audit, in the same sleep, found that too.
func (h *half) auditMine() (suspect, again bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	before := h.audited.suspect
	h.audited.suspect = h.unnotified()
	return h.audited.suspect, before && h.audited.suspect
}

// unnotified reports whether the other end owes a notification. It leaves what
// was seen as it is, and a broken ring to those who use it.
func (h *half) unnotified() bool {
	want := uint64(h.waiting.bytes)
	if h.hooks.ready != nil {
		want = 1
	}
	waits := want > 0 || h.hooks.failed != nil
	if !waits || h.detached() || h.unsettled() {
		return false
	}
	state := h.shared.theirs.state.Load()
	n := h.cursor.distance(h.shared.theirs.cursor.Load())
	if n > h.cursor.size || !validState(h.states.peer, state) {
		return false
	}
	if state != h.states.peer {
		return true
	}
	if want == 0 || n < want {
		return false
	}
	// A guest that has bytes left to read needn't have looked at the flag yet.
	return h.shared.mine.waiting.Load() == 0 || !h.producer || n == h.cursor.size
}

// auditTheirs reports, without mu, whether the other end is suspect, whether
// the caller has to signal it, and whether it has gone on since it was nudged
// so.
func (h *half) auditTheirs() (suspect, nudge, forgotten bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.detached() {
		return false, false, false
	}
	theirs, s := h.shared.theirs, &h.audited
	cursor := theirs.cursor.Load()
	still := cursor == s.theirs && h.cursor.own == s.own
	switch {
	case s.other == nudged && still:
		return theirs.waiting.Load() == 0 && theirs.state.Load() == stateOpen, false, false
	case s.other == nudged:
		forgotten = h.wentOn()
		s.other = awake
	case !h.owes():
		s.other = awake
	case s.other == suspected && still:
		if nudge = h.claim(); nudge {
			s.other = nudged
			// A producer that keeps a signal back and doesn't sleep here is on
			// the way to send it, or to more bytes.
			s.late = h.kept.bytes > 0 && h.waiting.bytes == 0
		}
	default:
		s.other, s.late, s.theirs, s.own = suspected, false, cursor, h.cursor.own
	}
	return s.other != awake, nudge, forgotten
}

// excuse notes, without mu, whether the other end that is being nudged may have
// been awake.
func (h *half) excuse(busy bool) {
	h.mu.Lock()
	h.audited.late = h.audited.late || busy
	h.mu.Unlock()
}

// owes reports whether the other end waits, something is there for it, and this
// end may not keep the signal back.
func (h *half) owes() bool {
	theirs := h.shared.theirs
	if h.unsettled() || theirs.waiting.Load() == 0 || theirs.state.Load() != stateOpen {
		return false
	}
	n := h.cursor.distance(theirs.cursor.Load())
	return n < h.cursor.size && (h.producer || n <= h.kept.reserve || h.waiting.bytes != 0)
}

// wentOn reports whether the other end has gone on after it was nudged, because
// of that: nothing else can have woken it, or it found all there that a ring
// holds.
func (h *half) wentOn() bool {
	s := &h.audited
	if s.other != nudged || h.shared.theirs.cursor.Load() == s.theirs {
		return false
	}
	full := s.theirs+h.cursor.lead == s.own
	return h.cursor.own == s.own || full
}

// auditEnd reports whether the pipe waits for nothing but the guest's last
// notification, and whether the last audit found that too.
func (p *Pipe) auditEnd() (suspect, again bool) {
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
