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
	files, err := findFiles(init, p, cfg)
	if err != nil {
		return err
	}
	a := newArchive(w)
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
	for _, program := range p.Programs {
		if err := a.directory(string(program.Dir)); err != nil {
			return err
		}
	}
	if err := files.write(a); err != nil {
		return fmt.Errorf("pass a file in: %w", err)
	}
	return a.close()
}

// hostFile tells files of the host apart. Names with other permissions can't share one inside.
type hostFile struct {
	device, inode uint64
	perm          fs.FileMode
}

// copiedFile is a file, a folder or a link of the host's to copy.
type copiedFile struct {
	name, source string
	kind         fs.FileMode
	host         hostFile
}

// hostFiles are those to copy.
type hostFiles struct {
	all   []copiedFile
	names map[string]hostFile
	links map[hostFile]uint32 // how many names each has inside
}

func findFiles(init string, p plan, cfg Config) (*hostFiles, error) {
	h := &hostFiles{names: map[string]hostFile{}, links: map[hostFile]uint32{}}
	if err := h.program("init", init); err != nil {
		return nil, err
	}
	for i, program := range cfg.Programs {
		if err := checkStatic(program.Path); err != nil {
			return nil, err
		}
		if err := h.program(string(p.Programs[i].Path), program.Path); err != nil {
			return nil, err
		}
	}
	for _, file := range cfg.Files {
		if err := h.tree(file); err != nil {
			return nil, fmt.Errorf("pass a file in: %w", err)
		}
	}
	return h, nil
}

func (h *hostFiles) program(name, source string) error {
	info, err := os.Stat(source)
	if err != nil {
		return fmt.Errorf("pass a program in: %w", err)
	}
	h.add(name, source, info, 0o755)
	return nil
}

// tree adds a file, or a folder with everything below it that is a file, a folder or a link. Links below it stay links: where they may lead is for
// the programs to decide.
func (h *hostFiles) tree(file File) error {
	top, err := filepath.EvalSymlinks(file.Source)
	if err != nil {
		return err
	}
	info, err := os.Stat(top)
	if err != nil {
		return err
	}
	if !info.IsDir() && !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file or a folder", file.Source)
	}
	return filepath.WalkDir(top, func(source string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		below, err := filepath.Rel(top, source)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		h.add(path.Join(file.Name, filepath.ToSlash(below)), source, info, info.Mode().Perm())
		return nil
	})
}

// add adds a file, unless the name is that of the same file already.
func (h *hostFiles) add(name, source string, info fs.FileInfo, perm fs.FileMode) {
	stat := info.Sys().(*syscall.Stat_t)
	f := copiedFile{clean(name), source, info.Mode().Type(), hostFile{device: stat.Dev, inode: stat.Ino, perm: perm}}
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
	for _, f := range h.all {
		var err error
		inode, again := inodes[f.host]
		switch {
		case f.kind == fs.ModeDir:
			err = a.directory(f.name)
		case f.kind == fs.ModeSymlink:
			err = copyLink(a, f)
		case f.kind != 0: // what else there is has no place in a copy
		case again:
			err = a.hardLink(f.name, uint32(f.host.perm), inode, h.links[f.host])
		default:
			inodes[f.host], err = copyFile(a, f, h.links[f.host])
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func copyLink(a *archive, f copiedFile) error {
	target, err := os.Readlink(f.source)
	if err != nil {
		return err
	}
	return a.symlink(f.name, target)
}

func copyFile(a *archive, f copiedFile, links uint32) (inode uint32, err error) {
	r, err := os.Open(f.source)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	info, err := r.Stat()
	if err != nil {
		return 0, err
	}
	return a.file(f.name, uint32(f.host.perm), links, info.Size(), r)
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
