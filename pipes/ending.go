package pipes

// EndGuest closes, in good order, every end that the guest has left open, as a
// kernel does for a process that ends: the monitor's ends read what the guest
// wrote, then end of file, and their writes fail with EPIPE. [Table.New] fails
// with EPIPE afterwards. The caller has stopped the guest for good. EndGuest
// runs hooks, doesn't wait, and may be called more than once.
func (t *Table) EndGuest() {
	t.mu.Lock()
	t.guestGone = true
	t.mu.Unlock()
	for i := range t.slots.pipes {
		p := t.slots.pipes[i].Load()
		if p == nil {
			continue
		}
		// The guest's writer goes first, so that a relay that learns of both
		// finds its end of file.
		for _, h := range p.halves() {
			h.closeTheirs()
			h.changed()
		}
	}
}

// closeTheirs does, without mu, the other end's last store for it.
func (h *half) closeTheirs() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.detached() {
		h.shared.theirs.state.CompareAndSwap(stateOpen, stateClosed)
	}
}
