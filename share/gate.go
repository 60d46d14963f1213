package share

import (
	"context"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// MaxCalls are calls that may be under way in one folder of a guest's at
	// once. Each that waits for a disk or a server costs a thread.
	MaxCalls = 256
	// maxAllCalls are those of all folders of a process, whose runtime ends it
	// when there are 10,000 threads.
	maxAllCalls = 4096
	// Grace is how long a call that is under way is waited for when its context
	// has ended. One that takes longer goes on by itself.
	Grace = time.Second
)

// allCalls holds a token for each call under way.
var allCalls = make(chan struct{}, maxAllCalls)

// LimitCalls lets no more calls of a process be under way at once than n, at
// least 1, where that is less than there may be anyway: for a process that may
// start few threads. It is called before any Gate is used.
func LimitCalls(n int) { allCalls = make(chan struct{}, max(1, min(n, maxAllCalls))) }

// Gate bounds the calls that are under way in one folder. Folders that stall,
// such as those of a network or FUSE file system, so stop nothing but what
// waits for them. Its methods may be called concurrently.
type Gate struct {
	calls chan struct{} // holds a token for each call under way

	// names is held while a call takes names away, so that it knows what had
	// them.
	names sync.Mutex
}

// Gates are one for each folder of a [Share].
type Gates map[*os.Root]*Gate

// NewGates returns the gates of a guest's.
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

// enter waits until a call may begin. Without ctx it waits as long as it takes.
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

// Do calls a function that may block in the file system, when its turn comes,
// and returns what that does. When ctx ends first, Do returns ctx's error: at
// once if call hasn't begun, which it then doesn't, and otherwise after
// [Grace]. Then the call goes on, what it returns goes to drop unless it is an
// error, and what the call uses must not be the caller's any more.
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

// Finish calls what ends something, whatever has become of the context that it
// lived in, and waits for [Grace] at most. It reports whether the call has
// ended.
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
