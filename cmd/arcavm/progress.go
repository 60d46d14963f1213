package main

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// progress shows the steps until an emulated machine is ready: a line for each
// and, on a terminal, the seconds that it has taken so far.
type progress struct {
	say func(text string)

	mu       sync.Mutex // held while anything is written
	terminal io.Writer  // nil: none, or no steps are to be seen
	since    time.Time  // of the step that is under way; zero: none
	stop     chan struct{}
	running  sync.WaitGroup
}

func newProgress(terminal io.Writer, say func(text string)) *progress {
	return &progress{terminal: terminal, say: say, stop: make(chan struct{})}
}

// begin ends the step that is under way, and begins one.
func (p *progress) begin(step string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
	p.say(step)
	if p.terminal == nil {
		return
	}
	if p.since.IsZero() {
		p.running.Go(p.count)
	}
	p.since = time.Now()
}

// beside calls write, which prints something else, with the seconds erased.
func (p *progress) beside(write func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
	write()
}

// end ends the last step, and erases the seconds. It may be called again.
func (p *progress) end() {
	p.mu.Lock()
	if !p.since.IsZero() {
		p.erase()
		p.since = time.Time{}
		close(p.stop)
	}
	p.terminal = nil
	p.mu.Unlock()
	p.running.Wait()
}

func (p *progress) count() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-tick.C:
		}
		p.mu.Lock()
		if !p.since.IsZero() {
			fmt.Fprintf(p.terminal, "\r… %.0f s ", time.Since(p.since).Seconds())
		}
		p.mu.Unlock()
	}
}

// erase erases the seconds of a step that is under way. The caller holds mu.
func (p *progress) erase() {
	if !p.since.IsZero() {
		fmt.Fprint(p.terminal, "\r\x1b[K")
	}
}
