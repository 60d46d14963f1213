package image

import (
	"bytes"
	"cmp"
	"compress/zlib"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
)

// The line table is read here and not by debug/dwarf, which allocates what the
// counts in a header say, and reads again what a hostile image points to twice.
// Here each byte is looked at once, and nothing is kept beyond these bounds.
const (
	maxLineSection = 64 << 20 // bytes of each section
	maxLineRows    = 4 << 20  // 16 bytes each
	maxLineFiles   = 1 << 20  // files and folders, 8 bytes each
	maxPathPart    = 512      // bytes of a file's name, and of its folder's
)

// Line returns the source file and line of the instruction that holds the
// virtual address, as the image's DWARF line table (versions 2 to 5) has them.
// A file's name is relative to the folder in which it was compiled, or
// absolute. The first call reads the table; an image whose table is missing or
// broken has no lines, see LinesErr.
func (i *Image) Line(address uint64) (file string, line int, found bool) {
	table, _ := i.loadLines()
	return table.find(address)
}

// LineCount returns the number of places at which another line begins.
func (i *Image) LineCount() int {
	table, _ := i.loadLines()
	return len(table.rows)
}

// LinesErr says why the line table could not be read. It is nil for an image
// that has none.
func (i *Image) LinesErr() error {
	_, err := i.loadLines()
	return err
}

func (i *Image) loadLines() (*lineTable, error) {
	return i.lines.load(i, "lines", i.readLines)
}

func (i *Image) readLines() (t lineTable, err error) {
	sections, err := i.readSections()
	if err != nil || int(i.sections.names) >= len(sections) {
		return t, err
	}
	names, err := i.readSection(int(i.sections.names), sections[i.sections.names], maxLineSection)
	if err != nil {
		return t, err
	}
	section := func(name string) ([]byte, error) {
		for n, s := range sections {
			if cString(names, uint64(s.Name)) == name {
				return i.readDebug(n, s)
			}
		}
		return nil, nil
	}
	line, err := section(".debug_line")
	if err != nil || line == nil {
		return t, err
	}
	t.text[inLine] = line
	if t.text[inLineStr], err = section(".debug_line_str"); err != nil {
		return t, err
	}
	if t.text[inStr], err = section(".debug_str"); err != nil {
		return t, err
	}
	err = t.read(i.inSegment)
	return t, err
}

// inSegment reports whether an address is in the image. A linker leaves the
// lines of functions that it has dropped, at addresses that aren't.
func (i *Image) inSegment(a uint64) bool {
	return slices.ContainsFunc(i.Segments, func(s Segment) bool { return a-s.Virtual < s.MemSize })
}

// readDebug reads a section that may be compressed.
func (i *Image) readDebug(index int, s elf.Section64) ([]byte, error) {
	raw, err := i.readSection(index, s, maxLineSection)
	if err != nil || elf.SectionFlag(s.Flags)&elf.SHF_COMPRESSED == 0 {
		return raw, err
	}
	var h elf.Chdr64
	n, err := binary.Decode(raw, binary.LittleEndian, &h)
	if err != nil || elf.CompressionType(h.Type) != elf.COMPRESS_ZLIB || h.Size > maxLineSection {
		return nil, fmt.Errorf("section %d is compressed in a way that isn't known here", index)
	}
	z, err := zlib.NewReader(bytes.NewReader(raw[n:]))
	if err != nil {
		return nil, fmt.Errorf("section %d: %w", index, err)
	}
	defer z.Close()
	plain, err := io.ReadAll(io.LimitReader(z, int64(h.Size)))
	if err != nil {
		return nil, fmt.Errorf("section %d: %w", index, err)
	}
	return plain, nil
}

// cString returns the text at an offset, up to its NUL.
func cString(b []byte, at uint64) string {
	if at >= uint64(len(b)) {
		return ""
	}
	b = b[at:]
	b = b[:min(len(b), maxPathPart)]
	if end := bytes.IndexByte(b, 0); end >= 0 {
		b = b[:end]
	}
	return string(b)
}

// The sections that texts lie in.
const (
	inLine = iota
	inLineStr
	inStr
	textSections
)

// lineText is where a text lies: its offset times textSections, plus the
// section.
type lineText uint32

// lineFile is a file of one unit. Its folder is an index into dirs, or noDir.
type lineFile struct {
	name lineText
	dir  uint32
}

const noDir = ^uint32(0)

// lineRow says that the instructions from address to the next row's are of this
// line. The last row of a sequence only ends it.
type lineRow struct {
	address    uint64
	line, file uint32 // file is an index into files
}

// lineSequence is a range of rows that ascend.
type lineSequence struct {
	low, high  uint64 // addresses
	first, end int    // in rows
}

