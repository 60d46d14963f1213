package spec

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/internal/regular"
)

// MaxFile is how many bytes a file may have.
const MaxFile = 1 << 20

// Read reads a description from the TOML file at path, which must be a regular
// one of at most [MaxFile] bytes. Relative paths in it count from its folder.
// Errors are of type *[Error], and name the file and, of what is in it, the
// line.
func Read(path string) (*Spec, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	s, err := Parse(path, data)
	if err != nil {
		return nil, err
	}
	folder := filepath.Dir(path)
	s.eachPath(func(p *string) {
		*p = below(folder, *p)
	})
	return s, nil
}

// below returns path, which counts from folder if it is relative. A path with
// .. in it isn't shortened: after a link, .. isn't the folder that the link is
// in, and only the kernel knows which one it is.
func below(folder, path string) string {
	if !filepath.IsAbs(path) {
		path = folder + "/" + path
	}
	if slices.Contains(strings.Split(path, "/"), "..") {
		return path
	}
	return filepath.Clean(path)
}

func readFile(path string) ([]byte, error) {
	f, info, err := regular.Open(path)
	if err != nil {
		return nil, openError("", err)
	}
	defer f.Close()
	if !info.Mode().IsRegular() {
		return nil, &Error{Where: path, Kind: BadData, Err: errors.New("is not a regular file")}
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err != nil {
		return nil, openError("", err)
	}
	if len(data) > MaxFile {
		return nil, &Error{Where: path, Kind: BadData, Err: fmt.Errorf("has more than %v, too much for a description", Size(MaxFile))}
	}
	return data, nil
}

// openError returns the error of opening or reading a file or folder.
func openError(where string, err error) error {
	kind := Refused
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		kind = Missing
	}
	return &Error{Where: where, Kind: kind, Err: err}
}

// Parse reads a description in TOML. Errors are of type *[Error], and name the
// file as name. Relative paths stay as they are.
func Parse(name string, data []byte) (*Spec, error) {
	var tree map[string]any
	if err := toml.Unmarshal(data, &tree); err != nil {
		return nil, syntaxError(name, err)
	}
	var s Spec
	if err := s.read(tree, places(name, data)); err != nil {
		return nil, err
	}
	return &s, nil
}

// syntaxError returns the error of a text that isn't TOML, with its line and
// column.
func syntaxError(name string, err error) error {
	text := strings.TrimPrefix(err.Error(), "toml: ")
	if at := (*toml.DecodeError)(nil); errors.As(err, &at) {
		line, column := at.Position()
		name = fmt.Sprintf("%s:%d:%d", name, line, column)
	}
	return &Error{Where: name, Err: errors.New(text)}
}

// finder finds the places of keys, which toml.Unmarshal doesn't tell: those of
// the top level and those in its tables, as TABLE.KEY. What is deeper is no
// key.
type finder struct {
	file  string
	lines lineCounter
	found map[string]place
}

// places returns the places of the keys in a text that is known to be TOML.
func places(file string, data []byte) map[string]place {
	f := finder{file, lineCounter{data: data, line: 1}, make(map[string]place)}
	var p unstable.Parser
	p.Reset(data)
	var table []string
	for p.NextExpression() {
		e := p.Expression()
		parts := keyParts(e.Key())
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			table = parts
			f.add(table, place{f.file, f.lines.at(e.Child().Raw), nil})
		case unstable.KeyValue:
			f.addKeyValue(append(table[:len(table):len(table)], parts...), e)
		}
	}
	return f.found
}

// addKeyValue adds the place of a key and, if its value is an inline table,
// those of the keys in there.
func (f *finder) addKeyValue(parts []string, e *unstable.Node) {
	here := place{file: f.file, line: f.lines.at(e.Raw)}
	inner := e.Value().Children()
	for inner.Next() {
		n := inner.Node()
		switch {
		case e.Value().Kind == unstable.Array && n.Raw.Length > 0:
			here.elements = append(here.elements, f.lines.at(n.Raw))
		case e.Value().Kind == unstable.Array:
			here.elements = append(here.elements, here.line)
		case n.Kind == unstable.KeyValue && len(parts) == 1:
			f.addKeyValue(append(parts[:1:1], keyParts(n.Key())...), n)
		}
	}
	f.add(parts, here)
}

