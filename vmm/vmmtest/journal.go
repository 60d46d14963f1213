package vmmtest

import (
	"strings"
	"sync"
)

// journal is a growing text that a test can wait for a part of.
type journal struct {
	mu      sync.Mutex
	text    strings.Builder
	changed chan struct{} // closed and replaced at each change
	closed  bool
}

func newJournal() *journal { return &journal{changed: make(chan struct{})} }

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.text.Write(p)
	j.announce()
	return len(p), nil
}

func (j *journal) close() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.closed = true
	j.announce()
}

func (j *journal) announce() {
	close(j.changed)
	j.changed = make(chan struct{})
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

// wait reports whether text came before the limit, and before the journal was
// closed.
func (j *journal) wait(text string, limit <-chan struct{}) bool {
	for {
		j.mu.Lock()
		found, closed, changed := strings.Contains(j.text.String(), text), j.closed, j.changed
		j.mu.Unlock()
		if found || closed {
			return found
		}
		select {
		case <-changed:
		case <-limit:
			return false
		}
	}
}
