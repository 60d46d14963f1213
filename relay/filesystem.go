package relay

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"math"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/wire"
)

const fileDataPrefix = wire.HeaderSize + wire.FileDataPrefixSize

// FileSystem returns the handler of protocol 0: it reads regular files below root, which stays the caller's to close. No path and
// no symbolic link leads outside: EACCES. With a nil root nothing is shared, and every path is ENOENT.
func FileSystem(root *os.Root) Handler {
	return HandlerFunc(func(ctx context.Context, s *Stream) error {
		if err := s.Opened(0, nil); err != nil {
			return err
		}
		in := frames{pipe: s.Pipe}
		for {
			request, payload, err := in.next(wire.KindReadFileRequest)
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			m, err := wire.DecodeReadFileRequest(payload)
			if err != nil {
				return protocolError(err)
			}
			if err := readFile(s, root, request, m); err != nil {
				return err
			}
		}
	})
}

// readFile answers one request. Its error is the pipe's: those of the file go to the guest.
func readFile(s *Stream, root *os.Root, request uint64, m wire.ReadFileRequest) error {
	f, size, err := openFile(root, string(m.Path))
	if err != nil {
		return sendFileError(s, request, m.Offset, err)
	}
	defer f.Close()
	left := uint64(0)
	if m.Offset < size {
		left = min(m.Length, size-m.Offset)
	}
	for offset := m.Offset; ; {
		n, more, err := sendFileData(s, f, request, offset, left)
		if err != nil {
			return err
		}
		if !more {
			return nil
		}
		offset += n
		left -= n
	}
}

// openFile opens a regular file. Opening anything else might wait, or do something.
func openFile(root *os.Root, path string) (f *os.File, size uint64, err error) {
	if root == nil {
		return nil, 0, unix.ENOENT
	}
	path = strings.TrimLeft(path, "/")
	if path == "" {
		return nil, 0, unix.EISDIR
	}
	f, err = root.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case info.IsDir():
		err = unix.EISDIR
	case !info.Mode().IsRegular():
		err = unix.EINVAL
	default:
		return f, uint64(info.Size()), nil
	}
	f.Close()
	return nil, 0, err
}

// sendFileData reads up to left bytes of f straight into the ring and sends them as one frame. It returns how many these were, and
// whether the frame promised more: not if the file has shrunk meanwhile, nor after an error.
func sendFileData(s *Stream, f *os.File, request, offset, left uint64) (n uint64, more bool, err error) {
	// Half a ring at least, so that a slow reader doesn't make for small frames.
	half := uint64(s.Pipe.Descriptor().IncomingSize / 2)
	least := fileDataPrefix + min(left, wire.MaxFileData, half-fileDataPrefix)
	a, b, err := s.Pipe.ReserveWrite(int(least))
	if err != nil {
		return 0, false, err
	}
	want := min(left, wire.MaxFileData, uint64(len(a)+len(b)-fileDataPrefix))
	x, y := part(a, b, fileDataPrefix, fileDataPrefix+int(want))
	got, rerr := readAt(f, x, y, offset)
	n = uint64(got)

	var flags wire.Flags
	var status uint32
	if rerr != nil && rerr != io.EOF {
		n, status = 0, uint32(fileErrno(rerr))
	} else if rerr == nil && n < left {
		flags, more = wire.More, true
	}
	var prefix [fileDataPrefix]byte
	wire.AppendFileDataPrefix(prefix[:0], request, flags, status, offset, int(n))
	x, y = part(a, b, 0, fileDataPrefix)
	copy(y, prefix[copy(x, prefix[:]):])
	s.Pipe.CommitWrite(fileDataPrefix + int(n))
	s.toGuest.Add(n)
	return n, more, nil
}

func sendFileError(s *Stream, request, offset uint64, err error) error {
	return s.write(func(b []byte) []byte {
		return wire.AppendFileData(b, request, 0, wire.FileData{Status: uint32(fileErrno(err)), Offset: offset})
	})
}

// readAt fills x, then y. io.EOF says that the file ended before.
func readAt(f *os.File, x, y []byte, offset uint64) (int, error) {
	if offset > math.MaxInt64 {
		return 0, io.EOF
	}
	n, err := f.ReadAt(x, int64(offset))
	if err != nil || len(y) == 0 {
		return n, err
	}
	m, err := f.ReadAt(y, int64(offset)+int64(n))
	return n + m, err
}

// part returns bytes from to to of a and b taken together.
func part(a, b []byte, from, to int) (x, y []byte) {
	cut := func(i int) (int, int) { return min(i, len(a)), max(i-len(a), 0) }
	af, bf := cut(from)
	at, bt := cut(to)
	return a[af:at], b[bf:bt]
}

// fileErrno is errnoOf for files. An os.Root names no errno for a path that leads outside.
func fileErrno(err error) unix.Errno {
	var path *fs.PathError
	var errno unix.Errno
	if errors.As(err, &path) && !errors.As(err, &errno) {
		return unix.EACCES
	}
	return errnoOf(err)
}
