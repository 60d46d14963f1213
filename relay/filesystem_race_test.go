package relay_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	shared "github.com/fix-project/arcavm/share"
	"github.com/fix-project/arcavm/wire"
)

// A folder that is part of every path is exchanged for a link to outside and
// back, again and again, while a guest works below it. Nothing outside is ever
// read, written, made, renamed or removed.
func TestFolderBecomesLink(t *testing.T) {
	t.Parallel()
	rounds := 500
	if testing.Short() {
		rounds = 100
	}
	top, outside := t.TempDir(), t.TempDir()
	inside := []byte("inside")
	secret := []byte("outside")
	for _, dir := range []string{filepath.Join(top, "way/sub"), filepath.Join(outside, "sub")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(
		os.WriteFile(filepath.Join(top, "way/file"), inside, 0o600),
		os.WriteFile(filepath.Join(outside, "file"), secret, 0o600),
		os.WriteFile(filepath.Join(outside, "sub/secret"), secret, 0o600),
		os.Symlink(outside, filepath.Join(top, "link")),
	); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, outside)

	var stop atomic.Bool
	var swapping sync.WaitGroup
	var swaps int
	swapping.Go(func() {
		for ; !stop.Load(); swaps++ {
			if err := unix.Renameat2(unix.AT_FDCWD, filepath.Join(top, "way"), unix.AT_FDCWD, filepath.Join(top, "link"), unix.RENAME_EXCHANGE); err != nil {
				t.Error(err)
				return
			}
		}
	})
	defer func() {
		stop.Store(true)
		swapping.Wait()
		t.Logf("%d times", swaps)
	}()

	m := start(t, setup{share: shared.Share{Root: root(t, top), Writable: true}})
	var working sync.WaitGroup
	var reached, refused atomic.Bool
	late := time.Now().Add(patience)
	work := func(what func(g *fileGuest)) {
		g := m.fileGuest(16 << 10)
		working.Go(func() {
			// It goes on until the guest was both served and refused: on a busy
			// machine the folder may not be exchanged for a while.
			for i := 0; i < rounds || !(reached.Load() && refused.Load()) && time.Now().Before(late); i++ {
				deadline(t, g) // for one round
				what(g)
			}
		})
	}
	work(func(g *fileGuest) {
		got, err := g.readPath("way/file")
		if err == nil && !bytes.Equal(got, inside) {
			t.Errorf("read %q", got)
		}
		if err == nil {
			reached.Store(true)
		} else {
			refused.Store(true)
		}
	})
	work(func(g *fileGuest) {
		if info, err := g.statPath("way/sub/secret"); err == nil {
			t.Errorf("found the secret: %+v", info)
		}
		names, _ := g.page("way/sub", "", 4096)
		for _, name := range names {
			if name == "secret" {
				t.Error("listed the secret")
			}
		}
	})
	work(func(g *fileGuest) {
		handle, err := g.open("way/file", wire.OpenRead|wire.OpenWrite)
		if err != nil {
			return
		}
		if got, err := g.read(handle, 0, wire.ToEnd); err != nil || !bytes.Equal(got, inside) {
			t.Errorf("read %q, %v", got, err)
		}
		if _, err := g.write(handle, 0, inside); err != nil {
			t.Error(err)
		}
		if err := g.close(handle); err != nil {
			t.Error(err)
		}
	})
	work(func(g *fileGuest) {
		if handle, err := g.open("way/new", wire.OpenWrite|wire.OpenCreate|wire.OpenTruncate); err == nil {
			_, _ = g.write(handle, 0, inside)
			_ = g.close(handle)
		}
		_ = g.rename("way/new", "way/sub/renamed")
		_ = g.remove("way/sub/renamed")
	})
	work(func(g *fileGuest) {
		_ = g.mkdir("way/sub/a/b", wire.MkdirParents)
		_ = g.remove("way/sub/a/b")
		_ = g.remove("way/sub/a")
		_ = g.remove("way/sub/secret")
		_ = g.rename("way/sub/secret", "stolen")
		_ = g.rename("way/sub/a", "way/file")
	})
	working.Wait()
	stop.Store(true)
	swapping.Wait()
	if got := snapshot(t, outside); got != before {
		t.Errorf("outside there is now\n%s\nand there was\n%s", got, before)
	}
	if _, err := os.Lstat(filepath.Join(top, "stolen")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("something was moved from outside: %v", err)
	}
	if !reached.Load() || !refused.Load() {
		t.Error("this was no race")
	}
}

func root(t *testing.T, dir string) *os.Root {
	t.Helper()
	r, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// snapshot is a text with all that is below dir.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	var all bytes.Buffer
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		all.WriteString(path + " " + d.Type().String())
		if d.Type().IsRegular() {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			all.Write(b)
		}
		all.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}
