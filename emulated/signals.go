package emulated

import (
	"context"
	"os"
	"sync"
	"syscall"
)

// signalRelay passes signals on to the machine. A machine that can't be resumed
// is given up for another, which gets the signals that came before as well.
type signalRelay struct {
	mu      sync.Mutex
	machine *machine // nil before attach
	passed  []byte   // the numbers of all signals until now
	running sync.WaitGroup
}

// relaySignals relays until ctx is done or signals is closed.
func relaySignals(ctx context.Context, signals <-chan os.Signal) *signalRelay {
	r := &signalRelay{}
	r.running.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case s, ok := <-signals:
				if !ok {
					return
				}
				if number, ok := s.(syscall.Signal); ok {
					r.pass(byte(number))
				}
			}
		}
	})
	return r
}

func (r *signalRelay) pass(number byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.passed = append(r.passed, number)
	if r.machine != nil {
		// A machine that is off needs no signal.
		_ = r.machine.frames.send(frameSignal, []byte{number})
	}
}

// attach makes m the machine that gets the signals.
func (r *signalRelay) attach(m *machine) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.machine = m
	for _, number := range r.passed {
		_ = m.frames.send(frameSignal, []byte{number})
	}
}

// end waits until the relay has ended, after ctx.
func (r *signalRelay) end() { r.running.Wait() }
