package share_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/share"
)

const node = 4096 // what a file or folder counts

// writer is a guest that writes to a folder.
type writer struct {
	t     *testing.T
	ctx   context.Context
	dir   string
	in    share.Share
	calls share.Calls
	quota *share.Quota
}

func newWriter(t *testing.T, limit uint64) *writer {
	t.Helper()
	dir := t.TempDir()
	w := &writer{t: t, ctx: t.Context(), dir: dir, in: open(t, dir, true), quota: share.NewQuota(limit)}
	w.calls = share.NewCalls(share.NewGates(w.in), w.quota)
	return w
}

func (w *writer) open(path string, flags int) *share.File {
	w.t.Helper()
	f, err := w.calls.Open(w.ctx, w.in, path, unix.O_RDWR|flags, 0o600)
	if err != nil {
		w.t.Fatal(err)
	}
	return f
}

func (w *writer) write(f *share.File, offset int64, n int) {
	w.t.Helper()
	if k, err := f.Write(w.ctx, make([]byte, n), offset); err != nil || k != n {
		w.t.Fatalf("wrote %d of %d, %v", k, n, err)
	}
}

func (w *writer) close(f *share.File) {
	w.t.Helper()
	if err := f.Close(nil); err != nil {
		w.t.Error(err)
	}
}

func (w *writer) wantUsed(when string, want uint64) {
	w.t.Helper()
	if got := w.quota.Used(); got != want {
		w.t.Errorf("%s: %d bytes are used, want %d", when, got, want)
	}
}

func (w *writer) wantFull(what string, err error) {
	w.t.Helper()
	if !errors.Is(err, share.ErrQuota) || !errors.Is(err, unix.EDQUOT) {
		w.t.Errorf("%s: %v, want EDQUOT", what, err)
	}
}

func TestQuota(t *testing.T) {
	t.Parallel()
	const limit = 1 << 20
	w := newWriter(t, limit)
	if err := os.WriteFile(filepath.Join(w.dir, "old"), make([]byte, 100_000), 0o600); err != nil {
		t.Fatal(err)
	}
	f := w.open("f", unix.O_CREAT)
	w.write(f, 0, 64<<10)
	w.wantUsed("after a write", node+64<<10)
	w.write(f, 0, 64<<10)
	w.wantUsed("after it was written over", node+64<<10)
	w.write(f, 256<<10, 64<<10)
	w.wantUsed("with a hole", node+320<<10)
	w.write(f, 100<<10, 64<<10)
	w.wantUsed("with half of it filled", node+320<<10)

	_, err := f.Write(w.ctx, []byte("x"), limit)
	w.wantFull("far out", err)
	w.wantFull("longer by a hole", f.Truncate(w.ctx, limit))
	w.wantFull("longer by a large hole", f.Truncate(w.ctx, 1<<62))
	if err := f.Truncate(w.ctx, 4096); err != nil {
		t.Error(err)
	}
	w.wantUsed("cut", 2*node)

	// A removed file is charged until it is closed.
	w.write(f, 0, 512<<10)
	if err := w.calls.Remove(w.ctx, w.in, "f"); err != nil {
		t.Error(err)
	}
	w.wantUsed("removed while it is open", node+512<<10)
	w.write(f, 512<<10, 4096)
	w.close(f)
	w.wantUsed("and closed", 0)

	// A replaced file isn't charged any more, nor is a truncated one.
	for range 10 {
		g := w.open("new", unix.O_CREAT|unix.O_TRUNC)
		w.write(g, 0, 300<<10)
		w.close(g)
		if err := w.calls.Rename(w.ctx, w.in, "new", "name"); err != nil {
			t.Fatal(err)
		}
	}
	w.close(w.open("name", unix.O_TRUNC))
	w.wantUsed("replaced and emptied", node)

	// A file that was there before the guest gives nothing back, but as much as
	// a new file takes.
	old := w.open("old", 0)
	w.write(old, 50_000, 60_000)
	w.wantUsed("a file that was there has grown", node+10_000)
	w.close(old)
	if err := w.calls.Remove(w.ctx, w.in, "old"); err != nil {
		t.Error(err)
	}
	w.wantUsed("and is gone", 0)
	w.wantUsed("never less than nothing", 0)
}

