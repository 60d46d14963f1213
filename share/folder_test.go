package share_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/internal/leased"
	"github.com/fix-project/arcavm/share"
)

// chain makes n links, each to the next, the last to file. It returns the first
// one's name.
func chain(t testing.TB, dir, file string, n int) string {
	t.Helper()
	to := file
	for i := range n {
		name := fmt.Sprintf("link%d-%d", n, i)
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		to = name
	}
	return to
}

// Links are followed as far as Linux follows them, and never outside.
func TestLinks(t *testing.T) {
	t.Parallel()
	outside := t.TempDir()
	dir := filepath.Join(outside, "dir")
	for _, err := range []error{
		os.MkdirAll(filepath.Join(dir, "a/b"), 0o700),
		os.WriteFile(filepath.Join(dir, "f"), nil, 0o600),
		os.WriteFile(filepath.Join(outside, "secret"), nil, 0o600),
		os.Symlink("/f", filepath.Join(dir, "absolute")),
		os.Symlink("/proc/self/root", filepath.Join(dir, "magic")),
		os.Symlink("../secret", filepath.Join(dir, "up")),
		os.Symlink("../../f", filepath.Join(dir, "a/b/back")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, dir, true)
	bare := share.Share{Root: s.Root, Writable: true} // as an embedding program may make one
	for path, want := range map[string]error{
		chain(t, dir, "f", 9): nil, chain(t, dir, "f", 40): nil, chain(t, dir, "f", 41): unix.ELOOP,
		"absolute": unix.EACCES, "magic": unix.EACCES, "up": unix.EACCES, "a/b/back": nil, "a/b/../../f": nil,
		"..": unix.EACCES, "a/../../dir/f": unix.EACCES, "f/": unix.ENOTDIR, "/f": unix.EACCES, "": unix.ENOENT,
		strings.Repeat("./", 1000) + "f": nil, strings.Repeat("a/../", 127) + "f": nil,
		strings.Repeat("a/../", 128) + "f": unix.ENAMETOOLONG,
	} {
		for _, s := range []share.Share{s, bare} {
			if _, err := s.Stat(path, true); !errors.Is(err, want) {
				t.Errorf("%.30q: %v, want %v", path, err, want)
			}
			f, err := s.OpenFile(path, unix.O_RDONLY, 0)
			if !errors.Is(err, want) {
				t.Errorf("opening %.30q: %v, want %v", path, err, want)
			}
			if err == nil {
				f.Close()
			}
		}
	}
}

// A long path costs little, compared with a call for each of its names.
func TestPathCost(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	name := strings.Repeat("n", 14) + "/"
	long := strings.Repeat(name, share.MaxParts-1) // 3,810 bytes
	if err := os.MkdirAll(filepath.Join(dir, long), 0o700); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir, false)
	walk := fastest(t, func() error { _, err := s.Root.Stat(long); return err })
	one := fastest(t, func() error { _, err := s.Stat(long, true); return err })
	t.Logf("%v, a walk %v", one, walk)
	if one > walk/4 {
		t.Errorf("a path of %d bytes takes %v, and a walk %v", len(long), one, walk)
	}
	// A path with too many names costs nothing.
	if _, err := s.Stat(strings.Repeat("a/../", 800), true); !errors.Is(err, unix.ENAMETOOLONG) {
		t.Errorf("got %v", err)
	}
}

func fastest(t testing.TB, do func() error) time.Duration {
	t.Helper()
	best := time.Hour
	for range 20 {
		start := time.Now()
		if err := do(); err != nil {
			t.Fatal(err)
		}
		best = min(best, time.Since(start))
	}
	return best
}

func BenchmarkPath(b *testing.B) {
	dir := b.TempDir()
	deep := strings.Repeat("n/", share.MaxParts-1)
	if err := os.MkdirAll(filepath.Join(dir, deep), 0o700); err != nil {
		b.Fatal(err)
	}
	s := open(b, dir, false)
	for _, c := range []struct {
		name string
		path string
	}{{"short", "n"}, {"deep", deep}, {"back", strings.Repeat("n/../", 127)}} {
		b.Run(c.name+"/openat2", func(b *testing.B) {
			for b.Loop() {
				if _, err := s.Stat(c.path, true); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(c.name+"/walk", func(b *testing.B) {
			for b.Loop() {
				if _, err := s.Root.Stat(c.path); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// An open waits until another process gives up its lease. A FIFO doesn't make
// it wait.
func TestLease(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := errors.Join(os.WriteFile(dir+"/f", []byte("content"), 0o600), unix.Mkfifo(dir+"/fifo", 0o600)); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir, true)
	calls := share.NewCalls(share.NewGates(s), nil)
	broken := leased.Hold(t, dir+"/f")
	f, err := calls.Open(t.Context(), s, "f", unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	leased.WantBroken(t, broken)
	if err := f.Close(nil); err != nil {
		t.Error(err)
	}
	if _, err := calls.Open(t.Context(), s, "fifo", unix.O_RDONLY, 0); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a FIFO: %v", err)
	}
}
