package client

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/fix-project/arcavm/pipes/guest"
	"github.com/fix-project/arcavm/wire"
)

// Files is a stream of requests about the files that the user shares. Its
// methods may be called by several goroutines at once; they take turns. Errors
// are [*fs.PathError] with the errno of the answer. They wait for the answer,
// at most until the deadline; a request that is cut off by it resets the
// stream.
type Files struct {
	pipe *guest.Conn

	mu      sync.Mutex // held for a request and its answer
	request uint64
	frame   []byte // room for the next request
	head    [wire.HeaderSize + wire.FileDataPrefixSize]byte
}

// firstRequest is where request ids begin: they have 64 bits, and both ends are
// to take them so.
const firstRequest = 1 << 40

// Files opens a stream of requests about files.
func (c *Client) Files(ctx context.Context) (*Files, error) {
	conn, _, err := c.Open(ctx, wire.ProtocolFileSystem, nil)
	if err != nil {
		return nil, err
	}
	return NewFiles(conn.Conn), nil
}

// NewFiles returns what [Client.Files] does, on a pipe on which the protocol
// was opened already.
func NewFiles(p *guest.Conn) *Files { return &Files{pipe: p, request: firstRequest} }

// ReadFile reads a file on a stream of its own. It gives up when ctx ends.
func (c *Client) ReadFile(ctx context.Context, path string) ([]byte, error) {
	f, err := c.Files(ctx)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	stop := interrupt(ctx, f.pipe)
	data, err := f.ReadFile(path)
	if stop() && err != nil {
		err = pathError("read", path, ctx.Err())
	}
	return data, err
}

// SetDeadline sets until when requests wait for their answers.
func (f *Files) SetDeadline(t time.Time) error { return f.pipe.SetDeadline(t) }

// Close ends the stream, and with it all open files.
func (f *Files) Close() error { return f.pipe.Close() }

// Open opens a file, or makes one, as the flags say.
func (f *Files) Open(path string, flags wire.OpenFlags) (*File, error) {
	handle, err := f.done("open", path, func(b []byte, id uint64) []byte {
		return wire.AppendOpenFileRequest(b, id, wire.OpenFileRequest{Flags: flags, Path: []byte(path)})
	})
	if err != nil {
		return nil, err
	}
	return &File{files: f, handle: handle, path: path}, nil
}

// ReadFile reads a file from its beginning to its end. With an error it returns
// what came before.
func (f *Files) ReadFile(path string) ([]byte, error) {
	var data []byte
	err := f.read(path, 0, growing(&data), func(b []byte, id uint64) []byte {
		return wire.AppendReadFileRequest(b, id, wire.ReadFileRequest{Length: wire.ToEnd, Path: []byte(path)})
	})
	return data, err
}

// Stat tells of what a path leads to.
func (f *Files) Stat(path string) (wire.FileInfo, error) {
	return f.stat(path, wire.StatRequest{Path: []byte(path)})
}

// Lstat is [Files.Stat], but of a symbolic link itself.
func (f *Files) Lstat(path string) (wire.FileInfo, error) {
	return f.stat(path, wire.StatRequest{Path: []byte(path), Flags: wire.StatNoFollow})
}

func (f *Files) stat(path string, m wire.StatRequest) (wire.FileInfo, error) {
	payload, err := f.call("stat", path, wire.KindFileInfo, func(b []byte, id uint64) []byte {
		return wire.AppendStatRequest(b, id, m)
	})
	if err != nil {
		return wire.FileInfo{}, err
	}
	info, err := wire.DecodeFileInfo(payload)
	if err == nil {
		err = status(info.Status)
	}
	return info, pathError("stat", path, err)
}

// List returns a page of the names in a folder, in ascending order of their
// bytes: those after a given name, as many as fit in limit bytes, of which it
// takes 257 at least. No name means that none is left.
func (f *Files) List(path, after string, limit uint32) (wire.FileList, error) {
	payload, err := f.call("list", path, wire.KindFileList, func(b []byte, id uint64) []byte {
		return wire.AppendListRequest(b, id, wire.ListRequest{Limit: limit, Path: []byte(path), After: []byte(after)})
	})
	if err != nil {
		return wire.FileList{}, err
	}
	m, err := wire.DecodeFileList(payload)
	if err == nil {
		err = status(m.Status)
	}
	return m, pathError("list", path, err)
}

