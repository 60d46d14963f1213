package vmm

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/fix-project/arcavm/hypercall"
	"github.com/fix-project/arcavm/internal/limit"
)

// logTail is how many of the guest's last log records a crash report shows.
const logTail = 16

const (
	// logBurst is how many bytes of log records a guest may write at once.
	logBurst = 4 << 20
	// logOverhead is what a record counts beside its text.
	logOverhead = 128
)

// guestLog passes the guest's log records on and keeps the last of them.
type guestLog struct {
	logger *slog.Logger
	first  func() // called once, at the first record
	bytes  *limit.Rate

	suppressed atomic.Uint64 // records since one was passed on
	lost       atomic.Uint64 // records in all

	mu   sync.Mutex
	seen uint64
	last [logTail]string
}

// add takes one record. Any CPU's thread may call it.
func (l *guestLog) add(cpu int, r hypercall.LogRecord) {
	l.mu.Lock()
	if l.seen == 0 {
		l.first()
	}
	l.last[l.seen%logTail] = logLine(r)
	l.seen++
	l.mu.Unlock()

	level := r.Level.Slog()
	ctx := context.Background()
	if !l.logger.Enabled(ctx, level) {
		return
	}
	if !l.bytes.Allow(logOverhead + len(r.Message) + len(r.Target) + len(r.File) + len(r.Module)) {
		l.suppressed.Add(1)
		l.lost.Add(1)
		return
	}
	attrs := []slog.Attr{slog.Int("cpu", cpu), slog.String("target", r.Target)}
	if r.File != "" {
		attrs = append(attrs, slog.String("file", r.File))
	}
	if r.Line != 0 {
		attrs = append(attrs, slog.Uint64("line", uint64(r.Line)))
	}
	if r.Module != "" {
		attrs = append(attrs, slog.String("module", r.Module))
	}
	if n := l.suppressed.Swap(0); n > 0 {
		attrs = append(attrs, slog.Uint64("suppressed", n))
	}
	l.logger.LogAttrs(ctx, level, r.Message, attrs...)
}

// tail returns the last records, oldest first.
func (l *guestLog) tail() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := min(l.seen, logTail)
	lines := make([]string, 0, n)
	for i := l.seen - n; i < l.seen; i++ {
		lines = append(lines, l.last[i%logTail])
	}
	return lines
}

func logLine(r hypercall.LogRecord) string {
	where := ""
	if r.File != "" {
		where = fmt.Sprintf(" (%s:%d)", r.File, r.Line)
	}
	return fmt.Sprintf("%-5v %s: %s%s", r.Level, r.Target, r.Message, where)
}

// console is the guest's debug console. A CPU's thread writes while the guest
// waits.
type console struct {
	logger *slog.Logger

	mu sync.Mutex
	w  io.Writer
}

// write passes bytes on. A writer that fails isn't asked again: the guest goes
// on without its reader.
func (c *console) write(p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := c.w.Write(p); err != nil {
		c.w = io.Discard
		c.logger.Warn("the rest of the console's output is lost", "err", err)
	}
}
