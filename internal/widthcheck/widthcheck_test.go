package widthcheck

import (
	"fmt"
	"go/scanner"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"
)

const (
	maxProse    = 80  // columns of a comment's line, and of Markdown
	maxTrailing = 100 // columns of a line of code with a comment behind it
	maxCell     = 120 // characters of a cell in a Markdown table
	tab         = 4   // columns
)

func TestModule(t *testing.T) {
	t.Parallel()
	root, err := moduleRoot()
	if err != nil {
		t.Skip("needs the module's sources: run it from a clone")
	}
	files := 0
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			return wanted(root, path, d.Name())
		case !d.Type().IsRegular():
			return nil
		}
		check := checkOf(path)
		if check == nil {
			return nil
		}
		files++
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, f := range check(string(source)) {
			t.Errorf("%s:%s", path, f)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 100 {
		t.Errorf("only %d files were found", files)
	}
}

func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	root := filepath.Join(dir, "..", "..")
	_, err = os.Stat(filepath.Join(root, "go.mod"))
	return root, err
}

// wanted skips what holds no sources of the module's own.
func wanted(root, path, name string) error {
	if path != root && (strings.HasPrefix(name, ".") || name == "build" || name == "images") {
		return fs.SkipDir
	}
	return nil
}

// checkOf returns what checks a file, nil if nothing does.
func checkOf(path string) func(source string) []string {
	switch filepath.Ext(path) {
	case ".go":
		return checkGo
	case ".c", ".h", ".S", ".s", ".ld":
		return checkC
	case ".md":
		return checkMarkdown
	case ".sh", ".yml", ".toml", ".mod":
		return checkHash
	}
	switch filepath.Base(path) {
	case "Makefile", "run", "arcavm-cc", "as-user", "without-kvm", ".gitignore":
		return checkHash
	}
	return nil
}

func columns(line string) int {
	return utf8.RuneCountInString(line) + (tab-1)*strings.Count(line, "\t")
}

// unbreakable is a line that can't be made shorter: one word, such as an
// address, behind the comment's marker, or a directive.
var unbreakable = regexp.MustCompile(`^\s*(//|/?\*|#|[-*]|\d+\.)?\s*\S+$|^//(go:|nolint|export )`)

func tooWide(number int, line string, limit int) []string {
	n := columns(line)
	if n <= limit || unbreakable.MatchString(line) {
		return nil
	}
	return []string{fmt.Sprintf("%d: %d columns, at most %d", number, n, limit)}
}

// checkGo checks the lines on which a comment is.
func checkGo(source string) (found []string) {
	files := token.NewFileSet()
	file := files.AddFile("", -1, len(source))
	var s scanner.Scanner
	s.Init(file, []byte(source), nil, scanner.ScanComments)
	lines := strings.Split(source, "\n")
	for {
		pos, tok, text := s.Scan()
		if tok == token.EOF {
			return found
		}
		if tok != token.COMMENT {
			continue
		}
		first := file.Line(pos)
		limit := maxProse
		if !strings.HasPrefix(strings.TrimSpace(lines[first-1]), "/") {
			limit = maxTrailing
		}
		for i := range strings.Split(text, "\n") {
			found = append(found, tooWide(first+i, lines[first-1+i], limit)...)
			limit = maxProse
		}
	}
}

// checkC checks lines of C, assembly and linker scripts that begin with a
// comment or go on with one.
func checkC(source string) (found []string) {
	inside := false
	for i, line := range strings.Split(source, "\n") {
		s := strings.TrimSpace(line)
		begins := strings.HasPrefix(s, "/*") || strings.HasPrefix(s, "//") || strings.HasPrefix(s, "# ")
		switch {
		case inside || begins:
			found = append(found, tooWide(i+1, line, maxProse)...)
		case strings.Contains(s, "/*"):
			found = append(found, tooWide(i+1, line, maxTrailing)...)
		}
		if open, end := strings.LastIndex(s, "/*"), strings.LastIndex(s, "*/"); open >= 0 || end >= 0 {
			inside = open > end
		}
	}
	return found
}

// checkHash checks lines that are a comment behind a number sign.
func checkHash(source string) (found []string) {
	for i, line := range strings.Split(source, "\n") {
		if strings.HasPrefix(strings.TrimSpace(line), "#") {
			found = append(found, tooWide(i+1, line, maxProse)...)
		}
	}
	return found
}

// checkMarkdown checks prose, and the cells of tables. What stands between
// fences is code.
func checkMarkdown(source string) (found []string) {
	fenced := false
	for i, line := range strings.Split(source, "\n") {
		s := strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(s, "```"):
			fenced = !fenced
		case fenced:
			found = append(found, tooWide(i+1, line, maxTrailing)...)
		case strings.HasPrefix(s, "|"):
			found = append(found, wideCells(i+1, s)...)
		default:
			found = append(found, tooWide(i+1, line, maxProse)...)
		}
	}
	return found
}

func wideCells(number int, row string) (found []string) {
	row = strings.ReplaceAll(row, `\|`, "¦")
	for cell := range strings.SplitSeq(row, "|") {
		if n := utf8.RuneCountInString(strings.TrimSpace(cell)); n > maxCell {
			found = append(found, fmt.Sprintf("%d: a cell of %d characters, at most %d", number, n, maxCell))
		}
	}
	return found
}

func TestChecks(t *testing.T) {
	t.Parallel()
	words := func(n int) string { return strings.Repeat("word ", n/5-1) + "words" }
	tests := []struct {
		name, file, source string
		want               int
	}{
		{"narrow", "a.go", "package a // b\n\n// " + words(75) + "\nvar A int\n", 0},
		{"wide", "a.go", "package a\n\n// " + words(80) + "\nvar A int\n", 1},
		{"tabs count", "a.go", "package a\n\nfunc a() {\n\t// " + words(75) + "\n}\n", 1},
		{"several lines", "a.go", "package a\n\n/*\n" + words(85) + "\n" + words(85) + "\n*/\nvar A int\n", 2},
		{"behind code", "a.go", "package a\n\nvar A int // " + words(80) + "\nvar B int // " + words(90) + "\n", 1},
		{"in a string", "a.go", "package a\n\nvar A = \"// " + words(80) + "\"\n", 0},
		{"one word", "a.go", "package a\n\n// " + strings.Repeat("w", 100) + "\nvar A int\n", 0},
		{"directive", "a.go", "//go:build " + words(80) + "\n\npackage a\n", 0},
		{"C", "a.c", "/* " + words(80) + " */\nint a; /* b */\n/*\n * " + words(80) + "\n */\n", 2},
		{"C, behind code", "a.h", "int a; /* " + words(95) + " */\nint " + words(100) + ";\n", 1},
		{"make", "Makefile", "# " + words(80) + "\na: " + words(90) + "\n", 1},
		{"prose", "a.md", words(80) + "\n" + words(85) + "\n", 1},
		{"fenced", "a.md", "```\n" + words(95) + "\n" + words(105) + "\n```\n", 1},
		{"cells", "a.md", "| " + words(120) + " | " + words(125) + " |\n|---|---|\n", 1},
		{"escaped", "a.md", `| a \| ` + words(120) + " |\n", 1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if found := checkOf(test.file)(test.source); len(found) != test.want {
				t.Errorf("%d found, want %d: %v", len(found), test.want, found)
			}
		})
	}
}
