package emulated

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// unarchive unpacks an archive of this package's into a folder, as the kernel
// does with an initramfs. links are the files by their inodes that the archive
// before has unpacked.
func unarchive(r io.Reader, folder string, links map[uint32]string) error {
	u := unpacking{r: bufio.NewReaderSize(r, maxFrame), root: folder, links: links}
	for {
		h, err := u.header()
		if err == nil && h.name == trailer {
			return u.finish()
		}
		if err == nil {
			err = u.entry(h)
		}
		if err != nil {
			return fmt.Errorf("unpack files: %w", unexpected(err))
		}
	}
}

// unpacking is the state of unarchive.
type unpacking struct {
	r       *bufio.Reader
	offset  int64
	root    string
	links   map[uint32]string // inode → a file that may get more names
	folders []string
}

// header is an entry's. The numbers' order is that of the format.
type header struct {
	inode, mode, user, group, links, time, size uint32
	devices                                     [4]uint32
	nameSize, sum                               uint32
	name                                        string
}

const (
	headSize = len(magic) + 13*8
	maxName  = 1 << 16
)

func (u *unpacking) header() (h header, err error) {
	head := make([]byte, headSize)
	if err := u.read(head); err != nil {
		return h, err
	}
	if string(head[:len(magic)]) != magic {
		return h, fmt.Errorf("an entry begins with %q", head[:len(magic)])
	}
	for i, field := range []*uint32{
		&h.inode, &h.mode, &h.user, &h.group, &h.links, &h.time, &h.size,
		&h.devices[0], &h.devices[1], &h.devices[2], &h.devices[3], &h.nameSize, &h.sum,
	} {
		at := len(magic) + 8*i
		n, err := strconv.ParseUint(string(head[at:at+8]), 16, 32)
		if err != nil {
			return h, err
		}
		*field = uint32(n)
	}
	if h.nameSize == 0 || h.nameSize > maxName {
		return h, fmt.Errorf("a name of %d bytes", h.nameSize)
	}
	name := make([]byte, h.nameSize)
	if err := u.read(name); err != nil {
		return h, err
	}
	h.name = strings.TrimSuffix(string(name), "\x00")
	return h, u.pad()
}

// entry unpacks what follows a header.
func (u *unpacking) entry(h header) (err error) {
	name, perm := filepath.Join(u.root, h.name), h.mode&0o7777
	switch h.mode & modeType {
	case modeDirectory:
		err = u.folder(name, perm)
	case modeRegular:
		if first, ok := u.links[h.inode]; ok && h.links > 1 {
			return os.Link(first, name)
		}
		err = u.file(name, perm, h.size)
		if h.links > 1 {
			u.links[h.inode] = name
		}
	case modeSymlink:
		err = u.symlink(name, h.size)
	default:
		err = fmt.Errorf("%s has the mode %o", name, h.mode)
	}
	return err
}

func (u *unpacking) folder(name string, perm uint32) error {
	if err := unix.Mkdir(name, perm); err != nil && err != unix.EEXIST {
		return &fs.PathError{Op: "mkdir", Path: name, Err: err}
	}
	u.folders = append(u.folders, name)
	return unix.Chmod(name, perm)
}

func (u *unpacking) file(name string, perm, size uint32) (err error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	n, err := io.CopyN(f, u.r, int64(size))
	u.offset += n
	if err != nil {
		return err
	}
	if err := unix.Fchmod(int(f.Fd()), perm); err != nil {
		return err
	}
	return errors.Join(old(name), u.pad())
}

func (u *unpacking) symlink(name string, size uint32) error {
	if size == 0 || size > maxName {
		return fmt.Errorf("%s leads to a name of %d bytes", name, size)
	}
	target := make([]byte, size)
	if err := u.read(target); err != nil {
		return err
	}
	if err := os.Symlink(string(target), name); err != nil {
		return err
	}
	return errors.Join(old(name), u.pad())
}

// finish gives the folders their times, which files in them change.
func (u *unpacking) finish() error {
	for _, folder := range u.folders {
		if err := old(folder); err != nil {
			return err
		}
	}
	return nil
}

// old sets a file's time to the archive's, which is 0 for all.
func old(name string) error {
	times := []unix.Timespec{{}, {}}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, name, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "utimensat", Path: name, Err: err}
	}
	return nil
}

func (u *unpacking) read(b []byte) error {
	n, err := io.ReadFull(u.r, b)
	u.offset += int64(n)
	return err
}

// pad skips to a multiple of 4.
func (u *unpacking) pad() error {
	n, err := u.r.Discard(int(-u.offset & 3))
	u.offset += int64(n)
	return err
}
