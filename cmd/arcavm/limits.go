package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/fix-project/arcavm/vmm"
)

// limitFlag is --limit: limits of a configuration, by their names.
type limitFlag struct {
	set   []string // as the user wrote them
	names []string
	into  vmm.Config
}

// olderLimits are those that guests of the older ABI have, too.
var olderLimits = []string{"streams", "files", "bytes", "disk", "log"}

// limitNames are the names, in the order of the help text, each with the most that it can be.
var limitNames = []struct {
	name string
	most uint64
	set  func(c *vmm.Config, n uint64)
}{
	{"streams", math.MaxInt32, func(c *vmm.Config, n uint64) { c.StreamLimit = int(n) }},
	{"ring-memory", math.MaxInt64, func(c *vmm.Config, n uint64) { c.RingLimit = n }},
	{"stream-files", math.MaxInt32, func(c *vmm.Config, n uint64) { c.Limits.StreamFiles = int(n) }},
	{"files", math.MaxInt32, func(c *vmm.Config, n uint64) { c.Limits.Files = int(n) }},
	{"accepts", math.MaxInt32, func(c *vmm.Config, n uint64) { c.Limits.Accepts = int(n) }},
	{"bytes", math.MaxInt64, func(c *vmm.Config, n uint64) { c.Limits.Bytes = n }},
	{"operations", math.MaxInt64, func(c *vmm.Config, n uint64) { c.Limits.Operations = n }},
	{"disk", math.MaxInt64, func(c *vmm.Config, n uint64) { c.Limits.Disk = n }},
	{"log", math.MaxInt64, func(c *vmm.Config, n uint64) { c.LogLimit = n }},
}

// Set takes NAME=VALUE, or several with commas in between.
func (l *limitFlag) Set(text string) error {
	for one := range strings.SplitSeq(text, ",") {
		if err := l.setOne(one); err != nil {
			return err
		}
	}
	return nil
}

func (l *limitFlag) setOne(text string) error {
	name, value, ok := strings.Cut(text, "=")
	if !ok {
		return fmt.Errorf("%q is not of the form NAME=VALUE", text)
	}
	var names []string
	for _, known := range limitNames {
		names = append(names, known.name)
		if known.name != name {
			continue
		}
		n, err := parseCount(value)
		if err != nil || n == 0 || n > known.most {
			return fmt.Errorf("%s: %q is not a whole number from 1 on, such as 500, 64K, 100M or 2G", name, value)
		}
		known.set(&l.into, n)
		l.set, l.names = append(l.set, text), append(l.names, name)
		return nil
	}
	if near := nearest(name, names); near != "" {
		return fmt.Errorf("there is no limit %q; did you mean %s?", name, near)
	}
	return fmt.Errorf("there is no limit %q; names are %s", name, strings.Join(names, ", "))
}

// parseCount reads a number with or without a unit, a power of 1024.
func parseCount(text string) (uint64, error) {
	if n, err := strconv.ParseUint(text, 10, 64); err == nil {
		return n, nil
	}
	var s size
	err := s.Set(text)
	return uint64(s), err
}

func (l *limitFlag) String() string { return strings.Join(l.set, ",") }

// Type names the value in help texts.
func (l *limitFlag) Type() string { return "NAME=VALUE" }

// apply puts the limits into a configuration.
func (l *limitFlag) apply(c *vmm.Config) {
	c.StreamLimit, c.RingLimit, c.Limits, c.LogLimit = l.into.StreamLimit, l.into.RingLimit, l.into.Limits, l.into.LogLimit
}

func completeLimits() (values []string) {
	for _, known := range limitNames {
		values = append(values, known.name+"=")
	}
	return values
}
