package share_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fix-project/arcavm/share"
)

func TestResolve(t *testing.T) {
	t.Parallel()
	top, a, b := t.TempDir(), t.TempDir(), t.TempDir()
	s, err := share.Open(top, false)
	if err != nil {
		t.Fatal(err)
	}
	s.Named = make(map[string]share.Share)
	for name, dir := range map[string]string{"a": a, "b": b} {
		if s.Named[name], err = share.Open(dir, name == "b"); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		path, dir, rest string
		writable        bool
	}{
		{"", top, ".", false},
		{"/", top, ".", false},
		{"./", top, ".", false},
		{"//./x/y", top, "x/y", false},
		{"a", a, ".", false},
		{"/a/", a, ".", false},
		{"./b/x//y", b, "x//y", true},
		{"b/..", b, "..", true},
		{"ab", top, "ab", false},
		{"x/a", top, "x/a", false},
		{"..", top, "..", false},
		{"../a", top, "../a", false},
		{".a", top, ".a", false},
	} {
		in, rest := s.Resolve(c.path)
		if in.Root.Name() != c.dir || rest != c.rest || in.Writable != c.writable {
			t.Errorf("%q: %q in %s, writable %v; want %+v", c.path, rest, in.Root.Name(), in.Writable, c)
		}
	}
	if s.None() || !(share.Share{}).None() {
		t.Error("None")
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := s.Named["a"].Root.Stat("."); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a named folder after Close: %v", err)
	}
}

func TestOpen(t *testing.T) {
	t.Parallel()
	if _, err := share.Open(filepath.Join(t.TempDir(), "missing"), false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	s, err := share.Open("/", true)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if !s.Host || !s.Writable {
		t.Errorf("got %+v", s)
	}
}

func TestCheckName(t *testing.T) {
	t.Parallel()
	for name, ok := range map[string]bool{
		"a": true, "a b": true, "...": true, strings.Repeat("n", 255): true,
		"": false, ".": false, "..": false, "a/b": false, "a\x00": false, strings.Repeat("n", 256): false,
	} {
		if err := share.CheckName(name); (err == nil) != ok {
			t.Errorf("%.10q: %v", name, err)
		}
	}
}

// A read of more than the kernel moves at once is whole. One whose context has
// ended goes no further, even if all of it is in memory.
func TestLargeRead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	want := make([]byte, 5<<20+77)
	for i := range want {
		want[i] = byte(i * i >> 7)
	}
	if err := os.WriteFile(filepath.Join(dir, "large"), want, 0o600); err != nil {
		t.Fatal(err)
	}
	in := open(t, dir, false)
	f, err := share.NewCalls(share.NewGates(in), nil).Open(t.Context(), in, "large", os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close(nil)
	for _, at := range []int{0, 1, 1 << 20, 2<<20 + 3, 5 << 20, len(want)} {
		got := make([]byte, len(want))
		if n, err := f.Read(t.Context(), got[:at], got[at:], 0); n != len(want) || err != nil || !bytes.Equal(got, want) {
			t.Errorf("in parts of %d bytes and the rest: %d, %v", at, n, err)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if n, err := f.Read(ended, make([]byte, len(want)), nil, 0); n != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: %d, %v", n, err)
	}
}
