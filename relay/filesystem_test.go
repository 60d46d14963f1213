package relay_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/internal/leased"
	"github.com/fix-project/arcavm/pipes/pipestest"
	"github.com/fix-project/arcavm/wire"
)

func (m *machine) files(incoming uint32) *pipestest.GuestConn {
	m.t.Helper()
	c, err := m.tryPipe(4096, incoming, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	if _, err := open(c, wire.ProtocolFileSystem, nil); err != nil {
		m.t.Fatal(err)
	}
	return c
}

// readFile returns a file's bytes, and the number of frames that they came in.
func readFile(c *pipestest.GuestConn, path string, offset, length uint64) (data []byte, frames int, err error) {
	request := wire.AppendReadFileRequest(nil, 42, wire.ReadFileRequest{Offset: offset, Length: length, Path: []byte(path)})
	if _, err := c.Write(request); err != nil {
		return nil, 0, err
	}
	for {
		h, p, err := receive(c)
		if err != nil {
			return data, frames, err
		}
		m, err := wire.DecodeFileData(p)
		if err != nil {
			return data, frames, err
		}
		if h.RequestID != 42 || m.Offset != offset+uint64(len(data)) {
			return data, frames, fmt.Errorf("%+v, %+v after %d bytes", h, m, len(data))
		}
		frames++
		data = append(data, m.Data...)
		if m.Status != 0 {
			return data, frames, unix.Errno(m.Status)
		}
		if h.Flags&wire.More == 0 {
			return data, frames, nil
		}
		if len(m.Data) == 0 {
			return data, frames, errors.New("a frame without data before the last")
		}
	}
}

// share makes a folder with some files, and a file outside.
func share(t *testing.T) *os.Root {
	t.Helper()
	outside := t.TempDir()
	dir := filepath.Join(outside, "shared")
	for _, err := range []error{
		os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o600),
		os.MkdirAll(filepath.Join(dir, "a", "b"), 0o700),
		os.WriteFile(filepath.Join(dir, "empty"), nil, 0o600),
		os.WriteFile(filepath.Join(dir, "small"), []byte("small file"), 0o600),
		os.WriteFile(filepath.Join(dir, "large"), pattern(10, 1<<20+7), 0o600),
		os.WriteFile(filepath.Join(dir, "a", "b", "deep"), []byte("deep file"), 0o600),
		os.Symlink("a/b/deep", filepath.Join(dir, "inside")),
		os.Symlink("../secret", filepath.Join(dir, "relative")),
		os.Symlink(filepath.Join(outside, "secret"), filepath.Join(dir, "absolute")),
		os.Symlink("..", filepath.Join(dir, "up")),
		os.Symlink("loop", filepath.Join(dir, "loop")),
		unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

// shareBytes makes a folder with one file of n bytes.
func shareBytes(tb testing.TB, n int) *os.Root {
	tb.Helper()
	dir := tb.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), pattern(11, n), 0o600); err != nil {
		tb.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { root.Close() })
	return root
}

func TestReadFile(t *testing.T) {
	t.Parallel()
	root := share(t)
	large := pattern(10, 1<<20+7)
	for _, c := range []struct {
		path           string
		offset, length uint64
		want           []byte
		err            error
	}{
		{"small", 0, wire.ToEnd, []byte("small file"), nil},
		{"///small", 0, wire.ToEnd, []byte("small file"), nil},
		{"a//b/./deep", 0, wire.ToEnd, []byte("deep file"), nil},
		{"a/../small", 0, wire.ToEnd, []byte("small file"), nil},
		{"inside", 0, wire.ToEnd, []byte("deep file"), nil},
		{"empty", 0, wire.ToEnd, nil, nil},
		{"large", 0, wire.ToEnd, large, nil},
		{"large", 12345, 77777, large[12345 : 12345+77777], nil},
		{"large", 1 << 20, wire.ToEnd, large[1<<20:], nil},
		{"small", 3, 4, []byte("ll f"), nil},
		{"small", 3, 0, nil, nil},
		{"small", 10, 1, nil, nil},
		{"small", 11, wire.ToEnd, nil, nil},
		{"small", math.MaxInt64, wire.ToEnd, nil, nil},
		{"small", math.MaxUint64, wire.ToEnd, nil, nil},
		{"small", 5, math.MaxUint64 - 1, []byte(" file"), nil},
		{"missing", 0, wire.ToEnd, nil, unix.ENOENT},
		{"missing/small", 0, wire.ToEnd, nil, unix.ENOENT},
		{"small/below", 0, wire.ToEnd, nil, unix.ENOTDIR},
		{"a", 0, wire.ToEnd, nil, unix.EISDIR},
		{"/", 0, wire.ToEnd, nil, unix.EISDIR},
		{".", 0, wire.ToEnd, nil, unix.EISDIR},
		{"fifo", 0, wire.ToEnd, nil, unix.EINVAL},
		{"loop", 0, wire.ToEnd, nil, unix.ELOOP},
		{"..", 0, wire.ToEnd, nil, unix.EACCES},
		{"../secret", 0, wire.ToEnd, nil, unix.EACCES},
		{"/../secret", 0, wire.ToEnd, nil, unix.EACCES},
		{"a/../../secret", 0, wire.ToEnd, nil, unix.EACCES},
		{"relative", 0, wire.ToEnd, nil, unix.EACCES},
		{"absolute", 0, wire.ToEnd, nil, unix.EACCES},
		{"up/secret", 0, wire.ToEnd, nil, unix.EACCES},
		{strings.Repeat("n", wire.MaxPath), 0, wire.ToEnd, nil, unix.ENAMETOOLONG},
		{"\xff\xfe", 0, wire.ToEnd, nil, unix.ENOENT},
	} {
		t.Run(fmt.Sprintf("%.20q from %d, %d bytes", c.path, c.offset, c.length), func(t *testing.T) {
			t.Parallel()
			m := start(t, setup{root: root})
			for _, ring := range []uint32{4 << 10, 64 << 10, 1 << 20} {
				g := m.files(ring)
				got, frames, err := readFile(g, c.path, c.offset, c.length)
				if !errors.Is(err, c.err) || !bytes.Equal(got, c.want) {
					t.Errorf("ring %d: %d bytes in %d frames, %v; want %d bytes, %v", ring, len(got), frames, err, len(c.want), c.err)
				}
				if most := 1 + len(c.want)/int(min(ring/2-32, wire.MaxFileData)); frames > most {
					t.Errorf("ring %d: %d bytes in %d frames, want at most %d", ring, len(got), frames, most)
				}
				g.CloseWrite()
				wantEOF(t, g)
				g.Close()
			}
			m.wantFree()
		})
	}
}

