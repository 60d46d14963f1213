package relay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/share"
	"github.com/fix-project/arcavm/wire"
)

// notSharedError is the error for a path where nothing is shared at all.
type notSharedError struct{ path string }

func (e *notSharedError) Error() string {
	return fmt.Sprintf("%.100q: no folder is shared with the guest", e.path)
}

// Unwrap returns ENOENT.
func (e *notSharedError) Unwrap() error { return unix.ENOENT }

// notShared logs once for a handler that nothing is shared. The guest gets the
// error of a missing file, so its user, who may have forgotten to share, is
// told here. It reports whether err is about that.
func (s *Stream) notShared(once *sync.Once, msg string, err error) bool {
	var none *notSharedError
	if !errors.As(err, &none) {
		return false
	}
	once.Do(func() { s.log(slog.LevelWarn, msg, slog.String("path", fmt.Sprintf("%.100s", none.path))) })
	return true
}

// place returns the folder that a guest's path leads into, and the path below
// it.
func place(s share.Share, path string) (in share.Share, rest string, err error) {
	switch {
	case s.None():
		err = &notSharedError{path}
	case len(path) > wire.MaxPath:
		err = unix.ENAMETOOLONG
	case strings.IndexByte(path, 0) >= 0:
		err = unix.EINVAL
	}
	if err != nil {
		return share.Share{}, "", err
	}
	in, rest = s.Resolve(path)
	in.Host = false
	return in, rest, nil
}

// writable is place for a request that changes something.
func writable(s share.Share, path string) (in share.Share, rest string, err error) {
	in, rest, err = place(s, path)
	if err == nil && (!in.Writable || in.Root == nil) {
		err = unix.EROFS
	}
	return in, rest, err
}

// openShared opens a regular file.
func (f *fileStream) openShared(path string, flags wire.OpenFlags) (*share.File, error) {
	mode, err := openMode(flags)
	if err != nil {
		return nil, err
	}
	in, rest, err := place(f.share, path)
	switch {
	case err != nil:
		return nil, err
	case mode&unix.O_ACCMODE != os.O_RDONLY && !in.Writable:
		return nil, unix.EROFS
	case rest == ".":
		return nil, unix.EISDIR
	case in.Root == nil:
		return nil, unix.ENOENT
	}
	return f.calls.Open(f.ctx, in, rest, mode, 0o666)
}

// openMode returns the flags of open(2) for f.
func openMode(f wire.OpenFlags) (int, error) {
	has := func(flags wire.OpenFlags) bool { return f&flags != 0 }
	writes := has(wire.OpenWrite | wire.OpenAppend)
	var mode int
	switch {
	case writes && has(wire.OpenRead):
		mode = os.O_RDWR
	case writes:
		mode = os.O_WRONLY
	case has(wire.OpenRead) && !has(wire.OpenCreate|wire.OpenTruncate):
		mode = os.O_RDONLY
	default:
		return 0, unix.EINVAL
	}
	if has(wire.OpenExclusive) {
		if !has(wire.OpenCreate) {
			return 0, unix.EINVAL
		}
		mode |= os.O_EXCL
	}
	if has(wire.OpenAppend) {
		mode |= os.O_APPEND
	}
	if has(wire.OpenCreate) {
		mode |= os.O_CREATE
	}
	if has(wire.OpenTruncate) {
		mode |= os.O_TRUNC
	}
	return mode, nil
}

func (f *fileStream) makeFolder(path string, parents bool) error {
	in, rest, err := writable(f.share, path)
	if err != nil {
		return err
	}
	return f.calls.Mkdir(f.ctx, in, rest, parents)
}

func (f *fileStream) remove(path string) error {
	in, rest, err := writable(f.share, path)
	switch {
	case err != nil:
		return err
	case rest == ".":
		return unix.EBUSY
	default:
		return f.calls.Remove(f.ctx, in, rest)
	}
}

func (f *fileStream) rename(from, to string) error {
	in, old, err := writable(f.share, from)
	if err != nil {
		return err
	}
	target, rest, err := writable(f.share, to)
	switch {
	case err != nil:
		return err
	case old == "." || rest == ".":
		return unix.EBUSY
	case target.Root != in.Root:
		return unix.EXDEV
	default:
		return f.calls.Rename(f.ctx, in, old, rest)
	}
}

func (f *fileStream) stat(r *fileRequest, m wire.StatRequest) error {
	info, failure := f.describe(m)
	return f.sendInfo(r, info, failure)
}

