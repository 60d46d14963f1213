package stdio

import (
	"bytes"
	"fmt"
	"sync"
	"time"
)

// queueSize is how many bytes of records a Queue keeps.
const queueSize = 1 << 20

// Queue writes records to a [Writer], on a goroutine of its own, so that a
// caller never waits for the reader. What it has no room for is dropped and
// counted, and so is what couldn't be written; when it can write again, it says
// how many records that were.
type Queue struct {
	w    *Writer
	wake chan struct{} // holds a token when there is something to do
	done chan struct{} // closed when the goroutine has ended

	mu      sync.Mutex
	pending []byte
	records uint64 // in pending
	dropped uint64 // since the last notice
	notice  func(dropped uint64) []byte
	closed  bool
}

// NewQueue returns a Queue for w, to be closed.
func NewQueue(w *Writer) *Queue {
	q := &Queue{w: w, wake: make(chan struct{}, 1), done: make(chan struct{})}
	q.OnDropped(func(n uint64) []byte {
		return fmt.Appendf(nil, "%d records dropped: the file took no more\n", n)
	})
	go q.run()
	return q
}

// OnDropped sets what makes the record that says how many were dropped. The
// queue's goroutine calls it.
func (q *Queue) OnDropped(notice func(dropped uint64) []byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.notice = notice
}

// Write adds a record. It doesn't wait, and its error is always nil.
func (q *Queue) Write(record []byte) (int, error) {
	q.mu.Lock()
	switch {
	case q.closed, q.dropped > 0, len(q.pending) > 0 && len(q.pending)+len(record) > queueSize:
		// After a gap there is none before the notice of it.
		q.dropped++
	default:
		q.pending = append(q.pending, record...)
		q.records++
	}
	q.mu.Unlock()
	q.signal()
	return len(record), nil
}

func (q *Queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// Hurry lets records be dropped that the file takes nothing of for the given
// time, as [Writer.Hurry] has it, instead of keeping them.
func (q *Queue) Hurry(patience time.Duration) { q.w.Hurry(patience) }

// Close writes what is left, and waits for that as long as the writer makes
// progress, but no longer than patience without any: then the rest is lost. A
// negative patience is no limit. It may be called once.
func (q *Queue) Close(patience time.Duration) {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.signal()
	if patience < 0 {
		<-q.done
		return
	}
	q.w.Hurry(patience)
	// A terminal may hold up a write that poll has called possible.
	for moved := q.w.moved.Load(); ; moved = q.w.moved.Load() {
		timer := time.NewTimer(2 * patience)
		select {
		case <-q.done:
			timer.Stop()
			return
		case <-timer.C:
		}
		if q.w.moved.Load() == moved {
			return
		}
	}
}

// run writes until the queue is closed and empty, or closed and its writer
// fails.
func (q *Queue) run() {
	defer close(q.done)
	var batch, spare []byte
	torn := false // the last record was written in part
	for {
		q.mu.Lock()
		batch, q.pending = q.pending, spare[:0]
		records, dropped, closed, notice := q.records, q.dropped, q.closed, q.notice
		q.records, q.dropped = 0, 0
		q.mu.Unlock()
		if len(batch) == 0 && dropped == 0 {
			if closed {
				return
			}
			spare = batch
			<-q.wake
			continue
		}
		spare = batch
		if dropped > 0 {
			if torn {
				batch = append(batch, '\n')
			}
			batch = append(batch, notice(dropped)...)
		}
		n, err := q.w.Write(batch)
		torn = err != nil && (n == 0 && torn || n > 0 && batch[n-1] != '\n')
		if err == nil {
			continue
		}
		if q.again(records+dropped, uint64(bytes.Count(batch[:n], []byte{'\n'}))) {
			return
		}
		<-q.wake
	}
}

// again counts what wasn't written of some records as dropped, and reports
// whether the queue is closed.
func (q *Queue) again(records, written uint64) (closed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.dropped += max(1, records-min(records, written))
	return q.closed
}
