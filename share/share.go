// Package share is what a guest may reach of the host's files, under either ABI.
package share

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Share is a folder that a guest may reach, and others that appear in it under names of their own. The zero value is nothing.
type Share struct {
	// Root is the folder that all paths are resolved below, absolute ones too. No path and no symbolic link leads outside. It may be nil
	// where only Named ones are shared: then there is nothing else at the top.
	Root *os.Root

	// Host is used instead of Root by guests of the request/response ABI: paths mean what they mean to the monitor. A relative one starts at its
	// working directory, and the process's rights are the only bounds.
	Host bool

	// Writable lets the guest change what is there: files' contents, files and folders.
	Writable bool

	// Named are further folders, which appear at the top under these names and hide what Root has of the same name. A path doesn't lead from one of
	// them to another by "..". Of theirs, only Root and Writable count.
	Named map[string]Share

	dir *os.File // Root as an O_PATH descriptor; nil if Open didn't make it
}

// Open returns what is at dir: the folder, or for "/" all that the monitor can
// reach. ENOSYS: the kernel is older than Linux 5.6, or a filter of system
// calls hides openat2.
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

// Close closes every Root.
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

// CheckName says why a folder can't appear under a name, if so.
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

// Resolve returns the folder that a guest's path leads into, s itself or a named one, and the path from there, "." for the folder itself. It looks at the
// path's first part only; the rest is for the kernel to resolve.
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

// relative strips what means nothing at the start of a path.
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
