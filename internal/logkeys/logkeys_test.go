package logkeys

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// root is the module's.
const root = "../.."

// TestKeys compares the keys in the sources with the list in the document.
func TestKeys(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		t.Skip("needs the module's sources: run it from a clone")
	}
	documented := listed(t, filepath.Join(root, "docs", "output.md"))
	used := inSources(t)
	for key, places := range used {
		if !documented[key] {
			t.Errorf("%s: docs/output.md doesn't list the key %q", places[0], key)
		}
	}
	for key := range documented {
		if used[key] == nil {
			t.Errorf("docs/output.md lists the key %q, which no record has", key)
		}
	}
	if len(used) < 20 {
		t.Errorf("only %d keys were found", len(used))
	}
}

// row is the beginning of a row of the document's table of keys.
var row = regexp.MustCompile("^\\| `([a-z_]+)` \\|")

// listed returns the keys in the table under the heading "Keys".
func listed(t *testing.T, path string) map[string]bool {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(text), "\n### Keys\n")
	if !ok {
		t.Fatalf("%s has no section Keys", path)
	}
	section, _, _ = strings.Cut(section, "\n#")
	keys := make(map[string]bool)
	for line := range strings.Lines(section) {
		if m := row.FindStringSubmatch(line); m != nil {
			if keys[m[1]] {
				t.Errorf("%s lists %q twice", path, m[1])
			}
			keys[m[1]] = true
		}
	}
	return keys
}

// inSources returns where each key is, in all files but those of tests.
func inSources(t *testing.T) map[string][]string {
	t.Helper()
	keys := make(map[string][]string)
	files := token.NewFileSet()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "build"):
			return fs.SkipDir
		case d.IsDir(), !strings.HasSuffix(path, ".go"), strings.HasSuffix(path, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok {
				for _, key := range keysOf(call) {
					keys[key] = append(keys[key], files.Position(call.Pos()).String())
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// attributes are the functions of package slog whose first argument is a key.
var attributes = []string{"Any", "Bool", "Duration", "Float64", "Group", "Int", "Int64", "String", "Time", "Uint64"}

// loggers are methods whose arguments are a message, and then keys and values.
var loggers = []string{"Debug", "Info", "Warn", "Error", "warn"}

// keysOf returns the keys that a call names.
func keysOf(call *ast.CallExpr) (keys []string) {
	method, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || len(call.Args) == 0 {
		return nil
	}
	from, name := call.Args, method.Sel.Name
	receiver, _ := method.X.(*ast.Ident)
	switch {
	case receiver != nil && receiver.Name == "slog" && slices.Contains(attributes, name):
		from = from[:1]
	case slices.Contains(loggers, name) && isText(from[0]):
		from = from[1:]
	case name == "With":
	default:
		return nil
	}
	for i := 0; i < len(from); i += 2 {
		if key, ok := literal(from[i]); ok {
			keys = append(keys, key)
		}
	}
	return keys
}

// isText reports whether an expression is a string, as far as its form says so.
func isText(e ast.Expr) bool {
	if sum, ok := e.(*ast.BinaryExpr); ok {
		return isText(sum.X) || isText(sum.Y)
	}
	_, ok := literal(e)
	return ok
}

func literal(e ast.Expr) (string, bool) {
	l, ok := e.(*ast.BasicLit)
	if !ok || l.Kind != token.STRING {
		return "", false
	}
	text, err := strconv.Unquote(l.Value)
	return text, err == nil
}

func TestKeysOf(t *testing.T) {
	t.Parallel()
	for source, want := range map[string]string{
		`slog.Any("err", err)`:                                "err",
		`slog.Group("published", slog.Int("port", 1))`:        "published",
		`log.Warn("lost", "err", err, "path", path)`:          "err path",
		`h.warn(op+" refused", "path", path)`:                 "path",
		`s.warn(s.logs.denied, "connect", slog.Int("a", 1))`:  "",
		`log.With("stream", id)`:                              "stream",
		`log.Error("no keys")`:                                "",
		`log.Log(ctx, level, "a sentence", slog.Int("a", 1))`: "",
	} {
		e, err := parser.ParseExpr(source)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(keysOf(e.(*ast.CallExpr)), " "); got != want {
			t.Errorf("%s: %q, want %q", source, got, want)
		}
	}
}
