package share

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/internal/regular"
)

// Calls does a guest's requests on a [Share]. A request is at work in one
// folder, bounded by the folder's gate, and ends soon after its context,
// whatever the file system does. in is the result of [Share.Resolve]. Paths and
// errors are those of the methods of Share. The methods may be called
// concurrently.
type Calls struct {
	gates Gates
	quota *Quota
}

// NewCalls returns the calls of a guest that may fill the disk up to a quota.
func NewCalls(g Gates, q *Quota) Calls { return Calls{g, q} }

// Stat returns the state of what a path leads to, or, without follow, of the
// link itself.
func (c Calls) Stat(ctx context.Context, in Share, path string, follow bool) (unix.Stat_t, error) {
	return Do(ctx, c.gates.Of(in), func() (unix.Stat_t, error) { return in.Stat(path, follow) }, nil)
}

// Open opens a file with flags and permissions of open(2). Only regular files
// are opened, as an open of another kind might wait, or have an effect: EISDIR,
// EINVAL. If the share's Host is set, only folders are refused. Open waits for
// a lease that another process has on the file.
func (c Calls) Open(ctx context.Context, in Share, path string, flags int, perm uint32) (f *File, err error) {
	err = regular.Retry(ctx, func() (err error) {
		f, err = Do(ctx, c.gates.Of(in), func() (*File, error) {
			return c.open(in, path, flags, perm)
		}, func(f *File) { _ = f.close() })
		return err
	})
	return f, err
}

func (c Calls) open(in Share, path string, flags int, perm uint32) (*File, error) {
	exclusive := flags&unix.O_EXCL != 0
	for range maxTries {
		st, err := in.Stat(path, true)
		if err == nil && !exclusive {
			// A file of another kind may take the place after this. The opened
			// file is checked again.
			if err := in.check(path, &st); err != nil {
				return nil, err
			}
		}
		made := flags&unix.O_CREAT != 0 && (err != nil || exclusive)
		sure := flags
		if made {
			sure |= unix.O_EXCL
		}
		f, err := c.openOnce(in, path, sure, perm, made)
		switch {
		case errors.Is(err, unix.ENOENT) && flags&unix.O_CREAT != 0 && !made:
			continue // it has been removed meanwhile
		case errors.Is(err, unix.EEXIST) && !exclusive:
			if st, err := in.Stat(path, false); err != nil || st.Mode&unix.S_IFMT != unix.S_IFLNK {
				continue // it has been made meanwhile
			}
			// The path is a link to a file that doesn't exist.
			f, err = c.openOnce(in, path, flags, perm, made)
		}
		if errors.Is(err, unix.ENXIO) && !in.Host {
			err = pathError("open", path, unix.EINVAL) // a socket, or a FIFO without a reader
		}
		return f, err
	}
	return nil, pathError("open", path, unix.ENOENT)
}

// openOnce opens a file, and charges a node if it is made. The file is
// truncated only when it is open and known to be a regular file.
func (c Calls) openOnce(in Share, path string, flags int, perm uint32, made bool) (*File, error) {
	f := &File{gate: c.gates.Of(in), append: flags&unix.O_APPEND != 0}
	if in.Writable {
		f.quota = c.quota
	}
	empty := flags&unix.O_TRUNC != 0
	flags &^= unix.O_TRUNC
	if made {
		if err := f.quota.TakeNode(); err != nil {
			return nil, pathError("open", path, err)
		}
	} else {
		flags &^= unix.O_CREAT
	}
	var err error
	if f.os, err = in.OpenFile(path, flags, perm); err != nil {
		if made {
			f.quota.GiveNode()
		}
		return nil, err
	}
	st, err := f.stat()
	if err == nil {
		err = in.check(path, &st)
	}
	if f.regular = st.Mode&unix.S_IFMT == unix.S_IFREG; err == nil && f.regular {
		if f.account, err = f.quota.open(st, f.stat); err == nil && empty {
			err = f.truncate(0)
		}
	}
	if err != nil {
		_ = f.close()
		return nil, err
	}
	return f, nil
}

// check refuses files that can't be opened.
func (s Share) check(path string, st *unix.Stat_t) error {
	switch kind := st.Mode & unix.S_IFMT; {
	case kind == unix.S_IFDIR:
		return pathError("open", path, unix.EISDIR)
	case kind != unix.S_IFREG && !s.Host:
		return pathError("open", path, unix.EINVAL)
	}
	return nil
}

// Mkdir makes a folder. With parents it also makes the missing folders above,
// and a folder that exists is no error.
func (c Calls) Mkdir(ctx context.Context, in Share, path string, parents bool) error {
	mkdir := func(path string) error {
		if err := c.quota.TakeNode(); err != nil {
			return pathError("mkdir", path, err)
		}
		err := in.Mkdir(path)
		if err != nil {
			c.quota.GiveNode()
		}
		return err
	}
	return c.do(ctx, in, func() error {
		if parents {
			return in.mkdirAll(path, mkdir)
		}
		return mkdir(path)
	})
}

// Remove removes a file or an empty folder.
func (c Calls) Remove(ctx context.Context, in Share, path string) error {
	return c.do(ctx, in, func() error {
		return c.unlink(in, path, func(there error) error {
			if there != nil {
				return there
			}
			return in.Remove(path)
		})
	})
}

// Rename moves a node to another path in the same folder of the share.
func (c Calls) Rename(ctx context.Context, in Share, from, to string) error {
	return c.do(ctx, in, func() error {
		for range maxTries {
			err := c.unlink(in, to, func(there error) error {
				if there == nil {
					return in.Rename(from, to)
				}
				err := in.rename(from, to, unix.RENAME_NOREPLACE)
				if errors.Is(err, unix.EINVAL) { // or the file system doesn't know it
					err = in.Rename(from, to)
				}
				if errors.Is(err, unix.EEXIST) {
					if st, serr := in.Stat(to, false); serr == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
						return errAgain
					}
				}
				return err
			})
			if err != errAgain {
				return err
			}
		}
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: unix.EBUSY}
	})
}

// errAgain means that another process has made a node where none was.
var errAgain = errors.New("it is there now")

// unlink calls do, which may remove the last name of the node at path, and then
// gives its charge back. Its argument is why the node couldn't be opened, or
// nil. A node that another process puts there meanwhile gives nothing back.
func (c Calls) unlink(in Share, path string, do func(there error) error) error {
	if c.quota == nil {
		return do(nil)
	}
	gate := c.gates.Of(in)
	gate.names.Lock()
	defer gate.names.Unlock()
	f, err := in.OpenPath(path, unix.O_NOFOLLOW)
	if err != nil {
		return do(err)
	}
	old := &File{os: f, quota: c.quota}
	defer func() { _ = old.close() }()
	st, err := old.stat()
	if err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		if old.account, err = c.quota.open(st, old.stat); err != nil {
			return err
		}
	}
	if err := do(nil); err != nil {
		return err
	}
	if st, err = old.stat(); err != nil || st.Nlink > 0 {
		return nil
	}
	if old.account != nil {
		c.quota.doom(old.account)
	} else {
		c.quota.GiveNode()
	}
	return nil
}

func (c Calls) do(ctx context.Context, in Share, call func() error) error {
	_, err := Do(ctx, c.gates.Of(in), func() (struct{}, error) { return struct{}{}, call() }, nil)
	return err
}
