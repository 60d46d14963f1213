package relay_test

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/pipes/guest/client"
	"github.com/fix-project/arcavm/pipes/pipestest"
	"github.com/fix-project/arcavm/wire"
)

// fileGuest is a guest's stream of files. Open files are named by the
// protocol's handles.
type fileGuest struct {
	*pipestest.GuestConn
	t     testing.TB
	files *client.Files
}

func (m *machine) fileGuest(ring uint32) *fileGuest {
	m.t.Helper()
	c, err := m.tryPipe(ring, ring, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	if _, err := open(c, wire.ProtocolFileSystem, nil); err != nil {
		m.t.Fatal(err)
	}
	return &fileGuest{GuestConn: c, t: m.t, files: client.NewFiles(c)}
}

func status(s uint32) error {
	if s == 0 {
		return nil
	}
	return unix.Errno(s)
}

func (g *fileGuest) open(path string, flags wire.OpenFlags) (uint64, error) {
	f, err := g.files.Open(path, flags)
	if err != nil {
		return 0, err
	}
	return f.Handle(), nil
}

func (g *fileGuest) mustOpen(path string, flags wire.OpenFlags) uint64 {
	g.t.Helper()
	handle, err := g.open(path, flags)
	if err != nil {
		g.t.Fatalf("opening %s: %v", path, err)
	}
	return handle
}

// write writes data by as many requests as it takes.
func (g *fileGuest) write(handle, offset uint64, data []byte) (written uint64, err error) {
	n, err := g.files.File(handle).WriteAt(data, int64(offset))
	return uint64(n), err
}

func (g *fileGuest) read(handle, offset, length uint64) ([]byte, error) {
	return g.files.File(handle).ReadRange(offset, length)
}

func (g *fileGuest) readPath(path string) ([]byte, error) { return g.files.ReadFile(path) }

func (g *fileGuest) stat(handle uint64) (wire.FileInfo, error) { return g.files.File(handle).Stat() }

func (g *fileGuest) statPath(path string) (wire.FileInfo, error) { return g.files.Stat(path) }

// page asks for one page of names. A name is followed by / if it is a folder,
// by @ if it is a link, by | if it is a FIFO.
func (g *fileGuest) page(path, after string, limit uint32) (names []string, err error) {
	g.t.Helper()
	m, err := g.files.List(path, after, limit)
	if len(m.Entries) > int(limit) {
		g.t.Fatalf("%d bytes of entries, asked for at most %d", len(m.Entries), limit)
	}
	marks := map[uint8]string{unix.DT_DIR: "/", unix.DT_LNK: "@", unix.DT_FIFO: "|", unix.DT_REG: ""}
	for e := range m.All() {
		mark, ok := marks[e.Type]
		if !ok {
			g.t.Fatalf("%q has type %d", e.Name, e.Type)
		}
		names = append(names, string(e.Name)+mark)
	}
	return names, err
}

// list asks for all pages.
func (g *fileGuest) list(path string, limit uint32) (all []string, err error) {
	g.t.Helper()
	for after := ""; ; {
		names, err := g.page(path, after, limit)
		if err != nil || len(names) == 0 {
			return all, err
		}
		all = append(all, names...)
		after = names[len(names)-1]
		if mark := after[len(after)-1]; mark == '/' || mark == '@' || mark == '|' {
			after = after[:len(after)-1]
		}
	}
}

func (g *fileGuest) mkdir(path string, flags uint32) error {
	if flags == wire.MkdirParents {
		return g.files.MkdirAll(path)
	}
	return g.files.Mkdir(path)
}

func (g *fileGuest) remove(path string) error { return g.files.Remove(path) }

func (g *fileGuest) rename(from, to string) error { return g.files.Rename(from, to) }

func (g *fileGuest) truncate(handle, size uint64) error { return g.files.File(handle).Truncate(size) }

func (g *fileGuest) sync(handle uint64) error { return g.files.File(handle).Sync() }

func (g *fileGuest) close(handle uint64) error { return g.files.File(handle).Close() }
