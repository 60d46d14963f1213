package spec

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/fix-project/arcavm/internal/nearest"
	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/vmm"
)

// Limits bound what a guest gets. Streams, RingMemory and Log are StreamLimit,
// RingLimit and LogLimit of a [vmm.Config], the others are fields of
// [network.Limits]. 0 is the default.
type Limits struct {
	Streams, RingMemory         uint64
	StreamFiles, Files, Accepts uint64
	Bytes, Operations, Disk     uint64
	Log                         uint64
}

// limits are all limits, in the order of run's help.
var limits = []struct {
	name  string
	most  uint64
	of    func(*Limits) *uint64
	older bool // guests of the older ABIs have it, too
}{
	{"streams", math.MaxInt32, func(l *Limits) *uint64 { return &l.Streams }, true},
	{"ring-memory", math.MaxInt64, func(l *Limits) *uint64 { return &l.RingMemory }, false},
	{"stream-files", math.MaxInt32, func(l *Limits) *uint64 { return &l.StreamFiles }, false},
	{"files", math.MaxInt32, func(l *Limits) *uint64 { return &l.Files }, true},
	{"accepts", math.MaxInt32, func(l *Limits) *uint64 { return &l.Accepts }, false},
	{"bytes", math.MaxInt64, func(l *Limits) *uint64 { return &l.Bytes }, true},
	{"operations", math.MaxInt64, func(l *Limits) *uint64 { return &l.Operations }, false},
	{"disk", math.MaxInt64, func(l *Limits) *uint64 { return &l.Disk }, true},
	{"log", math.MaxInt64, func(l *Limits) *uint64 { return &l.Log }, true},
}

// LimitNames returns the names that [Limits.Set] takes.
func LimitNames() []string {
	names := make([]string, len(limits))
	for i, l := range limits {
		names[i] = l.name
	}
	return names
}

// Set sets the limit of a text NAME=VALUE, and returns its name.
func (l *Limits) Set(text string) (name string, err error) {
	name, value, ok := strings.Cut(text, "=")
	if !ok {
		return "", fmt.Errorf("%q is not of the form NAME=VALUE", text)
	}
	i := slices.Index(LimitNames(), name)
	if i < 0 {
		return "", unknownLimit(name)
	}
	n, err := parseLimit(value, limits[i].most)
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	*limits[i].of(l) = n
	return name, nil
}

func parseLimit(text string, most uint64) (uint64, error) {
	n, err := parseCount(text)
	if err != nil || n == 0 || n > most {
		return 0, fmt.Errorf("%q is not a whole number from 1 on, such as 500, 64K, 100M or 2G", text)
	}
	return n, nil
}

func unknownLimit(name string) error {
	names := LimitNames()
	if near := nearest.Of(name, names); near != "" {
		return fmt.Errorf("there is no limit %q; did you mean %s?", name, near)
	}
	return fmt.Errorf("there is no limit %q; names are %s", name, strings.Join(names, ", "))
}

// String lists what is set, as [Limits.Set] takes it.
func (l Limits) String() string {
	var set []string
	for _, limit := range limits {
		if n := *limit.of(&l); n != 0 {
			set = append(set, limit.name+"="+Size(n).String())
		}
	}
	return strings.Join(set, ",")
}

// apply puts the limits into a configuration.
func (l Limits) apply(c *vmm.Config) {
	c.StreamLimit, c.RingLimit, c.LogLimit = int(l.Streams), l.RingMemory, l.Log
	c.Limits = network.Limits{
		StreamFiles: int(l.StreamFiles), Files: int(l.Files), Accepts: int(l.Accepts),
		Bytes: l.Bytes, Operations: l.Operations, Disk: l.Disk,
	}
}
