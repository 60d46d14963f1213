package emulated

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestLibraries(t *testing.T) {
	t.Parallel()
	shell, err := exec.LookPath("sh")
	must(t, err)
	loader, err := interpreter(shell)
	must(t, err)
	if loader == "" {
		t.Skip("the shell is static: no program here needs libraries")
	}
	files, err := libraries(shell)
	must(t, err)
	if !slices.Contains(files, loader) {
		t.Errorf("%q lacks the loader %s", files, loader)
	}
	for _, file := range files {
		if _, err := os.Stat(file); err != nil {
			t.Error(err)
		}
	}
	got := entriesOf(t, shell, nil, Config{Programs: []Program{{Path: shell}, {Path: shell, Name: "/bin/again"}}})
	for _, file := range files {
		if got[clean(file)].Data == "" {
			t.Errorf("%s isn't passed in", file)
		}
	}
}

// What can't be run inside is refused before anything boots.
func TestLibrariesRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, test := range map[string]struct {
		file []byte
		want string
	}{
		"text":        {[]byte("#!/bin/sh\n"), "no ELF program"},
		"odd loader":  {makeELF(t, nil, filepath.Join(dir, "run-me")+"\x00"), "statically"},
		"no loader":   {makeELF(t, nil, "\x00"), "names no dynamic loader"},
		"none inside": {makeELF(t, nil, "/lib64/ld-linux-none.so.9\x00"), "CGO_ENABLED=0"},
	} {
		file := filepath.Join(dir, name)
		must(t, os.WriteFile(file, test.file, 0o755))
		if err := newHostFiles().program("bin/x", file); !errors.Is(err, ErrProgram) {
			t.Errorf("%s: %v", name, err)
		}
		if files, err := libraries(file); err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %q, %v, want an error that says %q", name, files, err, test.want)
		}
	}
}
