package rpc_test

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/fix-project/arcavm/internal/leased"
	"github.com/fix-project/arcavm/internal/stalled"
	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/rpc"
	"github.com/fix-project/arcavm/rpc/message"
	"github.com/fix-project/arcavm/rpc/rpctest"
)

var (
	read   = message.Mode{Read: true}
	create = message.Mode{Write: true, Create: true, Truncate: true}
)

func pattern(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b)
	return b
}

func TestFiles(t *testing.T) {
	t.Parallel()
	dir, share := shared(t, true)
	m := newMachine(t, rpc.Options{Share: share})
	for _, size := range []int{0, 1, 1000, 65536, 1 << 20, 3<<20 + 12345} {
		want := pattern(size)
		f, kind := m.Open("/file", create)
		if f == nil {
			t.Fatal("create: kind", kind)
		}
		for rest := want; len(rest) > 0; {
			n := f.Write(rest[:min(len(rest), 1<<20+7)])
			if n == 0 {
				t.Fatal("nothing was written")
			}
			rest = rest[n:]
		}
		f.Close()
		got, err := os.ReadFile(filepath.Join(dir, "file"))
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes of %d arrived, %v", len(got), size, err)
		}
		for _, piece := range []int{1 << 20, 65536, 4097} {
			f, _ = m.Open("file", read)
			got = got[:0]
			buf := make([]byte, piece)
			for requests := 0; ; requests++ {
				n := f.Read(buf)
				if n == 0 {
					if least := (size + piece - 1) / piece; requests > least {
						t.Errorf("reading %d bytes in pieces of %d took %d requests, not %d", size, piece, requests, least)
					}
					break
				}
				got = append(got, buf[:n]...)
			}
			f.Close()
			if !bytes.Equal(got, want) {
				t.Fatalf("read %d of %d bytes in pieces of %d", len(got), size, piece)
			}
		}
	}
	m.settled(t)
}

// TestFileSizesOfRequests writes and reads in all sizes around those where
// encodings and rings change.
func TestFileSizesOfRequests(t *testing.T) {
	t.Parallel()
	_, share := shared(t, true)
	m := newMachine(t, rpc.Options{Share: share})
	f, _ := m.Open("f", message.Mode{Read: true, Write: true, Create: true})
	want := pattern(300_000)
	buf := make([]byte, 300_000)
	for _, n := range []int{0, 1, 126, 127, 128, 129, 4055, 4056, 4057, 16383, 16384, 16385, 65536, 262144 - 60, 262144 - 52, 262144, 300_000, 5} {
		f.Seek(message.SeekStart, 0)
		if k := f.Write(want[:n]); k != n {
			t.Fatalf("wrote %d of %d", k, n)
		}
		if at := f.Seek(message.SeekStart, 0); at != 0 {
			t.Fatalf("at %d", at)
		}
		got := 0
		for got < n {
			k := f.Read(buf[got:n])
			if k == 0 {
				break
			}
			got += k
		}
		if got != n || !bytes.Equal(buf[:n], want[:n]) {
			t.Fatalf("read %d of %d", got, n)
		}
	}
	if n := f.Read(make([]byte, 0)); n != 0 {
		t.Errorf("read %d of 0", n)
	}
	f.Close()
	m.settled(t)
}

func TestSeek(t *testing.T) {
	t.Parallel()
	dir, share := shared(t, false)
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("0123456789"), 0o600); err != nil {
		t.Fatal(err)
	}
	m := newMachine(t, rpc.Options{Share: share})
	f, _ := m.Open("f", read)
	buf := make([]byte, 2)
	for _, c := range []struct {
		whence message.Whence
		offset int64
		want   uint64
		read   string
	}{
		{message.SeekStart, 3, 3, "34"},
		{message.SeekCurrent, 1, 6, "67"},
		{message.SeekCurrent, -5, 3, "34"},
		{message.SeekEnd, -1, 9, "9"},
		{message.SeekEnd, 300, 310, ""},
		{message.SeekStart, 1, 1, "12"},
		{message.SeekCurrent, -4, 3, "34"}, // before the start: the offset stays
		{message.SeekStart, -1, 5, "56"},   // 2^64 - 1
		{message.SeekCurrent, math.MinInt64, 7, "78"},
		{message.SeekEnd, math.MinInt64, 9, "9"},
	} {
		if at := f.Seek(c.whence, c.offset); at != c.want {
			t.Errorf("seek %d from %d: at %d, want %d", c.offset, c.whence, at, c.want)
		}
		if n := f.Read(buf); string(buf[:n]) != c.read {
			t.Errorf("read %q, want %q", buf[:n], c.read)
		}
	}
	f.Close()
	m.settled(t)
}

