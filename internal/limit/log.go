package limit

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// Log is one place in the program that logs what a guest or a peer can cause as
// often as it likes. Each place has a limit of its own, so that a flood of one
// kind of record hides no other. Its methods may be called concurrently.
type Log struct {
	limiter    *rate.Limiter
	suppressed atomic.Uint64
}

// NewLog lets burst records through at once, and one more each time that every
// has passed.
func NewLog(every time.Duration, burst int) *Log {
	return &Log{limiter: rate.NewLimiter(rate.Every(every), burst)}
}

// Log writes a record, or counts it as suppressed. The next record that is
// written says how many were suppressed.
func (l *Log) Log(to *slog.Logger, level slog.Level, msg string, attrs ...slog.Attr) {
	ctx := context.Background()
	if !to.Enabled(ctx, level) {
		return
	}
	if !l.limiter.Allow() {
		l.suppressed.Add(1)
		return
	}
	if n := l.suppressed.Swap(0); n > 0 {
		attrs = append(attrs, slog.Uint64("suppressed", n))
	}
	to.LogAttrs(ctx, level, msg, attrs...)
}
