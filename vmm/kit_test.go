package vmm_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fix-project/arcavm/vmm"
	"github.com/fix-project/arcavm/vmm/image"
	"github.com/fix-project/arcavm/vmm/vmmtest"
)

// A guest from outside the repository, in a folder of its own: two files, a
// header, a path with a space, what the compiler is to know.
var ownGuest = map[string]string{
	"main.c": "#include <kernel/kernel.h>\n#include <proto/tcp.h>\n#include \"own.h\"\n\n" +
		"int program_main(void) {\n\tstruct endpoint e;\n" +
		"\tlog(LOG_INFO, \"own guest\");\n\treturn endpoint_parse(arg(1), &e, NULL) ? 64 : twice(WORD);\n}\n",
	"part two/own.h": "int twice(int n);\n",
	"part two/own.c": "#include \"own.h\"\n\nint twice(int n) { return 2 * n; }\n",
	"broken.c":       "int program_main(void) { return missing; }\n",
}

func TestGuestKit(t *testing.T) {
	t.Parallel()
	for _, tool := range []string{"make", "gcc", "ld", "ar"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("a guest is built by %s: apt-get install make gcc", tool)
		}
	}
	kit, err := filepath.Abs("../testdata/guest")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(kit); err != nil {
		t.Skip("needs the guest's sources: run it from a clone")
	}
	dir := filepath.Join(t.TempDir(), "a guest")
	for name, text := range ownGuest {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	build := "BUILD=" + t.TempDir() // the clone may be read-only
	run := func(args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "MAKEFLAGS=", "PWD="+dir)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	mustRun := func(args ...string) {
		t.Helper()
		if out, err := run(args...); err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
	}
	mustRun("make", "-s", "-C", kit, build, "program", "SRC=main.c 'part two/own.c'", "OUT=by make", "CFLAGS=-DWORD=21 -I'part two'")
	mustRun("make", "-s", "-C", kit, build, "install-sdk", "PREFIX=an sdk")
	mustRun("an sdk/bin/arcavm-cc", "-g", "-O0", "-DWORD=21", "-Ipart two", "-c", "-o", "main.o", "main.c")
	mustRun("an sdk/bin/arcavm-cc", "-o", "by arcavm-cc", "main.o", "part two/own.c")

	for want, args := range map[string][]string{
		"missing":                      {"an sdk/bin/arcavm-cc", "-o", "none", "broken.c"},
		"No such file":                 {"make", "-s", "-C", kit, build, "program", "SRC=none.c", "OUT=none"},
		"usage: make program":          {"make", "-s", "-C", kit, build, "program"},
		"usage: make install-sdk":      {"make", "-s", "-C", kit, build, "install-sdk"},
		"make install-sdk PREFIX=":     {kit + "/arcavm-cc", "-o", "none", "main.c"},
		"there is no /absent/compiler": {"env", "CC=/absent/compiler", "an sdk/bin/arcavm-cc", "-o", "none", "main.c"},
	} {
		if out, err := run(args...); err == nil || !strings.Contains(out, want) {
			t.Errorf("%q: %v and %q, want an error that says %q", args, err, out, want)
		}
		if _, err := os.Stat(filepath.Join(dir, "none")); err == nil {
			t.Errorf("%q: there is an image", args)
		}
	}
	for _, name := range []string{"by make", "by arcavm-cc"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			img, err := image.Open(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			defer img.Close()
			g := vmmtest.Boot(t, vmm.Config{Image: img, Args: []string{"127.0.0.1:1"}})
			g.WaitLog("own guest")
			if code, err := g.Wait(); code != 42 || err != nil {
				t.Errorf("the guest ended with %d, %v", code, err)
			}
		})
	}
}