func TestOpenErrors(t *testing.T) {
	t.Parallel()
	dir, writable := shared(t, true)
	readOnly := writable
	readOnly.Writable = false
	for name, target := range map[string]string{"out": "/etc/passwd", "up": "../..", "in": "folder/f"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "folder/f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	const none = message.ErrKind(99)
	for _, c := range []struct {
		share rpc.Share
		path  string
		mode  message.Mode
		want  message.ErrKind
	}{
		{rpc.Share{}, "/etc/passwd", read, message.NotFound},
		{rpc.Share{}, "/tmp/x", create, message.NotFound},
		{readOnly, "folder/f", read, none},
		{readOnly, "/folder/f", read, none},
		{readOnly, "//folder/../folder/f", read, none},
		{readOnly, "in", read, none},
		{readOnly, "missing", read, message.NotFound},
		{readOnly, "folder/f", message.Mode{Write: true}, message.PermissionDenied},
		{readOnly, "new", create, message.PermissionDenied},
		{readOnly, "folder/f", message.Mode{Read: true, Append: true}, message.PermissionDenied},
		{readOnly, "../../../../etc/passwd", read, message.PermissionDenied},
		{readOnly, "out", read, message.PermissionDenied},
		{readOnly, "up", read, message.PermissionDenied},
		{readOnly, "folder", read, message.Other},
		{readOnly, "/", read, message.Other},
		{readOnly, "", read, message.Other},
		{readOnly, "folder/f/g", read, message.Other},
		{readOnly, "a\x00b", read, message.InvalidInput},
		{readOnly, "folder/f", message.Mode{}, message.InvalidInput},
		{writable, "folder/f", message.Mode{Read: true, Create: true}, message.InvalidInput},
		{writable, "folder/f", message.Mode{Read: true, Truncate: true}, message.InvalidInput},
		{writable, "folder/f", message.Mode{Append: true, Truncate: true}, message.InvalidInput},
		{writable, "folder/f", message.Mode{Append: true, Create: true}, none},
		{writable, "new", message.Mode{Write: true}, message.NotFound},
		{writable, "no/folder", create, message.NotFound},
		{rpc.Share{Host: true}, filepath.Join(dir, "folder/f"), read, none},
		{rpc.Share{Host: true}, "/dev/null", message.Mode{Write: true}, message.PermissionDenied},
		{rpc.Share{Host: true, Writable: true}, "/dev/null", message.Mode{Write: true}, none},
		{rpc.Share{Host: true}, "file_test.go", read, none},
	} {
		m := newMachine(t, rpc.Options{Share: c.share, RAM: nil})
		f, kind := m.Open(c.path, c.mode)
		if f != nil {
			f.Close()
			kind = none
		}
		if kind != c.want {
			t.Errorf("opening %q with %+v: kind %d, want %d", c.path, c.mode, kind, c.want)
		}
		m.settled(t)
		m.stop()
	}
}

func TestAppend(t *testing.T) {
	t.Parallel()
	dir, share := shared(t, true)
	m := newMachine(t, rpc.Options{Share: share})
	for range 2 {
		f, _ := m.Open("f", message.Mode{Append: true, Create: true})
		f.Write([]byte("ab"))
		f.Write([]byte("c"))
		f.Close()
	}
	if got, err := os.ReadFile(filepath.Join(dir, "f")); string(got) != "abcabc" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	m.settled(t)
}

func TestMkdir(t *testing.T) {
	t.Parallel()
	dir, share := shared(t, true)
	m := newMachine(t, rpc.Options{Share: share})
	for _, path := range []string{"/a/b/c", "a/b", "d", "/"} {
		if kind, ok := m.Mkdir(path); !ok {
			t.Errorf("%q: kind %d", path, kind)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "a/b/c")); err != nil || !info.IsDir() {
		t.Error(info, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if kind, ok := m.Mkdir("../x"); ok || kind != message.PermissionDenied {
		t.Errorf("outside: kind %d, %v", kind, ok)
	}
	if _, ok := m.Mkdir("f/g"); ok {
		t.Error("below a file")
	}
	share.Writable = false
	m2 := newMachine(t, rpc.Options{Share: share})
	if kind, ok := m2.Mkdir("y"); ok || kind != message.PermissionDenied {
		t.Errorf("read-only: kind %d, %v", kind, ok)
	}
	m.settled(t)
}

// TestFileFails lets reads and writes fail on the host: the guest sees the end
// of the file, and a length of 0.
func TestFileFails(t *testing.T) {
	t.Parallel()
	m := newMachine(t, rpc.Options{Share: rpc.Share{Host: true, Writable: true}})
	f, _ := m.Open("/dev/full", message.Mode{Write: true})
	if n := f.Write(pattern(3 << 20)); n != 0 {
		t.Errorf("wrote %d bytes to a full device", n)
	}
	f.Close()
	f, _ = m.Open("/proc/self/mem", read)
	if n := f.Read(make([]byte, 10)); n != 0 {
		t.Errorf("read %d bytes at address 0", n)
	}
	f.Close()
	m.settled(t)
}

// TestFailedOpenChangesNothing opens files for which no pipe can be made: what
// is there stays as it is, and nothing new comes to be.
func TestFailedOpenChangesNothing(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		o    rpc.Options
		full bool
		want message.ErrKind
	}{
		"no memory":      {rpc.Options{RAM: rpctest.NewRAM(1 << 20)}, true, message.OutOfMemory},
		"too many pipes": {rpc.Options{Pipes: 1}, false, message.Other},
		"too many files": {rpc.Options{Limits: network.Limits{Files: -1}}, false, message.Other},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, share := shared(t, true)
			old := filepath.Join(dir, "old")
			if err := os.WriteFile(old, []byte("content"), 0o600); err != nil {
				t.Fatal(err)
			}
			c.o.Share = share
			m := newMachine(t, c.o)
			for c.full && m.Allocator.Alloc(4096) != 0 {
			}
			for _, path := range []string{"old", "new"} {
				if f, kind := m.Open(path, create); f != nil || kind != c.want {
					t.Errorf("%s was opened, or kind %d, want %d", path, kind, c.want)
				}
			}
			if got, err := os.ReadFile(old); string(got) != "content" || err != nil {
				t.Errorf("the old file holds %q, %v", got, err)
			}
			if _, err := os.Stat(filepath.Join(dir, "new")); !os.IsNotExist(err) {
				t.Errorf("the new file is there, or %v", err)
			}
			if n := m.server.Stats().Pipes; n != 1 {
				t.Errorf("%d pipes are open", n)
			}
		})
	}
}

