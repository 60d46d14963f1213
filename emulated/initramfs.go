package emulated

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/internal/regular"
	"github.com/fix-project/arcavm/share"
)

// initName is the file that Linux runs first. Being the first in its archive it
// has the first inode.
const (
	initName  = "init"
	initInode = 1
)

// cargo is what a machine is given: the base that is the same for every run of
// a program, and what is passed in for one run.
type cargo struct {
	setup        setup
	plan         plan
	modules      []module
	base, passed *hostFiles
	outbound     bool
}

// pack looks up all that a machine is given. Whatever changes in the folders
// until close, nothing that lies outside of them is found or copied.
func pack(init string, modules []module, cfg Config) (*cargo, error) {
	p, err := makePlan(cfg)
	if err != nil {
		return nil, err
	}
	c := &cargo{setup: makeSetup(modules, cfg), plan: p, modules: modules, base: newHostFiles(), outbound: cfg.Outbound}
	if err := c.base.program(initName, init); err != nil {
		return nil, err
	}
	c.passed = c.base.next()
	if err := c.passed.find(p, cfg); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *cargo) close() { c.passed.close() }

// writeInitramfs writes everything.
func (c *cargo) writeInitramfs(w io.Writer) error {
	a := newArchive(w)
	if err := c.writeBase(a); err != nil {
		return err
	}
	return c.writePassed(a)
}

// writeBase writes init and the modules.
func (c *cargo) writeBase(a *archive) error {
	if err := c.base.write(a); err != nil {
		return fmt.Errorf("pass init in: %w", err)
	}
	for i, m := range c.modules {
		if err := a.bytes(c.setup.Modules[i], m.data); err != nil {
			return err
		}
	}
	return writeJSON(a, setupName, c.setup)
}

// writePassed writes the plan, the programs and the caller's files, into the
// archive of the base or the next one.
func (c *cargo) writePassed(a *archive) error {
	if err := writeJSON(a, planName, c.plan); err != nil {
		return err
	}
	hosts := "127.0.0.1 localhost\n::1 localhost\n"
	if err := a.bytes("etc/hosts", []byte(hosts)); err != nil {
		return err
	}
	// Without it some C libraries ask the name server first, for localhost too.
	if err := a.bytes("etc/nsswitch.conf", []byte("hosts: files dns\n")); err != nil {
		return err
	}
	if c.outbound {
		resolve := "nameserver " + nameServer + "\n"
		if err := a.bytes("etc/resolv.conf", []byte(resolve)); err != nil {
			return err
		}
	}
	for _, program := range c.plan.Programs {
		if err := a.directory(string(program.Dir)); err != nil {
			return err
		}
	}
	if err := c.passed.write(a); err != nil {
		return fmt.Errorf("pass a file in: %w", err)
	}
	return a.close()
}

func writeJSON(a *archive, name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return a.bytes(name, data)
}

// hostFile tells files of the host apart. Names with different permissions
// can't share a file inside.
type hostFile struct {
	device, inode uint64
	perm          fs.FileMode
}

// copiedFile is a file, a folder or a link of the host's to copy, or bytes.
type copiedFile struct {
	name string
	data []byte // if root is nil and source is empty

	root   *passedFolder // nil: source is a path of the host's
	source string        // below root
	kind   uint32        // as st_mode has it
	host   hostFile
}

// hostFiles are those to copy.
type hostFiles struct {
	all   []copiedFile
	names map[string]hostFile
	links map[hostFile]uint32 // how many names each has inside
	init  hostFile            // in the archive before; none if it is zero
	roots []*passedFolder
}

// passedFolder is a folder to copy. It reaches nothing outside of the folder.
type passedFolder struct {
	share.Share
	name string
}

func newHostFiles() *hostFiles {
	return &hostFiles{names: map[string]hostFile{}, links: map[hostFile]uint32{}}
}

// next returns those of an archive that continues h's. Init may get more names
// there, if it is a program as well.
func (h *hostFiles) next() *hostFiles {
	init := h.names[initName]
	h.links[init] = max(h.links[init], 2)
	n := newHostFiles()
	n.names, n.init = maps.Clone(h.names), init
	n.links[init] = h.links[init]
	return n
}

// find looks up what is to be copied.
func (h *hostFiles) find(p plan, cfg Config) error {
	for i, program := range cfg.Programs {
		if err := h.program(string(p.Programs[i].Path), program.Path); err != nil {
			return err
		}
	}
	for _, file := range cfg.Files {
		if err := h.file(file); err != nil {
			return fmt.Errorf("pass a file in: %w", err)
		}
	}
	return nil
}

func (h *hostFiles) close() {
	for _, root := range h.roots {
		_ = root.Close()
	}
}