// ReadDir returns all that is in a folder.
func (f *Files) ReadDir(path string) (all []wire.FileEntry, err error) {
	for after := ""; ; after = string(all[len(all)-1].Name) {
		page, err := f.List(path, after, wire.MaxFileList)
		if err != nil || len(page.Entries) == 0 {
			return all, err
		}
		all = slices.AppendSeq(all, page.All())
	}
}

// Mkdir makes a folder.
func (f *Files) Mkdir(path string) error { return f.mkdir(path, 0) }

// MkdirAll makes a folder and those above it, as far as they don't exist.
func (f *Files) MkdirAll(path string) error { return f.mkdir(path, wire.MkdirParents) }

func (f *Files) mkdir(path string, flags uint32) error {
	_, err := f.done("mkdir", path, func(b []byte, id uint64) []byte {
		return wire.AppendMkdirRequest(b, id, wire.MkdirRequest{Flags: flags, Path: []byte(path)})
	})
	return err
}

// Remove removes a file, a link, or an empty folder.
func (f *Files) Remove(path string) error {
	_, err := f.done("remove", path, func(b []byte, id uint64) []byte {
		return wire.AppendRemoveRequest(b, id, wire.RemoveRequest{Path: []byte(path)})
	})
	return err
}

// Rename gives a file or a folder another path, and replaces a file there.
func (f *Files) Rename(from, to string) error {
	_, err := f.done("rename", from, func(b []byte, id uint64) []byte {
		return wire.AppendRenameRequest(b, id, wire.RenameRequest{Old: []byte(from), New: []byte(to)})
	})
	return err
}

// File is an open file.
type File struct {
	files  *Files
	handle uint64
	path   string
}

var (
	_ io.ReaderAt = (*File)(nil)
	_ io.WriterAt = (*File)(nil)
)

// File returns an open file by its handle, which the monitor hasn't confirmed:
// EBADF if there is none.
func (f *Files) File(handle uint64) *File {
	return &File{files: f, handle: handle, path: fmt.Sprintf("handle %d", handle)}
}

// Handle returns the number by which requests name the file.
func (f *File) Handle() uint64 { return f.handle }

// ReadAt reads at an offset, and returns [io.EOF] with fewer bytes at the end
// of the file.
func (f *File) ReadAt(b []byte, off int64) (int, error) {
	n := 0
	err := f.read(uint64(off), uint64(len(b)), func(k int) []byte {
		if k > len(b)-n {
			return nil
		}
		n += k
		return b[n-k : n]
	})
	if err == nil && n < len(b) {
		err = io.EOF
	}
	return n, err
}

// ReadRange returns the bytes from an offset on: length of them, fewer at the
// end of the file only, and all to there with wire.ToEnd. With an error it
// returns what came before.
func (f *File) ReadRange(offset, length uint64) ([]byte, error) {
	var data []byte
	err := f.read(offset, length, growing(&data))
	return data, err
}

// read reads what room has a place for.
func (f *File) read(offset, length uint64, room func(n int) []byte) error {
	return f.files.read(f.path, offset, room, func(b []byte, id uint64) []byte {
		return wire.AppendReadRequest(b, id, wire.ReadRequest{Handle: f.handle, Offset: offset, Length: length})
	})
}

// WriteAt writes at an offset, or, in a file that was opened to append, at its
// end. It takes as many requests as the length needs.
func (f *File) WriteAt(b []byte, off int64) (written int, err error) {
	for first := true; err == nil && (first || written < len(b)); first = false {
		piece := b[written:min(len(b), written+wire.MaxFileData)]
		var n uint64
		n, err = f.files.done("write", f.path, func(buf []byte, id uint64) []byte {
			m := wire.WriteRequest{Handle: f.handle, Offset: uint64(off) + uint64(written), Data: piece}
			return wire.AppendWriteRequest(buf, id, m)
		})
		written += int(min(n, uint64(len(piece))))
		if err == nil && n != uint64(len(piece)) {
			err = pathError("write", f.path, io.ErrShortWrite)
		}
	}
	return written, err
}

// Truncate cuts the file, or lengthens it by zeroes, to size bytes.
func (f *File) Truncate(size uint64) error {
	_, err := f.files.done("truncate", f.path, func(b []byte, id uint64) []byte {
		return wire.AppendTruncateRequest(b, id, wire.TruncateRequest{Handle: f.handle, Size: size})
	})
	return err
}