type lineTable struct {
	text      [textSections][]byte
	dirs      []lineText
	files     []lineFile
	rows      []lineRow
	sequences []lineSequence // ascending by low
	units     map[uint64]lineUnit
}

// lineUnit is where a unit's files are, by the offset of its line table.
type lineUnit struct {
	first, end, base int // in files; base is the number of the first one
}

// fileOf returns the name of a unit's file, "" if there is none.
func (t *lineTable) fileOf(unit, file uint64) string {
	u := t.units[unit]
	if n := file - uint64(u.base); file >= uint64(u.base) && n < uint64(u.end-u.first) {
		return t.path(t.files[uint64(u.first)+n])
	}
	return ""
}

func (t *lineTable) find(address uint64) (file string, line int, found bool) {
	after, exact := slices.BinarySearchFunc(t.sequences, address, func(s lineSequence, a uint64) int { return cmp.Compare(s.low, a) })
	if exact {
		for after < len(t.sequences) && t.sequences[after].low == address {
			after++
		}
	}
	for n := after - 1; n >= 0 && n >= after-maxLookBack; n-- {
		s := t.sequences[n]
		if address >= s.high {
			continue
		}
		// The first row behind the address; the last one of a sequence always
		// is.
		rows := t.rows[s.first:s.end]
		next, _ := slices.BinarySearchFunc(rows, address, func(r lineRow, a uint64) int {
			if r.address <= a {
				return -1
			}
			return 1
		})
		if r := rows[next-1]; r.line != 0 && int64(r.file) < int64(len(t.files)) {
			return t.path(t.files[r.file]), int(r.line), true
		}
		return "", 0, false
	}
	return "", 0, false
}

func (t *lineTable) path(f lineFile) string {
	name := t.string(f.name)
	if f.dir == noDir || path.IsAbs(name) {
		return path.Clean(name)
	}
	return path.Join(t.string(t.dirs[f.dir]), name)
}

func (t *lineTable) string(at lineText) string {
	return cString(t.text[at%textSections], uint64(at/textSections))
}

var (
	errLines    = errors.New("the line table is broken")
	errTooLarge = errors.New("the line table has too many rows or files")
)

// read reads all units. It leaves out the sequences whose first address has
// refuses.
func (t *lineTable) read(has func(uint64) bool) error {
	t.units = map[uint64]lineUnit{}
	for c := (cursor{b: t.text[inLine]}); len(c.b) > 0; {
		start := c.at
		unit, is64 := c.unit()
		if c.bad {
			return errLines
		}
		p := lineProgram{table: t, has: has, cursor: cursor{b: unit, at: c.at - uint64(len(unit)), is64: is64}}
		if err := p.run(); err != nil {
			return err
		}
		u := lineUnit{first: p.files, end: len(t.files)}
		if p.version < 5 {
			u.base = 1
		}
		if u.end > u.first && len(t.units) < maxUnits {
			t.units[start] = u
		}
	}
	slices.SortStableFunc(t.sequences, func(a, b lineSequence) int { return cmp.Compare(a.low, b.low) })
	return nil
}

// cursor reads a section. What it reads past the end is 0, and bad is set.
type cursor struct {
	b    []byte
	at   uint64 // offset of b in its section
	is64 bool   // the 64-bit format of DWARF
	bad  bool
}

func (c *cursor) bytes(n uint64) []byte {
	if n > uint64(len(c.b)) {
		c.bad = true
		c.at, c.b = c.at+uint64(len(c.b)), nil
		return nil
	}
	out := c.b[:n]
	c.b, c.at = c.b[n:], c.at+n
	return out
}

func (c *cursor) uint(size uint64) (n uint64) {
	for i, b := range c.bytes(size) {
		n |= uint64(b) << (8 * i)
	}
	return n
}

func (c *cursor) offset() uint64 {
	if c.is64 {
		return c.uint(8)
	}
	return c.uint(4)
}

// unit returns the bytes of a unit, behind its length.
func (c *cursor) unit() (unit []byte, is64 bool) {
	length := c.uint(4)
	switch {
	case length == 0xFFFF_FFFF:
		length, is64 = c.uint(8), true
	case length >= 0xFFFF_FFF0:
		c.bad = true
	}
	return c.bytes(length), is64
}

// leb reads a LEB128 number; bits beyond 64 are dropped.
func (c *cursor) leb() (n uint64, shift uint, last byte) {
	for len(c.b) > 0 {
		last = c.b[0]
		c.b, c.at = c.b[1:], c.at+1
		if shift < 64 {
			n |= uint64(last&0x7F) << shift
		}
		shift += 7
		if last&0x80 == 0 {
			return n, shift, last
		}
	}
	c.bad = true
	return 0, 0, 0
}

func (c *cursor) uleb() uint64 {
	n, _, _ := c.leb()
	return n
}

