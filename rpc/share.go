package rpc

import (
	"context"
	"errors"
	"os"
	"strings"

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

// findShared looks what a path leads to, and changes nothing. Folders can't be
// opened.
func (h *host) findShared(ctx context.Context, path string, m message.Mode) (target, error) {
	flags, err := openFlags(m)
	if err != nil {
		return target{}, err
	}
	in, rest := h.resolve(path)
	switch {
	case len(path) > maxPath:
		return target{}, unix.ENAMETOOLONG
	case strings.IndexByte(path, 0) >= 0:
		return target{}, unix.EINVAL
	case in.None():
		return target{}, unix.ENOENT
	case (m.Write || m.Append) && !in.Writable:
		return target{}, unix.EROFS
	}
	t := target{in: in, path: path, rest: rest, flags: flags, regular: true}
	switch {
	case in.Host:
	case in.Root == nil && rest == ".":
		return target{}, unix.EISDIR
	case in.Root == nil:
		return target{}, unix.ENOENT
	}
	st, err := h.calls.Stat(ctx, in, rest, true)
	switch {
	case err != nil && m.Create && ctx.Err() == nil: // open finds out whether it can be made
		return t, nil
	case err != nil:
		return target{}, err
	}
	t.regular = st.Mode&unix.S_IFMT == unix.S_IFREG
	if !m.Truncate {
		t.size = uint64(max(st.Size, 0))
	}
	return t, nil
}

// resolve returns the folder that a path leads into, and the path from there.
// With the share's Host that is the guest's path as it is.
func (h *host) resolve(path string) (in Share, rest string) {
	in, rest = h.o.Share.Resolve(path)
	if in.Host {
		rest = path
	}
	return in, rest
}

// openTarget opens the file, or what has got there since. Of the host's files
// below a folder, no device, no FIFO and no socket is.
func (h *host) openTarget(ctx context.Context, t target) (*file, error) {
	f, err := h.calls.Open(ctx, t.in, t.rest, t.flags, 0o666)
	if err != nil {
		return nil, err
	}
	return &file{f: f, path: t.path, server: h, ctx: ctx}, nil
}

// ringSizes are the blocks for requests and responses that suit what can be
// moved.
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
func (h *host) mkdirShared(ctx context.Context, path string) error {
	in, rest := h.resolve(path)
	switch {
	case len(path) > maxPath:
		return unix.ENAMETOOLONG
	case strings.IndexByte(path, 0) >= 0:
		return unix.EINVAL
	case in.None():
		return unix.ENOENT
	case !in.Writable, in.Root == nil && !in.Host:
		return unix.EROFS
	default:
		return h.calls.Mkdir(ctx, in, rest, true)
	}
}

// openFlags are those that Rust's OpenOptions has for a mode, with the same
// modes refused.
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