// Sync returns when what was written is on the disk.
func (f *File) Sync() error {
	_, err := f.files.done("sync", f.path, func(b []byte, id uint64) []byte {
		return wire.AppendSyncRequest(b, id, wire.SyncRequest{Handle: f.handle})
	})
	return err
}

// Stat tells of the file.
func (f *File) Stat() (wire.FileInfo, error) {
	return f.files.stat(f.path, wire.StatRequest{Handle: f.handle})
}

// Close gives the handle back.
func (f *File) Close() error {
	_, err := f.files.done("close", f.path, func(b []byte, id uint64) []byte {
		return wire.AppendCloseRequest(b, id, wire.CloseRequest{Handle: f.handle})
	})
	return err
}

func pathError(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: path, Err: err}
}

// encoder appends a request's frame.
type encoder func(b []byte, id uint64) []byte

// send sends a request. mu is held.
func (f *Files) send(encode encoder) error {
	f.request++
	f.frame = encode(f.frame[:0], f.request)
	_, err := f.pipe.Write(f.frame)
	return err
}

// broken resets the stream: what follows in it can't be understood any more.
func (f *Files) broken(op, path string, err error) error {
	_ = f.pipe.Reset(syscall.ECONNABORTED)
	return pathError(op, path, err)
}

// call sends a request and returns the payload of its answer, which must be of
// this kind.
func (f *Files) call(op, path string, kind wire.Kind, encode encoder) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.send(encode); err != nil {
		return nil, f.broken(op, path, err)
	}
	h, payload, err := ReadFrame(f.pipe)
	if err == nil && (h.Kind != kind || h.RequestID != f.request) {
		err = unexpected(h)
	}
	if err != nil {
		return nil, f.broken(op, path, err)
	}
	return payload, nil
}

// done sends a request that a FileDone answers, and returns its value.
func (f *Files) done(op, path string, encode encoder) (uint64, error) {
	payload, err := f.call(op, path, wire.KindFileDone, encode)
	if err != nil {
		return 0, err
	}
	m, err := wire.DecodeFileDone(payload)
	if err == nil {
		err = status(m.Status)
	}
	return m.Value, pathError(op, path, err)
}

// read sends a request that FileData answer, from an offset on, and copies
// their data to where room says: to n bytes, or nil if that is more than was
// asked for.
func (f *Files) read(path string, offset uint64, room func(n int) []byte, encode encoder) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.send(encode); err != nil {
		return f.broken("read", path, err)
	}
	for more := true; more; {
		h, m, err := f.dataFrame()
		if err == nil && m.Status != 0 {
			return pathError("read", path, status(m.Status))
		}
		var to []byte
		n := int(h.Length) - wire.FileDataPrefixSize
		switch more = h.Flags&wire.More != 0; {
		case err != nil:
		case m.Offset != offset, more && n == 0:
			err = fmt.Errorf("%w: %d bytes at %d, not at %d", syscall.EPROTO, n, m.Offset, offset)
		default:
			if to = room(n); len(to) != n {
				err = fmt.Errorf("%w: more bytes than were asked for", syscall.EPROTO)
			}
		}
		if err == nil {
			_, err = io.ReadFull(f.pipe, to)
		}
		if err != nil {
			return f.broken("read", path, err)
		}
		offset += uint64(n)
	}
	return nil
}

// growing makes room at the end of data.
func growing(data *[]byte) func(n int) []byte {
	return func(n int) []byte {
		*data = slices.Grow(*data, n)[:len(*data)+n]
		return (*data)[len(*data)-n:]
	}
}

// dataFrame reads a FileData frame up to its data. The rest of one with a
// status is read, too.
func (f *Files) dataFrame() (h wire.Header, m wire.FileData, err error) {
	header := f.head[:wire.HeaderSize]
	if _, err = io.ReadFull(f.pipe, header); err != nil {
		return h, m, err
	}
	if h, err = wire.DecodeHeader(header); err != nil {
		return h, m, err
	}
	if h.Kind != wire.KindFileData || h.RequestID != f.request {
		return h, m, unexpected(h)
	}
	prefix := f.head[wire.HeaderSize:][:min(int(h.Length), wire.FileDataPrefixSize)]
	if _, err = io.ReadFull(f.pipe, prefix); err != nil {
		return h, m, err
	}
	if m, err = wire.DecodeFileData(prefix); err == nil && m.Status != 0 {
		_, err = io.CopyN(io.Discard, f.pipe, int64(int(h.Length)-len(prefix)))
	}
	return h, m, err
}
