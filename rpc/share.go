package rpc

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/rpc/message"
	"github.com/fix-project/arcavm/share"
)

// Share is what a guest can reach of the host's files.
type Share = share.Share

// target is a file that may be opened, as far as can be told without it.
type target struct {
	in      Share
	path    string // as the guest calls it
	rest    string // below in
	flags   int
	regular bool
	size    uint64 // 0: it is to be made or emptied
}

// findShared looks what a path leads to, and changes nothing. Folders can't be opened.
func findShared(s Share, path string, m message.Mode) (target, error) {
	flags, err := openFlags(m)
	if err != nil {
		return target{}, err
	}
	in, rest := s.Resolve(path)
	switch {
	case len(path) > maxPath:
		return target{}, unix.ENAMETOOLONG
	case in.None():
		return target{}, unix.ENOENT
	case (m.Write || m.Append) && !in.Writable:
		return target{}, unix.EROFS
	}
	t := target{in: in, path: path, rest: rest, flags: flags, regular: true}
	var info os.FileInfo
	switch {
	case in.Host:
		info, err = os.Stat(path)
	case in.Root == nil && rest == ".":
		return target{}, unix.EISDIR
	case in.Root == nil:
		return target{}, unix.ENOENT
	default:
		info, err = in.Root.Stat(rest)
	}
	switch {
	case err != nil && m.Create: // whether it can be made is for open to find out
		return t, nil
	case err != nil:
		return target{}, err
	}
	if err := t.check(info); err != nil {
		return target{}, err
	}
	t.regular = info.Mode().IsRegular()
	if !m.Truncate {
		t.size = uint64(max(info.Size(), 0))
	}
	return t, nil
}

// check refuses what can't be opened. Of the host's files below a folder, no device, no FIFO and no socket is: even an open that doesn't wait may do
// something to one.
func (t target) check(info os.FileInfo) error {
	switch {
	case info.IsDir():
		return unix.EISDIR
	case !t.in.Host && !info.Mode().IsRegular():
		return unix.EINVAL
	}
	return nil
}

// open opens the file, or what has got there since.
func (t target) open() (*file, error) {
	// Opening must not wait, nor give the monitor a terminal.
	flags := t.flags | unix.O_NONBLOCK | unix.O_NOCTTY
	var f *os.File
	var err error
	if t.in.Host {
		f, err = os.OpenFile(t.path, flags, 0o666)
	} else {
		f, err = t.in.Root.OpenFile(t.rest, flags, 0o666)
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil {
		err = t.check(info)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &file{f: f, path: t.path, regular: info.Mode().IsRegular()}, nil
}

// ringSizes are the blocks for requests and responses that suit what can be moved.
func (t target) ringSizes(m message.Mode) (requests, responses uint64) {
	requests, responses = pageSize, pageSize
	if m.Write || m.Append {
		requests = writeBlock
	}
	if m.Read {
		responses = t.size + message.LengthSize + message.HeadSize + ringOverhead
		if !t.regular || m.Write || m.Append {
			responses = max(responses, growBlock)
		}
	}
	return requests, min(responses, readBlock)
}

// maxPath bounds a path, in bytes: Linux's own limit for one without its NUL.
const maxPath = 4095

// mkdirShared makes a folder and its parents. It is no error if it exists.
func mkdirShared(s Share, path string) error {
	in, rest := s.Resolve(path)
	switch {
	case len(path) > maxPath:
		return unix.ENAMETOOLONG
	case in.None():
		return unix.ENOENT
	case !in.Writable:
		return unix.EROFS
	case in.Host:
		return os.MkdirAll(path, 0o777)
	case in.Root == nil:
		return unix.EROFS
	default:
		return in.Root.MkdirAll(rest, 0o777)
	}
}

// openFlags are those that Rust's OpenOptions has for a mode, with the same modes refused.
func openFlags(m message.Mode) (int, error) {
	var flags int
	switch {
	case m.Read && (m.Write || m.Append):
		flags = os.O_RDWR
	case m.Write || m.Append:
		flags = os.O_WRONLY
	case m.Read && !m.Create && !m.Truncate:
		flags = os.O_RDONLY
	default:
		return 0, unix.EINVAL
	}
	if m.Append {
		if m.Truncate {
			return 0, unix.EINVAL
		}
		flags |= os.O_APPEND
	}
	if m.Create {
		flags |= os.O_CREATE
	}
	if m.Truncate {
		flags |= os.O_TRUNC
	}
	return flags, nil
}

// errKind is what the guest is told of an error.
func errKind(err error) message.ErrKind {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		var path *fs.PathError
		if errors.As(err, &path) {
			// An os.Root names no errno for a path that leads outside.
			return message.PermissionDenied
		}
		return message.Other
	}
	switch errno {
	case unix.ENOENT:
		return message.NotFound
	case unix.EACCES, unix.EPERM, unix.EROFS:
		return message.PermissionDenied
	case unix.EEXIST:
		return message.AlreadyExists
	case unix.EINVAL:
		return message.InvalidInput
	case unix.EILSEQ:
		return message.InvalidData
	case unix.ENOSYS, unix.EOPNOTSUPP:
		return message.Unsupported
	case unix.ENOMEM:
		return message.OutOfMemory
	case unix.EINTR:
		return message.Interrupted
	default:
		return message.Other
	}
}
