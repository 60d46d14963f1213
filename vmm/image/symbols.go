package image

import (
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"iter"
	"slices"

	"github.com/ianlancetaylor/demangle"
)

// Bounds on what a hostile image can make the symbol table cost.
const (
	maxSymbolTable = 64 << 20  // bytes of symbols, 24 each
	maxStringTable = 256 << 20 // bytes of names
	maxSymbolName  = 4096      // bytes of one name; what is longer is cut
	maxDemangled   = 14        // a demangled name has at most 1 << 14 bytes
	maxLookBack    = 64        // symbols before an address that Lookup considers
)

const (
	sectionHeaderSize = 64
	symbolSize        = 24
)

// Symbol is a named range of virtual addresses.
type Symbol struct {
	Name  string // demangled if it was a C++ or Rust name
	Start uint64 // virtual address
	Size  uint64 // bytes, 0 if the image doesn't say
}

// sectionTable says where the section headers are. It isn't checked: an image
// without valid ones has no symbols.
type sectionTable struct {
	offset           uint64
	entrySize, count uint16
	names            uint16 // the section that holds the sections' names
}

type symbolEntry struct {
	start, size uint64
	name        uint32 // offset in names
	rank        uint8  // of two at one address, the lower is the better name
}

type symbolTable struct {
	entries []symbolEntry // ascending by start, one per start
	names   []byte
}

// Lookup returns the symbol that holds the virtual address, and the distance
// from its start. A symbol without a size holds everything up to the next
// symbol or the end of its segment. The first call reads the symbol table; an
// image whose table is missing or broken has no symbols, see SymbolsErr.
func (i *Image) Lookup(address uint64) (symbol Symbol, offset uint64, found bool) {
	table, _ := i.loadSymbols()
	after, exact := slices.BinarySearchFunc(table.entries, address, func(e symbolEntry, a uint64) int { return cmp.Compare(e.start, a) })
	if exact {
		after++
	}
	for n := after - 1; n >= 0 && n >= after-maxLookBack; n-- {
		e := table.entries[n]
		distance := address - e.start
		if e.size == 0 && n == after-1 && i.sameSegment(e.start, address) || distance < e.size {
			return table.symbol(e), distance, true
		}
	}
	return Symbol{}, 0, false
}

// LookupCall is Lookup for an address to which a call may return. After a call
// that never returns that address is often the very end of a function, and may
// be the start of the next one. So where it is at a symbol's start or in none,
// and the image has a call right before it, it belongs to the call's function.
func (i *Image) LookupCall(address uint64) (symbol Symbol, offset uint64, found bool) {
	symbol, offset, found = i.Lookup(address)
	if found && offset != 0 || !i.afterCall(address) {
		return symbol, offset, found
	}
	if caller, before, ok := i.Lookup(address - 1); ok {
		return caller, before + 1, true
	}
	return symbol, offset, found
}

// MaxCallSize is the size of the longest call instruction, in bytes.
const MaxCallSize = 7

// Calls (Intel SDM volume 2): E8 with four bytes, or FF /2, which has two to
// seven.
const (
	opCall   = 0xE8
	callSize = 5
	opCallAt = 0xFF
)

// afterCall reports whether the image's code has a call before the address.
func (i *Image) afterCall(address uint64) bool {
	var code [MaxCallSize]byte
	n := uint64(len(code))
	for ; n > 1 && !i.readCode(code[uint64(len(code))-n:], address-n); n-- {
	}
	return EndsWithCall(code[uint64(len(code))-n:])
}

// EndsWithCall reports whether code may end with a call.
func EndsWithCall(code []byte) bool {
	if n := len(code); n >= callSize && code[n-callSize] == opCall {
		return true
	}
	for n := 2; n <= min(len(code), MaxCallSize); n++ {
		if at := code[len(code)-n:]; at[0] == opCallAt && at[1]>>3&7 == 2 {
			return true
		}
	}
	return false
}

// readCode fills p from a virtual address on. It reports whether all of it is
// in the file, as part of what can be executed.
func (i *Image) readCode(p []byte, address uint64) bool {
	for _, s := range i.Segments {
		at := address - s.Virtual
		if s.Flags&elf.PF_X != 0 && at < s.FileSize && uint64(len(p)) <= s.FileSize-at {
			return i.readAt(p, s.Offset+at) == nil
		}
	}
	return false
}

// Symbols returns the image's functions, objects and labels, ascending by
// address.
func (i *Image) Symbols() iter.Seq[Symbol] {
	table, _ := i.loadSymbols()
	return func(yield func(Symbol) bool) {
		for _, e := range table.entries {
			if !yield(table.symbol(e)) {
				return
			}
		}
	}
}

// SymbolCount returns the number of symbols.
func (i *Image) SymbolCount() int {
	table, _ := i.loadSymbols()
	return len(table.entries)
}

