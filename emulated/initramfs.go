package emulated

import (
	"bytes"
	"debug/elf"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
)

// writeInitramfs writes everything the machine starts with: init, the modules,
// the plan, the programs and the caller's files. A host file is stored once,
// whatever number of names it has.
func writeInitramfs(w io.Writer, init string, modules []module, p plan, cfg Config) error {
	a := newArchive(w)
	first := map[string]string{}   // host file → name inside
	sources := map[string]string{} // name inside → host file
	add := func(name, source string, perm uint32) error {
		source, err := filepath.Abs(source)
		if err != nil {
			return err
		}
		name = clean(name)
		if sources[name] == source {
			return nil
		}
		sources[name] = source
		if target, ok := first[source]; ok {
			return a.symlink(name, "/"+target)
		}
		first[source] = name
		return addFile(a, name, source, perm)
	}
	if err := add("init", init, 0o755); err != nil {
		return err
	}
	for i, m := range modules {
		if err := a.file(p.Modules[i], 0o644, int64(len(m.data)), bytes.NewReader(m.data)); err != nil {
			return err
		}
	}
	data, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if err := a.file(planName, 0o644, int64(len(data)), bytes.NewReader(data)); err != nil {
		return err
	}
	hosts := "127.0.0.1 localhost\n::1 localhost\n"
	if err := a.file("etc/hosts", 0o644, int64(len(hosts)), bytes.NewReader([]byte(hosts))); err != nil {
		return err
	}
	if cfg.Outbound {
		resolve := "nameserver " + nameServer + "\n"
		if err := a.file("etc/resolv.conf", 0o644, int64(len(resolve)), bytes.NewReader([]byte(resolve))); err != nil {
			return err
		}
	}
	for i, program := range cfg.Programs {
		if err := checkStatic(program.Path); err != nil {
			return err
		}
		if err := a.directory(p.Programs[i].Dir); err != nil {
			return err
		}
		if err := add(p.Programs[i].Path, program.Path, 0o755); err != nil {
			return err
		}
	}
	for _, file := range cfg.Files {
		if err := addTree(a, add, file); err != nil {
			return err
		}
	}
	return a.close()
}

// addTree adds a file, or a folder with everything below it.
func addTree(a *archive, add func(name, source string, perm uint32) error, file File) error {
	return filepath.WalkDir(file.Source, func(source string, d fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("pass a file in: %w", err)
		}
		below, err := filepath.Rel(file.Source, source)
		if err != nil {
			return err
		}
		name := path.Join(file.Name, filepath.ToSlash(below))
		info, err := os.Stat(source)
		switch {
		case err != nil:
			return fmt.Errorf("pass a file in: %w", err)
		case d.IsDir():
			return a.directory(name)
		case !info.Mode().IsRegular():
			return fmt.Errorf("pass a file in: %s is not a regular file or a folder", source)
		}
		return add(name, source, uint32(info.Mode().Perm()))
	})
}

func addFile(a *archive, name, source string, perm uint32) error {
	f, err := os.Open(source)
	if err != nil {
		return fmt.Errorf("pass a file in: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("pass a file in: %w", err)
	}
	return a.file(name, perm, info.Size(), f)
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
