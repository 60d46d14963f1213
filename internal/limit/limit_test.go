package limit

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestNoRate(t *testing.T) {
	t.Parallel()
	r := NewRate(0, 1)
	if r != nil || !r.Allow(1<<40) || r.Wait(nil, 1<<40) || r.Piece(1<<40) != 1<<40 {
		t.Error("no limit limits")
	}
}

func TestAllow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := NewRate(10, 1)
		for range 10 {
			if !r.Allow(1) {
				t.Fatal("a second's worth can't be had at once")
			}
		}
		if r.Allow(1) {
			t.Error("more than a second's worth at once")
		}
		time.Sleep(100 * time.Millisecond)
		if !r.Allow(1) || r.Allow(1) {
			t.Error("a tenth of a second gives not one tenth")
		}
		if r := NewRate(1, 64); !r.Allow(64) {
			t.Error("the most that can be had at once can't")
		}
	})
}

func TestWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const second = 1 << 20
		r := NewRate(second, 1)
		start := time.Now()
		if r.Wait(nil, second) || time.Since(start) != 0 {
			t.Error("the first second's worth had to wait")
		}
		// Two that want as much each end together: each got half of the rate.
		var all sync.WaitGroup
		for range 2 {
			all.Go(func() {
				if !r.Wait(nil, second) {
					t.Error("didn't wait")
				}
				if took := time.Since(start); took < 1900*time.Millisecond || took > 2100*time.Millisecond {
					t.Errorf("took %v", took)
				}
			})
		}
		all.Wait()
		done := make(chan struct{})
		close(done)
		begun := time.Now()
		r.Wait(done, second)
		if took := time.Since(begun); took != 0 {
			t.Errorf("took %v to end", took)
		}
	})
}

func TestLog(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		to := slog.New(slog.NewTextHandler(&out, nil))
		flood, other := NewLog(time.Second, 2), NewLog(time.Second, 2)
		for range 7 {
			flood.Log(to, slog.LevelWarn, "flood")
		}
		flood.Log(to, slog.LevelDebug, "isn't shown and doesn't count")
		other.Log(to, slog.LevelWarn, "other")
		if got := out.String(); strings.Count(got, "\n") != 3 || !strings.Contains(got, "other") || strings.Contains(got, "suppressed") {
			t.Errorf("%s", got)
		}
		time.Sleep(time.Second)
		out.Reset()
		flood.Log(to, slog.LevelWarn, "flood", slog.Int("a", 1))
		if got := out.String(); !strings.HasSuffix(got, "msg=flood a=1 suppressed=5\n") {
			t.Errorf("%s", got)
		}
	})
}