// TestFailedOpenLeavesNoPipe has the host refuse files that are there, or could
// be, as far as a look tells: the pipe that was made for them goes.
func TestFailedOpenLeavesNoPipe(t *testing.T) {
	t.Parallel()
	dir, share := shared(t, true)
	if err := os.Symlink("nowhere/f", filepath.Join(dir, "dangling")); err != nil {
		t.Fatal(err)
	}
	m := newMachine(t, rpc.Options{Share: share})
	for path, want := range map[string]message.ErrKind{"dangling": message.NotFound, "no/folder": message.NotFound, "/": message.Other} {
		if f, kind := m.Open(path, create); f != nil || kind != want {
			t.Errorf("%s was opened, or kind %d, want %d", path, kind, want)
		}
	}
	m.settled(t)
}

// TestOpenLeased opens a file on which another process has a lease, by a chain
// of as many links as Linux follows.
func TestOpenLeased(t *testing.T) {
	t.Parallel()
	dir, shared := shared(t, true)
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
	for _, s := range []struct {
		share rpc.Share
		path  string
	}{{shared, to}, {rpc.Share{Host: true}, filepath.Join(dir, to)}} {
		broken := leased.Hold(t, filepath.Join(dir, "file"))
		m := newMachine(t, rpc.Options{Share: s.share})
		f, kind := m.Open(s.path, read)
		if f == nil {
			t.Fatal("kind", kind)
		}
		leased.WantBroken(t, broken)
		b := make([]byte, 10)
		if n := f.Read(b); string(b[:n]) != "content" {
			t.Errorf("read %q", b[:n])
		}
		f.Close()
		m.settled(t)
		m.stop()
	}
}

// TestStalledFolder has a file's folder stop answering: other pipes go on, and
// a server that ends doesn't wait for it.
func TestStalledFolder(t *testing.T) {
	t.Parallel()
	folder := stalled.New(t)
	root, err := os.OpenRoot(folder.Dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	dir, fine := shared(t, true)
	s := rpc.Share{Root: root, Writable: true, Named: map[string]rpc.Share{"fine": fine}}
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	m := newMachine(t, rpc.Options{Share: s})
	f, kind := m.Open(stalled.File, message.Mode{Read: true, Write: true})
	if f == nil {
		t.Fatal("kind", kind)
	}
	f.Send(message.AppendFileRequest(nil, message.FileRequest{Op: message.FileRead, Length: 10}))
	wait(t, folder.Arrived(), "the folder to be asked")
	g, kind := m.Open("fine/f", read)
	if g == nil {
		t.Fatal("kind", kind)
	}
	b := make([]byte, 10)
	if n := g.Read(b); string(b[:n]) != "content" {
		t.Errorf("read %q", b[:n])
	}
	m.stop() // fails if that takes long
	folder.End()
}
