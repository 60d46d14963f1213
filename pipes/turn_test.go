package pipes

import (
	"errors"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// queued starts an operation that waits for a turn, and returns where its error
// arrives. It holds the turn then.
func queued(mu *sync.Mutex, t *turn) <-chan error {
	done := make(chan error, 1)
	go func() {
		mu.Lock()
		defer mu.Unlock()
		done <- t.take()
	}()
	synctest.Wait()
	return done
}

// What happens between the moment a turn is given and the moment its operation
// wakes doesn't lose the turn.
func TestTurnThatIsGivenAndRefused(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		what   string
		refuse func(*turn)
		want   error
		again  error // of the next operation, once the deadline is taken away
	}{
		{"deadline", func(n *turn) { n.setDeadline(time.Now().Add(-1)) }, os.ErrDeadlineExceeded, nil},
		{"close", func(n *turn) { n.close(net.ErrClosed) }, net.ErrClosed, net.ErrClosed},
	} {
		for _, waiting := range []int{1, 2, 3} {
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				var n turn
				n.init(&mu)
				mu.Lock()
				if err := n.take(); err != nil {
					t.Fatal(err)
				}
				mu.Unlock()
				var done []<-chan error
				for range waiting {
					done = append(done, queued(&mu, &n))
				}
				mu.Lock()
				n.release()
				c.refuse(&n)
				mu.Unlock()
				for _, d := range done {
					if err := <-d; !errors.Is(err, c.want) {
						t.Errorf("%s: an operation in the queue got %v, want %v", c.what, err, c.want)
					}
				}
				mu.Lock()
				defer mu.Unlock()
				if n.busy || n.given || n.queued != 0 {
					t.Errorf("%s, %d in the queue: busy %v, given %v, %d queued", c.what, waiting, n.busy, n.given, n.queued)
				}
				if c.again == nil {
					n.setDeadline(time.Time{})
				}
				if err := n.take(); !errors.Is(err, c.again) {
					t.Errorf("%s: the next operation got %v, want %v", c.what, err, c.again)
				}
			})
		}
	}
}

// The first in the queue gets the turn, an operation that comes later doesn't.
func TestTurnIsGiven(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var n turn
		n.init(&mu)
		mu.Lock()
		if err := n.take(); err != nil {
			t.Fatal(err)
		}
		mu.Unlock()
		first := queued(&mu, &n)
		mu.Lock()
		n.release()
		if !n.busy || !n.given {
			t.Error("the turn is free although an operation waits")
		}
		mu.Unlock()
		if err := <-first; err != nil {
			t.Error(err)
		}
		second := queued(&mu, &n)
		select {
		case err := <-second:
			t.Errorf("a second operation has the turn: %v", err)
		default:
		}
		mu.Lock()
		n.release()
		mu.Unlock()
		if err := <-second; err != nil {
			t.Error(err)
		}
	})
}

// A deadline that is changed while its timer runs expires at the new time only.
func TestTurnDeadlineMoves(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var n turn
		n.init(&mu)
		expired := func() bool {
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			return n.refusal() != nil
		}
		set := func(d time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			n.setDeadline(time.Now().Add(d))
		}
		set(time.Second)
		time.Sleep(time.Second / 2)
		set(time.Minute)
		if time.Sleep(time.Second); expired() {
			t.Error("it expired at the first deadline")
		}
		if time.Sleep(time.Minute); !expired() {
			t.Error("it didn't expire at the second")
		}
		if set(time.Minute); expired() {
			t.Error("it is expired although the deadline is to come")
		}
		mu.Lock()
		n.close(net.ErrClosed)
		mu.Unlock()
		if time.Sleep(time.Hour); n.expired {
			t.Error("it expired after the close")
		}
	})
}
