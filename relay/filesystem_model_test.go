package relay_test

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	shared "github.com/fix-project/arcavm/share"
	"github.com/fix-project/arcavm/wire"
)

// node is a file or folder of the simple model that the protocol is compared
// with.
type node struct {
	names map[string]*node // nil: a file
	data  []byte
}

func folder() *node { return &node{names: make(map[string]*node)} }

// find returns the folder that a path's last name is in, that name, and its
// node, if there is one.
func (n *node) find(path string) (parent *node, name string, at *node, err error) {
	parts := strings.Split(strings.TrimLeft(path, "/"), "/")
	for _, part := range parts[:len(parts)-1] {
		switch next := n.names[part]; {
		case next == nil:
			return nil, "", nil, unix.ENOENT
		case next.names == nil:
			return nil, "", nil, unix.ENOTDIR
		default:
			n = next
		}
	}
	name = parts[len(parts)-1]
	return n, name, n.names[name], nil
}

func (n *node) below(other *node) bool {
	return n == other || slices.ContainsFunc(slices.Collect(maps.Values(other.names)), n.below)
}

func (n *node) mkdir(path string, parents bool) error {
	if parents {
		if i := strings.LastIndexByte(strings.TrimLeft(path, "/"), '/'); i >= 0 {
			if err := n.mkdir(strings.TrimLeft(path, "/")[:i], true); errors.Is(err, unix.EEXIST) {
				return unix.ENOTDIR
			} else if err != nil {
				return err
			}
		}
	}
	parent, name, at, err := n.find(path)
	switch {
	case err != nil:
		return err
	case at != nil && at.names != nil && parents:
		return nil
	case at != nil:
		return unix.EEXIST
	}
	parent.names[name] = folder()
	return nil
}

func (n *node) remove(path string) error {
	parent, name, at, err := n.find(path)
	switch {
	case err != nil:
		return err
	case at == nil:
		return unix.ENOENT
	case len(at.names) > 0:
		return unix.ENOTEMPTY
	}
	delete(parent.names, name)
	return nil
}

func (n *node) rename(from, to string) error {
	parent, name, old, err := n.find(from)
	if err != nil {
		return err
	}
	target, newName, at, err := n.find(to)
	switch {
	case err != nil:
		return err
	case old == nil:
		return unix.ENOENT
	case at != nil && at.names != nil:
		return unix.EEXIST
	case old.names != nil && target.below(old):
		return unix.EINVAL
	case old.names != nil && at != nil:
		return unix.ENOTDIR
	}
	delete(parent.names, name)
	target.names[newName] = old
	return nil
}

func (n *node) open(path string, flags wire.OpenFlags) (*node, error) {
	writes := flags&(wire.OpenWrite|wire.OpenAppend) != 0
	if !writes && (flags&wire.OpenRead == 0 || flags&(wire.OpenCreate|wire.OpenTruncate) != 0) ||
		flags&wire.OpenExclusive != 0 && flags&wire.OpenCreate == 0 {
		return nil, unix.EINVAL
	}
	parent, name, at, err := n.find(path)
	switch {
	case err != nil:
		return nil, err
	case at == nil && flags&wire.OpenCreate == 0:
		return nil, unix.ENOENT
	case at == nil:
		at = new(node)
		parent.names[name] = at
	case flags&wire.OpenExclusive != 0:
		return nil, unix.EEXIST
	case at.names != nil:
		return nil, unix.EISDIR
	}
	if flags&wire.OpenTruncate != 0 {
		at.data = nil
	}
	return at, nil
}

func (n *node) write(offset uint64, data []byte) {
	if len(data) > 0 {
		n.truncate(max(offset+uint64(len(data)), uint64(len(n.data))))
		copy(n.data[offset:], data)
	}
}

func (n *node) truncate(size uint64) {
	n.data = append(slices.Clone(n.data[:min(size, uint64(len(n.data)))]), make([]byte, size-min(size, uint64(len(n.data))))...)
}

