package emulated

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/fix-project/arcavm/internal/leased"
)

// unpacked is one entry of a newc archive.
type unpacked struct {
	Name string
	Mode uint32
	Data string
}

// unpack reads a newc archive and checks what the kernel would.
func unpack(archive []byte) ([]unpacked, error) {
	var entries []unpacked
	files := map[uint32]string{} // inode → data
	at := 0
	take := func(n int) ([]byte, error) {
		if at+n > len(archive) {
			return nil, io.ErrUnexpectedEOF
		}
		b := archive[at : at+n]
		at = min((at+n+3)&^3, len(archive))
		return b, nil
	}
	for {
		if at+110 > len(archive) {
			return nil, io.ErrUnexpectedEOF
		}
		head := archive[at : at+110]
		if string(head[:6]) != "070701" {
			return nil, fmt.Errorf("bad magic %q at %d", head[:6], at)
		}
		var fields [13]uint32
		for i := range fields {
			n, err := strconv.ParseUint(string(head[6+8*i:14+8*i]), 16, 32)
			if err != nil {
				return nil, err
			}
			fields[i] = uint32(n)
		}
		name, err := take(110 + int(fields[11]))
		if err != nil {
			return nil, err
		}
		data, err := take(int(fields[6]))
		if err != nil {
			return nil, err
		}
		entry := unpacked{Name: strings.TrimSuffix(string(name[110:]), "\x00"), Mode: fields[1], Data: string(data)}
		if entry.Mode&0o170000 == 0o100000 && fields[4] > 1 {
			if first, ok := files[fields[0]]; ok && entry.Data == "" {
				entry.Data = first
			}
			files[fields[0]] = entry.Data
		}
		if entry.Name == "TRAILER!!!" {
			if at != len(archive) {
				return nil, fmt.Errorf("%d bytes after the trailer", len(archive)-at)
			}
			return entries, nil
		}
		entries = append(entries, entry)
	}
}

func TestArchive(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	a := newArchive(&b)
	inode, err := a.file("/a/b/one", 0o4755, 2, 3, strings.NewReader("one"))
	must(t, err)
	_, err = a.file("../a/two", 0o600, 1, 0, nil)
	must(t, err)
	must(t, a.hardLink("a/again", 0o4755, inode, 2))
	must(t, a.symlink("link", "/a/b/one"))
	must(t, a.directory("a/b"))
	must(t, a.directory("/empty/"))
	if _, err := a.file("a/b/../b/one", 0o644, 1, 0, nil); err == nil {
		t.Error("a name was taken twice")
	}
	must(t, a.close())
	got, err := unpack(b.Bytes())
	must(t, err)
	want := []unpacked{
		{"a", 0o040755, ""},
		{"a/b", 0o040755, ""},
		{"a/b/one", 0o104755, "one"},
		{"a/two", 0o100600, ""},
		{"a/again", 0o104755, "one"},
		{"link", 0o120777, "/a/b/one"},
		{"empty", 0o040755, ""},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
}

func TestArchiveShortFile(t *testing.T) {
	t.Parallel()
	_, err := newArchive(io.Discard).file("short", 0o644, 1, 10, strings.NewReader("four"))
	if err == nil || !strings.Contains(err.Error(), "short") {
		t.Errorf("a file shorter than its size was taken: %v", err)
	}
}

// The kernel stops unpacking at a file of 2 GiB, without an error, and what
// comes after it is lost.
func TestArchiveLargeFile(t *testing.T) {
	t.Parallel()
	for _, size := range []int64{1 << 31, 1 << 32} {
		a := newArchive(io.Discard)
		_, err := a.file("large", 0o644, 1, size, strings.NewReader(""))
		if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "less than 2 GiB") {
			t.Errorf("a file of %d bytes: %v, want that it is too large", size, err)
		}
	}
	// The largest one is copied: here its data ends too soon.
	_, err := newArchive(io.Discard).file("large", 0o644, 1, maxFile, strings.NewReader(""))
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a file of %d bytes: %v, want %v", maxFile, err, io.ErrUnexpectedEOF)
	}
}

func TestArchiveRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		files := rapid.MapOfN(rapid.StringMatching(`[a-z]{1,9}`), rapid.String(), 1, 8).Draw(t, "files")
		var b bytes.Buffer
		a := newArchive(&b)
		for name, data := range files {
			if err := a.bytes("d/"+name, []byte(data)); err != nil {
				t.Fatal(err)
			}
		}
		if err := a.close(); err != nil {
			t.Fatal(err)
		}
		entries, err := unpack(b.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for _, e := range entries[1:] {
			got[strings.TrimPrefix(e.Name, "d/")] = e.Data
		}
		if diff := cmp.Diff(files, got); diff != "" {
			t.Fatal(diff)
		}
	})
}

// What init unpacks is what the kernel would: two archives, of which the second
// has another name of a file in the first.
func TestUnarchive(t *testing.T) {
	t.Parallel()
	var first, second bytes.Buffer
	base := newArchive(&first)
	inode, err := base.file(initName, 0o755, 2, 4, strings.NewReader("init"))
	must(t, err)
	must(t, base.close())
	a := base.next(&second)
	must(t, a.hardLink("bin/program", 0o755, inode, 2))
	inode, err = a.file("a/b/one", 0o4755, 2, 3, strings.NewReader("one"))
	must(t, err)
	must(t, a.hardLink("a/again", 0o4755, inode, 2))
	must(t, a.bytes("large", bytes.Repeat([]byte("x"), 3*maxFrame+1)))
	must(t, a.symlink("link", "/a/b/one"))
	must(t, a.directory("empty"))
	must(t, a.close())

	root := t.TempDir()
	must(t, unarchive(&first, root, map[uint32]string{}))
	links := map[uint32]string{initInode: filepath.Join(root, initName)}
	must(t, unarchive(iotest.OneByteReader(&second), root, links))
	for name, want := range map[string]struct {
		mode  fs.FileMode
		links uint64
		size  int64
	}{
		"init": {0o755, 2, 4}, "bin/program": {0o755, 2, 4},
		"a/b/one": {0o755 | fs.ModeSetuid, 2, 3}, "a/again": {0o755 | fs.ModeSetuid, 2, 3},
		"large": {0o644, 1, 3*maxFrame + 1}, "link": {0o777 | fs.ModeSymlink, 1, 8},
		"empty": {0o755 | fs.ModeDir, 2, -1}, "a": {0o755 | fs.ModeDir, 3, -1},
	} {
		info, err := os.Lstat(filepath.Join(root, name))
		must(t, err)
		if got := info.Mode(); got != want.mode {
			t.Errorf("%s has the mode %v, want %v", name, got, want.mode)
		}
		// The links of a folder are the file system's own matter.
		if got := info.Sys().(*syscall.Stat_t).Nlink; got != want.links && !info.IsDir() {
			t.Errorf("%s has %d links, want %d", name, got, want.links)
		}
		if want.size >= 0 && info.Size() != want.size {
			t.Errorf("%s has %d bytes, want %d", name, info.Size(), want.size)
		}
		if info.ModTime().Unix() != 0 {
			t.Errorf("%s was changed at %v", name, info.ModTime())
		}
	}
}

// An archive that is damaged is an error.
func TestUnarchiveDamaged(t *testing.T) {
	t.Parallel()
	var whole bytes.Buffer
	a := newArchive(&whole)
	must(t, a.bytes("file", []byte("content")))
	must(t, a.symlink("link", "file"))
	must(t, a.close())
	for n := range whole.Len() {
		if err := unarchive(bytes.NewReader(whole.Bytes()[:n]), t.TempDir(), map[uint32]string{}); err == nil && n < whole.Len()-3 {
			t.Errorf("the first %d bytes of %d were enough", n, whole.Len())
		}
	}
	for _, at := range []int{0, 6, 14, 100} {
		damaged := bytes.Clone(whole.Bytes())
		damaged[at] = 'z'
		if err := unarchive(bytes.NewReader(damaged), t.TempDir(), map[uint32]string{}); err == nil {
			t.Errorf("a wrong byte at %d was taken", at)
		}
	}
}

