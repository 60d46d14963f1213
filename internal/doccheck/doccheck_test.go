package doccheck

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	// file is a path in a code span. Those that begin with a dot, or have no
	// folder, are a user's.
	file = regexp.MustCompile("`(\\w[\\w-]*/(?:[\\w-]+/)*[\\w.-]+\\.(?:go|c|h|S|md|toml))`")
	// function is the name behind a file in a code span.
	function = regexp.MustCompile("`((?:[\\w-]+/)+[\\w-]+\\.go)`,\\s+`(?:\\w+\\.)?(\\w+)`")
	link     = regexp.MustCompile(`\]\(([^)#:\s]+)(?:#[^)]*)?\)`)
)

func documents(t *testing.T) (root string, pages map[string]string) {
	root = filepath.Join("..", "..")
	if _, err := os.Stat(filepath.Join(root, "README.md")); err != nil {
		t.Skip("needs the module's sources: run it from a clone")
	}
	paths, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no page in docs: %v", err)
	}
	pages = make(map[string]string)
	for _, p := range append(paths, filepath.Join(root, "README.md"), filepath.Join(root, "PROTOCOL.md")) {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		pages[p] = string(b)
	}
	return root, pages
}

func TestFilesAreThere(t *testing.T) {
	t.Parallel()
	root, pages := documents(t)
	seen := 0
	for page, text := range pages {
		for _, m := range file.FindAllStringSubmatch(text, -1) {
			seen++
			if _, err := os.Stat(filepath.Join(root, m[1])); err != nil {
				t.Errorf("%s names %s: %v", page, m[1], err)
			}
		}
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			seen++
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), m[1])); err != nil {
				t.Errorf("%s links to %s: %v", page, m[1], err)
			}
		}
	}
	if seen < 50 {
		t.Errorf("only %d files are named", seen)
	}
}

// A function whose file stands before it is in that file.
func TestFunctionsAreThere(t *testing.T) {
	t.Parallel()
	root, pages := documents(t)
	seen := 0
	for page, text := range pages {
		for _, m := range function.FindAllStringSubmatch(text, -1) {
			source, err := os.ReadFile(filepath.Join(root, m[1]))
			if err != nil {
				continue // TestFilesAreThere says so
			}
			seen++
			defined := regexp.MustCompile(`(?m)^func (?:\([^)]*\) )?` + m[2] + `\b`)
			if !defined.Match(source) {
				t.Errorf("%s says that %s has a function %s", page, m[1], m[2])
			}
		}
	}
	if !strings.Contains(pages[filepath.Join(root, "docs", "reading.md")], "stops") || seen < 10 {
		t.Errorf("only %d functions are named", seen)
	}
}