// modelHandle is a handle of the model.
type modelHandle struct {
	*node
	flags wire.OpenFlags
}

// A guest finds what a simple tree of files would hold, and the same errors,
// whatever it does.
func TestFilesAgainstModel(t *testing.T) {
	t.Parallel()
	m := start(t, setup{quiet: true, window: 64 << 20})
	rapid.Check(t, func(t *rapid.T) { checkModel(t, m) })
}

func checkModel(t *rapid.T, m *machine) {
	dir, err := os.MkdirTemp(m.t.TempDir(), "tree")
	if err != nil {
		t.Fatal(err)
	}
	s, err := shared.Open(dir, true)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	m = start(m.t, setup{quiet: true, share: s, streams: 4, window: 2 << 20})
	defer m.stop()
	g := m.fileGuest(uint32(4096) << rapid.IntRange(0, 6).Draw(t, "ring"))

	root := folder()
	handles := make(map[uint64]modelHandle)
	path := func(label string) string {
		parts := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c"}), 1, 3).Draw(t, label)
		return strings.Repeat("/", rapid.IntRange(0, 2).Draw(t, "slashes")) + strings.Join(parts, "/")
	}
	handle := func() uint64 {
		return rapid.SampledFrom(append(slices.Sorted(maps.Keys(handles)), 99999)).Draw(t, "handle")
	}
	offset := rapid.Uint64Range(0, 20_000)
	want := func(what string, got, want error) {
		if !errors.Is(got, want) {
			t.Fatalf("%s: %v, want %v", what, got, want)
		}
	}
	t.Repeat(map[string]func(*rapid.T){
		"open": func(t *rapid.T) {
			p, flags := path("path"), wire.OpenFlags(rapid.Uint32Range(0, 63).Draw(t, "flags"))
			n, err := root.open(p, flags)
			h, got := g.open(p, flags)
			want("open "+p, got, err)
			if err == nil {
				handles[h] = modelHandle{n, flags}
			}
		},
		"create": func(t *rapid.T) {
			p, flags := path("path"), wire.OpenRead|wire.OpenWrite|wire.OpenCreate
			n, err := root.open(p, flags)
			h, got := g.open(p, flags)
			want("create "+p, got, err)
			if err == nil {
				handles[h] = modelHandle{n, flags}
			}
		},
		"write": func(t *rapid.T) {
			h, at, data := handle(), offset.Draw(t, "offset"), pattern(rapid.Int().Draw(t, "seed"), rapid.IntRange(0, 10_000).Draw(t, "length"))
			o, ok := handles[h]
			var err error
			switch {
			case !ok, o.flags&(wire.OpenWrite|wire.OpenAppend) == 0 && len(data) > 0:
				err, data = unix.EBADF, data[:0]
			case o.flags&wire.OpenAppend != 0:
				o.node.write(uint64(len(o.data)), data)
			default:
				o.node.write(at, data)
			}
			asked := data
			if err != nil {
				asked = []byte("x")
			}
			n, got := g.write(h, at, asked)
			want("write", got, err)
			if n != uint64(len(data)) {
				t.Fatalf("wrote %d of %d bytes", n, len(data))
			}
		},
		"read": func(t *rapid.T) {
			h, at, length := handle(), offset.Draw(t, "offset"), rapid.Uint64Range(1, 30_000).Draw(t, "length")
			o, ok := handles[h]
			var err error
			var data []byte
			if !ok || o.flags&wire.OpenRead == 0 {
				err = unix.EBADF
			} else if at < uint64(len(o.data)) {
				data = o.data[at:min(at+length, uint64(len(o.data)))]
			}
			read, got := g.read(h, at, length)
			want("read", got, err)
			if !bytes.Equal(read, data) {
				t.Fatalf("read %d bytes, want %d, or they differ", len(read), len(data))
			}
		},
		"read path": func(t *rapid.T) {
			p := path("path")
			n, err := root.open(p, wire.OpenRead)
			data, got := g.readPath(p)
			want("read "+p, got, err)
			if err == nil && !bytes.Equal(data, n.data) {
				t.Fatalf("%s holds %d bytes, want %d, or they differ", p, len(data), len(n.data))
			}
		},
		"truncate": func(t *rapid.T) {
			h, size := handle(), offset.Draw(t, "size")
			o, ok := handles[h]
			var err error
			switch {
			case !ok:
				err = unix.EBADF
			case o.flags&(wire.OpenWrite|wire.OpenAppend) == 0:
				err = unix.EINVAL
			default:
				o.node.truncate(size)
			}
			want("truncate", g.truncate(h, size), err)
		},
		"close": func(t *rapid.T) {
			h := handle()
			var err error
			if _, ok := handles[h]; !ok {
				err = unix.EBADF
			}
			want("close", g.close(h), err)
			delete(handles, h)
		},
		"stat handle": func(t *rapid.T) {
			h := handle()
			o, ok := handles[h]
			info, err := g.stat(h)
			if !ok {
				want("stat", err, unix.EBADF)
			} else if err != nil || info.Size != uint64(len(o.data)) {
				t.Fatalf("stat: %+v, %v; want %d bytes", info, err, len(o.data))
			}
		},
		"stat path": func(t *rapid.T) {
			p := path("path")
			_, _, n, err := root.find(p)
			if err == nil && n == nil {
				err = unix.ENOENT
			}
			info, got := g.statPath(p)
			want("stat "+p, got, err)
			if err != nil {
				return
			}
			if isFolder := info.Mode&unix.S_IFMT == unix.S_IFDIR; isFolder != (n.names != nil) || !isFolder && info.Size != uint64(len(n.data)) {
				t.Fatalf("%s is %+v", p, info)
			}
		},
		"list": func(t *rapid.T) {
			p := rapid.SampledFrom([]string{"/", path("path")}).Draw(t, "folder")
			n, err := root, error(nil)
			if p != "/" {
				_, _, n, err = root.find(p)
			}
			var names []string
			switch {
			case err == nil && n == nil:
				err = unix.ENOENT
			case err == nil && n.names == nil:
				err = unix.ENOTDIR
			case err == nil:
				for _, name := range slices.Sorted(maps.Keys(n.names)) {
					if n.names[name].names != nil {
						name += "/"
					}
					names = append(names, name)
				}
			}
			listed, got := g.list(p, 257)
			want("list "+p, got, err)
			if !slices.Equal(listed, names) {
				t.Fatalf("%s has %q, want %q", p, listed, names)
			}
		},
		"mkdir": func(t *rapid.T) {
			p, flags := path("path"), rapid.Uint32Range(0, 1).Draw(t, "parents")
			want("mkdir "+p, g.mkdir(p, flags), root.mkdir(p, flags == wire.MkdirParents))
		},
		"remove": func(t *rapid.T) {
			p := path("path")
			want("remove "+p, g.remove(p), root.remove(p))
		},
		"rename": func(t *rapid.T) {
			p, q := path("old"), path("new")
			want("rename "+p+" to "+q, g.rename(p, q), root.rename(p, q))
		},
	})
	compareTree(t, root, dir)
}

func compareTree(t *rapid.T, n *node, dir string) {
	found, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != len(n.names) {
		t.Fatalf("%d names in %s, want %d", len(found), dir, len(n.names))
	}
	for name, child := range n.names {
		p := filepath.Join(dir, name)
		if child.names != nil {
			compareTree(t, child, p)
			continue
		}
		if data, err := os.ReadFile(p); errors.Is(err, fs.ErrNotExist) || !bytes.Equal(data, child.data) {
			t.Fatalf("%s: %d bytes, %v; want %d", p, len(data), err, len(child.data))
		}
	}
}
