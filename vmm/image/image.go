// Package image reads kernel images: static ELF64 executables for x86-64
// (PROTOCOL.md section 2).
//
// An image file is hostile input. Every offset, size and address in it is
// checked before it is used, memory use is bounded, and each error is one line
// that says what is wrong with the file.
//
// # Glossary
//
//	image     an ELF file, checked, with its segments
//	segment   a part of the image that takes up memory (PT_LOAD)
//	note      an entry of the file that names the version of the guest's ABI
//	ABI       how guest and monitor talk; the image says it, or the user
//	symbol    a named range of virtual addresses
//	line      where in the source code an instruction comes from
//	inlined   said of a call in whose place the compiler put what it calls
package image

import (
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/fix-project/arcavm/internal/guestmap"
	"github.com/fix-project/arcavm/internal/regular"
)

const (
	headerSize        = 64
	programHeaderSize = 56
	maxNoteSize       = 64 << 10 // bytes of each PT_NOTE segment that are looked at
)

// Segment is a PT_LOAD segment that takes up memory.
type Segment struct {
	Index    int    // number of its program header
	Offset   uint64 // where its bytes start in the file
	FileSize uint64 // bytes in the file, at most MemSize
	Physical uint64 // where it is loaded: p_paddr without the direct-map bits
	Virtual  uint64 // p_vaddr
	MemSize  uint64 // bytes in memory, not 0; those after FileSize are zero
	Flags    elf.ProgFlag
}

// End is the first physical address after the segment.
func (s Segment) End() uint64 { return s.Physical + s.MemSize }

func (s Segment) String() string {
	return fmt.Sprintf("segment %d (0x%x–0x%x)", s.Index, s.Physical, s.End())
}

// Image is a checked image. Its fields don't change after Parse, and its
// methods may be called concurrently.
type Image struct {
	Name     string    // for messages, and the guest's first argument
	Entry    uint64    // virtual address of the first instruction, in the direct map
	Segments []Segment // ascending by Physical, without overlap, at least one
	Version  Version   // of the ABI, by the image's note; 0: it has none

	file     io.ReaderAt
	size     int64
	closer   io.Closer // nil unless Open made it
	sections sectionTable

	// Tables for reports.
	symbols lazy[symbolTable]
	lines   lazy[lineTable]
	inlined lazy[*inlinedTable] // nil: there is none that can be read

	inlinedMu sync.Mutex // guards what inlined has read so far
}

// lazy is a table that is read from the file once, when it is first asked for.
// After an error it is empty.
type lazy[T any] struct {
	once  sync.Once
	table T
	err   error
}

// load returns the table. Its first call reads it, what says as what.
func (l *lazy[T]) load(i *Image, what string, read func() (T, error)) (*T, error) {
	l.once.Do(func() {
		table, err := read()
		if err != nil {
			l.err = fmt.Errorf("%s: read %s: %w", i.Name, what, err)
			return
		}
		l.table = table
	})
	return &l.table, l.err
}

// FormatError says why a file is not an image that can run.
type FormatError struct {
	Name   string // of the image
	Reason string // one line, without the name
}

func (e *FormatError) Error() string { return e.Name + ": " + e.Reason }

// LoadError says that a segment doesn't lie in RAM.
type LoadError struct {
	Name     string
	Segment  Segment
	RAMStart uint64
	RAMEnd   uint64
	// Need is the smallest size of RAM, in bytes, that holds every segment; 0
	// if no size does.
	Need uint64
}

func (e *LoadError) Error() string {
	text := fmt.Sprintf("%s: %v lies outside RAM (0x%x–0x%x)", e.Name, e.Segment, e.RAMStart, e.RAMEnd)
	if e.Need != 0 {
		text += fmt.Sprintf(": too little memory, the image alone needs %d MiB", (e.Need+(1<<20-1))>>20)
	}
	return text
}

// Open opens and parses the image file at path. The file stays open until
// Close: Load and the symbols read it. Open doesn't wait for the other end of a
// FIFO, but for the end of another process's lease on the file.
func Open(path string) (*Image, error) {
	f, info, err := regular.Open(path)
	if err != nil {
		return nil, err // names the path
	}
	if !info.Mode().IsRegular() {
		f.Close()
		return nil, &FormatError{Name: path, Reason: "is not a regular file"}
	}
	img, err := Parse(f, info.Size(), path)
	if err != nil {
		f.Close()
		return nil, err
	}
	img.closer = f
	return img, nil
}

// ParseBytes parses an image that is in memory. The bytes must not change while
// the Image is in use.
func ParseBytes(data []byte, name string) (*Image, error) {
	return Parse(bytes.NewReader(data), int64(len(data)), name)
}