// SymbolsErr says why the symbol table could not be read. It is nil for an
// image that has none.
func (i *Image) SymbolsErr() error {
	_, err := i.loadSymbols()
	return err
}

func (i *Image) sameSegment(a, b uint64) bool {
	return slices.ContainsFunc(i.Segments, func(s Segment) bool { return a-s.Virtual < s.MemSize && b-s.Virtual < s.MemSize })
}

func (i *Image) loadSymbols() (*symbolTable, error) {
	return i.symbols.load(i, "symbols", i.readSymbols)
}

func (i *Image) readSymbols() (symbolTable, error) {
	sections, err := i.readSections()
	if err != nil {
		return symbolTable{}, err
	}
	at := slices.IndexFunc(sections, func(s elf.Section64) bool { return elf.SectionType(s.Type) == elf.SHT_SYMTAB })
	if at < 0 {
		return symbolTable{}, nil
	}
	section := sections[at]
	if int64(section.Link) >= int64(len(sections)) || section.Entsize != symbolSize {
		return symbolTable{}, fmt.Errorf("section %d is not a symbol table", at)
	}
	raw, err := i.readSection(at, section, maxSymbolTable)
	if err != nil {
		return symbolTable{}, err
	}
	names, err := i.readSection(int(section.Link), sections[section.Link], maxStringTable)
	if err != nil {
		return symbolTable{}, err
	}
	table := symbolTable{names: names, entries: make([]symbolEntry, 0, len(raw)/symbolSize)}
	for ; len(raw) >= symbolSize; raw = raw[symbolSize:] {
		table.add(raw[:symbolSize])
	}
	table.sort()
	return table, nil
}

func (i *Image) readSections() ([]elf.Section64, error) {
	t := i.sections
	if t.count == 0 {
		return nil, nil
	}
	size := uint64(t.count) * sectionHeaderSize
	if t.entrySize != sectionHeaderSize || !i.inFile(t.offset, size) {
		return nil, fmt.Errorf("the section headers are not in the file")
	}
	raw := make([]byte, size)
	if err := i.readAt(raw, t.offset); err != nil {
		return nil, err
	}
	sections := make([]elf.Section64, t.count)
	_, err := binary.Decode(raw, binary.LittleEndian, sections)
	return sections, err
}

func (i *Image) readSection(index int, s elf.Section64, limit uint64) ([]byte, error) {
	if elf.SectionType(s.Type) == elf.SHT_NOBITS || !i.inFile(s.Off, s.Size) {
		return nil, fmt.Errorf("section %d is not in the file", index)
	}
	if s.Size > limit {
		return nil, fmt.Errorf("section %d has %d bytes, more than %d", index, s.Size, limit)
	}
	raw := make([]byte, s.Size)
	return raw, i.readAt(raw, s.Off)
}

func (t *symbolTable) add(raw []byte) {
	name := binary.LittleEndian.Uint32(raw)
	info := raw[4]
	section := elf.SectionIndex(binary.LittleEndian.Uint16(raw[6:]))
	start := binary.LittleEndian.Uint64(raw[8:])
	size := binary.LittleEndian.Uint64(raw[16:])
	if section == elf.SHN_UNDEF || section >= elf.SHN_LORESERVE || int64(name) >= int64(len(t.names)) || t.names[name] == 0 {
		return
	}
	rank := uint8(0)
	switch elf.ST_TYPE(info) {
	case elf.STT_FUNC:
	case elf.STT_OBJECT:
		rank = 2
	case elf.STT_NOTYPE:
		rank = 4
	default:
		return
	}
	if elf.ST_BIND(info) == elf.STB_LOCAL {
		rank++
	}
	t.entries = append(t.entries, symbolEntry{start: start, size: size, name: name, rank: rank})
}

func (t *symbolTable) sort() {
	slices.SortFunc(t.entries, func(a, b symbolEntry) int {
		return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(a.rank, b.rank), cmp.Compare(b.size, a.size), cmp.Compare(a.name, b.name))
	})
	t.entries = slices.CompactFunc(t.entries, func(a, b symbolEntry) bool { return a.start == b.start })
}

func (t *symbolTable) symbol(e symbolEntry) Symbol {
	raw := t.names[e.name:]
	raw = raw[:min(len(raw), maxSymbolName)]
	if end := bytes.IndexByte(raw, 0); end >= 0 {
		raw = raw[:end]
	}
	return Symbol{Name: demangleName(string(raw)), Start: e.start, Size: e.size}
}

// demangleName returns the source's name for a C++ or Rust symbol, and any
// other name as it is.
func demangleName(name string) (readable string) {
	// The name comes from the image, and a fault in the demangler must not end
	// the monitor.
	defer func() {
		if recover() != nil {
			readable = name
		}
	}()
	return demangle.Filter(name, demangle.MaxLength(maxDemangled))
}