func TestInitramfs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	must(t, os.WriteFile(program, makeELF(t, nil), 0o755))
	must(t, os.Mkdir(filepath.Join(dir, "data"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "data", "file"), []byte("content"), 0o640))
	cfg := Config{
		Programs: []Program{{Path: program}, {Path: program, Name: "/opt/again", Dir: "/work", Args: []string{"\xFF"}, Env: []string{"A=\xFE"}}},
		Files:    []File{{Name: "/data", Source: filepath.Join(dir, "data")}, {Name: "/\xFD", Source: program}, {Name: "/bytes", Data: []byte("a\x00b")}},
		Outbound: true,
	}
	modules := []module{{name: "kvm", data: []byte("module")}}
	p, err := makePlan(cfg)
	must(t, err)
	got := entriesOf(t, program, modules, cfg)
	for name, want := range map[string]string{
		"init": string(makeELF(t, nil)), "bin/program": string(makeELF(t, nil)), "opt/again": string(makeELF(t, nil)),
		"modules/kvm.ko": "module", "data/file": "content", "bytes": "a\x00b", "work": "", "\xFD": string(makeELF(t, nil)), "etc/resolv.conf": "nameserver 10.0.2.3\n",
	} {
		if e, ok := got[name]; !ok || e.Data != want {
			t.Errorf("%s holds %q, want %q", name, e.Data, want)
		}
	}
	var read plan
	must(t, json.Unmarshal([]byte(got["emulated.json"].Data), &read))
	if diff := cmp.Diff(p, read); diff != "" {
		t.Errorf("plan (-want +got):\n%s", diff)
	}

	if again := read.Programs[1]; string(again.Args[0]) != "\xFF" || string(again.Env[0]) != "A=\xFE" {
		t.Errorf("the plan has %q with %q", again.Args, again.Env)
	}

	cfg.Files = []File{{Name: "/x", Source: filepath.Join(dir, "missing")}}
	if _, err := pack(program, modules, cfg); !os.IsNotExist(unwrapAll(err)) {
		t.Errorf("a missing file was taken: %v", err)
	}
}

