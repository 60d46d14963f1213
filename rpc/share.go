package rpc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/rpc/message"
)

// Share is what a guest can reach of the host's files.
type Share struct {
	// Root is the folder that all paths are resolved below, absolute ones too. No path and no symbolic link leads outside.
	Root *os.Root

	// Host is used instead of Root: paths mean what they mean to the monitor. A relative one starts at its working directory, and the process's rights
	// are the only bounds.
	Host bool

	// Writable lets the guest write, make and cut files, and make folders.
	Writable bool
}

// OpenShare returns what `--share dir` means: the folder, or for "/" all that the monitor can reach.
func OpenShare(dir string, writable bool) (Share, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Share{}, fmt.Errorf("share a folder: %w", err)
	}
	return Share{Root: root, Host: strings.Trim(dir, "/") == "", Writable: writable}, nil
}

// Close closes what OpenShare has opened.
func (s Share) Close() error {
	if s.Root == nil {
		return nil
	}
	return s.Root.Close()
}

func (s Share) none() bool { return !s.Host && s.Root == nil }

// open opens a file. Folders can't be opened.
func (s Share) open(path string, m message.Mode) (*file, error) {
	flags, err := openFlags(m)
	if err != nil {
		return nil, err
	}
	switch {
	case s.none():
		return nil, unix.ENOENT
	case (m.Write || m.Append) && !s.Writable:
		return nil, unix.EROFS
	}
	// Opening must not wait, nor give the monitor a terminal.
	flags |= unix.O_NONBLOCK | unix.O_NOCTTY
	var f *os.File
	if s.Host {
		f, err = os.OpenFile(path, flags, 0o666)
	} else {
		f, err = s.Root.OpenFile(inside(path), flags, 0o666)
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && info.IsDir() {
		err = unix.EISDIR
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &file{f: f, path: path, regular: info.Mode().IsRegular(), size: uint64(max(info.Size(), 0))}, nil
}

// mkdir makes a folder and its parents. It is no error if it exists.
func (s Share) mkdir(path string) error {
	switch {
	case s.none():
		return unix.ENOENT
	case !s.Writable:
		return unix.EROFS
	case s.Host:
		return os.MkdirAll(path, 0o777)
	default:
		return s.Root.MkdirAll(inside(path), 0o777)
	}
}

// inside makes a path relative to the root.
func inside(path string) string {
	if path = strings.TrimLeft(path, "/"); path == "" {
		return "."
	}
	return path
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
