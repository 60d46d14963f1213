package emulated

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"path"
	"strings"
)

// archive writes a cpio archive in the "newc" format, the one the Linux
// kernel unpacks as its initial RAM file system
// (Documentation/driver-api/early-userspace/buffer-format.rst). Missing parent
// folders are added. Not for concurrent use.
type archive struct {
	w      io.Writer
	inode  uint32
	known  map[string]bool
	offset int64
}

const (
	modeDirectory = 0o040000
	modeRegular   = 0o100000
	modeSymlink   = 0o120000
	modeType      = 0o170000
)

// magic begins each entry; trailer is the name of the last one.
const (
	magic   = "070701"
	trailer = "TRAILER!!!"
)

// maxFile is the largest file in bytes. At a larger one Linux stops unpacking
// without an error, and what comes after it in the archive is lost.
const maxFile = 1<<31 - 1

func newArchive(w io.Writer) *archive {
	return &archive{w: w, known: map[string]bool{".": true}}
}

// next returns an archive that continues this one in another file. A reader of
// it alone must have unpacked this one before.
func (a *archive) next(w io.Writer) *archive {
	return &archive{w: w, inode: a.inode, known: maps.Clone(a.known)}
}

// directory adds a folder and its parents; one that is there already is left.
func (a *archive) directory(name string) error {
	name = clean(name)
	if a.known[name] {
		return nil
	}
	if err := a.parents(name); err != nil {
		return err
	}
	a.known[name] = true
	return a.entry(name, modeDirectory|0o755, a.newInode(), 2, 0, nil)
}

// file adds a regular file of exactly size bytes, 0 to maxFile, read from r,
// and returns its inode. If links is more than 1, hardLink adds its other
// names. A name that is there already is an error: the kernel would quietly
// take the later file.
func (a *archive) file(name string, perm, links uint32, size int64, r io.Reader) (inode uint32, err error) {
	name, err = a.add(name)
	if err != nil {
		return 0, err
	}
	inode = a.newInode()
	return inode, a.entry(name, modeRegular|perm&0o7777, inode, links, size, r)
}

func (a *archive) bytes(name string, data []byte) error {
	_, err := a.file(name, 0o644, 1, int64(len(data)), bytes.NewReader(data))
	return err
}

// hardLink adds one more name of a file. The kernel keeps a page or two for
// each file that has more than one, and looks through them all.
func (a *archive) hardLink(name string, perm, inode, links uint32) error {
	name, err := a.add(name)
	if err != nil {
		return err
	}
	return a.entry(name, modeRegular|perm&0o7777, inode, links, 0, nil)
}

func (a *archive) symlink(name, target string) error {
	name, err := a.add(name)
	if err != nil {
		return err
	}
	return a.entry(name, modeSymlink|0o777, a.newInode(), 1, int64(len(target)), strings.NewReader(target))
}

// close writes the trailer. It does not close the underlying writer.
func (a *archive) close() error {
	return a.entry(trailer, 0, a.newInode(), 1, 0, nil)
}

func (a *archive) add(name string) (string, error) {
	name = clean(name)
	if a.known[name] {
		return "", fmt.Errorf("add %s to the initramfs: the name is taken", name)
	}
	a.known[name] = true
	return name, a.parents(name)
}

func (a *archive) parents(name string) error {
	return a.directory(path.Dir(name))
}

// clean makes a name relative to the archive's root; it cannot leave it.
func clean(name string) string {
	if name = strings.TrimPrefix(path.Clean("/"+name), "/"); name == "" {
		return "."
	}
	return name
}

func (a *archive) newInode() uint32 {
	a.inode++
	return a.inode
}

func (a *archive) entry(name string, mode, inode, links uint32, size int64, r io.Reader) error {
	if size < 0 || size > maxFile {
		return fmt.Errorf("%w: %s has %d bytes; each file that is passed in must have less than 2 GiB", ErrUnavailable, name, size)
	}
	head := fmt.Sprintf(magic+"%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, len(name)+1, 0, name)
	if err := a.padded(int64(len(head)), strings.NewReader(head)); err != nil {
		return fmt.Errorf("add %s to the initramfs: %w", name, err)
	}
	if size == 0 {
		return nil
	}
	if err := a.padded(size, r); err != nil {
		return fmt.Errorf("add %s to the initramfs: %w", name, err)
	}
	return nil
}

// padded copies size bytes and fills up to a multiple of 4.
func (a *archive) padded(size int64, r io.Reader) error {
	if _, err := io.CopyN(a.w, r, size); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	a.offset += size
	if rest := a.offset % 4; rest != 0 {
		if _, err := a.w.Write(bytes.Repeat([]byte{0}, int(4-rest))); err != nil {
			return err
		}
		a.offset += 4 - rest
	}
	return nil
}
