package share_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/internal/stalled"
	"github.com/fix-project/arcavm/share"
)

// patience is how long anything may take. A test that passes never waits so
// long.
const patience = 30 * time.Second

func open(t testing.TB, dir string, writable bool) share.Share {
	t.Helper()
	s, err := share.Open(dir, writable)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// However many calls wait for a folder that stalls, there are no more threads
// than allowed, each wait ends with its context, and another folder goes on.
func TestStalledFolder(t *testing.T) {
	folder := stalled.New(t)
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/f", []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, folder.Dir, true)
	s.Named = map[string]share.Share{"other": open(t, dir, false)}
	calls := share.NewCalls(share.NewGates(s), share.NewQuota(1<<30))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	f, err := calls.Open(ctx, s, stalled.File, unix.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	before := threads(t)
	ended := make(chan error)
	var names atomic.Int64
	name := func() string { return fmt.Sprint("none", names.Add(1)) }
	all := 0
	for _, c := range []struct {
		times int
		call  func() error
	}{
		{1000, func() error { _, err := calls.Stat(ctx, s, name(), true); return err }},
		{1000, func() error { _, err := calls.Open(ctx, s, name(), unix.O_RDONLY, 0); return err }},
		// The folder gets one call of these at a time.
		{10, func() error { _, err := f.Read(ctx, make([]byte, 10), nil, 0); return err }},
		{10, func() error { return calls.Remove(ctx, s, name()) }},
	} {
		all += c.times
		for range c.times {
			go func() { ended <- c.call() }()
		}
	}
	for folder.Waiting() < share.MaxCalls-20 {
		select {
		case <-folder.Arrived():
		case <-ctx.Done():
			t.Fatalf("%d calls wait", folder.Waiting())
		}
	}
	in, rest := s.Resolve("other/f")
	g, err := calls.Open(ctx, in, rest, unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 7)
	if n, err := g.Read(ctx, b, nil, 0); err != nil || string(b[:n]) != "content" {
		t.Errorf("beside it: %q, %v", b, err)
	}
	_ = g.Close(nil)
	if n := threads(t) - before; n > share.MaxCalls+20 {
		t.Errorf("%d more threads", n)
	}
	start := time.Now()
	cancel()
	for range all {
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	}
	if took := time.Since(start); took > share.Grace+patience/2 {
		t.Errorf("the waits ended after %v", took)
	}
	folder.End()
	_ = f.Close(nil)
}

// threads counts this process's threads.
func threads(t testing.TB) int {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	return len(tasks)
}
