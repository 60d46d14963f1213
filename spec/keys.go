package spec

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/fix-project/arcavm/internal/nearest"
	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/vmm"
	"github.com/fix-project/arcavm/vmm/image"
)

// key is a key of a document and the part of a description that it stands for.
type key interface {
	name() string
	// count returns how many values have an origin each.
	count(s *Spec) int
	// check returns the index of the first value that no document could have.
	check(s *Spec) (at int, err error)
	// read sets the value of an entry.
	read(s *Spec, e entry) error
	// write returns the value for a document, a string, bool, int64 or
	// []string; nil if it is the default.
	write(s *Spec) any
	// override is [Spec.Override] for the key.
	override(s, over *Spec)
}

// keys are all keys, in the order in which they are written.
var keys = slices.Concat([]key{
	path("image", func(s *Spec) *string { return &s.Image }),
	list[string]{key: "args", of: func(s *Spec) *[]string { return &s.Args }, parse: argument, format: itself[string], replaces: always[string]},
	scalar[image.ABI]{"abi", func(s *Spec) *image.ABI { return &s.ABI }, fromText(parseABI), func(a image.ABI) any { return a.String() }},
	scalar[int]{"cpus", func(s *Spec) *int { return &s.CPUs }, cpus, func(n int) any { return int64(n) }},
	size("mem", func(s *Spec) *Size { return &s.Memory }),
	size("window", func(s *Spec) *Size { return &s.Window }),
	scalar[bool]{"emulated", func(s *Spec) *bool { return &s.Emulated }, boolean, func(b bool) any { return b }},
	folders("share", func(s *Spec) *[]Folder { return &s.Shares }),
	folders("sockets", func(s *Spec) *[]Folder { return &s.Sockets }),
	list[Rule]{key: "rules", of: func(s *Spec) *[]Rule { return &s.Network.Rules }, parse: ParseRule, format: Rule.String, first: true},
	list[network.Publish]{key: "publish", of: func(s *Spec) *[]network.Publish { return &s.Network.Publish }, parse: network.ParsePublish, format: network.Publish.String, replaces: samePort},
	ranges("nat64", func(s *Spec) *[]netip.Prefix { return &s.Network.NAT64 }, network.ParseNAT64),
	ranges("own-addresses", func(s *Spec) *[]netip.Prefix { return &s.Network.Own }, parseRange),
	list[string]{key: "tls-ca", of: func(s *Spec) *[]string { return &s.TLS.CA }, parse: nonempty, format: itself[string], replaces: equal[string]},
	path("tls-cert", func(s *Spec) *string { return &s.TLS.Cert }),
	path("tls-key", func(s *Spec) *string { return &s.TLS.Key }),
}, limitKeys(), []key{
	choice("log-level", func(s *Spec) *string { return &s.Output.LogLevel }, LogLevels),
	choice("log-format", func(s *Spec) *string { return &s.Output.LogFormat }, LogFormats),
	choice("timing", func(s *Spec) *string { return &s.Output.Timing }, Timings),
	path("exit-file", func(s *Spec) *string { return &s.Output.ExitFile }),
})

// limitPrefix is the table that limits are in, and a dot.
const limitPrefix = "limit."

func limitKeys() []key {
	var all []key
	for _, l := range limits {
		all = append(all, scalar[uint64]{
			key:   limitPrefix + l.name,
			of:    func(s *Spec) *uint64 { return l.of(&s.Limits) },
			parse: func(v any) (uint64, error) { return count(v, l.most) },
			format: func(n uint64) any {
				if n%(1<<10) == 0 {
					return Size(n).String()
				}
				return int64(n)
			},
		})
	}
	return all
}

// Keys returns the names of all keys, those in the table limit as limit.NAME.
func Keys() []string {
	names := make([]string, len(keys))
	for i, k := range keys {
		names[i] = k.name()
	}
	return names
}

// keyNamed returns the key of that name, or nil.
func keyNamed(name string) key {
	if i := slices.IndexFunc(keys, func(k key) bool { return k.name() == name }); i >= 0 {
		return keys[i]
	}
	return nil
}

