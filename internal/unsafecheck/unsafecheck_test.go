package unsafecheck

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// systemCalls are the functions whose arguments Go keeps in place while they
// run.
var systemCalls = map[string]bool{
	"Syscall": true, "Syscall6": true, "Syscall9": true, "RawSyscall": true, "RawSyscall6": true, "SyscallNoError": true,
	"RawSyscallNoError": true,
}

func TestModule(t *testing.T) {
	t.Parallel()
	root, err := moduleRoot()
	if err != nil {
		t.Skip("needs the module's sources: run it from a clone")
	}
	files := 0
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			// A file that another process has removed meanwhile needs no check.
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		if d.IsDir() {
			if name := d.Name(); path != root && (strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_")) {
				return fs.SkipDir
			}
			return nil
		}
		if filepath.Ext(path) != ".go" {
			return nil
		}
		source, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		files++
		found, err := check(path, source)
		if err != nil {
			return err
		}
		for _, f := range found {
			t.Error(f)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files == 0 {
		t.Error("found no Go file")
	}
}

func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", fs.ErrNotExist
		}
		dir = up
	}
}

// check returns what breaks the rule in one file.
func check(path string, source []byte) ([]string, error) {
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, path, source, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	var found []string
	report := func(n ast.Node, format string, args ...any) {
		found = append(found, fmt.Sprintf("%s: %s", set.Position(n.Pos()), fmt.Sprintf(format, args...)))
	}
	unsafeName := ""
	for _, spec := range file.Imports {
		if p, _ := strconv.Unquote(spec.Path.Value); p != "unsafe" {
			continue
		}
		unsafeName = "unsafe"
		if spec.Name != nil {
			unsafeName = spec.Name.Name
		}
		base := strings.TrimSuffix(strings.TrimSuffix(filepath.Base(path), ".go"), "_test")
		if !strings.HasSuffix(base, "_unsafe") {
			report(spec, "unsafe belongs in a file named *_unsafe.go")
		}
		if unsafeName == "." {
			report(spec, "unsafe must be imported by a name")
		}
	}
	if unsafeName == "" {
		return found, nil
	}

	allowed := map[ast.Expr]bool{}
	ast.Inspect(file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		if isSystemCall(call) {
			for _, arg := range call.Args {
				allowed[ast.Unparen(arg)] = true
			}
		}
		if pointerToNumber(call, unsafeName) && !allowed[call] {
			report(call, "uintptr(unsafe.Pointer(…)) outside a system call's argument list: the object may move or be freed")
		}
		return true
	})
	return found, nil
}

func isSystemCall(call *ast.CallExpr) bool {
	f, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || !systemCalls[f.Sel.Name] {
		return false
	}
	pkg, ok := f.X.(*ast.Ident)
	return ok && (pkg.Name == "unix" || pkg.Name == "syscall")
}

// pointerToNumber reports whether a call is uintptr(unsafe.Pointer(…)), or
// uintptr of what unsafe.Add and the like return.
func pointerToNumber(call *ast.CallExpr, unsafeName string) bool {
	if f, ok := ast.Unparen(call.Fun).(*ast.Ident); !ok || f.Name != "uintptr" || len(call.Args) != 1 {
		return false
	}
	inner, ok := ast.Unparen(call.Args[0]).(*ast.CallExpr)
	if !ok {
		return false
	}
	f, ok := ast.Unparen(inner.Fun).(*ast.SelectorExpr)
	if !ok || !slices.Contains([]string{"Pointer", "Add", "SliceData", "StringData"}, f.Sel.Name) {
		return false
	}
	pkg, ok := f.X.(*ast.Ident)
	return ok && pkg.Name == unsafeName
}

func TestCheck(t *testing.T) {
	t.Parallel()
	const imports = "package p\nimport (\"unsafe\"; \"golang.org/x/sys/unix\")\nvar x int\n"
	for _, test := range []struct {
		name, path, source string
		want               int
	}{
		{"inside a system call", "a_unsafe.go",
			imports + "func f() { unix.Syscall(1, 2, 3, uintptr(unsafe.Pointer(&x))) }", 0},
		{"in parentheses inside a system call", "a_unsafe.go",
			imports + "func f() { unix.Syscall(1, 2, 3, (uintptr(unsafe.Pointer(&x)))) }", 0},
		{"in a variable", "a_unsafe.go",
			imports + "func f() { p := uintptr(unsafe.Pointer(&x)); unix.Syscall(1, 2, 3, p) }", 1},
		{"as another function's argument", "a_unsafe.go",
			imports + "func f() { ioctl(1, uintptr(unsafe.Pointer(&x))) }", 1},
		{"inside an expression that is the argument", "a_unsafe.go",
			imports + "func f() { unix.Syscall(1, 2, 3, 8+uintptr(unsafe.Pointer(&x))) }", 1},
		{"from unsafe.Add", "a_unsafe.go",
			imports + "var p = uintptr(unsafe.Add(unsafe.Pointer(&x), 1))", 1},
		{"in a file with another name", "a.go",
			imports + "var s = unsafe.Sizeof(x)", 1},
		{"in a test file", "a_unsafe_test.go",
			imports + "var s = unsafe.Sizeof(x)", 0},
		{"under another name", "a_unsafe.go",
			"package p\nimport u \"unsafe\"\nvar x int\nvar p = uintptr(u.Pointer(&x))", 1},
		{"no unsafe", "a.go", "package p\nfunc f(x int) uintptr { return uintptr(x) }", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			found, err := check(test.path, []byte(test.source))
			if err != nil {
				t.Fatal(err)
			}
			if len(found) != test.want {
				t.Errorf("found %q, want %d", found, test.want)
			}
		})
	}
}