// add adds the place of a key, for its table too, unless they have one.
func (f *finder) add(parts []string, at place) {
	for depth := range min(2, len(parts)) {
		key := strings.Join(parts[:depth+1], ".")
		if _, ok := f.found[key]; !ok {
			f.found[key] = at
		}
	}
}

func keyParts(key unstable.Iterator) []string {
	var parts []string
	for key.Next() {
		parts = append(parts, string(key.Node().Data))
	}
	return parts
}

// lineCounter finds lines. Ranges come in ascending order, so that the whole
// text is counted once, however many there are.
type lineCounter struct {
	data   []byte
	offset int
	line   int
}

func (l *lineCounter) at(r unstable.Range) int {
	if to := int(r.Offset); to > l.offset {
		l.line += bytes.Count(l.data[l.offset:to], []byte("\n"))
		l.offset = to
	}
	return l.line
}

// TOML returns the description as a document, from which [Parse] reads the
// same. It has each key that isn't at its default, in a fixed order, and no
// comment. A string that isn't UTF-8 is an error, for TOML has no way to write
// it.
func (s *Spec) TOML() ([]byte, error) {
	var out []byte
	for _, k := range keys {
		value := k.write(s)
		if !isUTF8(value) {
			return nil, s.notUTF8(k)
		}
		var text string
		switch v := value.(type) {
		case nil:
			continue
		case string:
			text = quote(v)
		case []string:
			text = quoteList(len(k.name()), v)
		default:
			text = fmt.Sprint(v)
		}
		out = fmt.Appendf(out, "%s = %s\n", k.name(), text)
	}
	return out, nil
}

func isUTF8(v any) bool {
	switch v := v.(type) {
	case string:
		return utf8.ValidString(v)
	case []string:
		return !slices.ContainsFunc(v, func(text string) bool { return !utf8.ValidString(text) })
	}
	return true
}

func (s *Spec) notUTF8(k key) error {
	return &Error{Where: cmp.Or(s.Where(k.name(), 0), k.name()), Err: errors.New("isn't all UTF-8, which a document has to be")}
}

// Absolute returns the description with absolute paths, so that it means the
// same wherever its document is.
func (s *Spec) Absolute() (*Spec, error) {
	result := *s
	result.TLS.CA, result.Shares, result.Sockets = slices.Clone(s.TLS.CA), slices.Clone(s.Shares), slices.Clone(s.Sockets)
	var failed error
	result.eachPath(func(p *string) {
		folder := ""
		if !filepath.IsAbs(*p) {
			var err error
			if folder, err = os.Getwd(); err != nil {
				failed = err
				return
			}
		}
		*p = below(folder, *p)
	})
	return &result, failed
}

// lineWidth is how many columns a list may have on one line.
const lineWidth = 80

func quoteList(indent int, texts []string) string {
	quoted := make([]string, len(texts))
	for i, text := range texts {
		quoted[i] = quote(text)
	}
	line := "[" + strings.Join(quoted, ", ") + "]"
	if indent+len(" = ")+len(line) <= lineWidth || len(texts) == 1 {
		return line
	}
	return "[\n  " + strings.Join(quoted, ",\n  ") + ",\n]"
}

// quote writes a string for TOML. The result is printable: it goes to
// terminals.
func quote(text string) string {
	out := []byte{'"'}
	for _, r := range text {
		switch {
		case r == '"', r == '\\':
			out = append(out, '\\', byte(r))
		case unicode.IsPrint(r):
			out = utf8.AppendRune(out, r)
		case r <= 0xFFFF:
			out = fmt.Appendf(out, `\u%04X`, r)
		default:
			out = fmt.Appendf(out, `\U%08X`, r)
		}
	}
	return string(append(out, '"'))
}
