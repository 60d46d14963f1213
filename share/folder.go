package share

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/internal/regular"
)

// MaxParts is how many names a path may have: ENAMETOOLONG. "." and the names
// in links don't count. It bounds a path's cost to some ten microseconds.
const MaxParts = 255

// maxTries is how often a path is resolved again after a rename has disturbed
// it, which is rare.
const maxTries = 100

var errOutside = fmt.Errorf("path escapes from the folder: %w", unix.EACCES)

// The methods below take a path below the folder, as Resolve returns it, or any
// path of the host's if Host is set. The kernel resolves it in one call
// (openat2, Linux 5.6). It never leaves the folder, whatever is renamed
// meanwhile. It follows up to 40 links, as elsewhere, and refuses links that
// lead outside, absolute ones and those of /proc among them: EACCES. The
// methods may block as long as the file system does; [Do] bounds that. Errors
// are *[fs.PathError] or *[os.LinkError].

// Stat returns the state of what a path leads to, or, without follow, of the
// link itself.
func (s Share) Stat(path string, follow bool) (st unix.Stat_t, err error) {
	flags := unix.O_PATH
	if !follow {
		flags |= unix.O_NOFOLLOW
	}
	err = s.with(path, flags, func(fd int) error { return retry(func() error { return unix.Fstat(fd, &st) }) })
	return st, pathError("stat", path, err)
}

// Readlink returns the target of a link.
func (s Share) Readlink(path string) (target string, err error) {
	err = s.with(path, unix.O_PATH|unix.O_NOFOLLOW, func(fd int) error {
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(fd, "", buf)
		target = string(buf[:max(n, 0)])
		if err == unix.ENOENT {
			err = unix.EINVAL // no link
		}
		return err
	})
	return target, pathError("readlink", path, err)
}