// Small files and folders use the quota up, too, however they are made.
func TestQuotaOfNames(t *testing.T) {
	t.Parallel()
	const most = 16
	for name, mk := range map[string]func(w *writer, i int) error{
		"files": func(w *writer, i int) error {
			f, err := w.calls.Open(w.ctx, w.in, fmt.Sprint(i), unix.O_WRONLY|unix.O_CREAT, 0o600)
			if err == nil {
				w.close(f)
			}
			return err
		},
		"exclusive": func(w *writer, i int) error {
			f, err := w.calls.Open(w.ctx, w.in, fmt.Sprint(i), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
			if err == nil {
				w.close(f)
			}
			return err
		},
		"folders": func(w *writer, i int) error { return w.calls.Mkdir(w.ctx, w.in, fmt.Sprint(i), false) },
		"parents": func(w *writer, i int) error { return w.calls.Mkdir(w.ctx, w.in, fmt.Sprint(i, "/", i, "/", i), true) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWriter(t, most*node)
			var err error
			made := 0
			for ; err == nil && made < 2*most; made++ {
				err = mk(w, made)
			}
			w.wantFull(name, err)
			if n := len(w.tree()); n > most {
				t.Errorf("%d were made", n)
			}
			for _, path := range w.tree() {
				if err := w.calls.Remove(w.ctx, w.in, path); err != nil {
					t.Error(err)
				}
			}
			w.wantUsed("all removed", 0)
			if err := mk(w, made); err != nil {
				t.Errorf("after that: %v", err)
			}
		})
	}
}

// tree returns the paths in the folder, the deepest first.
func (w *writer) tree() (paths []string) {
	w.t.Helper()
	err := filepath.WalkDir(w.dir, func(path string, _ os.DirEntry, err error) error {
		if path != w.dir {
			path, _ = filepath.Rel(w.dir, path)
			paths = append([]string{path}, paths...)
		}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return paths
}

// Whatever guests do concurrently to the same few names, the files never take
// more than is charged.
func TestQuotaRace(t *testing.T) {
	t.Parallel()
	const limit, workers, rounds = 1 << 20, 8, 300
	w := newWriter(t, limit)
	var working sync.WaitGroup
	for worker := range workers {
		working.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(worker)))
			name := func() string { return fmt.Sprint(r.IntN(3)) }
			for range rounds {
				switch r.IntN(4) {
				case 0:
					_ = w.calls.Remove(w.ctx, w.in, name())
				case 1:
					_ = w.calls.Rename(w.ctx, w.in, name(), name())
				default:
					f, err := w.calls.Open(w.ctx, w.in, name(), unix.O_RDWR|unix.O_CREAT|[]int{0, unix.O_APPEND, unix.O_TRUNC}[r.IntN(3)], 0o600)
					if err != nil {
						continue
					}
					for range r.IntN(4) {
						if r.IntN(4) == 0 {
							_ = f.Truncate(w.ctx, r.Uint64N(limit/2))
						}
						_, _ = f.Write(w.ctx, make([]byte, r.IntN(100<<10)), r.Int64N(limit))
					}
					_ = f.Close(nil)
				}
			}
		})
	}
	working.Wait()
	var real uint64
	for _, path := range w.tree() {
		info, err := os.Stat(filepath.Join(w.dir, path))
		if err != nil {
			t.Fatal(err)
		}
		real += uint64(info.Size()) + node
	}
	used := w.quota.Used()
	t.Logf("%d bytes, %d counted", real, used)
	// The last block of each file may take more.
	if real > used || used > real+uint64(len(w.tree()))*node || used > limit+workers*node {
		t.Errorf("there are %d bytes, %d counted", real, used)
	}
	for _, path := range w.tree() {
		if err := w.calls.Remove(w.ctx, w.in, path); err != nil {
			t.Error(err)
		}
	}
	w.wantUsed("all removed", 0)
}