// scalar is a key with one value, whose zero value is the default.
type scalar[T comparable] struct {
	key    string
	of     func(*Spec) *T
	parse  func(any) (T, error)
	format func(T) any
}

func (k scalar[T]) name() string { return k.key }

func (k scalar[T]) count(*Spec) int { return 1 }

func (k scalar[T]) check(s *Spec) (int, error) {
	var err error
	if v := k.write(s); v != nil {
		_, err = k.parse(v)
	}
	return 0, err
}

func (k scalar[T]) read(s *Spec, e entry) error {
	v, err := k.parse(e.value)
	if err != nil {
		return &Error{Where: e.at(), Err: err}
	}
	*k.of(s) = v
	s.say(k.key, e.at())
	return nil
}

func (k scalar[T]) write(s *Spec) any {
	var zero T
	if v := *k.of(s); v != zero {
		return k.format(v)
	}
	return nil
}

func (k scalar[T]) override(s, over *Spec) {
	*k.of(s) = *k.of(over)
	s.origins[k.key] = over.origins[k.key]
}

// list is a key with a list of values, each a string in documents.
type list[T any] struct {
	key    string
	of     func(*Spec) *[]T
	parse  func(string) (T, error)
	format func(T) string
	// replaces reports whether an overriding value takes the place of an old
	// one. Nil: never.
	replaces func(over, old T) bool
	// first puts overriding values before old ones.
	first bool
}

func (k list[T]) name() string { return k.key }

func (k list[T]) count(s *Spec) int { return len(*k.of(s)) }

func (k list[T]) check(s *Spec) (int, error) {
	for i, v := range *k.of(s) {
		// An empty text is an argument, or the name of no file.
		if text := k.format(v); text != "" {
			if _, err := k.parse(text); err != nil {
				return i, err
			}
		}
	}
	return 0, nil
}

func (k list[T]) read(s *Spec, e entry) error {
	values, ok := e.value.([]any)
	if !ok {
		return &Error{Where: e.at(), Err: wrongType("a list of strings", e.value)}
	}
	var read []T
	var origins []string
	for i, v := range values {
		text, err := stringOf(v)
		var value T
		if err == nil {
			value, err = k.parse(text)
		}
		if err != nil {
			return &Error{Where: e.atElement(i), Err: err}
		}
		read, origins = append(read, value), append(origins, e.atElement(i))
	}
	*k.of(s) = read
	s.say(k.key, origins...)
	return nil
}

func (k list[T]) write(s *Spec) any {
	var texts []string
	for _, v := range *k.of(s) {
		texts = append(texts, k.format(v))
	}
	if texts == nil {
		return nil
	}
	return texts
}

func (k list[T]) override(s, over *Spec) {
	var values, added []T
	var from, addedFrom []string
	for i, v := range *k.of(over) {
		added, addedFrom = append(added, v), append(addedFrom, over.Where(k.key, i))
	}
	for i, old := range *k.of(s) {
		replaced := k.replaces != nil && slices.ContainsFunc(added, func(v T) bool { return k.replaces(v, old) })
		if !replaced {
			values, from = append(values, old), append(from, s.Where(k.key, i))
		}
	}
	if k.first {
		values, from, added, addedFrom = added, addedFrom, values, from
	}
	*k.of(s) = slices.Concat(values, added)
	s.origins[k.key] = slices.Concat(from, addedFrom)
}

func itself[T any](v T) T { return v }

func always[T any](T, T) bool { return true }

func equal[T comparable](a, b T) bool { return a == b }

func path(key string, of func(*Spec) *string) key {
	return scalar[string]{key, of, fromText(nonempty), func(text string) any { return text }}
}

func size(key string, of func(*Spec) *Size) key {
	return scalar[Size]{key, of, func(v any) (Size, error) {
		if n, ok := v.(int64); ok {
			// ParseSize then says that a unit is missing.
			v = strconv.FormatInt(n, 10)
		}
		n, err := fromText(ParseSize)(v)
		if err == nil && n == 0 {
			err = errNoMemory
		}
		return n, err
	}, func(n Size) any { return n.String() }}
}

