package spec

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/fix-project/arcavm/internal/nearest"
)

// entry is a key of a document with its value: a string, bool, int64, float64,
// []any, map[string]any or nil, as packages of formats return them.
type entry struct {
	key   string
	value any
	place place
}

// place is where in its file an entry is, if that is known.
type place struct {
	file     string // "": not known
	line     int
	elements []int // the lines of a list's values
}

// at says where the entry is.
func (e entry) at() string { return e.place.atLine(e.place.line) + e.key }

// atElement says where value i of a list is.
func (e entry) atElement(i int) string {
	if i < len(e.place.elements) {
		return e.place.atLine(e.place.elements[i]) + e.key
	}
	return e.at()
}

// line is where the entry is without its key.
func (e entry) line() string { return strings.TrimSuffix(e.place.atLine(e.place.line), ": ") }

func (p place) atLine(line int) string {
	if p.file == "" {
		return ""
	}
	return fmt.Sprintf("%s:%d: ", p.file, line)
}

// read sets what a document says, whose places are by key.
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

// flatten makes one level of a document's two.
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

// unknown is the error of a key that there isn't.
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

// Override returns what s says with what over says laid over it. Only what over
// was told by [Spec.Say] or by a document counts. A value takes the place of
// the older one; in a list it is added. In a list it replaces the folder of the
// same name, the same port of the guest in the same family, the same file or
// range; arguments replace all others; rules come before the older ones.
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