// Parse reads the headers and notes of the image in the first size bytes of r.
// Errors about the image are of type *FormatError; others come from r. The
// Image keeps reading from r: see Load and Lookup.
func Parse(r io.ReaderAt, size int64, name string) (*Image, error) {
	img := &Image{Name: name, file: r, size: size}
	if err := img.parse(); err != nil {
		if format := (*FormatError)(nil); errors.As(err, &format) {
			return nil, err
		}
		return nil, fmt.Errorf("read image %s: %w", name, err)
	}
	return img, nil
}

// Close closes the file that Open opened; other images have nothing to close.
func (i *Image) Close() error {
	if i.closer == nil {
		return nil
	}
	return i.closer.Close()
}

// End is the first physical address after the last segment.
func (i *Image) End() uint64 { return i.Segments[len(i.Segments)-1].End() }

// Load copies the segments to ram, which is the guest's memory from physical
// address base on. It writes what the file holds and relies on ram being zero
// elsewhere. A segment outside ram is a *LoadError, found before anything is
// written.
func (i *Image) Load(base uint64, ram []byte) error {
	end := base + uint64(len(ram))
	for _, s := range i.Segments {
		if s.Physical < base || s.End() > end {
			return &LoadError{Name: i.Name, Segment: s, RAMStart: base, RAMEnd: end, Need: i.need(base)}
		}
	}
	for _, s := range i.Segments {
		at := s.Physical - base
		if err := i.readAt(ram[at:at+s.FileSize], s.Offset); err != nil {
			return fmt.Errorf("%s: load %v: %w", i.Name, s, err)
		}
	}
	return nil
}

// need returns the size of RAM from base on that holds the image, or 0 if there
// is none.
func (i *Image) need(base uint64) uint64 {
	if i.Segments[0].Physical < base || i.End() > guestmap.MaxPhysical {
		return 0
	}
	return i.End() - base
}

func (i *Image) bad(format string, args ...any) error {
	return &FormatError{Name: i.Name, Reason: fmt.Sprintf(format, args...)}
}