func (f *fileStream) describe(m wire.StatRequest) (info wire.FileInfo, failure error) {
	if m.Handle != 0 {
		failure = f.withFile(m.Handle, func(o *share.File) (err error) {
			info, err = describe(o.Stat(f.ctx))
			return err
		})
		return info, failure
	}
	return f.statShared(string(m.Path), m.Flags&wire.StatNoFollow == 0)
}

func (f *fileStream) sendInfo(r *fileRequest, info wire.FileInfo, failure error) error {
	info.Status = f.status(r, failure)
	return f.stream.write(func(b []byte) []byte { return wire.AppendFileInfo(b, r.RequestID, info) })
}

func (f *fileStream) statShared(path string, follow bool) (wire.FileInfo, error) {
	in, rest, err := place(f.share, path)
	switch {
	case err != nil:
		return wire.FileInfo{}, err
	case in.Root == nil && rest == ".":
		return wire.FileInfo{Mode: unix.S_IFDIR | 0o555}, nil
	case in.Root == nil:
		return wire.FileInfo{}, unix.ENOENT
	default:
		return describe(f.calls.Stat(f.ctx, in, rest, follow))
	}
}

func describe(st unix.Stat_t, err error) (wire.FileInfo, error) {
	if err != nil {
		return wire.FileInfo{}, err
	}
	return wire.FileInfo{Size: uint64(st.Size), Seconds: st.Mtim.Sec, Nanoseconds: uint32(st.Mtim.Nsec), Mode: st.Mode}, nil
}

func (f *fileStream) list(r *fileRequest, m wire.ListRequest) error {
	select {
	case f.lists <- struct{}{}:
		defer func() { <-f.lists }()
	case <-f.ctx.Done():
		return unix.ECONNRESET
	}
	list, failure := f.page(m)
	return f.sendList(r, list, failure)
}

func (f *fileStream) sendList(r *fileRequest, list []byte, failure error) error {
	answer := wire.FileList{Status: f.status(r, failure), Entries: list}
	return f.stream.write(func(b []byte) []byte { return wire.AppendFileList(b, r.RequestID, answer) })
}

// eachName calls do for each name in a folder, until ctx ends. Reading the
// folder with os.File would look at each entry by its path, outside the share.
func eachName(ctx context.Context, in share.Share, path string, do func(kind uint8, name []byte)) error {
	dir, err := in.OpenFolder(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	buf := make([]byte, 32<<10)
	for ctx.Err() == nil {
		n, err := unix.ReadDirent(int(dir.Fd()), buf)
		if err == unix.EINTR {
			continue
		}
		if n <= 0 || err != nil {
			return err
		}
		eachDirent(buf[:n], do)
	}
	return ctx.Err()
}

// eachDirent walks through the result of getdents64: inode u64 · offset i64 ·
// length of the record u16 · type u8 · name, ended by NUL.
func eachDirent(b []byte, do func(kind uint8, name []byte)) {
	const lengthAt, typeAt, nameAt = 16, 18, 19
	for len(b) > nameAt {
		record := b[:binary.LittleEndian.Uint16(b[lengthAt:])]
		b = b[len(record):]
		name := record[nameAt:]
		name = name[:slices.Index(name, 0)]
		if string(name) != "." && string(name) != ".." {
			do(record[typeAt], name)
		}
	}
}

// page collects the first names after one, in their order.
type page struct {
	after, before string // before "" doesn't count
	limit, size   int    // bytes on the wire
	entries       []entry
}

type entry struct {
	kind uint8
	name string
}

func (p *page) add(kind uint8, name string) {
	if name <= p.after || p.before != "" && name >= p.before || len(name) > wire.MaxFileName {
		return
	}
	p.entries = append(p.entries, entry{kind, name})
	p.size += wire.FileEntryPrefixSize + len(name)
	// It sorts at twice the limit, so that sorting doesn't cost more than
	// reading.
	if p.size > 2*p.limit {
		p.cut()
	}
}

// cut sorts the entries, and drops those for which there is no room.
func (p *page) cut() {
	slices.SortFunc(p.entries, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	p.size = 0
	for i, e := range p.entries {
		n := wire.FileEntryPrefixSize + len(e.name)
		if p.size+n > p.limit {
			p.before, p.entries = e.name, p.entries[:i]
			return
		}
		p.size += n
	}
}

// fileErrno is [network.Errno] for files.
func fileErrno(err error) unix.Errno {
	if errors.Is(err, os.ErrClosed) {
		return unix.EBADF
	}
	return network.Errno(err)
}
