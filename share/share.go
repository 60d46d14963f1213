// Package share is what a guest may reach of the host's files, under every ABI.
//
// A [Share] resolves paths, in the kernel, without ever leaving its folder.
// [Calls] does a guest's requests on it: each call is bounded by a [Gate], as a
// file system may stall, and by a [Quota], as a guest may fill the disk.
//
// Words of this package:
//
//   - folder: a directory; what a guest reaches is in one, or in several
//   - name: one part of a path
//   - link: a symbolic link
//   - node: a file, folder or socket, whatever is in it
//   - call: a system call that may block as long as the file system does
//   - charge: count as used of a quota
package share

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Share is a folder that a guest may reach, and further folders that appear in
// it under names of their own. The zero value shares nothing.
type Share struct {
	// Root is the folder below which all paths are resolved, absolute ones,
	// too. No path and no link leads outside. It may be nil where there are
	// Named folders: then nothing else is at the top.
	Root *os.Root

	// Host replaces Root for guests of the request/response ABI: paths mean
	// what they mean to the monitor. A relative one starts at its working
	// directory, and the rights of its process are the only bounds.
	Host bool

	// Writable lets the guest change the contents of files, and make, remove
	// and rename files and folders.
	Writable bool

	// Named are further folders. They appear at the top under these names, and
	// hide names of Root. ".." doesn't lead from one to another. Only their
	// Root and Writable count.
	Named map[string]Share

	dir *os.File // Root as an O_PATH descriptor; nil if Open didn't make it
}

// Open shares the folder dir, or, for "/", all that the monitor can reach.
// ENOSYS: the kernel is older than Linux 5.6, or a filter of system calls hides
// openat2.
func Open(dir string, writable bool) (Share, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Share{}, fmt.Errorf("share a folder: %w", err)
	}
	s := Share{Root: root, Host: strings.Trim(dir, "/") == "", Writable: writable}
	below := s
	below.Host = false
	if s.dir, err = below.OpenPath(".", unix.O_DIRECTORY); err != nil {
		root.Close()
		if errors.Is(err, unix.ENOSYS) {
			return Share{}, fmt.Errorf("share %s: openat2: %w: it takes Linux 5.6, and a seccomp filter that allows it", dir, unix.ENOSYS)
		}
		return Share{}, fmt.Errorf("share a folder: %w", err)
	}
	return s, nil
}

// Close closes the folders.
func (s Share) Close() error {
	var errs []error
	if s.Root != nil {
		errs = append(errs, s.Root.Close())
	}
	if s.dir != nil {
		errs = append(errs, s.dir.Close())
	}
	for _, n := range s.Named {
		errs = append(errs, n.Close())
	}
	return errors.Join(errs...)
}

// None reports whether nothing is shared.
func (s Share) None() bool { return !s.Host && s.Root == nil && len(s.Named) == 0 }

// CheckName returns why a folder can't appear under a name, nil if it can.
func CheckName(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return fmt.Errorf("%q is not a name for a folder", name)
	case strings.ContainsAny(name, "/\x00"):
		return fmt.Errorf("the name %q has a slash or NUL in it", name)
	case len(name) > 255:
		return errors.New("a name is longer than 255 bytes")
	}
	return nil
}

// Resolve returns the folder that a guest's path leads into, s or a named one,
// and the path below it, "." for the folder itself. It looks at the path's
// first name only: the kernel resolves the rest.
func (s Share) Resolve(path string) (in Share, rest string) {
	rest = relative(path)
	if len(s.Named) == 0 {
		return s, rest
	}
	first, below, _ := strings.Cut(rest, "/")
	if n, ok := s.Named[first]; ok {
		return Share{Root: n.Root, Writable: n.Writable, dir: n.dir}, relative(below)
	}
	return s, rest
}

// relative drops slashes and "./" at the start of a path.
func relative(path string) string {
	for {
		switch {
		case strings.HasPrefix(path, "/"):
			path = strings.TrimLeft(path, "/")
		case strings.HasPrefix(path, "./"):
			path = path[2:]
		case path == "":
			return "."
		default:
			return path
		}
	}
}
