package emulated

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// loaderCache says where the loader of glibc finds libraries.
const loaderCache = "/etc/ld.so.cache"

// loaderName is that of a dynamic loader, which this package runs: a program
// may name any file as its own.
var loaderName = regexp.MustCompile(`^/(usr/)?lib(32|64|x32)?/([\w-]+/)?ld-(linux|musl)[\w.-]*$`)

// A line that a loader prints with --list: NAME => FILE (ADDRESS).
var libraryLine = regexp.MustCompile(`(?m)=> (/.+) \(0x[0-9a-f]+\)$`)

// libraries are the files that a dynamically linked program needs, each to be
// passed in where it lies; a static one needs none.
func libraries(program string) ([]string, error) {
	loader, err := interpreter(program)
	if err != nil || loader == "" {
		return nil, err
	}
	if !loaderName.MatchString(loader) {
		return nil, fmt.Errorf("%s wants to be loaded by %s, which is no dynamic loader that is known here: link it statically", program, loader)
	}
	absolute, err := filepath.Abs(program)
	if err != nil {
		return nil, err
	}
	out, err := exec.CommandContext(context.Background(), loader, "--list", absolute).Output()
	if err != nil {
		var failed *exec.ExitError
		if errors.As(err, &failed) {
			err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(failed.Stderr))
		}
		return nil, fmt.Errorf("find the libraries of %s, which is dynamically linked (CGO_ENABLED=0 builds a static one): %w", program, err)
	}
	files := []string{loader}
	for _, m := range libraryLine.FindAllSubmatch(out, -1) {
		files = append(files, string(m[1]))
	}
	if _, err := os.Stat(loaderCache); err == nil {
		files = append(files, loaderCache)
	}
	return files, nil
}

// interpreter is the dynamic loader that a program names, "" if it is static.
func interpreter(program string) (string, error) {
	f, err := elf.Open(program)
	if path := (*fs.PathError)(nil); errors.As(err, &path) {
		return "", err
	}
	if err != nil {
		return "", fmt.Errorf("%s is no ELF program: %w", program, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		name, err := io.ReadAll(io.LimitReader(p.Open(), 4096))
		if err != nil {
			return "", fmt.Errorf("read the dynamic loader's name of %s: %w", program, err)
		}
		if loader := strings.TrimRight(string(name), "\x00"); loader != "" {
			return loader, nil
		}
		return "", fmt.Errorf("%s is dynamically linked, but names no dynamic loader", program)
	}
	return "", nil
}
