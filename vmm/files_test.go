package vmm_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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

// A guest works on a folder that it may write, beside one that it may read. The
// operations are those of the program files.
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
		{
			name:       "parts",
			operations: "write a 0123456789 , part a 3 4 , part a 8 100 , part a 10 1 , read-at a 2 3 , read-at a 9 9 , write-at a 4 xy , read a , write-at a 12 z , read a",
			console:    "3456892349" + "0123xy6789" + "0123xy6789\x00\x00z",
			left:       map[string]string{"a": "0123xy6789\x00\x00z"},
		},
		{
			name:       "folders with their parents",
			operations: "mkdir a/b/c , mkdir a/b/c , write a/b/c/x 1 , list a/b , rename a/b d , list d/c , remove d/c/x , remove d/c , remove d , list /",
			console:    "c/\nx\na/\nin/\n",
			left:       map[string]string{},
		},
		{name: "read only", operations: "read in/data , write in/data x", console: "input\n", errno: "30"},
		{name: "exclusive", operations: "create a x , create a y", errno: "17", left: map[string]string{"a": "x"}},
		{name: "not there", operations: "read none", errno: "2"},
		{name: "part of what is not there", operations: "part none 0 1", errno: "2"},
		{name: "stat of what is not there", operations: "stat none", errno: "2"},
		{name: "remove what is not there", operations: "remove none", errno: "2"},
		{name: "rename what is not there", operations: "rename none a", errno: "2"},
		{name: "below a file", operations: "write a x , write a/b y", errno: "20", left: map[string]string{"a": "x"}},
		{name: "list a file", operations: "write a x , list a", errno: "20", left: map[string]string{"a": "x"}},
		{name: "write a folder", operations: "mkdir f , write f x", errno: "21"},
		{name: "folder over a file", operations: "write a x , mkdir a", errno: "17", left: map[string]string{"a": "x"}},
		{name: "long name", operations: "write " + strings.Repeat("n", 256) + " x", errno: "36"},
		{name: "remove the shared folder", operations: "remove /", errno: "16"},
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

// What a guest is told about a file is what the host knows.
func TestFileInfo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	if err := os.WriteFile(path, make([]byte, 12345), 0o640); err != nil {
		t.Fatal(err)
	}
	when := time.Unix(1234567890, 0)
	if err := errors.Join(os.Chtimes(path, when, when), os.Chmod(path, 0o640), os.Mkdir(filepath.Join(dir, "f"), 0o700)); err != nil {
		t.Fatal(err)
	}
	g := vmmtest.Boot(t, vmm.Config{
		Image: vmmtest.Image(t, "files"), Args: strings.Fields("stat a , stat-open a , stat f"), Share: openShare(t, dir, false),
	})
	code, err := g.Wait()
	want := fmt.Sprintf("12345 1234567890 %d\n", unix.S_IFREG|0o640)
	if lines := strings.SplitAfter(g.Console(), "\n"); code != 0 || err != nil || len(lines) != 4 || lines[0] != want || lines[1] != want ||
		!strings.HasSuffix(lines[2], fmt.Sprintf(" %d\n", unix.S_IFDIR|0o700)) {
		t.Errorf("the guest ended with %d, %v, and printed %q, want %q twice and a folder's", code, err, lines, want)
	}
}

// More names than an answer holds come page by page, each once and in order.
func TestLongList(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var want strings.Builder
	for i := range 700 {
		name := fmt.Sprintf("%04d-%s", i, strings.Repeat("n", i%40))
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		want.WriteString(name + "\n")
	}
	g := vmmtest.Boot(t, vmm.Config{Image: vmmtest.Image(t, "files"), Args: []string{"list", "/"}, Share: openShare(t, dir, false)})
	if code, err := g.Wait(); code != 0 || err != nil || g.Console() != want.String() {
		t.Errorf("the guest ended with %d, %v, and printed %d bytes of names, want %d", code, err, len(g.Console()), want.Len())
	}
}

// Many threads of a guest share a pipe. The answer to one of them takes many
// frames, and the others don't wait for its end.
func TestFileBurst(t *testing.T) {
	t.Parallel()
	for _, cpus := range []int{1, 3} {
		t.Run(fmt.Sprint(cpus, " CPUs"), func(t *testing.T) {
			t.Parallel()
			dir, text := t.TempDir(), string(content(9, 1<<20))
			if err := os.WriteFile(filepath.Join(dir, "data"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			g := vmmtest.Boot(t, vmm.Config{
				Image: vmmtest.Image(t, "files"), Args: []string{"burst", "data", "100", "copy"}, CPUs: cpus, Share: openShare(t, dir, true),
			})
			if code, err := g.Wait(); code != 0 || err != nil {
				t.Fatalf("the guest ended with %d, %v", code, err)
			}
			if got := tree(t, dir)["copy"]; got != text {
				t.Errorf("the copy has %d bytes, and not the file's %d", len(got), len(text))
			}
			if found := regexp.MustCompile(`100 answers, (\d+) of them before`).FindStringSubmatch(g.Log()); found == nil || found[1] == "0" {
				t.Errorf("the answers came in the order of the requests:\n%s", g.Log())
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
