package relay_test

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/pipes/pipestest"
	"github.com/fix-project/arcavm/wire"
)

// fileGuest is a guest's stream of files, with one request at a time. Errors that aren't the file's end the test.
type fileGuest struct {
	*pipestest.GuestConn
	t       testing.TB
	request uint64
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
	return &fileGuest{GuestConn: c, t: m.t, request: 1 << 40}
}

// send sends what encode appends.
func (g *fileGuest) send(encode func([]byte, uint64) []byte) {
	g.t.Helper()
	g.request++
	if _, err := g.Write(encode(nil, g.request)); err != nil {
		g.t.Fatal(err)
	}
}

// receive returns the payload of the next frame, which must be of this kind, and its flags.
func (g *fileGuest) receive(kind wire.Kind) ([]byte, wire.Flags) {
	g.t.Helper()
	h, p, err := receive(g)
	if err != nil {
		g.t.Fatal(err)
	}
	if h.Kind != kind || h.RequestID != g.request {
		g.t.Fatalf("got %+v, want a %v for %d", h, kind, g.request)
	}
	return p, h.Flags
}

// done sends a request that a FileDone answers.
func (g *fileGuest) done(encode func([]byte, uint64) []byte) (uint64, error) {
	g.t.Helper()
	g.send(encode)
	p, _ := g.receive(wire.KindFileDone)
	m, err := wire.DecodeFileDone(p)
	if err != nil {
		g.t.Fatal(err)
	}
	return m.Value, status(m.Status)
}

func status(s uint32) error {
	if s == 0 {
		return nil
	}
	return unix.Errno(s)
}

func (g *fileGuest) open(path string, flags wire.OpenFlags) (uint64, error) {
	g.t.Helper()
	return g.done(func(b []byte, r uint64) []byte {
		return wire.AppendOpenFileRequest(b, r, wire.OpenFileRequest{Flags: flags, Path: []byte(path)})
	})
}

func (g *fileGuest) mustOpen(path string, flags wire.OpenFlags) uint64 {
	g.t.Helper()
	handle, err := g.open(path, flags)
	if err != nil {
		g.t.Fatalf("opening %s: %v", path, err)
	}
	return handle
}

// write writes any amount, by as many requests as it takes.
func (g *fileGuest) write(handle, offset uint64, data []byte) (written uint64, err error) {
	g.t.Helper()
	for first := true; err == nil && (first || len(data) > 0); first = false {
		piece := data[:min(len(data), wire.MaxFileData)]
		data = data[len(piece):]
		var n uint64
		n, err = g.done(func(b []byte, r uint64) []byte {
			return wire.AppendWriteRequest(b, r, wire.WriteRequest{Handle: handle, Offset: offset + written, Data: piece})
		})
		written += n
	}
	return written, err
}

// data receives FileData from offset on.
func (g *fileGuest) data(offset uint64) (data []byte, err error) {
	g.t.Helper()
	for {
		p, flags := g.receive(wire.KindFileData)
		m, err := wire.DecodeFileData(p)
		if err != nil {
			g.t.Fatal(err)
		}
		if m.Offset != offset+uint64(len(data)) || flags != 0 && len(m.Data) == 0 {
			g.t.Fatalf("%d bytes at %d after %d", len(m.Data), m.Offset, len(data))
		}
		data = append(data, m.Data...)
		if flags == 0 {
			return data, status(m.Status)
		}
	}
}

func (g *fileGuest) read(handle, offset, length uint64) ([]byte, error) {
	g.t.Helper()
	g.send(func(b []byte, r uint64) []byte {
		return wire.AppendReadRequest(b, r, wire.ReadRequest{Handle: handle, Offset: offset, Length: length})
	})
	return g.data(offset)
}

func (g *fileGuest) readPath(path string) ([]byte, error) {
	g.t.Helper()
	g.send(func(b []byte, r uint64) []byte {
		return wire.AppendReadFileRequest(b, r, wire.ReadFileRequest{Length: wire.ToEnd, Path: []byte(path)})
	})
	return g.data(0)
}

func (g *fileGuest) stat(m wire.StatRequest) (wire.FileInfo, error) {
	g.t.Helper()
	g.send(func(b []byte, r uint64) []byte { return wire.AppendStatRequest(b, r, m) })
	p, _ := g.receive(wire.KindFileInfo)
	info, err := wire.DecodeFileInfo(p)
	if err != nil {
		g.t.Fatal(err)
	}
	return info, status(info.Status)
}

func (g *fileGuest) statPath(path string) (wire.FileInfo, error) {
	g.t.Helper()
	return g.stat(wire.StatRequest{Path: []byte(path)})
}

// page asks for one page of names. Each is followed by / if it is a folder, @ if it is a link, | if it is a FIFO.
func (g *fileGuest) page(path, after string, limit uint32) (names []string, err error) {
	g.t.Helper()
	g.send(func(b []byte, r uint64) []byte {
		return wire.AppendListRequest(b, r, wire.ListRequest{Limit: limit, Path: []byte(path), After: []byte(after)})
	})
	p, _ := g.receive(wire.KindFileList)
	m, err := wire.DecodeFileList(p)
	if err != nil {
		g.t.Fatal(err)
	}
	if len(m.Entries) > int(limit) {
		g.t.Fatalf("%d bytes of entries, asked for at most %d", len(m.Entries), limit)
	}
	marks := map[uint8]string{unix.DT_DIR: "/", unix.DT_LNK: "@", unix.DT_FIFO: "|", unix.DT_REG: ""}
	for rest := m.Entries; len(rest) > 0; {
		var e wire.FileEntry
		if e, rest, err = wire.CutFileEntry(rest); err != nil {
			g.t.Fatal(err)
		}
		mark, ok := marks[e.Type]
		if !ok {
			g.t.Fatalf("%q has type %d", e.Name, e.Type)
		}
		names = append(names, string(e.Name)+mark)
	}
	return names, status(m.Status)
}

// list asks for page after page.
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
	g.t.Helper()
	_, err := g.done(func(b []byte, r uint64) []byte {
		return wire.AppendMkdirRequest(b, r, wire.MkdirRequest{Flags: flags, Path: []byte(path)})
	})
	return err
}

func (g *fileGuest) remove(path string) error {
	g.t.Helper()
	_, err := g.done(func(b []byte, r uint64) []byte {
		return wire.AppendRemoveRequest(b, r, wire.RemoveRequest{Path: []byte(path)})
	})
	return err
}

func (g *fileGuest) rename(from, to string) error {
	g.t.Helper()
	_, err := g.done(func(b []byte, r uint64) []byte {
		return wire.AppendRenameRequest(b, r, wire.RenameRequest{Old: []byte(from), New: []byte(to)})
	})
	return err
}

func (g *fileGuest) truncate(handle, size uint64) error {
	g.t.Helper()
	_, err := g.done(func(b []byte, r uint64) []byte {
		return wire.AppendTruncateRequest(b, r, wire.TruncateRequest{Handle: handle, Size: size})
	})
	return err
}

func (g *fileGuest) sync(handle uint64) error {
	g.t.Helper()
	_, err := g.done(func(b []byte, r uint64) []byte { return wire.AppendSyncRequest(b, r, wire.SyncRequest{Handle: handle}) })
	return err
}

func (g *fileGuest) close(handle uint64) error {
	g.t.Helper()
	_, err := g.done(func(b []byte, r uint64) []byte {
		return wire.AppendCloseRequest(b, r, wire.CloseRequest{Handle: handle})
	})
	return err
}
