package emulated

import (
	"debug/elf"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"syscall"
)

// writeInitramfs writes everything the machine starts with: init, the modules,
// the plan, the programs and the caller's files.
func writeInitramfs(w io.Writer, init string, modules []module, p plan, cfg Config) error {
	a := newArchive(w)
	c := copier{a: a, inodes: map[hostFile]uint32{}, names: map[string]hostFile{}}
	if err := c.program("init", init); err != nil {
		return err
	}
	for i, m := range modules {
		if err := a.bytes(p.Modules[i], m.data); err != nil {
			return err
		}
	}
	data, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if err := a.bytes(planName, data); err != nil {
		return err
	}
	hosts := "127.0.0.1 localhost\n::1 localhost\n"
	if err := a.bytes("etc/hosts", []byte(hosts)); err != nil {
		return err
	}
	if cfg.Outbound {
		resolve := "nameserver " + nameServer + "\n"
		if err := a.bytes("etc/resolv.conf", []byte(resolve)); err != nil {
			return err
		}
	}
	for i, program := range cfg.Programs {
		if err := checkStatic(program.Path); err != nil {
			return err
		}
		if err := a.directory(string(p.Programs[i].Dir)); err != nil {
			return err
		}
		if err := c.program(string(p.Programs[i].Path), program.Path); err != nil {
			return err
		}
	}
	for _, file := range cfg.Files {
		if err := c.tree(file); err != nil {
			return err
		}
	}
	return a.close()
}

// hostFile tells files of the host apart. Names with other permissions can't share one inside.
type hostFile struct {
	device, inode uint64
	perm          fs.FileMode
}

// copier copies the host's files. A file is stored once, whatever number of names it has.
type copier struct {
	a      *archive
	inodes map[hostFile]uint32 // inside
	names  map[string]hostFile // inside
}

func (c *copier) program(name, source string) error {
	if err := c.file(name, source, 0o755); err != nil {
		return fmt.Errorf("pass a program in: %w", err)
	}
	return nil
}

// tree adds a file, or a folder with everything below it that is a file, a folder or a link. Links below it stay links: where they may lead is for
// the programs to decide.
func (c *copier) tree(file File) error {
	source, err := filepath.EvalSymlinks(file.Source)
	if err != nil {
		return fmt.Errorf("pass a file in: %w", err)
	}
	info, err := os.Stat(source)
	if err != nil {
		return fmt.Errorf("pass a file in: %w", err)
	}
	if !info.IsDir() && !info.Mode().IsRegular() {
		return fmt.Errorf("pass a file in: %s is not a regular file or a folder", file.Source)
	}
	err = filepath.WalkDir(source, func(found string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		below, err := filepath.Rel(source, found)
		if err != nil {
			return err
		}
		return c.entry(path.Join(file.Name, filepath.ToSlash(below)), found, d)
	})
	if err != nil {
		return fmt.Errorf("pass a file in: %w", err)
	}
	return nil
}

func (c *copier) entry(name, source string, d fs.DirEntry) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	switch d.Type() {
	case fs.ModeDir:
		return c.a.directory(name)
	case fs.ModeSymlink:
		target, err := os.Readlink(source)
		if err != nil || !c.claim(name, identify(info, 0)) {
			return err
		}
		return c.a.symlink(name, target)
	case 0:
		return c.file(name, source, info.Mode().Perm())
	}
	return nil
}

func (c *copier) file(name, source string, perm fs.FileMode) error {
	f, err := os.Open(source)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	host := identify(info, perm)
	if !c.claim(name, host) {
		return nil
	}
	if inode, ok := c.inodes[host]; ok {
		return c.a.hardLink(name, uint32(perm), inode)
	}
	c.inodes[host], err = c.a.file(name, uint32(perm), info.Size(), f)
	return err
}

// claim reports false if the name is that of the same file already.
func (c *copier) claim(name string, host hostFile) bool {
	name = clean(name)
	if c.names[name] == host {
		return false
	}
	c.names[name] = host
	return true
}

func identify(info fs.FileInfo, perm fs.FileMode) hostFile {
	stat := info.Sys().(*syscall.Stat_t)
	return hostFile{device: uint64(stat.Dev), inode: stat.Ino, perm: perm}
}

// checkStatic refuses a program that needs a dynamic linker: there is none.
func checkStatic(file string) error {
	f, err := elf.Open(file)
	if err != nil {
		return fmt.Errorf("%s is no ELF program: %w", file, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is dynamically linked and cannot run in the emulated machine: build it with CGO_ENABLED=0 (C: -static)", file)
		}
	}
	return nil
}
