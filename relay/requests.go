package relay

import (
	"io"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
)

// keepWorkers is how many workers may wait for requests of a stream, so that a
// request seldom needs a new goroutine.
const keepWorkers = 2

// requests are a stream of requests, several of which are at work at once. A
// worker reads a request, lets another worker read the next, does what the
// request asks for, and answers.
type requests[R any] struct {
	stream  *Stream
	most    int32 // at work at once; then the stream isn't read until one is answered
	further *further

	// read reads a request into r, which is zero. One worker at a time calls
	// it.
	read func(in *frames, r *R) error
	// answer does what r asks for, and answers. Its error, like that of read,
	// ends the stream.
	answer func(r *R) error

	workers sync.WaitGroup // but the first, which is the caller of serve
	count   atomic.Int32   // of these
	waiting atomic.Int32   // workers that want to read

	reading sync.Mutex // held while a request is read, whole

	failing sync.Once
	err     error // what ended the stream
}

// further counts the requests at work on all streams of a virtual machine,
// beyond one on each stream.
type further struct {
	most  int64
	count atomic.Int64
}

// serve answers requests until the stream has ended, and returns what ended it
// when all workers have returned.
func (q *requests[R]) serve() error {
	q.work()
	q.workers.Wait()
	return q.err
}

func (q *requests[R]) work() {
	in := frames{pipe: q.stream.Pipe}
	var r, none R
	for q.wait() {
		r = none
		q.reading.Lock()
		err := q.read(&in, &r)
		q.waiting.Add(-1)
		if err == nil {
			q.follow()
		} else {
			// The stream fails before another worker reads, which would take
			// the end of file behind half a request for one between two
			// requests.
			q.fail(err)
		}
		q.reading.Unlock()
		if err != nil {
			return
		}
		if err := q.answer(&r); err != nil {
			q.fail(err)
			return
		}
	}
}

// wait counts the worker as one that waits for a request. It reports false if
// enough others wait.
func (q *requests[R]) wait() bool {
	for {
		n := q.waiting.Load()
		if n > keepWorkers {
			return false
		}
		if q.waiting.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// follow sees to it that a worker reads the next request, unless the stream or
// the virtual machine has too many at work.
func (q *requests[R]) follow() {
	if q.waiting.Load() > 0 || q.count.Load() == q.most-1 {
		return
	}
	if q.further.count.Add(1) > q.further.most {
		q.further.count.Add(-1)
		return
	}
	q.count.Add(1)
	q.workers.Go(func() {
		q.work()
		q.count.Add(-1)
		q.further.count.Add(-1)
	})
}

// fail ends the stream, so that the other workers find the pipe closed. After
// an end of file they go on to answer the requests that they have read.
func (q *requests[R]) fail(err error) {
	q.failing.Do(func() {
		q.err = err
		switch {
		case err == io.EOF:
		case isBreach(q.stream.Pipe, err):
			// Half a request is a breach, too. The reset says so at once: after
			// a Close the guest could find an end of file first.
			_ = q.stream.Pipe.Reset(unix.EPROTO)
		case q.stream.Pipe.Caused(err):
			_ = q.stream.Pipe.Close()
		default:
			_ = q.stream.Pipe.Reset(network.Errno(err))
		}
	})
}
