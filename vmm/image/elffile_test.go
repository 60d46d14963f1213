package image

import (
	"bytes"
	"debug/elf"
	"encoding/binary"

	"github.com/fix-project/arcavm/internal/guestmap"
)

// elfFile describes an ELF file for the tests. Its zero value, with a segment,
// is a valid image.
type elfFile struct {
	entry    uint64
	segments []elfSegment
	notes    []byte // contents of a PT_NOTE segment, if not nil
	symbols  []elfSymbol
	edit     func(header *elf.Header64)
}

type elfSegment struct {
	kind              elf.ProgType // PT_LOAD if 0
	physical, virtual uint64
	data              []byte
	memSize           uint64              // len(data) if 0
	edit              func(p *elf.Prog64) // after everything else is set
}

type elfSymbol struct {
	name        string
	start, size uint64
	kind        elf.SymType
	bind        elf.SymBind
	section     elf.SectionIndex // 1 if 0
}

// note encodes one note with parts padded to 4 bytes.
func note(owner string, kind uint32, desc []byte) []byte {
	var b bytes.Buffer
	for _, v := range []uint32{uint32(len(owner)), uint32(len(desc)), kind} {
		write(&b, v)
	}
	for _, part := range [][]byte{[]byte(owner), desc} {
		b.Write(part)
		b.Write(make([]byte, -len(part)&3))
	}
	return b.Bytes()
}

func write(b *bytes.Buffer, v any) {
	if err := binary.Write(b, binary.LittleEndian, v); err != nil {
		panic(err)
	}
}

// bytes lays the file out: header, program headers, segments, notes, symbols,
// names, section headers.
func (f elfFile) bytes() []byte {
	segments := f.segments
	if f.notes != nil {
		segments = append(segments[:len(segments):len(segments)], elfSegment{kind: elf.PT_NOTE, data: f.notes})
	}
	header := elf.Header64{
		Ident: [16]byte{0x7F, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1, Entry: f.entry,
		Ehsize: headerSize, Phoff: headerSize, Phentsize: programHeaderSize, Phnum: uint16(len(segments)),
	}
	if f.entry == 0 && len(segments) > 0 {
		header.Entry = guestmap.DirectMap | segments[0].physical
	}
	var programs, data bytes.Buffer
	at := uint64(headerSize + programHeaderSize*len(segments))
	for _, s := range segments {
		p := elf.Prog64{
			Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Off: at + uint64(data.Len()),
			Vaddr: s.virtual, Paddr: s.physical, Filesz: uint64(len(s.data)), Memsz: uint64(len(s.data)), Align: 4,
		}
		if s.kind != 0 {
			p.Type = uint32(s.kind)
		}
		if s.memSize != 0 {
			p.Memsz = s.memSize
		}
		if s.edit != nil {
			s.edit(&p)
		}
		write(&programs, p)
		data.Write(s.data)
	}
	var symbols, names bytes.Buffer
	names.WriteByte(0)
	symbols.Write(make([]byte, symbolSize))
	for _, s := range f.symbols {
		section := uint16(1)
		if s.section != 0 {
			section = uint16(s.section)
		}
		write(&symbols, elf.Sym64{
			Name: uint32(names.Len()), Info: elf.ST_INFO(s.bind, s.kind), Shndx: section, Value: s.start, Size: s.size,
		})
		names.WriteString(s.name)
		names.WriteByte(0)
	}
	var sections bytes.Buffer
	if f.symbols != nil {
		symbolsAt := at + uint64(data.Len())
		namesAt := symbolsAt + uint64(symbols.Len())
		header.Shoff = namesAt + uint64(names.Len())
		header.Shentsize, header.Shnum = sectionHeaderSize, 3
		write(&sections, elf.Section64{})
		write(&sections, elf.Section64{Type: uint32(elf.SHT_SYMTAB), Off: symbolsAt, Size: uint64(symbols.Len()), Link: 2, Entsize: symbolSize})
		write(&sections, elf.Section64{Type: uint32(elf.SHT_STRTAB), Off: namesAt, Size: uint64(names.Len())})
	} else {
		symbols.Reset()
		names.Reset()
	}
	if f.edit != nil {
		f.edit(&header)
	}
	var out bytes.Buffer
	write(&out, header)
	for _, part := range []*bytes.Buffer{&programs, &data, &symbols, &names, &sections} {
		out.Write(part.Bytes())
	}
	return out.Bytes()
}
