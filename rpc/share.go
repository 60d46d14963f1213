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

// openShared opens a file. Folders can't be opened.
func openShared(s Share, path string, m message.Mode) (*file, error) {
	flags, err := openFlags(m)
	if err != nil {
		return nil, err
	}
	in, rest := s.Resolve(path)
	switch {
	case len(path) > maxPath:
		return nil, unix.ENAMETOOLONG
	case in.None():
		return nil, unix.ENOENT
	case (m.Write || m.Append) && !in.Writable:
		return nil, unix.EROFS
	}
	// Opening must not wait, nor give the monitor a terminal.
	flags |= unix.O_NONBLOCK | unix.O_NOCTTY
	var f *os.File
	switch {
	case in.Host:
		f, err = os.OpenFile(path, flags, 0o666)
	case in.Root == nil && rest == ".":
		err = unix.EISDIR
	case in.Root == nil:
		err = unix.ENOENT
	default:
		f, err = openRegular(in.Root, rest, flags)
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case info.IsDir():
		err = unix.EISDIR
	case !in.Host && !info.Mode().IsRegular():
		err = unix.EINVAL
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &file{f: f, path: path, regular: info.Mode().IsRegular(), size: uint64(max(info.Size(), 0))}, nil
}

// maxPath bounds a path, in bytes: Linux's own limit for one without its NUL.
const maxPath = 4095

// openRegular opens no device, no FIFO and no socket that is there already: even an open that doesn't wait may do something to one. What gets there in
// between is for the caller to find out.
func openRegular(root *os.Root, path string, flags int) (*os.File, error) {
	if info, err := root.Stat(path); err == nil && !info.Mode().IsRegular() && !info.IsDir() {
		return nil, unix.EINVAL
	}
	return root.OpenFile(path, flags, 0o666)
}

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
