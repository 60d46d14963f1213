package share

import (
	"context"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// MaxCalls is how many calls may be under way at once in one folder of a
	// guest. Each call that waits for a disk or a server takes a thread.
	MaxCalls = 256
	// maxAllCalls is how many may be under way in all folders of a process.
	// Go's runtime ends a process with 10,000 threads.
	maxAllCalls = 4096
	// Grace is how long a call is waited for when its context has ended. Then
	// it goes on by itself.
	Grace = time.Second
)

// allCalls holds a token for each call under way.
var allCalls = make(chan struct{}, maxAllCalls)

// LimitCalls lowers how many calls of the process may be under way at once to
// n, at least 1, for a process that may start few threads only. It is called
// before any Gate is used.
func LimitCalls(n int) { allCalls = make(chan struct{}, max(1, min(n, maxAllCalls))) }

// Gate bounds the calls under way in one folder, so that a folder that stalls,
// as one of a network or FUSE file system may, stops only what waits for
// it. Its methods may be called concurrently.
type Gate struct {
	calls chan struct{} // holds a token for each call under way

	// names is held while a call removes a name, so that the call knows which
	// node has lost it.
	names sync.Mutex
}

// Gates has a gate for each folder of a [Share].
type Gates map[*os.Root]*Gate

// NewGates returns gates for the folders of a guest's share.
func NewGates(s Share) Gates {
	g := Gates{s.Root: newGate()}
	for _, n := range s.Named {
		g[n.Root] = newGate()
	}
	return g
}

func newGate() *Gate { return &Gate{calls: make(chan struct{}, MaxCalls)} }

// Of returns the gate of the folder that [Share.Resolve] has found.
func (g Gates) Of(in Share) *Gate { return g[in.Root] }

// enter waits until a call may begin. With a nil ctx it waits as long as it
// takes.
func (g *Gate) enter(ctx context.Context) error {
	for _, calls := range []chan struct{}{g.calls, allCalls} {
		select {
		case calls <- struct{}{}:
			continue
		default:
		}
		select {
		case calls <- struct{}{}:
		case <-ctx.Done():
			if calls == allCalls {
				<-g.calls
			}
			return ctx.Err()
		}
	}
	return nil
}

func (g *Gate) leave() {
	<-allCalls
	<-g.calls
}

// Do waits for its turn, runs call, which may block in the file system, and
// returns its result. If ctx ends first, Do returns ctx's error: at once if
// call hasn't begun, which it then never does, and otherwise after [Grace]. A
// call that goes on then must not use what the caller uses. Its result goes to
// drop, unless it is an error.
func Do[T any](ctx context.Context, g *Gate, call func() (T, error), drop func(T)) (T, error) {
	var none T
	if err := ctx.Err(); err != nil {
		return none, err
	}
	if err := g.enter(ctx); err != nil {
		return none, err
	}
	type result struct {
		value T
		err   error
	}
	results := make(chan result, 1)
	var settled atomic.Bool // by the result or by the end of the wait
	go func() {
		defer g.leave()
		value, err := call()
		switch {
		case settled.CompareAndSwap(false, true):
			results <- result{value, err}
		case err == nil && drop != nil:
			drop(value)
		}
	}()
	select {
	case r := <-results:
		return r.value, r.err
	case <-ctx.Done():
	}
	timer := time.NewTimer(Grace)
	defer timer.Stop()
	select {
	case r := <-results:
		return r.value, r.err
	case <-timer.C:
	}
	if settled.CompareAndSwap(false, true) {
		return none, ctx.Err()
	}
	r := <-results
	return r.value, r.err
}

// Finish runs a call that ends something, and so doesn't depend on a context.
// It waits for [Grace] at most, and reports whether the call has ended.
func (g *Gate) Finish(call func()) (ended bool) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = g.enter(context.Background())
		defer g.leave()
		call()
	}()
	timer := time.NewTimer(Grace)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}