func choice(key string, of func(*Spec) *string, choices []string) key {
	return scalar[string]{key, of, fromText(func(text string) (string, error) { return Choose(text, choices) }), func(text string) any { return text }}
}

func folders(key string, of func(*Spec) *[]Folder) key {
	return list[Folder]{key: key, of: of, format: Folder.String, replaces: func(over, old Folder) bool { return over.Name == old.Name },
		parse: func(text string) (Folder, error) {
			if _, err := argument(text); err != nil {
				return Folder{}, err
			}
			return ParseFolder(text)
		}}
}

func ranges(key string, of func(*Spec) *[]netip.Prefix, parse func(string) (netip.Prefix, error)) key {
	return list[netip.Prefix]{key: key, of: of, parse: parse, format: netip.Prefix.String, replaces: equal[netip.Prefix]}
}

// Choose returns which of the choices text is, in upper or lower case.
func Choose(text string, choices []string) (string, error) {
	for _, allowed := range choices {
		if strings.EqualFold(text, allowed) {
			return allowed, nil
		}
	}
	hint := ""
	if near := nearest.Of(strings.ToLower(text), choices); near != "" {
		hint = fmt.Sprintf("; did you mean %s?", near)
	}
	return "", fmt.Errorf("%q must be one of %s%s", text, strings.Join(choices, ", "), hint)
}

func parseABI(text string) (image.ABI, error) {
	name, err := Choose(text, image.ABINames())
	if err != nil {
		return 0, err
	}
	return image.ParseABI(name)
}

// argument refuses a NUL, which no word of a command line and no path has.
func argument(text string) (string, error) {
	if strings.Contains(text, "\x00") {
		return "", fmt.Errorf("%q has a NUL in it", text)
	}
	return text, nil
}

func nonempty(text string) (string, error) {
	if text == "" {
		return "", errors.New("is empty; leave it out")
	}
	return argument(text)
}

func cpus(v any) (int, error) {
	n, ok := v.(int64)
	switch {
	case !ok:
		return 0, wrongType("a whole number", v)
	case n < 1 || n > vmm.MaxCPUs:
		return 0, notCPUs(n)
	}
	return int(n), nil
}

func notCPUs(n int64) error { return fmt.Errorf("%d is not in 1 to %d", n, vmm.MaxCPUs) }

var errNoMemory = errors.New("a guest needs some")

func boolean(v any) (bool, error) {
	b, ok := v.(bool)
	if !ok {
		return false, wrongType("true or false", v)
	}
	return b, nil
}

func count(v any, most uint64) (uint64, error) {
	if n, ok := v.(int64); ok {
		v = strconv.FormatInt(n, 10)
	}
	text, ok := v.(string)
	if !ok {
		return 0, wrongType("a whole number, or a string such as \"64K\"", v)
	}
	return parseLimit(text, most)
}

func stringOf(v any) (string, error) {
	text, ok := v.(string)
	if !ok {
		return "", wrongType("a string", v)
	}
	return text, nil
}

// fromText makes a parser of strings one of a document's values.
func fromText[T any](parse func(string) (T, error)) func(any) (T, error) {
	return func(v any) (T, error) {
		text, err := stringOf(v)
		if err != nil {
			var zero T
			return zero, err
		}
		return parse(text)
	}
}

// wrongType returns the error of a value of another type than the key takes.
func wrongType(want string, v any) error {
	is := "a date or a time"
	switch v.(type) {
	case nil:
		is = "null"
	case string:
		is = "a string"
	case bool:
		is = "true or false"
	case int64:
		is = "a whole number"
	case float64:
		is = "a number with a fraction"
	case []any:
		is = "a list"
	case map[string]any:
		is = "a table"
	}
	return fmt.Errorf("must be %s, and is %s", want, is)
}
