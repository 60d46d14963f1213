package main

import (
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// go install takes a module only if all its files' names are possible on every
// system: no device of Windows, and no character that some system refuses.
func TestModuleFileNames(t *testing.T) {
	t.Parallel()
	reserved := []string{"con", "prn", "aux", "nul"}
	for n := '1'; n <= '9'; n++ {
		reserved = append(reserved, "com"+string(n), "lpt"+string(n))
	}
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if name == ".git" || name == "bin" && d.IsDir() {
			return filepath.SkipDir
		}
		short, _, _ := strings.Cut(strings.ToLower(name), ".")
		odd := strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r > '~' || strings.ContainsRune("\"'*<>?`|/\\:", r) })
		if name != ".." && (slices.Contains(reserved, short) || odd || strings.HasSuffix(name, ".")) {
			t.Errorf("%s can't be in a module", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