// program adds a program, and the libraries that it needs where they lie.
func (h *hostFiles) program(name, source string) error {
	needed, err := libraries(source)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrProgram, err)
	}
	for _, file := range append([]string{source}, needed...) {
		st, err := stat(file)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrProgram, err)
		}
		if file != source {
			name = file
		}
		h.add(name, nil, file, st, 0o755)
	}
	return nil
}

// file adds a file, or a folder with the files, folders and links below it.
func (h *hostFiles) file(file File) error {
	if file.Source == "" {
		h.all = append(h.all, copiedFile{name: clean(file.Name), data: file.Data})
		return nil
	}
	st, err := stat(file.Source)
	switch {
	case err != nil:
		return err
	case st.Mode&unix.S_IFMT == unix.S_IFREG:
		h.add(file.Name, nil, file.Source, st, permissions(st))
		return nil
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("%s is not a regular file or a folder", file.Source)
	}
	opened, err := share.Open(file.Source, false)
	if err != nil {
		return err
	}
	opened.Host = false // even of /
	root := &passedFolder{opened, file.Source}
	h.roots = append(h.roots, root)
	h.add(file.Name, root, ".", st, permissions(st))
	return inRoot(root, h.below(root, ".", file.Name))
}

func stat(path string) (st unix.Stat_t, err error) {
	if err = unix.Stat(path, &st); err != nil {
		err = &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return st, err
}

func permissions(st unix.Stat_t) fs.FileMode { return fs.FileMode(st.Mode) & fs.ModePerm }

// below adds what is below a folder of root's, in the order of names. Links
// stay links: where they may lead is for the programs to decide.
func (h *hostFiles) below(root *passedFolder, folder, inside string) error {
	d, err := root.OpenFolder(folder)
	if err != nil {
		return err
	}
	names, err := d.Readdirnames(-1)
	d.Close()
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		source, inside := path.Join(folder, name), path.Join(inside, name)
		st, err := root.Stat(source, false)
		if err != nil {
			return err
		}
		h.add(inside, root, source, st, permissions(st))
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			if err := h.below(root, source, inside); err != nil {
				return err
			}
		}
	}
	return nil
}

// inRoot names the folder in an error that has only a path below it.
func inRoot(root *passedFolder, err error) error {
	if err != nil && root != nil {
		return fmt.Errorf("%s: %w", root.name, err)
	}
	return err
}

// add adds a file, unless the name is that of the same file already.
func (h *hostFiles) add(name string, root *passedFolder, source string, st unix.Stat_t, perm fs.FileMode) {
	f := copiedFile{
		name: clean(name), root: root, source: source,
		kind: st.Mode & unix.S_IFMT, host: hostFile{device: st.Dev, inode: st.Ino, perm: perm},
	}
	if h.names[f.name] == f.host {
		return
	}
	h.names[f.name] = f.host
	h.links[f.host]++
	h.all = append(h.all, f)
}

// write adds the files to an archive. The data of each is stored once.
func (h *hostFiles) write(a *archive) error {
	inodes := map[hostFile]uint32{}
	if h.init != (hostFile{}) {
		inodes[h.init] = initInode
	}
	for _, f := range h.all {
		var err error
		inode, again := inodes[f.host]
		switch {
		case f.source == "":
			err = a.bytes(f.name, f.data)
		case f.kind == unix.S_IFDIR:
			err = a.directory(f.name)
		case f.kind == unix.S_IFLNK:
			err = copyLink(a, f)
		case f.kind != unix.S_IFREG: // sockets, devices: not to be copied
		case again:
			err = a.hardLink(f.name, uint32(f.host.perm), inode, h.links[f.host])
		default:
			inodes[f.host], err = copyFile(a, f, h.links[f.host])
		}
		if err != nil {
			return inRoot(f.root, err)
		}
	}
	return nil
}

// copyLink copies one below a root: above there are none.
func copyLink(a *archive, f copiedFile) error {
	target, err := f.root.Readlink(f.source)
	if err != nil {
		return err
	}
	return a.symlink(f.name, target)
}

// open doesn't wait if a FIFO has taken the file's place.
func (f copiedFile) open() (r *os.File, err error) {
	if f.root == nil {
		r, _, err = regular.Open(f.source)
		return r, err
	}
	err = regular.Retry(context.Background(), func() (err error) {
		r, err = f.root.OpenFile(f.source, unix.O_RDONLY, 0)
		return err
	})
	return r, err
}

func copyFile(a *archive, f copiedFile, links uint32) (inode uint32, err error) {
	r, err := f.open()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	info, err := r.Stat()
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("%s is no regular file any more", f.source)
	}
	return a.file(f.name, uint32(f.host.perm), links, info.Size(), r)
}