// readAt fills p from the file. The caller has checked the range by inFile.
func (i *Image) readAt(p []byte, offset uint64) error {
	if len(p) == 0 {
		return nil
	}
	n, err := i.file.ReadAt(p, int64(offset))
	if n == len(p) {
		return nil
	}
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// inFile reports whether size bytes at offset are all in the file. A range of
// no bytes is, wherever it begins: linkers leave any offset there, even one
// past the file's end.
func (i *Image) inFile(offset, size uint64) bool {
	if size == 0 {
		return true
	}
	total := uint64(i.size)
	return offset <= total && size <= total-offset
}

func (i *Image) parse() error {
	header, err := i.readHeader()
	if err != nil {
		return err
	}
	i.Entry = header.Entry
	i.sections = sectionTable{offset: header.Shoff, entrySize: header.Shentsize, count: header.Shnum, names: header.Shstrndx}
	if err := i.readProgramHeaders(header); err != nil {
		return err
	}
	return i.checkAddresses()
}

func (i *Image) readHeader() (elf.Header64, error) {
	var header elf.Header64
	var raw [headerSize]byte
	n := min(i.size, headerSize)
	if n < 0 {
		n = 0
	}
	if err := i.readAt(raw[:n], 0); err != nil {
		return header, err
	}
	if !bytes.HasPrefix(raw[:n], []byte(elf.ELFMAG)) {
		return header, i.bad("is not an ELF file")
	}
	if n < 20 {
		return header, i.bad("is cut off within the ELF header")
	}
	if elf.Data(raw[elf.EI_DATA]) != elf.ELFDATA2LSB {
		return header, i.bad("is not a little-endian ELF file, Arca images are little-endian x86-64")
	}
	machine := elf.Machine(binary.LittleEndian.Uint16(raw[18:]))
	switch elf.Class(raw[elf.EI_CLASS]) {
	case elf.ELFCLASS64:
	case elf.ELFCLASS32:
		return header, i.bad("is a 32-bit ELF file for %s, Arca images are 64-bit x86-64", machineName(machine))
	default:
		return header, i.bad("is an ELF file of unknown class %d, Arca images are 64-bit", raw[elf.EI_CLASS])
	}
	if machine != elf.EM_X86_64 {
		return header, i.bad("is an ELF file for %s, Arca images are x86-64", machineName(machine))
	}
	if n < headerSize {
		return header, i.bad("is cut off within the ELF header")
	}
	if _, err := binary.Decode(raw[:], binary.LittleEndian, &header); err != nil {
		return header, err
	}
	switch t := elf.Type(header.Type); t {
	case elf.ET_EXEC:
	case elf.ET_DYN:
		return header, i.bad("is a position-independent or shared ELF file (ET_DYN), Arca images have fixed addresses (ET_EXEC)")
	case elf.ET_REL:
		return header, i.bad("is an object file that isn't linked (ET_REL), Arca images are executables (ET_EXEC)")
	default:
		return header, i.bad("is an ELF file of type %v, Arca images are executables (ET_EXEC)", t)
	}
	return header, nil
}

func machineName(m elf.Machine) string {
	switch m {
	case elf.EM_AARCH64:
		return "aarch64"
	case elf.EM_ARM:
		return "ARM"
	case elf.EM_386:
		return "x86"
	case elf.EM_X86_64:
		return "x86-64 (x32)"
	case elf.EM_RISCV:
		return "RISC-V"
	case elf.EM_PPC64:
		return "PowerPC64"
	case elf.EM_S390:
		return "S/390"
	}
	return m.String()
}

func (i *Image) readProgramHeaders(header elf.Header64) error {
	if header.Phnum == 0 {
		return i.bad("has no program headers, so nothing to load")
	}
	if header.Phentsize != programHeaderSize {
		return i.bad("has program headers of %d bytes, not %d", header.Phentsize, programHeaderSize)
	}
	size := uint64(header.Phnum) * programHeaderSize
	if !i.inFile(header.Phoff, size) {
		return i.bad("is cut off within the program headers")
	}
	raw := make([]byte, size)
	if err := i.readAt(raw, header.Phoff); err != nil {
		return err
	}
	programs := make([]elf.Prog64, header.Phnum)
	if _, err := binary.Decode(raw, binary.LittleEndian, programs); err != nil {
		return err
	}
	noted := false
	for index, p := range programs {
		switch elf.ProgType(p.Type) {
		case elf.PT_LOAD:
			if err := i.addSegment(index, p); err != nil {
				return err
			}
		case elf.PT_NOTE:
			if noted {
				continue
			}
			var err error
			if noted, err = i.readVersion(index, p); err != nil {
				return err
			}
		}
	}
	return nil
}

func (i *Image) addSegment(index int, p elf.Prog64) error {
	if p.Memsz == 0 && p.Filesz == 0 {
		return nil
	}
	if p.Filesz > p.Memsz {
		return i.bad("segment %d has more bytes in the file (0x%x) than in memory (0x%x)", index, p.Filesz, p.Memsz)
	}
	if !i.inFile(p.Off, p.Filesz) {
		return i.bad("is cut off: segment %d has 0x%x bytes at 0x%x, the file ends at 0x%x", index, p.Filesz, p.Off, i.size)
	}
	s := Segment{
		Index: index, Offset: p.Off, FileSize: p.Filesz,
		Physical: p.Paddr & guestmap.PhysicalMask, Virtual: p.Vaddr, MemSize: p.Memsz, Flags: elf.ProgFlag(p.Flags),
	}
	if s.MemSize > guestmap.PhysicalMask+1-s.Physical {
		return i.bad("segment %d at 0x%x of 0x%x bytes goes past the end of the physical address space", index, s.Physical, s.MemSize)
	}
	if s.Virtual+(s.MemSize-1) < s.Virtual {
		return i.bad("segment %d at virtual address 0x%x of 0x%x bytes goes past the end of the address space", index, s.Virtual, s.MemSize)
	}
	i.Segments = append(i.Segments, s)
	return nil
}

// checkAddresses sorts the segments, and checks them and the entry point
// against each other.
func (i *Image) checkAddresses() error {
	if len(i.Segments) == 0 {
		return i.bad("has no loadable segment")
	}
	slices.SortFunc(i.Segments, func(a, b Segment) int { return cmp.Compare(a.Physical, b.Physical) })
	for n := 1; n < len(i.Segments); n++ {
		if a, b := i.Segments[n-1], i.Segments[n]; a.End() > b.Physical {
			return i.bad("%v and %v overlap", a, b)
		}
	}
	if i.Entry < guestmap.DirectMap || i.Entry-guestmap.DirectMap >= guestmap.MaxPhysical {
		return i.bad("the entry point 0x%x is outside the direct map (0x%x–0x%x)", i.Entry, uint64(guestmap.DirectMap), uint64(guestmap.DirectMap+guestmap.MaxPhysical))
	}
	physical := i.Entry - guestmap.DirectMap
	if !slices.ContainsFunc(i.Segments, func(s Segment) bool { return s.Physical <= physical && physical < s.End() }) {
		return i.bad("the entry point 0x%x is in none of the segments", i.Entry)
	}
	return nil
}
