package image

import (
	"bytes"
	"debug/dwarf"
	"errors"
	"slices"
)

// Bounds on what a hostile image can make the inlined calls cost. debug/dwarf
// has none of its own. So everything by which it allocates is counted before it
// reads, and its steps are counted while it does.
const (
	maxDebugInfo     = 128 << 20 // bytes of all sections together
	maxRangeSection  = 4 << 20   // bytes of each section with ranges
	maxUnits         = 1 << 16
	maxAbbrevFields  = 1 << 20 // attributes in all tables of abbreviations
	maxFields        = 64      // attributes of one abbreviation
	maxInlinedSteps  = 1 << 24 // attributes, ranges and pieces of text that are read
	maxInlinedRanges = 1 << 18 // of units and calls
	maxInlinedDepth  = 16
)

// Inlined is a call in whose place the compiler put the function that it calls.
type Inlined struct {
	Function string // that is called; empty if it isn't known
	// File and Line are where the call is; as Line has them, or "" and 0.
	File string
	Line int
}

// Inlined returns the inlined calls that the instruction at the virtual address
// is part of, the innermost first, 16 at most. Where in the innermost function
// the instruction is, [Image.Line] says. There are none in an image without
// that debug information, or where it is broken or too large.
func (i *Image) Inlined(address uint64) (calls []Inlined) {
	// The data are the image's, and a fault in their reader must not end the
	// monitor.
	defer func() {
		if recover() != nil {
			calls = nil
		}
	}()
	lines, _ := i.loadLines()
	i.inlinedMu.Lock()
	defer i.inlinedMu.Unlock()
	table, err := i.inlined.load(i, "inlined calls", i.readInlined)
	if err != nil || *table == nil {
		return nil
	}
	return (*table).find(address, lines)
}

// inlinedTable finds inlined calls, a unit at a time.
type inlinedTable struct {
	data   *dwarf.Data
	steps  int // left, see maxInlinedSteps
	ranges int // left, see maxInlinedRanges
	units  []inlinedUnit
}

// inlinedUnit is a compilation unit.
type inlinedUnit struct {
	entry  dwarf.Offset
	ranges [][2]uint64
	lines  uint64 // offset of its line table
	read   bool
	calls  []inlinedRange // in the order of the tree: an outer one first
}

// inlinedRange is a range of addresses that an inlined call takes.
type inlinedRange struct {
	low, high uint64
	function  dwarf.Offset
	file      uint32
	line      uint32
}

func (i *Image) readInlined() (*inlinedTable, error) {
	sections, err := i.readSections()
	if err != nil || int(i.sections.names) >= len(sections) {
		return nil, err
	}
	names, err := i.readSection(int(i.sections.names), sections[i.sections.names], maxLineSection)
	if err != nil {
		return nil, err
	}
	found := map[string][]byte{}
	for n, s := range sections {
		name := cString(names, uint64(s.Name))
		switch name {
		case ".debug_abbrev", ".debug_info", ".debug_str", ".debug_line_str", ".debug_addr", ".debug_str_offsets", ".debug_ranges", ".debug_rnglists":
			if found[name], err = i.readDebug(n, s); err != nil {
				return nil, err
			}
		}
	}
	total := 0
	for _, b := range found {
		total += len(b)
	}
	if total > maxDebugInfo {
		return nil, errDebugInfo
	}
	if len(found[".debug_ranges"]) > maxRangeSection || len(found[".debug_rnglists"]) > maxRangeSection {
		return nil, errDebugInfo
	}
	units, err := checkUnits(found[".debug_info"], found[".debug_abbrev"])
	if err != nil {
		return nil, err
	}
	cutStrings(found[".debug_str"])
	cutStrings(found[".debug_line_str"])
	d, err := dwarf.New(found[".debug_abbrev"], nil, nil, found[".debug_info"], nil, nil, found[".debug_ranges"], found[".debug_str"])
	if err != nil {
		return nil, err
	}
	for _, name := range []string{".debug_line_str", ".debug_addr", ".debug_str_offsets", ".debug_rnglists"} {
		if err := d.AddSection(name, found[name]); err != nil {
			return nil, err
		}
	}
	t := &inlinedTable{data: d, steps: maxInlinedSteps, ranges: maxInlinedRanges}
	t.readUnits(units)
	return t, nil
}

// cutStrings puts an end into texts that are longer than a name can be, so that
// each costs no more.
func cutStrings(b []byte) {
	for len(b) > 0 {
		end := bytes.IndexByte(b[:min(len(b), maxSymbolName)], 0)
		if end < 0 {
			end = min(len(b), maxSymbolName) - 1
			b[end] = 0
		}
		b = b[end+1:]
	}
}

// checkUnits counts what dwarf.New makes: units, and the tables of
// abbreviations that they name. It returns the offsets of the compilation
// units' entries.
func checkUnits(info, abbrev []byte) (entries []dwarf.Offset, err error) {
	tables := map[uint64]bool{}
	fields := maxAbbrevFields
	units := 0
	for c := (cursor{b: info}); len(c.b) > 0; units++ {
		b, is64 := c.unit()
		if c.bad || units == maxUnits {
			return nil, errDebugInfo
		}
		u := cursor{b: b, at: c.at - uint64(len(b)), is64: is64}
		kind, version := uint64(unitCompile), u.uint(2)
		if version >= 5 {
			kind = u.uint(1)
			u.bytes(1) // size of addresses
		}
		at := u.offset()
		if version < 5 {
			u.bytes(1)
		}
		if u.bad || at > uint64(len(abbrev)) {
			return nil, errDebugInfo
		}
		if kind == unitCompile {
			entries = append(entries, dwarf.Offset(u.at))
		}
		if tables[at] {
			continue
		}
		tables[at] = true
		if fields = checkAbbrev(abbrev[at:], fields); fields < 0 {
			return nil, errDebugInfo
		}
	}
	return entries, nil
}

