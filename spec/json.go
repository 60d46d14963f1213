package spec

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// MarshalJSON writes the description as an object with the keys of a TOML
// document.
func (s *Spec) MarshalJSON() ([]byte, error) {
	tree := make(map[string]any)
	bounds := make(map[string]any)
	for _, k := range keys {
		v := k.write(s)
		if !isUTF8(v) {
			return nil, s.notUTF8(k)
		}
		if name, ok := strings.CutPrefix(k.name(), limitPrefix); ok && v != nil {
			bounds[name] = v
		} else if v != nil {
			tree[k.name()] = v
		}
	}
	if len(bounds) > 0 {
		tree[strings.TrimSuffix(limitPrefix, ".")] = bounds
	}
	return json.Marshal(tree)
}

// UnmarshalJSON reads the description as strictly as [Parse] does. Errors are
// of type *[Error], and name the key.
func (s *Spec) UnmarshalJSON(data []byte) error {
	if !utf8.Valid(data) {
		return &Error{Err: errors.New("the description isn't all UTF-8")}
	}
	// This refuses what isn't JSON, and what is so deep that readJSON would
	// need too much stack.
	var all json.RawMessage
	if err := json.Unmarshal(data, &all); err != nil {
		return &Error{Err: err}
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	value, err := readJSON(d)
	if err != nil {
		return &Error{Err: err}
	}
	tree, ok := value.(map[string]any)
	if !ok {
		return &Error{Err: errors.New("the description is no JSON object")}
	}
	var read Spec
	if err := read.read(tree, nil); err != nil {
		return err
	}
	*s = read
	return nil
}

// readJSON reads a value. It refuses an object with a key twice, of which
// package json would take the last.
func readJSON(d *json.Decoder) (any, error) {
	token, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch token {
	case json.Delim('{'):
		return readObject(d)
	case json.Delim('['):
		list := []any{}
		for d.More() {
			v, err := readJSON(d)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err := d.Token()
		return list, err
	}
	if n, ok := token.(json.Number); ok {
		return number(n)
	}
	return token, nil
}

func readObject(d *json.Decoder) (any, error) {
	object := make(map[string]any)
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, err
		}
		name, ok := key.(string)
		if _, twice := object[name]; twice || !ok {
			return nil, fmt.Errorf("the key %q is there twice", name)
		}
		if object[name], err = readJSON(d); err != nil {
			return nil, err
		}
	}
	_, err := d.Token()
	return object, err
}

// number returns an int64 for a number without fraction and exponent, else a
// float64.
func number(n json.Number) (any, error) {
	if !strings.ContainsAny(n.String(), ".eE") {
		whole, err := strconv.ParseInt(n.String(), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%s is out of range", n)
		}
		return whole, nil
	}
	return n.Float64()
}
