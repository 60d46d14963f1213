package spec

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/fix-project/arcavm/internal/nearest"
)

// entry is a key of a document with its value: a string, bool, int64, float64,
// []any, map[string]any, nil, or a date, which no key takes.
type entry struct {
	key   string
	value any
	place place
}

// place is where an entry is in its file. In JSON it isn't known.
type place struct {
	file     string // "": not known
	line     int
	elements []int // the lines of a list's values
}

// at returns the origin of the entry's value.
func (e entry) at() string { return e.place.atLine(e.place.line) + e.key }

// atElement returns the origin of value i of a list.
func (e entry) atElement(i int) string {
	if i < len(e.place.elements) {
		return e.place.atLine(e.place.elements[i]) + e.key
	}
	return e.at()
}

// line returns where the entry is, without its key.
func (e entry) line() string { return strings.TrimSuffix(e.place.atLine(e.place.line), ": ") }

func (p place) atLine(line int) string {
	if p.file == "" {
		return ""
	}
	return fmt.Sprintf("%s:%d: ", p.file, line)
}

// read sets the values of a document. Its places are by key. The first error in
// the order of lines is returned.
func (s *Spec) read(tree map[string]any, places map[string]place) error {
	entries, err := flatten(tree, places)
	if err != nil {
		return err
	}
	slices.SortFunc(entries, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.place.line, b.place.line), strings.Compare(a.key, b.key))
	})
	for _, e := range entries {
		k := keyNamed(e.key)
		if k == nil {
			return e.unknown()
		}
		if err := k.read(s, e); err != nil {
			return err
		}
	}
	return nil
}

// flatten lists the entries of a document, those of the table limit as
// limit.NAME.
func flatten(tree map[string]any, places map[string]place) ([]entry, error) {
	var entries []entry
	table := strings.TrimSuffix(limitPrefix, ".")
	for key, value := range tree {
		e := entry{key, value, places[key]}
		switch inner, isTable := value.(map[string]any); {
		case strings.HasPrefix(key, limitPrefix):
			return nil, &Error{Where: e.line(), Err: fmt.Errorf("there is no key %q in quotes; leave them out", key)}
		case key != table:
			entries = append(entries, e)
		case !isTable:
			return nil, &Error{Where: e.at(), Err: wrongType("a table, such as { streams = 500 }", value)}
		default:
			for name, value := range inner {
				entries = append(entries, entry{limitPrefix + name, value, places[limitPrefix+name]})
			}
		}
	}
	return entries, nil
}

// unknown returns the error of an entry whose key doesn't exist.
func (e entry) unknown() error {
	if name, ok := strings.CutPrefix(e.key, limitPrefix); ok {
		return &Error{Where: e.line(), Err: unknownLimit(name)}
	}
	hint := ""
	switch near := nearest.Of(e.key, Keys()); {
	case e.key == "allow", e.key == "deny":
		hint = fmt.Sprintf("; write rules = [%q]", e.key+" …")
	case near != "":
		hint = fmt.Sprintf("; did you mean %s?", near)
	}
	return &Error{Where: e.line(), Err: fmt.Errorf("there is no key %q%s", e.key, hint)}
}

// Override returns s with the values of over in the place of its own. Of over,
// only the values count that have an origin, by [Spec.Say] or from a document.
//
// Lists are joined, those of s first, but rules of over come first, since the
// first that matches decides. In a list a value of over takes the place of a
// folder with the same name, of a published port with the same port of the
// guest in the same family of addresses, and of the same file or range.
// Arguments take the place of all.
func (s *Spec) Override(over *Spec) *Spec {
	result := *s
	result.origins = make(origins)
	for key, where := range s.origins {
		result.origins[key] = where
	}
	for _, k := range keys {
		if over.said(k.name()) {
			k.override(&result, over)
		}
	}
	return &result
}