func (c *cursor) sleb() int64 {
	n, shift, last := c.leb()
	if last&0x40 != 0 && shift < 64 {
		n |= ^uint64(0) << shift
	}
	return int64(n)
}

// text skips a text that ends with a NUL, and says where it is.
func (c *cursor) text() (at lineText, empty bool) {
	end := bytes.IndexByte(c.b, 0)
	if end < 0 {
		c.bad = true
		c.b = nil
		return 0, true
	}
	at = lineText(c.at*textSections + inLine)
	c.bytes(uint64(end) + 1)
	return at, end == 0
}

// lineProgram is one unit of the line table.
type lineProgram struct {
	cursor
	table *lineTable
	has   func(uint64) bool

	version     uint64
	minInst     uint64
	lineBase    int64
	lineRange   uint64
	opcodeBase  uint64
	opcodeArgs  []byte
	dirs, files int // where the unit's begin in the table
}

func (p *lineProgram) run() error {
	p.dirs, p.files = len(p.table.dirs), len(p.table.files)
	p.version = p.uint(2)
	if p.version < 2 || p.version > 5 {
		return nil // a later one may be another
	}
	if p.version == 5 {
		p.bytes(2) // sizes of addresses and segments
	}
	program := p.offset()
	if program > uint64(len(p.b)) {
		return errLines
	}
	code := cursor{b: p.b[program:], at: p.at + program}
	p.b = p.b[:program]
	p.minInst = p.uint(1)
	if p.version >= 4 {
		p.bytes(1) // operations of an instruction: 1 on x86
	}
	p.bytes(1) // is_stmt
	p.lineBase = int64(int8(p.uint(1)))
	p.lineRange, p.opcodeBase = p.uint(1), p.uint(1)
	if p.lineRange == 0 || p.opcodeBase == 0 {
		return errLines
	}
	p.opcodeArgs = p.bytes(p.opcodeBase - 1)
	readFiles := p.readFiles
	if p.version == 5 {
		readFiles = p.readFiles5
	}
	if err := readFiles(); err != nil {
		return err
	}
	if p.bad {
		return errLines
	}
	p.cursor = code
	return p.rows()
}

// readFiles reads folders and files of versions 2 to 4, where folder 0 is the
// one in which the unit was compiled.
func (p *lineProgram) readFiles() error {
	for !p.bad {
		dir, end := p.text()
		if end {
			break
		}
		p.table.dirs = append(p.table.dirs, dir)
		if err := p.full(); err != nil {
			return err
		}
	}
	for !p.bad {
		name, end := p.text()
		if end {
			break
		}
		dir := p.uleb()
		p.uleb() // time
		p.uleb() // length
		p.addFile(name, dir-1)
		if err := p.full(); err != nil {
			return err
		}
	}
	return nil
}

// addFile adds a file in a folder of the unit. A number that no folder has
// stands for the folder in which the unit was compiled.
func (p *lineProgram) addFile(name lineText, dir uint64) {
	f := lineFile{name: name, dir: noDir}
	if dir < uint64(len(p.table.dirs)-p.dirs) {
		f.dir = uint32(p.dirs) + uint32(dir)
	}
	p.table.files = append(p.table.files, f)
}

func (p *lineProgram) full() error {
	if len(p.table.dirs)+len(p.table.files) > maxLineFiles {
		return errTooLarge
	}
	return nil
}

// Content types and forms of DWARF 5 (sections 6.2.4.1 and 7.5.6).
const (
	contentPath, contentFolder = 1, 2

	formBlock, formData1, formData2, formData4, formData8, formData16 = 0x09, 0x0b, 0x05, 0x06, 0x07, 0x1e
	formString, formStrp, formLineStrp, formUdata                     = 0x08, 0x0e, 0x1f, 0x0f
)

// readFiles5 reads folders and files of version 5. Folder 0 is the one in which
// the unit was compiled: names are relative to it.
func (p *lineProgram) readFiles5() error {
	err := p.entries(func(name lineText, _ uint64) {
		p.table.dirs = append(p.table.dirs, name)
	})
	if err != nil {
		return err
	}
	return p.entries(func(name lineText, dir uint64) {
		if dir == 0 {
			dir = ^uint64(0)
		}
		p.addFile(name, dir)
	})
}

// entries reads a table of entries in a format that comes before it.
func (p *lineProgram) entries(add func(name lineText, dir uint64)) error {
	formats := make([][2]uint64, p.uint(1))
	for i := range formats {
		formats[i] = [2]uint64{p.uleb(), p.uleb()}
	}
	n := p.uleb()
	if len(formats) == 0 && n > 0 {
		return errLines // it would take no bytes
	}
	for ; n > 0 && !p.bad; n-- {
		var name lineText
		var dir uint64
		for _, f := range formats {
			text, value, ok := p.value(f[1])
			switch {
			case !ok:
				return errLines
			case f[0] == contentPath:
				name = text
			case f[0] == contentFolder:
				dir = value
			}
		}
		add(name, dir)
		if err := p.full(); err != nil {
			return err
		}
	}
	return nil
}

