package relay_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	shared "github.com/fix-project/arcavm/share"
	"github.com/fix-project/arcavm/wire"
)

func openShare(t *testing.T, dir string, writable bool) shared.Share {
	t.Helper()
	s, err := shared.Open(dir, writable)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func wantErrno(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// Several folders under names, beside one at the top: where each file is, and
// what may be changed.
func TestShares(t *testing.T) {
	t.Parallel()
	outside := t.TempDir()
	in, out := filepath.Join(outside, "in"), filepath.Join(outside, "out")
	for _, err := range []error{
		os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o600),
		os.Mkdir(in, 0o700),
		os.Mkdir(out, 0o700),
		os.WriteFile(filepath.Join(in, "data"), []byte("input"), 0o600),
		os.Symlink("../secret", filepath.Join(out, "link")),
		os.Symlink("..", filepath.Join(out, "up")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s := shared.Share{
		Root:  share(t),
		Named: map[string]shared.Share{"in": openShare(t, in, false), "out": openShare(t, out, true), "small": openShare(t, in, false)},
	}
	m := start(t, setup{share: s})
	g := m.fileGuest(4096)

	names, err := g.list("/", 512)
	if want := []string{"a/", "absolute@", "empty", "fifo|", "in/", "inside@", "large", "loop@", "out/", "relative@", "small/", "up@"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("at the top: %q, %v; want %q", names, err, want)
	}
	if data, err := g.readPath("/in/data"); string(data) != "input" || err != nil {
		t.Errorf("in/data: %q, %v", data, err)
	}
	if data, err := g.readPath("small/data"); string(data) != "input" || err != nil {
		t.Errorf("a name hides a file of the top: %q, %v", data, err)
	}

	const create = wire.OpenWrite | wire.OpenCreate
	h := g.mustOpen("out/new", create)
	if n, err := g.write(h, 0, []byte("result")); n != 6 || err != nil {
		t.Errorf("write: %d, %v", n, err)
	}
	wantErrno(t, "sync", g.sync(h), nil)
	wantErrno(t, "close", g.close(h), nil)
	if b, err := os.ReadFile(filepath.Join(out, "new")); string(b) != "result" || err != nil {
		t.Errorf("out/new holds %q, %v", b, err)
	}

	for what, c := range map[string]struct{ got, want error }{
		"create in what is read only":           {second(g.open("in/new", create)), unix.EROFS},
		"write to what is read only":            {second(g.open("in/data", wire.OpenWrite)), unix.EROFS},
		"create at the top":                     {second(g.open("new", create)), unix.EROFS},
		"remove in what is read only":           {g.remove("in/data"), unix.EROFS},
		"mkdir in what is read only":            {g.mkdir("in/folder", wire.MkdirParents), unix.EROFS},
		"rename out of what is read only":       {g.rename("in/data", "out/data"), unix.EROFS},
		"rename into what is read only":         {g.rename("out/new", "in/new"), unix.EROFS},
		"rename a share":                        {g.rename("out", "out/out"), unix.EBUSY},
		"remove a share":                        {g.remove("out"), unix.EBUSY},
		"open a share":                          {second(g.open("out", wire.OpenRead)), unix.EISDIR},
		"open a link that leads outside":        {second(g.open("out/link", wire.OpenRead)), unix.EACCES},
		"write through it":                      {second(g.open("out/link", wire.OpenWrite|wire.OpenTruncate)), unix.EACCES},
		"create through a folder's link":        {second(g.open("out/up/new", create)), unix.EACCES},
		"list through it":                       {second(g.list("out/up", 512)), unix.EACCES},
		"mkdir through it":                      {g.mkdir("out/up/folder", 0), unix.EACCES},
		"remove through it":                     {g.remove("out/up/secret"), unix.EACCES},
		"rename to outside":                     {g.rename("out/new", "out/up/new"), unix.EACCES},
		"from one share to another by ..":       {second(g.readPath("out/../in/data")), unix.EACCES},
		"create what exists, exclusively":       {second(g.open("out/new", create|wire.OpenExclusive)), unix.EEXIST},
		"open with flags that mean nothing":     {second(g.open("out/new", wire.OpenCreate)), unix.EINVAL},
		"open a FIFO":                           {second(g.open("fifo", wire.OpenRead)), unix.EINVAL},
		"open what isn't there":                 {second(g.open("out/none", wire.OpenRead)), unix.ENOENT},
		"list with less room than for an entry": {second(g.page("/", "", 10)), unix.EINVAL},
	} {
		wantErrno(t, what, c.got, c.want)
	}
	for _, name := range []string{"new", "folder"} {
		if _, err := os.Lstat(filepath.Join(outside, name)); err == nil {
			t.Errorf("%s was made outside", name)
		}
	}
	if b, err := os.ReadFile(filepath.Join(outside, "secret")); string(b) != "secret" || err != nil {
		t.Errorf("the file outside holds %q, %v", b, err)
	}
}

func second[T any](_ T, err error) error { return err }

// Handles belong to a stream, end with it, and are limited.
func TestFileHandles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := start(t, setup{share: openShare(t, dir, true)})
	a, b := m.fileGuest(4096), m.fileGuest(4096)

	h := a.mustOpen("log", wire.OpenRead|wire.OpenAppend|wire.OpenCreate)
	for _, part := range []string{"one ", "two"} {
		if _, err := a.write(h, 1000, []byte(part)); err != nil {
			t.Error(err)
		}
	}
	if data, err := a.read(h, 0, 100); string(data) != "one two" || err != nil {
		t.Errorf("appended: %q, %v", data, err)
	}
	_, err := b.read(h, 0, 1)
	wantErrno(t, "another stream's handle", err, unix.EBADF)

	limit := 1
	for ; ; limit++ {
		_, err := a.open("log", wire.OpenRead)
		if err != nil {
			wantErrno(t, "one file too many", err, unix.EMFILE)
			break
		}
		if limit > 100_000 {
			t.Fatal("there is no limit")
		}
	}
	wantErrno(t, "close", a.close(h), nil)
	wantErrno(t, "close again", a.close(h), unix.EBADF)
	a.mustOpen("log", wire.OpenRead)
	if other := b.mustOpen("log", wire.OpenRead); other == 0 {
		t.Error("0 is no handle")
	}
	a.Close()
	b.Close()
	m.wantFree()
	// Files that another stream left open don't count.
	c := m.fileGuest(4096)
	for range limit - 1 {
		c.mustOpen("log", wire.OpenRead)
	}
}

// A long answer doesn't delay others, which come between its frames.
func TestFileAnswersOutOfOrder(t *testing.T) {
	t.Parallel()
	const long, short, fileSize = 1, 2, 64 << 20
	dir := t.TempDir()
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "large"), nil, 0o600), os.Truncate(filepath.Join(dir, "large"), fileSize)); err != nil {
		t.Fatal(err)
	}
	m := start(t, setup{share: openShare(t, dir, false)})
	g := m.fileGuest(4096)
	requests := wire.AppendReadFileRequest(nil, long, wire.ReadFileRequest{Length: wire.ToEnd, Path: []byte("large")})
	requests = wire.AppendStatRequest(requests, short, wire.StatRequest{Path: []byte("large")})
	if _, err := g.Write(requests); err != nil {
		t.Fatal(err)
	}
	answered, size := false, 0
	for {
		h, p, err := receive(g)
		if err != nil {
			t.Fatal(err)
		}
		if h.RequestID == short {
			answered = true
			continue
		}
		d, err := wire.DecodeFileData(p)
		if err != nil || d.Status != 0 {
			t.Fatal(d.Status, err)
		}
		size += len(d.Data)
		if h.Flags == 0 {
			break
		}
	}
	if !answered || size != fileSize {
		t.Errorf("%d bytes; the other request was answered in between: %v", size, answered)
	}
}
