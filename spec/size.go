package spec

import (
	"fmt"
	"strconv"
	"strings"
)

// Size is a number of bytes, written with a unit: 512M, 2G, 64KiB. Units are
// powers of 1024. *Size is a flag's value.
type Size uint64

var units = []struct {
	letter string
	shift  uint
}{{"T", 40}, {"G", 30}, {"M", 20}, {"K", 10}}

// ParseSize reads a size of up to 2^63 bytes. The unit may not be left out.
func ParseSize(text string) (Size, error) {
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
		return Size(n << u.shift), nil
	}
	if _, err := strconv.ParseUint(upper, 10, 64); err == nil {
		return 0, fmt.Errorf("%q: a unit is missing: write %sM for MiB or %sG for GiB", text, upper, upper)
	}
	return 0, fmt.Errorf("%q: write a whole number with a unit, such as 512M or 2G", text)
}

// parseCount reads a number with or without a unit.
func parseCount(text string) (uint64, error) {
	if n, err := strconv.ParseUint(text, 10, 64); err == nil {
		return n, nil
	}
	n, err := ParseSize(text)
	return uint64(n), err
}

// Set is [ParseSize].
func (s *Size) Set(text string) error {
	n, err := ParseSize(text)
	if err == nil {
		*s = n
	}
	return err
}

// String writes the size with the largest unit that divides it.
func (s Size) String() string {
	for _, u := range units {
		if n := uint64(s); n != 0 && n%(1<<u.shift) == 0 {
			return strconv.FormatUint(n>>u.shift, 10) + u.letter
		}
	}
	return strconv.FormatUint(uint64(s), 10)
}

// Type names the value in help texts.
func (s Size) Type() string { return "SIZE" }
