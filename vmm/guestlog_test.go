package vmm

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fix-project/arcavm/hypercall"
	"github.com/fix-project/arcavm/internal/limit"
)

// A guest that logs without end doesn't fill the disk, and a crash report shows
// the last records all the same.
func TestLogLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		l := guestLog{logger: slog.New(slog.NewTextHandler(&out, nil)), first: func() {}, bytes: limit.NewRate(DefaultLogLimit, logBurst)}
		r := hypercall.LogRecord{Level: hypercall.LevelInfo, Message: strings.Repeat("x", 1024-logOverhead)}
		const flood = 2 * logBurst / 1024
		for range flood {
			l.add(0, r)
			// Of a level that isn't shown, it costs nothing.
			l.add(0, hypercall.LogRecord{Level: hypercall.LevelTrace})
		}
		if n := strings.Count(out.String(), "\n"); n != flood/2 || l.lost.Load() != flood/2 || strings.Contains(out.String(), "suppressed") {
			t.Errorf("%d of %d records passed on, %d lost", n, flood, l.lost.Load())
		}
		if tail := l.tail(); len(tail) != logTail || !strings.Contains(tail[0], "xxx") {
			t.Errorf("the last records are %d", len(tail))
		}
		time.Sleep(time.Second)
		out.Reset()
		r.Message = "again"
		l.add(0, r)
		l.add(0, r)
		if got := out.String(); strings.Count(got, "\n") != 2 || strings.Count(got, "suppressed=4096\n") != 1 {
			t.Errorf("after that: %s", got)
		}
	})
}