// Links below a folder that is passed in stay links, wherever they lead;
// sockets and the like stay out.
func TestInitramfsFolder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	program, data := filepath.Join(dir, "program"), filepath.Join(dir, "data")
	must(t, os.WriteFile(program, makeELF(t, nil), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "secret"), []byte("secret"), 0o600))
	must(t, os.Mkdir(data, 0o755))
	must(t, os.WriteFile(filepath.Join(data, "file"), []byte("content"), 0o640))
	must(t, os.WriteFile(filepath.Join(data, "\xFC"), []byte("name of no text"), 0o600))
	must(t, unix.Mkfifo(filepath.Join(data, "fifo"), 0o600))
	must(t, os.Chmod(filepath.Join(data, "file"), 0o640)) // whatever the umask
	for name, target := range map[string]string{"leak": "../secret", "dangling": "nowhere", "folder": "."} {
		must(t, os.Symlink(target, filepath.Join(data, name)))
	}
	must(t, os.Symlink("data", filepath.Join(dir, "link")))
	must(t, os.Symlink("data/file", filepath.Join(dir, "link to file")))
	broken := []<-chan struct{}{leased.Hold(t, filepath.Join(data, "file")), leased.Hold(t, filepath.Join(data, "\xFC"))}
	got := entriesOf(t, program, nil, Config{
		Programs: []Program{{Path: program}},
		Files: []File{
			{Name: "/a", Source: data}, {Name: "/b", Source: filepath.Join(dir, "link")},
			{Name: "/c", Source: filepath.Join(dir, "link to file")}, {Name: "/c", Source: filepath.Join(data, "file")},
		},
	})
	for _, b := range broken {
		leased.WantBroken(t, b)
	}
	for name := range got {
		if first, _, _ := strings.Cut(name, "/"); !slices.Contains([]string{"a", "b", "c"}, first) {
			delete(got, name)
		}
	}
	want := map[string]unpacked{"c": {"c", 0o100640, "content"}}
	for _, folder := range []string{"a", "b"} {
		want[folder] = unpacked{folder, 0o040755, ""}
		want[folder+"/file"] = unpacked{folder + "/file", 0o100640, "content"}
		want[folder+"/\xFC"] = unpacked{folder + "/\xFC", 0o100600, "name of no text"}
		for name, target := range map[string]string{"leak": "../secret", "dangling": "nowhere", "folder": "."} {
			want[folder+"/"+name] = unpacked{folder + "/" + name, 0o120777, target}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
}

// A folder may change between the look at it and the copy: no link to the
// outside is followed, and no FIFO waited for.
func TestInitramfsFolderChanges(t *testing.T) {
	t.Parallel()
	program := filepath.Join(t.TempDir(), "program")
	must(t, os.WriteFile(program, makeELF(t, nil), 0o755))
	outside := t.TempDir()
	must(t, os.WriteFile(filepath.Join(outside, "file"), []byte("secret!"), 0o600))
	for name, c := range map[string]struct {
		change func(file string) error
		want   string
	}{
		"a link to a file outside": {func(file string) error {
			return errors.Join(os.Remove(file), os.Symlink(filepath.Join(outside, "file"), file))
		}, "escapes"},
		"a link to a folder outside": {func(file string) error {
			return errors.Join(os.RemoveAll(filepath.Dir(file)), os.Symlink(outside, filepath.Dir(file)))
		}, "escapes"},
		"a FIFO": {func(file string) error {
			return errors.Join(os.Remove(file), unix.Mkfifo(file, 0o600))
		}, "no regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			data := t.TempDir()
			file := filepath.Join(data, "folder", "file")
			must(t, os.Mkdir(filepath.Dir(file), 0o755))
			must(t, os.WriteFile(file, []byte("content"), 0o600))
			cfg := Config{Programs: []Program{{Path: program}}, Files: []File{{Name: "/data", Source: data}}}
			packed, err := pack(program, nil, cfg)
			must(t, err)
			defer packed.close()
			must(t, c.change(file))
			var b bytes.Buffer
			err = packed.writeInitramfs(&b)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), data) {
				t.Errorf("the error is %v, want one of %s that says %q", err, data, c.want)
			}
			if bytes.Contains(b.Bytes(), []byte("secret!")) {
				t.Error("a file outside was copied")
			}
		})
	}
}

// entriesOf are the entries of a machine's initramfs by their names. Unpacked
// one after the other, the base and the rest give the same.
func entriesOf(t *testing.T, init string, modules []module, cfg Config) map[string]unpacked {
	t.Helper()
	c, err := pack(init, modules, cfg)
	must(t, err)
	defer c.close()
	var b, first, second bytes.Buffer
	must(t, c.writeInitramfs(&b))
	base := newArchive(&first)
	must(t, c.writeBase(base))
	must(t, c.writePassed(base.next(&second)))
	if !bytes.Equal(append(first.Bytes(), second.Bytes()...), b.Bytes()) {
		t.Error("the archives in two parts are others than the one")
	}
	entries, err := unpack(b.Bytes())
	must(t, err)
	got := map[string]unpacked{}
	for _, e := range entries {
		got[e.Name] = e
	}
	return got
}

// unwrapAll returns the innermost error.
func unwrapAll(err error) error {
	for {
		u, ok := err.(interface{ Unwrap() error })
		if !ok {
			return err
		}
		err = u.Unwrap()
	}
}