// unitCompile is the kind of unit that code is in (DWARF 5, section 7.5.1).
const unitCompile = 1

var errDebugInfo = errors.New("the debug information is broken, or too much")

// formImplicitConst has its value in the abbreviation (DWARF 5, section 7.5.6).
const formImplicitConst = 0x21

// checkAbbrev reads a table of abbreviations. Of the attributes that are
// allowed, it returns how many are left: less than 0 if the table has more, or
// is broken.
func checkAbbrev(table []byte, left int) int {
	c := cursor{b: table}
	for c.uleb() != 0 {
		left--
		c.uleb()
		c.bytes(1)
		for n := 0; ; n++ {
			attribute, form := c.uleb(), c.uleb()
			if attribute == 0 && form == 0 {
				break
			}
			if form == formImplicitConst {
				c.sleb()
			}
			if left--; n == maxFields || left < 0 || c.bad {
				return -1
			}
		}
	}
	if c.bad {
		return -1
	}
	return left
}

// next reads the next entry. It returns nil at the end, or when steps are used
// up.
func (t *inlinedTable) next(r *dwarf.Reader) *dwarf.Entry {
	e, err := r.Next()
	if err != nil || e == nil || t.steps < 0 {
		return nil
	}
	t.steps -= 1 + len(e.Field)
	for _, f := range e.Field {
		if text, ok := f.Val.(string); ok {
			t.steps -= len(text) / 16 // it was copied
		}
	}
	return e
}

// rangesOf returns the ranges of an entry.
func (t *inlinedTable) rangesOf(e *dwarf.Entry) [][2]uint64 {
	if t.steps < 0 {
		return nil
	}
	ranges, err := t.data.Ranges(e)
	if err != nil {
		return nil
	}
	t.steps -= len(ranges)
	return ranges
}

func (t *inlinedTable) readUnits(entries []dwarf.Offset) {
	for _, at := range entries {
		r := t.data.Reader()
		r.Seek(at)
		e := t.next(r)
		if e == nil {
			continue
		}
		lines, ok := e.Val(dwarf.AttrStmtList).(int64)
		if e.Tag != dwarf.TagCompileUnit || !ok || !e.Children {
			continue
		}
		ranges := t.rangesOf(e)
		if t.ranges -= len(ranges); t.ranges < 0 {
			return
		}
		t.units = append(t.units, inlinedUnit{entry: at, ranges: ranges, lines: uint64(lines)})
	}
}

func (t *inlinedTable) find(address uint64, lines *lineTable) (calls []Inlined) {
	for n := range t.units {
		u := &t.units[n]
		if !slices.ContainsFunc(u.ranges, func(r [2]uint64) bool { return r[0] <= address && address < r[1] }) {
			continue
		}
		if !u.read {
			u.read = true
			t.readCalls(u)
		}
		for _, c := range u.calls {
			if address < c.low || address >= c.high {
				continue
			}
			call := Inlined{Function: t.name(c.function), Line: int(c.line)}
			if call.File = lines.fileOf(u.lines, uint64(c.file)); call.File == "" {
				call.Line = 0
			}
			if calls = append(calls, call); len(calls) == maxInlinedDepth {
				break
			}
		}
		slices.Reverse(calls)
		return calls
	}
	return nil
}

// readCalls reads all inlined calls of a unit.
func (t *inlinedTable) readCalls(u *inlinedUnit) {
	r := t.data.Reader()
	r.Seek(u.entry)
	root := t.next(r)
	for depth := 1; root != nil && depth > 0; {
		e := t.next(r)
		if e == nil {
			return
		}
		switch {
		case e.Tag == 0:
			depth--
			continue
		case e.Tag == dwarf.TagInlinedSubroutine:
			t.addCall(u, e)
		}
		if e.Children {
			depth++
		}
	}
}

func (t *inlinedTable) addCall(u *inlinedUnit, e *dwarf.Entry) {
	function, _ := e.Val(dwarf.AttrAbstractOrigin).(dwarf.Offset)
	file, _ := e.Val(dwarf.AttrCallFile).(int64)
	line, _ := e.Val(dwarf.AttrCallLine).(int64)
	for _, r := range t.rangesOf(e) {
		if t.ranges--; t.ranges < 0 {
			return
		}
		u.calls = append(u.calls, inlinedRange{
			low: r[0], high: r[1], function: function,
			file: uint32(clamp(file)), line: uint32(clamp(line)),
		})
	}
}

// clamp returns 0 in the place of a number that is out of all proportion.
func clamp(n int64) int64 {
	if n < 0 || n > 1<<31-1 {
		return 0
	}
	return n
}

// name is the name of the function at an offset, which may refer to another
// entry for it.
func (t *inlinedTable) name(at dwarf.Offset) string {
	for range 4 {
		r := t.data.Reader()
		r.Seek(at)
		e := t.next(r)
		if e == nil {
			return ""
		}
		if linkage, ok := e.Val(dwarf.AttrLinkageName).(string); ok {
			return demangleName(linkage)
		}
		next, ok := e.Val(dwarf.AttrSpecification).(dwarf.Offset)
		if !ok {
			next, ok = e.Val(dwarf.AttrAbstractOrigin).(dwarf.Offset)
		}
		if name, named := e.Val(dwarf.AttrName).(string); named && !ok {
			return name
		}
		if !ok {
			return ""
		}
		at = next
	}
	return ""
}
