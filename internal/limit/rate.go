// Package limit bounds how much a guest gets in a second, and how many log
// records it can cause.
package limit

import (
	"math"
	"time"

	"golang.org/x/time/rate"
)

// Rate is an amount per second that goroutines share. What they leave of it
// adds up, to one second's worth at most, and can be had at once later. A nil
// *Rate is no limit. Its methods may be called concurrently.
type Rate struct {
	limiter *rate.Limiter
	piece   int
}

// minPiece and maxPiece bound how much a goroutine takes at a time: little
// enough that others have their turn soon, and enough to be worth the wait.
const (
	minPiece = 4 << 10
	maxPiece = 64 << 10
)

// NewRate returns a limit of perSecond, nil if that is 0. Up to most can be had
// at once, however little perSecond is.
func NewRate(perSecond uint64, most int) *Rate {
	if perSecond == 0 {
		return nil
	}
	burst := max(most, int(min(perSecond, math.MaxInt32)))
	return &Rate{
		limiter: rate.NewLimiter(rate.Limit(perSecond), burst),
		piece:   int(min(max(perSecond/100, minPiece), maxPiece, uint64(burst))),
	}
}

// Allow takes n if that can be had at once, and reports whether it did.
func (r *Rate) Allow(n int) bool { return r == nil || r.limiter.AllowN(time.Now(), n) }

// Piece returns how much of n to take at a time.
func (r *Rate) Piece(n int) int {
	if r == nil {
		return n
	}
	return min(n, r.piece)
}

// Wait takes n, a piece after the other, and waits for each piece in the order
// in which goroutines came. It returns early when done is closed. It reports
// whether it had to wait.
func (r *Rate) Wait(done <-chan struct{}, n int) (waited bool) {
	if r == nil {
		return false
	}
	for n > 0 {
		piece := r.Piece(n)
		n -= piece
		reserved := r.limiter.ReserveN(time.Now(), piece)
		d := reserved.Delay()
		if d == 0 {
			continue
		}
		waited = true
		timer := time.NewTimer(d)
		select {
		case <-timer.C:
		case <-done:
			timer.Stop()
			reserved.Cancel()
			return waited
		}
	}
	return waited
}
