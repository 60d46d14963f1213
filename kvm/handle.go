package kvm

import "sync/atomic"

// handle owns a file descriptor, and what else free gives back, until it is
// closed and no call is in flight.
type handle struct {
	fd   int
	free func() error

	// Twice the number of calls in flight, plus 1 once closed. The call that
	// brings it to 1 frees.
	state atomic.Int64
}

// acquire keeps the descriptor open until release.
func (h *handle) acquire() error {
	for {
		s := h.state.Load()
		if s&1 != 0 {
			return ErrClosed
		}
		if h.state.CompareAndSwap(s, s+2) {
			return nil
		}
	}
}

func (h *handle) release() {
	if h.state.Add(-2) == 1 {
		// Close has returned already, without an error: there is no caller to
		// tell.
		_ = h.free()
	}
}

func (h *handle) close() error {
	for {
		s := h.state.Load()
		if s&1 != 0 {
			return nil
		}
		if h.state.CompareAndSwap(s, s|1) {
			if s == 0 {
				return h.free()
			}
			return nil
		}
	}
}