// OpenPath opens a node only to name it (O_PATH), for a link the node that it
// leads to.
func (s Share) OpenPath(path string, flags int) (*os.File, error) {
	fd, err := s.open(path, unix.O_PATH|flags, 0)
	if err != nil {
		return nil, pathError("open", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// OpenFolder opens a folder to list it.
func (s Share) OpenFolder(path string) (*os.File, error) {
	fd, err := s.open(path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, pathError("open", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// OpenFile opens a file with flags and permissions of open(2). It waits for no
// other process: a FIFO opens at once, and a file with another process's lease
// is EAGAIN. A regular file's descriptor is in blocking mode.
func (s Share) OpenFile(path string, flags int, perm uint32) (*os.File, error) {
	if flags&unix.O_CREAT == 0 {
		perm = 0
	}
	return regular.Once("open", path, func(more int) (int, error) { return s.open(path, flags|more, perm) })
}

// Mkdir makes a folder with mode 0777 less the process's umask.
func (s Share) Mkdir(path string) error {
	err := s.inParent(path, func(parent int, name string) error {
		return retry(func() error { return unix.Mkdirat(parent, name, 0o777) })
	})
	return pathError("mkdir", path, err)
}

// mkdirAll makes a folder and the missing ones above, each by a call of mkdir.
// A folder that exists is no error.
func (s Share) mkdirAll(path string, mkdir func(path string) error) error {
	// It looks from the end on, so that a path that exists costs one call.
	parts := cuts(path)
	at := len(parts)
	for at > 0 {
		st, err := s.Stat(path[:parts[at-1]], true)
		if err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			err = unix.ENOTDIR
			if at == len(parts) {
				err = unix.EEXIST
			}
			return pathError("mkdir", path, err)
		}
		if err == nil {
			break
		}
		if !errors.Is(err, unix.ENOENT) {
			return err
		}
		at--
	}
	for ; at < len(parts); at++ {
		below := path[:parts[at]]
		err := mkdir(below)
		if errors.Is(err, unix.EEXIST) {
			// Another process has made it meanwhile, or the name is "..".
			if st, serr := s.Stat(below, true); serr == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
				err = nil
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Remove removes a file or an empty folder.
func (s Share) Remove(path string) error {
	err := s.inParent(path, func(parent int, name string) error {
		err := retry(func() error { return unix.Unlinkat(parent, name, 0) })
		if err == nil {
			return nil
		}
		if folder := retry(func() error { return unix.Unlinkat(parent, name, unix.AT_REMOVEDIR) }); folder != unix.ENOTDIR {
			return folder
		}
		return err
	})
	return pathError("remove", path, err)
}

// Rename moves a node to another path in the same folder of the share. A folder
// at to is EEXIST, as with os.Rename.
func (s Share) Rename(from, to string) error { return s.rename(from, to, 0) }

// rename takes the flags of renameat2(2).
func (s Share) rename(from, to string, flags uint) error {
	err := s.inParent(from, func(a int, old string) error {
		return s.inParent(to, func(b int, name string) error {
			var st unix.Stat_t
			err := retry(func() error { return unix.Fstatat(b, name, &st, unix.AT_SYMLINK_NOFOLLOW) })
			if err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
				if err := retry(func() error { return unix.Fstatat(a, old, &st, unix.AT_SYMLINK_NOFOLLOW) }); err != nil {
					return err
				}
				return unix.EEXIST
			}
			return retry(func() error { return unix.Renameat2(a, old, b, name, flags) })
		})
	})
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}

// inParent calls do with the open folder that the path's last name is in, and
// that name. System calls with both don't follow a link of that name, even with
// slashes behind it.
func (s Share) inParent(path string, do func(parent int, name string) error) error {
	end := len(strings.TrimRight(path, "/"))
	at := strings.LastIndexByte(path[:end], '/') + 1
	parent, name := path[:at], path[at:]
	if parent == "" {
		parent = "."
	}
	return s.with(parent, unix.O_PATH|unix.O_DIRECTORY, func(fd int) error { return do(fd, name) })
}

// with calls do with a descriptor of path, which it closes afterwards.
func (s Share) with(path string, flags int, do func(fd int) error) error {
	fd, err := s.open(path, flags, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return do(fd)
}

// open is openat2(2).
func (s Share) open(path string, flags int, perm uint32) (fd int, err error) {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Mode: uint64(perm)}
	if s.Host {
		return openat2(unix.AT_FDCWD, path, how)
	}
	if strings.HasPrefix(path, "/") {
		return -1, errOutside
	}
	if parts(path) > MaxParts {
		return -1, unix.ENAMETOOLONG
	}
	how.Resolve = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS
	err = s.folder(func(dir int) (err error) {
		fd, err = openat2(dir, path, how)
		return err
	})
	return fd, err
}

// folder calls do with a descriptor of the folder, which stays open meanwhile.
func (s Share) folder(do func(dir int) error) error {
	dir := s.dir
	if dir == nil {
		// A caller made this Share of a Root, without Open.
		var err error
		if dir, err = s.Root.OpenFile(".", unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
			return err
		}
		defer dir.Close()
	}
	raw, err := dir.SyscallConn()
	if err != nil {
		return err
	}
	var failure error
	if err := raw.Control(func(fd uintptr) { failure = do(int(fd)) }); err != nil {
		return os.ErrClosed
	}
	return failure
}

// openat2 opens a path. The kernel gives up on a path with ".." when a rename
// or a mount disturbs it: EAGAIN, which is also the error for a lease that an
// open must not wait for.
func openat2(dir int, path string, how unix.OpenHow) (fd int, err error) {
	for range maxTries {
		err = retry(func() (err error) {
			fd, err = unix.Openat2(dir, path, &how)
			return err
		})
		if err != unix.EAGAIN || how.Resolve == 0 {
			break
		}
	}
	if err == unix.EXDEV && how.Resolve != 0 {
		err = errOutside
	}
	if err != nil {
		fd = -1
	}
	return fd, err
}

// retry repeats a system call as long as a signal interrupts it.
func retry(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

// parts counts the names in a path.
func parts(path string) (n int) {
	for part := range strings.SplitSeq(path, "/") {
		if part != "" && part != "." {
			n++
		}
	}
	return n
}

// cuts returns where each name in a path ends.
func cuts(path string) (ends []int) {
	at := 0
	for part := range strings.SplitSeq(path, "/") {
		at += len(part)
		if part != "" && part != "." {
			ends = append(ends, at)
		}
		at++
	}
	return ends
}

func pathError(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: path, Err: err}
}