// value reads a value, which takes a byte at least.
func (p *lineProgram) value(form uint64) (text lineText, value uint64, ok bool) {
	switch form {
	case formString:
		text, _ = p.text()
	case formLineStrp:
		text = textAt(inLineStr, p.offset())
	case formStrp:
		text = textAt(inStr, p.offset())
	case formUdata:
		value = p.uleb()
	case formData1:
		value = p.uint(1)
	case formData2:
		value = p.uint(2)
	case formData4:
		value = p.uint(4)
	case formData8:
		value = p.uint(8)
	case formData16:
		p.bytes(16)
	case formBlock:
		p.bytes(p.uleb())
	default:
		return 0, 0, false
	}
	return text, value, true
}

func textAt(section int, offset uint64) lineText {
	return lineText(min(offset, maxLineSection)*textSections + uint64(section))
}

// Opcodes (DWARF 5, sections 6.2.5.2 and 6.2.5.3).
const (
	opExtended = iota
	opCopy
	opAdvancePC
	opAdvanceLine
	opSetFile
	opSetColumn
	opNegate
	opBasicBlock
	opConstAddPC
	opFixedAdvancePC

	opEndSequence = 1
	opSetAddress  = 2
	opDefineFile  = 3
)

// lineState is the machine that a line program runs on.
type lineState struct {
	address    uint64
	line, file uint64
}

// rows runs the program.
func (p *lineProgram) rows() error {
	start := lineState{line: 1, file: 1}
	s, first := start, len(p.table.rows)
	for len(p.b) > 0 && !p.bad {
		op := p.uint(1)
		switch {
		case op >= p.opcodeBase:
			op -= p.opcodeBase
			s.address += op / p.lineRange * p.minInst
			s.line += uint64(p.lineBase + int64(op%p.lineRange))
			p.emit(s)
		case op == opExtended:
			if p.extended(&s) {
				p.emit(s)
				p.endSequence(first)
				s, first = start, len(p.table.rows)
			}
		default:
			p.standard(op, &s)
		}
		if len(p.table.rows) > maxLineRows {
			return errTooLarge
		}
		if err := p.full(); err != nil {
			return err
		}
	}
	p.table.rows = p.table.rows[:first]
	if p.bad {
		return errLines
	}
	return nil
}

func (p *lineProgram) standard(op uint64, s *lineState) {
	switch op {
	case opCopy:
		p.emit(*s)
	case opAdvancePC:
		s.address += p.uleb() * p.minInst
	case opAdvanceLine:
		s.line += uint64(p.sleb())
	case opSetFile:
		s.file = p.uleb()
	case opConstAddPC:
		s.address += (255 - p.opcodeBase) / p.lineRange * p.minInst
	case opFixedAdvancePC:
		s.address += p.uint(2)
	default: // what doesn't matter here, or isn't known
		for range p.opcodeArgs[op-1] {
			p.uleb()
		}
	}
}

// extended runs an extended opcode, and reports whether it ends the sequence.
func (p *lineProgram) extended(s *lineState) bool {
	args := cursor{at: p.at}
	n := p.uleb()
	args.at = p.at
	args.b = p.bytes(n)
	switch op := args.uint(1); {
	case op == opEndSequence:
		return true
	case op == opSetAddress:
		s.address = args.uint(min(uint64(len(args.b)), 8))
	case op == opDefineFile && p.version < 5:
		name, _ := args.text()
		p.addFile(name, args.uleb()-1)
	}
	return false
}

func (p *lineProgram) emit(s lineState) {
	if p.version < 5 {
		s.file-- // counted from 1
	}
	file := noDir // out of range
	if s.file < uint64(len(p.table.files)-p.files) {
		file = uint32(p.files) + uint32(s.file)
	}
	line := uint32(s.line)
	if s.line > 1<<31-1 {
		line = 0
	}
	p.table.rows = append(p.table.rows, lineRow{address: s.address, line: line, file: file})
}

// endSequence keeps the rows from first on as a sequence, if they are one.
func (p *lineProgram) endSequence(first int) {
	rows := p.table.rows[first:]
	ascending := slices.IsSortedFunc(rows, func(a, b lineRow) int { return cmp.Compare(a.address, b.address) })
	low, high := rows[0].address, rows[len(rows)-1].address
	if !ascending || low == high || !p.has(low) {
		p.table.rows = p.table.rows[:first]
		return
	}
	p.table.sequences = append(p.table.sequences, lineSequence{low, high, first, len(p.table.rows)})
}
