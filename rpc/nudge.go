package rpc

import (
	"sync"
	"time"
)

// nudges is how many interrupts follow the last signal to a guest that rings the doorbell, and when.
var nudges = [...]time.Duration{5 * time.Millisecond, 50 * time.Millisecond, 500 * time.Millisecond}

// nudge raises an interrupt again a few times when nothing has been signalled for a while. Kernels that ring the doorbell have no timer of their own: where an
// interrupt gets lost, as QEMU's emulation of a virtual machine loses one now and then, they would sleep for good. An interrupt too many means nothing to them.
type nudge struct {
	raise func()

	mu      sync.Mutex
	timer   *time.Timer // nil before the first signal
	next    int         // of nudges
	stopped bool
}

// signalled begins anew.
func (n *nudge) signalled() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.next = 0
	switch {
	case n.stopped:
	case n.timer == nil:
		n.timer = time.AfterFunc(nudges[0], n.fire)
	default:
		n.timer.Reset(nudges[0])
	}
}

func (n *nudge) fire() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.stopped {
		return
	}
	n.raise()
	if n.next++; n.next < len(nudges) {
		n.timer.Reset(nudges[n.next])
	}
}

// stop comes back when nothing is raised any more.
func (n *nudge) stop() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.stopped = true
	if n.timer != nil {
		n.timer.Stop()
	}
}