func TestReadFileNothingShared(t *testing.T) {
	t.Parallel()
	m := start(t, setup{})
	if _, _, err := readFile(m.files(4096), "/etc/passwd", 0, wire.ToEnd); !errors.Is(err, unix.ENOENT) {
		t.Errorf("got %v", err)
	}
}

// Requests may be sent before earlier ones are answered. Answers come in any
// order.
func TestReadFilePipelined(t *testing.T) {
	t.Parallel()
	m := start(t, setup{root: share(t)})
	c := m.files(4096)
	const n = 50
	var requests []byte
	for i := range uint64(n) {
		requests = wire.AppendReadFileRequest(requests, i, wire.ReadFileRequest{Length: wire.ToEnd, Path: []byte("small")})
	}
	if _, err := c.Write(requests); err != nil {
		t.Fatal(err)
	}
	answered := make(map[uint64]bool)
	for range n {
		h, p, err := receive(c)
		if err != nil {
			t.Fatal(err)
		}
		d, err := wire.DecodeFileData(p)
		if err != nil || string(d.Data) != "small file" || h.RequestID >= n || answered[h.RequestID] {
			t.Errorf("%+v %q, %v", h, d.Data, err)
		}
		answered[h.RequestID] = true
	}
}

// A file that shrinks while it is read ends the answer early, in good order.
func TestReadFileShrinks(t *testing.T) {
	t.Parallel()
	root := share(t)
	m := start(t, setup{root: root})
	c := m.files(4096)
	request := wire.AppendReadFileRequest(nil, 1, wire.ReadFileRequest{Length: wire.ToEnd, Path: []byte("large")})
	if _, err := c.Write(request); err != nil {
		t.Fatal(err)
	}
	h, p, err := receive(c)
	if err != nil || h.Flags != wire.More {
		t.Fatalf("%+v, %v", h, err)
	}
	f, err := root.OpenFile("large", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(8192); err != nil {
		t.Fatal(err)
	}
	total := len(p) - wire.FileDataPrefixSize
	for h.Flags == wire.More {
		if h, p, err = receive(c); err != nil {
			t.Fatal(err)
		}
		total += len(p) - wire.FileDataPrefixSize
	}
	if total < 4064 || total > 1<<20 {
		t.Errorf("%d bytes", total)
	}
	if got, _, err := readFile(c, "small", 0, wire.ToEnd); err != nil || string(got) != "small file" {
		t.Errorf("after that: %q, %v", got, err)
	}
}

// A guest that closes its pipe in the middle of an answer frees the pipe.
func TestReadFileAbandoned(t *testing.T) {
	t.Parallel()
	m := start(t, setup{root: share(t)})
	for name, leave := range map[string]func(*pipestest.GuestConn){
		"close": func(c *pipestest.GuestConn) { c.Close() },
		"reset": func(c *pipestest.GuestConn) { c.Reset(unix.ECANCELED) },
	} {
		c := m.files(4096)
		request := wire.AppendReadFileRequest(nil, 1, wire.ReadFileRequest{Length: wire.ToEnd, Path: []byte("large")})
		if _, err := c.Write(request); err != nil {
			t.Fatal(name, err)
		}
		if _, err := io.ReadFull(c, make([]byte, 100)); err != nil {
			t.Fatal(name, err)
		}
		leave(c)
		m.wantFree()
	}
}

// A file with another process's lease is read when the lease is given up. A
// long chain of links is followed as Linux follows it.
func TestReadFileLeased(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	to := "file"
	for i := range 40 {
		name := fmt.Sprint("link", i)
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		to = name
	}
	m := start(t, setup{share: openShare(t, dir, true)})
	g := m.fileGuest(4096)
	broken := leased.Hold(t, filepath.Join(dir, "file"))
	if got, err := g.readPath(to); string(got) != "content" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	leased.WantBroken(t, broken)
	g.mustOpen(to, wire.OpenWrite|wire.OpenCreate|wire.OpenTruncate)
}
