package main

import (
	"fmt"
	"strconv"
	"strings"
)

// size is a flag's number of bytes, written with a unit: 512M, 2G, 64KiB. Units are powers of 1024.
type size uint64

var units = []struct {
	letter string
	shift  uint
}{{"T", 40}, {"G", 30}, {"M", 20}, {"K", 10}}

// Set parses what the user wrote.
func (s *size) Set(text string) error {
	upper := strings.ToUpper(strings.TrimSpace(text))
	for _, u := range units {
		digits, found := strings.CutSuffix(upper, u.letter+"IB")
		if !found {
			digits, found = strings.CutSuffix(upper, u.letter)
		}
		if !found {
			continue
		}
		n, err := strconv.ParseUint(strings.TrimSpace(digits), 10, 64)
		if err != nil || n > 1<<(63-u.shift) {
			break
		}
		*s = size(n << u.shift)
		return nil
	}
	if _, err := strconv.ParseUint(upper, 10, 64); err == nil {
		return fmt.Errorf("%q: a unit is missing: write %sM for MiB or %sG for GiB", text, upper, upper)
	}
	return fmt.Errorf("%q: write a whole number with a unit, such as 512M or 2G", text)
}

// String writes the size with the largest unit that divides it.
func (s *size) String() string {
	for _, u := range units {
		if n := uint64(*s); n != 0 && n%(1<<u.shift) == 0 {
			return strconv.FormatUint(n>>u.shift, 10) + u.letter
		}
	}
	return strconv.FormatUint(uint64(*s), 10)
}

// Type names the value in help texts.
func (s *size) Type() string { return "SIZE" }

// choice is a flag with a fixed set of values.
type choice struct {
	value   string
	choices []string
}

// Set parses what the user wrote.
func (c *choice) Set(text string) error {
	for _, allowed := range c.choices {
		if strings.EqualFold(text, allowed) {
			c.value = allowed
			return nil
		}
	}
	hint := ""
	if near := nearest(strings.ToLower(text), c.choices); near != "" {
		hint = fmt.Sprintf("; did you mean %s?", near)
	}
	return fmt.Errorf("%q must be one of %s%s", text, strings.Join(c.choices, ", "), hint)
}

func (c *choice) String() string { return c.value }

// Type names the value in help texts.
func (c *choice) Type() string { return strings.Join(c.choices, "|") }
