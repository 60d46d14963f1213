package vmm_test

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fix-project/arcavm/share"
	"github.com/fix-project/arcavm/vmm"
	"github.com/fix-project/arcavm/vmm/vmmtest"
)

func openShare(t *testing.T, dir string, writable bool) share.Share {
	t.Helper()
	s, err := share.Open(dir, writable)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// A guest works on a folder that it may write, beside one that it may read; the operations are those of the program files.
func TestFiles(t *testing.T) {
	t.Parallel()
	in := t.TempDir()
	if err := os.WriteFile(filepath.Join(in, "data"), []byte("input\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, operations, console string
		errno                     string // of the last operation; "" if all succeed
		left                      map[string]string
	}{
		{
			name:       "write and read",
			operations: "write a one , read a , append a two , read a , write a three , read a",
			console:    "oneonetwothree",
			left:       map[string]string{"a": "three"},
		},
		{
			name:       "folders",
			operations: "mkdir f/g , write f/g/b x , write f/a y , list / , list f , rename f/g/b f/c , remove f/g , list f , remove f/a",
			console:    "f/\nin/\na\ng/\na\nc\n",
			left:       map[string]string{"f/c": "x"},
		},
		{
			name:       "truncate",
			operations: "write a 0123456789 , truncate a 4 , read a , truncate a 6 , read a",
			console:    "01230123\x00\x00",
			left:       map[string]string{"a": "0123\x00\x00"},
		},
		{name: "read only", operations: "read in/data , write in/data x", console: "input\n", errno: "30"},
		{name: "exclusive", operations: "create a x , create a y", errno: "17", left: map[string]string{"a": "x"}},
		{name: "not there", operations: "read none", errno: "2"},
		{name: "not empty", operations: "mkdir f , write f/a x , remove f", errno: "39", left: map[string]string{"f/a": "x"}},
		{name: "out", operations: "write ../out x", errno: "13"},
		{name: "from one to another", operations: "write a x , rename a in/a", errno: "30", left: map[string]string{"a": "x"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := openShare(t, dir, true)
			s.Named = map[string]share.Share{"in": openShare(t, in, false)}
			g := vmmtest.Boot(t, vmm.Config{Image: vmmtest.Image(t, "files"), Args: strings.Fields(c.operations), Share: s})
			code, err := g.Wait()
			want := 0
			if c.errno != "" {
				want = 1
			}
			if code != want || err != nil || g.Console() != c.console {
				t.Errorf("the guest ended with %d, %v, and printed %q; want %d and %q", code, err, g.Console(), want, c.console)
			}
			if c.errno != "" && !strings.Contains(g.Log(), "error "+c.errno) {
				t.Errorf("no errno %s in the log:\n%s", c.errno, g.Log())
			}
			if got := tree(t, dir); !maps.Equal(got, c.left) {
				t.Errorf("left are %q, want %q", got, c.left)
			}
		})
	}
}

// tree returns the files below dir and what they hold.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		files[strings.TrimPrefix(path, dir+"/")] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
