package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Folders are shared under names, each to read only unless it says otherwise.
func TestShares(t *testing.T) {
	t.Parallel()
	needKVM(t)
	in, out := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(in, "data"), []byte("input\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(operations string) result {
		args := []string{"run", "--share", in, "--share", "out=" + out + ":rw", imageFile(t, "files")}
		return asProcess(t, append(args, strings.Fields(operations)...)...)
	}
	got := run("list / , read data , mkdir out/a/b , write out/a/b/text from-the-guest , list out/a")
	if want := "data\nout/\ninput\nb/\n"; got.code != 0 || got.out != want {
		t.Errorf("code %d, stdout %q, want %q; stderr:\n%s", got.code, got.out, want, got.err)
	}
	if text, err := os.ReadFile(filepath.Join(out, "a/b/text")); err != nil || string(text) != "from-the-guest" {
		t.Errorf("the guest wrote %q, %v", text, err)
	}
	for _, c := range []struct{ operations, errno string }{
		{"write data x", "30"}, {"remove data", "30"}, {"read out/../data", "13"}, {"write out/../../x y", "13"}, {"rename out/a a", "30"},
	} {
		if got := run(c.operations); got.code != 1 || !strings.Contains(got.err, "error "+c.errno) {
			t.Errorf("%s: code %d, want 1 and errno %s; stderr:\n%s", c.operations, got.code, c.errno, got.err)
		}
	}
	if text, err := os.ReadFile(filepath.Join(in, "data")); err != nil || string(text) != "input\n" {
		t.Errorf("what is shared to read has become %q, %v", text, err)
	}
}
