package image

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/internal/guestmap"
	"github.com/fix-project/arcavm/internal/leased"
	"github.com/fix-project/arcavm/testdata/images"
)

const ram = 0x1_0000_0000

func code(physical uint64) elfSegment {
	return elfSegment{physical: physical, virtual: guestmap.DirectMap | physical, data: []byte("code")}
}

func TestParse(t *testing.T) {
	t.Parallel()
	f := elfFile{
		segments: []elfSegment{
			{physical: guestmap.DirectMap | ram + 0x2000, virtual: 0, data: []byte("percpu"), memSize: 0x100},
			{physical: ram + 0x1003, virtual: guestmap.DirectMap | ram + 0x1003, data: []byte("text")},
			{physical: ram + 0x1007, virtual: guestmap.DirectMap | ram + 0x1007, data: []byte("data"), memSize: 12},
			{kind: elf.PT_GNU_STACK, physical: 7},
			{physical: 0, memSize: 0},
		},
		entry: guestmap.DirectMap | ram + 0x1004,
		notes: append(note("GNU\x00", 1, []byte("four")), note("Arca\x00", 1, []byte{1, 0, 0, 0})...),
	}
	img, err := ParseBytes(f.bytes(), "k")
	if err != nil {
		t.Fatal(err)
	}
	if img.Entry != guestmap.DirectMap|ram+0x1004 || img.Version != version1 || img.Name != "k" {
		t.Errorf("got entry %#x, %v, name %q", img.Entry, img.Version, img.Name)
	}
	var got []string
	for _, s := range img.Segments {
		got = append(got, s.String())
	}
	want := []string{"segment 1 (0x100001003–0x100001007)", "segment 2 (0x100001007–0x100001013)", "segment 0 (0x100002000–0x100002100)"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	mem := make([]byte, 0x3000)
	if err := img.Load(ram, mem); err != nil {
		t.Fatal(err)
	}
	expected := make([]byte, len(mem))
	copy(expected[0x1003:], "textdata")
	copy(expected[0x2000:], "percpu")
	if !bytes.Equal(mem, expected) {
		t.Error("memory after Load differs from the segments")
	}
}

func TestCommittedImages(t *testing.T) {
	t.Parallel()
	for _, name := range images.Names() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			img, err := ParseBytes(images.Bytes(name), name)
			if err != nil {
				t.Fatal(err)
			}
			want := version1
			if strings.HasPrefix(name, "rpc-") {
				want = 0
			}
			if img.Version != want {
				t.Errorf("%v, want %v", img.Version, want)
			}
			if s, offset, found := img.Lookup(img.Entry); !found || s.Name != "_start" || offset != 0 {
				t.Errorf("the entry point is %q+%#x", s.Name, offset)
			}
			if err := img.Load(ram, make([]byte, 64<<20)); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	padded8 := append(note("", 0, nil), 0, 0, 0, 0) // 12 bytes, then padding to 16
	arca8 := []byte("\x05\x00\x00\x00\x04\x00\x00\x00\x01\x00\x00\x00Arca\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00")
	tests := []struct {
		name  string
		notes []byte
		align uint64
		want  Version
		known bool
		err   string
	}{
		{name: "no notes", known: true},
		{name: "stream", notes: note("Arca\x00", 1, []byte{1, 0, 0, 0}), want: version1, known: true},
		{name: "later", notes: note("Arca\x00", 1, []byte{7, 0, 0, 0}), want: 7},
		{name: "other type", notes: note("Arca\x00", 2, []byte{1, 0, 0, 0}), known: true},
		{name: "other owner", notes: note("Arcb\x00", 1, []byte{1, 0, 0, 0}), known: true},
		{name: "no NUL", notes: note("Arca", 1, []byte{1, 0, 0, 0}), known: true},
		{name: "8 byte alignment", notes: append(padded8, arca8...), align: 8, want: version1, known: true},
		{name: "descriptor too long", notes: note("Arca\x00", 1, make([]byte, 8)), err: "descriptor of 8 bytes"},
		{name: "version 0", notes: note("Arca\x00", 1, make([]byte, 4)), err: "version 0"},
		{name: "name size 2^32-1", notes: []byte("\xff\xff\xff\xff\x04\x00\x00\x00\x01\x00\x00\x00Arca\x00"), known: true},
		{name: "descriptor size 2^32-1", notes: []byte("\x05\x00\x00\x00\xff\xff\xff\xff\x01\x00\x00\x00Arca\x00\x00\x00\x00"), known: true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := elfFile{segments: []elfSegment{code(ram)}}
			if test.notes != nil {
				f.segments = append(f.segments, elfSegment{
					kind: elf.PT_NOTE, data: test.notes, edit: func(p *elf.Prog64) { p.Align = max(4, test.align) },
				})
			}
			img, err := ParseBytes(f.bytes(), "k")
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Fatalf("got %v, want %q", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			abi, _ := img.ABI()
			if known := test.want == 0 || abi == ABIStream; img.Version != test.want || known != test.known {
				t.Errorf("got %v, run as %v, want %v (known: %v)", img.Version, abi, test.want, test.known)
			}
		})
	}
}

func TestBadFiles(t *testing.T) {
	t.Parallel()
	edit := func(f func(h *elf.Header64)) []byte {
		return elfFile{segments: []elfSegment{code(ram)}, edit: f}.bytes()
	}
	segment := func(f func(p *elf.Prog64)) []byte {
		s := code(ram)
		s.edit = f
		return elfFile{segments: []elfSegment{s}}.bytes()
	}
	good := elfFile{segments: []elfSegment{code(ram)}}.bytes()
	tests := []struct {
		name string
		data []byte
		want string
	}{
		{"empty", nil, "is not an ELF file"},
		{"text", []byte("#!/bin/sh\n"), "is not an ELF file"},
		{"magic only", good[:4], "is cut off within the ELF header"},
		{"half a header", good[:40], "is cut off within the ELF header"},
		{"no program headers in the file", good[:64], "is cut off within the program headers"},
		{"segment cut off", good[:len(good)-1], "is cut off: segment 0 has 0x4 bytes at 0x78, the file ends at 0x7b"},
		{"32-bit ARM", edit(func(h *elf.Header64) { h.Ident[elf.EI_CLASS], h.Machine = 1, uint16(elf.EM_ARM) }), "is a 32-bit ELF file for ARM, Arca images are 64-bit x86-64"},
		{"32-bit x86", edit(func(h *elf.Header64) { h.Ident[elf.EI_CLASS], h.Machine = 1, uint16(elf.EM_386) }), "is a 32-bit ELF file for x86, Arca images are 64-bit x86-64"},
		{"ARM", edit(func(h *elf.Header64) { h.Machine = uint16(elf.EM_AARCH64) }), "is an ELF file for aarch64, Arca images are x86-64"},
		{"unknown class", edit(func(h *elf.Header64) { h.Ident[elf.EI_CLASS] = 9 }), "is an ELF file of unknown class 9, Arca images are 64-bit"},
		{"big endian", edit(func(h *elf.Header64) { h.Ident[elf.EI_DATA] = 2 }), "is not a little-endian ELF file, Arca images are little-endian x86-64"},
		{"position independent", edit(func(h *elf.Header64) { h.Type = uint16(elf.ET_DYN) }), "is a position-independent or shared ELF file (ET_DYN), Arca images have fixed addresses (ET_EXEC)"},
		{"object", edit(func(h *elf.Header64) { h.Type = uint16(elf.ET_REL) }), "is an object file that isn't linked (ET_REL), Arca images are executables (ET_EXEC)"},
		{"core", edit(func(h *elf.Header64) { h.Type = uint16(elf.ET_CORE) }), "is an ELF file of type ET_CORE, Arca images are executables (ET_EXEC)"},
		{"no program headers", edit(func(h *elf.Header64) { h.Phnum = 0 }), "has no program headers, so nothing to load"},
		{"program header size", edit(func(h *elf.Header64) { h.Phentsize = 32 }), "has program headers of 32 bytes, not 56"},
		{"program headers beyond", edit(func(h *elf.Header64) { h.Phoff = 1<<64 - 8 }), "is cut off within the program headers"},
		{"65535 program headers", edit(func(h *elf.Header64) { h.Phnum = 65535 }), "is cut off within the program headers"},
		{"no segment", elfFile{entry: guestmap.DirectMap | ram, segments: []elfSegment{{kind: elf.PT_GNU_STACK}}}.bytes(), "has no loadable segment"},
		{"more file than memory", segment(func(p *elf.Prog64) { p.Memsz = 1 }), "segment 0 has more bytes in the file (0x4) than in memory (0x1)"},
		{"offset near 2^64", segment(func(p *elf.Prog64) { p.Off = 1<<64 - 2 }), "is cut off: segment 0 has 0x4 bytes at 0xfffffffffffffffe, the file ends at 0x7c"},
		{"size near 2^64", segment(func(p *elf.Prog64) { p.Memsz = 1<<64 - 1 }), "segment 0 at 0x100000000 of 0xffffffffffffffff bytes goes past the end of the physical address space"},
		{"virtual wraps", segment(func(p *elf.Prog64) { p.Vaddr = 1<<64 - 2 }), "segment 0 at virtual address 0xfffffffffffffffe of 0x4 bytes goes past the end of the address space"},
		{"overlap", elfFile{segments: []elfSegment{code(ram), code(ram + 3)}}.bytes(), "segment 0 (0x100000000–0x100000004) and segment 1 (0x100000003–0x100000007) overlap"},
		{"entry 0", edit(func(h *elf.Header64) { h.Entry = 0 }), "the entry point 0x0 is outside the direct map (0xffff800000000000–0xffff808000000000)"},
		{"entry elsewhere", edit(func(h *elf.Header64) { h.Entry += 4 }), "the entry point 0xffff800100000004 is in none of the segments"},
		{"note cut off", elfFile{segments: []elfSegment{code(ram), {kind: elf.PT_NOTE, edit: func(p *elf.Prog64) { p.Filesz = 99 }}}}.bytes(), "is cut off: note segment 1 has 0x63 bytes at 0xb4, the file ends at 0xb4"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, err := ParseBytes(test.data, "k")
			if format := (*FormatError)(nil); !errors.As(err, &format) {
				t.Fatalf("got %v, want a FormatError", err)
			}
			if want := "k: " + test.want; err.Error() != want {
				t.Errorf("got  %q\nwant %q", err, want)
			}
		})
	}
}

// What linkers and strip leave in a file, and Linux takes, is no fault: an
// image with it loads as the one without.
func TestOddFiles(t *testing.T) {
	t.Parallel()
	const beyond = 1 << 40
	empty := func(kind elf.ProgType, edit func(p *elf.Prog64)) []elfSegment {
		return []elfSegment{code(ram), {kind: kind, physical: ram + 0x1000, virtual: guestmap.DirectMap | (ram + 0x1000), edit: edit}}
	}
	bss := func(offset uint64) []elfSegment {
		return empty(elf.PT_LOAD, func(p *elf.Prog64) { p.Off, p.Filesz, p.Memsz = offset, 0, 0x3000 })
	}
	with := func(f func(p *elf.Prog64)) []elfSegment {
		s := code(ram)
		s.edit = f
		return []elfSegment{s}
	}
	note := note("Arca\x00", 1, []byte{1, 0, 0, 0})
	tests := []struct {
		name     string
		file     elfFile
		segments int
	}{
		{"bss at the file's end", elfFile{segments: bss(0xB4)}, 2},
		{"bss past the file's end", elfFile{segments: bss(beyond)}, 2},
		{"bss at 2^63", elfFile{segments: bss(1 << 63)}, 2},
		{"bss at 2^64 - 1", elfFile{segments: bss(1<<64 - 1)}, 2},
		{"empty segment past the end", elfFile{segments: empty(elf.PT_LOAD, func(p *elf.Prog64) { p.Off, p.Memsz = beyond, 0 })}, 1},
		{"empty segment within another", elfFile{segments: empty(elf.PT_LOAD, func(p *elf.Prog64) { p.Paddr, p.Memsz = ram+1, 0 })}, 1},
		{"empty segment at 2^64 - 1", elfFile{segments: empty(elf.PT_LOAD, func(p *elf.Prog64) { p.Paddr, p.Vaddr, p.Memsz = 1<<64-1, 1<<64-1, 0 })}, 1},
		{"empty note past the end", elfFile{segments: empty(elf.PT_NOTE, func(p *elf.Prog64) { p.Off = beyond })}, 1},
		{"empty note at 2^64 - 1", elfFile{segments: empty(elf.PT_NOTE, func(p *elf.Prog64) { p.Off = 1<<64 - 1 })}, 1},
		{"other kinds past the end", elfFile{segments: empty(elf.PT_TLS, func(p *elf.Prog64) { p.Off, p.Filesz, p.Memsz = beyond, 99, 99 })}, 1},
		{"alignment 0", elfFile{segments: with(func(p *elf.Prog64) { p.Align = 0 })}, 1},
		{"alignment 1", elfFile{segments: with(func(p *elf.Prog64) { p.Align = 1 })}, 1},
		{"alignment no power of two", elfFile{segments: with(func(p *elf.Prog64) { p.Align = 3 })}, 1},
		{"offset and address not congruent", elfFile{segments: with(func(p *elf.Prog64) { p.Align = 1 << 21 })}, 1},
		{"descending, on one page", elfFile{segments: []elfSegment{code(ram + 8), code(ram + 4), code(ram)}}, 3},
		{"touching", elfFile{segments: []elfSegment{code(ram), code(ram + 4)}}, 2},
		{"no section headers", elfFile{segments: []elfSegment{code(ram)}, edit: func(h *elf.Header64) { h.Shoff, h.Shnum, h.Shentsize, h.Shstrndx = 0, 0, 0, 0 }}, 1},
		{"section headers past the end", elfFile{segments: []elfSegment{code(ram)}, edit: func(h *elf.Header64) { h.Shoff, h.Shnum = beyond, 20 }}, 1},
		{"section headers of another size", elfFile{segments: []elfSegment{code(ram)}, edit: func(h *elf.Header64) { h.Shoff, h.Shnum, h.Shentsize = 64, 1, 40 }}, 1},
		{"another system's", elfFile{segments: []elfSegment{code(ram)}, edit: func(h *elf.Header64) { h.Ident[elf.EI_OSABI], h.Flags = 3, 7 }}, 1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.file.notes = note
			img, err := ParseBytes(test.file.bytes(), "k")
			if err != nil {
				t.Fatal(err)
			}
			if len(img.Segments) != test.segments || img.Version != version1 {
				t.Errorf("segments %v, %v", img.Segments, img.Version)
			}
			mem := make([]byte, 1<<20)
			if err := img.Load(ram, mem); err != nil || string(mem[:4]) != "code" {
				t.Errorf("Load: %v, memory %q", err, mem[:4])
			}
			if _, _, found := img.Lookup(img.Entry); found {
				t.Error("a symbol in an image without")
			}
		})
	}
}

// An empty symbol table is none, wherever it lies.
func TestEmptySymbolTable(t *testing.T) {
	t.Parallel()
	f := elfFile{segments: []elfSegment{code(ram)}, symbols: []elfSymbol{{name: "x", start: guestmap.DirectMap | ram}}}
	data := f.bytes()
	shoff := binary.LittleEndian.Uint64(data[40:])
	for i := range binary.LittleEndian.Uint16(data[60:]) {
		section := data[shoff+64*uint64(i):]
		if elf.SectionType(binary.LittleEndian.Uint32(section[4:])) == elf.SHT_SYMTAB {
			binary.LittleEndian.PutUint64(section[24:], 1<<40)
			binary.LittleEndian.PutUint64(section[32:], 0)
		}
	}
	img, err := ParseBytes(data, "k")
	if err != nil {
		t.Fatal(err)
	}
	if n, err := img.SymbolCount(), img.SymbolsErr(); n != 0 || err != nil {
		t.Errorf("%d symbols, %v", n, err)
	}
}

func TestLoadOutsideRAM(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name     string
		physical uint64
		memSize  uint64
		want     string
	}{
		{"fits to the end", ram + 1<<20 - 4, 4, ""},
		{"one byte too far", ram + 1<<20 - 4, 5, "k: segment 0 (0x1000ffffc–0x100100001) lies outside RAM (0x100000000–0x100100000): too little memory, the image alone needs 2 MiB"},
		{"below", ram - 1, 4, "k: segment 0 (0xffffffff–0x100000003) lies outside RAM (0x100000000–0x100100000)"},
		{"nowhere", guestmap.MaxPhysical - 8, 9, "k: segment 0 (0x7ffffffff8–0x8000000001) lies outside RAM (0x100000000–0x100100000)"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := code(test.physical)
			s.memSize = test.memSize
			img, err := ParseBytes(elfFile{segments: []elfSegment{s}}.bytes(), "k")
			if err != nil {
				t.Fatal(err)
			}
			mem := make([]byte, 1<<20)
			err = img.Load(ram, mem)
			if test.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if load := (*LoadError)(nil); !errors.As(err, &load) || err.Error() != test.want {
				t.Errorf("got  %v\nwant %v", err, test.want)
			}
			if !bytes.Equal(mem, make([]byte, len(mem))) {
				t.Error("memory was written before the error")
			}
		})
	}
}

func TestOpen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "kernel")
	if err := os.WriteFile(path, elfFile{segments: []elfSegment{code(ram)}}.bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	broken := leased.Hold(t, path)
	img, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	leased.WantBroken(t, broken)
	mem := make([]byte, 16)
	if err := img.Load(ram, mem); err != nil || string(mem[:4]) != "code" {
		t.Errorf("Load: %v, memory %q", err, mem)
	}
	if err := os.Truncate(path, 100); err != nil {
		t.Fatal(err)
	}
	if err := img.Load(ram, mem); err == nil {
		t.Error("Load of a file that has shrunk gave no error")
	}
	if _, err := Open(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open of a missing file: %v", err)
	}
	if _, err := Open(dir); err == nil || !strings.HasSuffix(err.Error(), "is not a regular file") {
		t.Errorf("Open of a folder: %v", err)
	}
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(fifo); err == nil || !strings.HasSuffix(err.Error(), "is not a regular file") {
		t.Errorf("Open of a FIFO that nobody writes to: %v", err)
	}
}

func TestLookup(t *testing.T) {
	t.Parallel()
	base := uint64(guestmap.DirectMap | ram)
	f := elfFile{
		segments: []elfSegment{{physical: ram, virtual: base, data: make([]byte, 0x1000)}},
		symbols: []elfSymbol{
			{name: "local", start: base + 0x10, size: 0x20, kind: elf.STT_FUNC, bind: elf.STB_LOCAL},
			{name: "global", start: base + 0x10, size: 0x20, kind: elf.STT_FUNC, bind: elf.STB_GLOBAL},
			{name: "inner", start: base + 0x18, kind: elf.STT_NOTYPE},
			{name: "_ZN4core3fmt5write17h0123456789abcdefE", start: base + 0x40, size: 0x10, kind: elf.STT_FUNC},
			{name: "_RNvCs1234_7mycrate4main", start: base + 0x50, size: 0x10, kind: elf.STT_FUNC},
			{name: "_ZN3foo3barEi", start: base + 0x60, size: 0x10, kind: elf.STT_FUNC},
			{name: "table", start: base + 0x70, size: 8, kind: elf.STT_OBJECT},
			{name: "tail", start: base + 0x100, kind: elf.STT_NOTYPE, bind: elf.STB_GLOBAL},
			{name: "file.c", start: base + 0x58, kind: elf.STT_FILE},
			{name: "absolute", start: base + 0x44, section: elf.SHN_ABS},
			{name: "", start: base + 0x45},
		},
	}
	img, err := ParseBytes(f.bytes(), "k")
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		address uint64
		name    string // "" if none
		offset  uint64
	}{
		{0, "", 0},
		{base + 0xF, "", 0},
		{base + 0x10, "global", 0},
		{base + 0x17, "global", 7},
		{base + 0x1F, "inner", 7},
		{base + 0x30, "inner", 0x18},
		{base + 0x44, "core::fmt::write", 4},
		{base + 0x5F, "mycrate::main", 0xF},
		{base + 0x60, "foo::bar(int)", 0},
		{base + 0x77, "table", 7},
		{base + 0x78, "", 0},
		{base + 0xFFF, "tail", 0xEFF},
		{base + 0x1000, "", 0},
		{1<<64 - 1, "", 0},
	}
	for _, test := range tests {
		s, offset, found := img.Lookup(test.address)
		if found != (test.name != "") || s.Name != test.name || offset != test.offset {
			t.Errorf("Lookup(%#x) = %q+%#x, %v; want %q+%#x", test.address, s.Name, offset, found, test.name, test.offset)
		}
		if found && s.Start+offset != test.address {
			t.Errorf("Lookup(%#x): start %#x and offset %#x don't give the address", test.address, s.Start, offset)
		}
	}
	if img.SymbolCount() != 7 || img.SymbolsErr() != nil {
		t.Errorf("%d symbols, error %v; want 7 and none", img.SymbolCount(), img.SymbolsErr())
	}
	last := uint64(0)
	for s := range img.Symbols() {
		if s.Start <= last {
			t.Errorf("symbols are not ascending at %#x", s.Start)
		}
		last = s.Start
	}
}

func TestBrokenSymbols(t *testing.T) {
	t.Parallel()
	f := elfFile{segments: []elfSegment{code(ram)}, symbols: []elfSymbol{{name: "a", start: guestmap.DirectMap | ram, kind: elf.STT_FUNC}}}
	tests := []struct {
		name string
		edit func(h *elf.Header64)
		ok   bool
	}{
		{"none", func(h *elf.Header64) { h.Shnum = 0 }, true},
		{"beyond the file", func(h *elf.Header64) { h.Shoff = 1<<64 - 64 }, false},
		{"too many", func(h *elf.Header64) { h.Shnum = 65535 }, false},
		{"other size", func(h *elf.Header64) { h.Shentsize = 40 }, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := f
			f.edit = test.edit
			img, err := ParseBytes(f.bytes(), "k")
			if err != nil {
				t.Fatal("an image with a broken symbol table must load:", err)
			}
			if _, _, found := img.Lookup(guestmap.DirectMap | ram); found {
				t.Error("found a symbol")
			}
			if err := img.SymbolsErr(); (err == nil) != test.ok {
				t.Errorf("SymbolsErr = %v", err)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add(elfFile{
		segments: []elfSegment{code(ram), {physical: ram + 0x1000, data: []byte("x"), memSize: 0x100}},
		notes:    note("Arca\x00", 1, []byte{1, 0, 0, 0}),
		symbols:  []elfSymbol{{name: "_ZN3foo3barEi", start: guestmap.DirectMap | ram, size: 4, kind: elf.STT_FUNC}},
	}.bytes())
	f.Add([]byte("\x7fELF"))
	f.Fuzz(func(t *testing.T, data []byte) {
		img, err := ParseBytes(data, "k")
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("error of several lines: %q", err)
			}
			return
		}
		mem := make([]byte, 1<<16)
		_ = img.Load(ram, mem)
		for s := range img.Symbols() {
			if got, _, found := img.Lookup(s.Start); !found && s.Size > 0 {
				t.Errorf("Lookup(%#x) doesn't find %q but %q", s.Start, s.Name, got.Name)
			}
		}
	})
}

func FuzzSymbolName(f *testing.F) {
	for _, s := range []string{"_ZN4core3fmt5write17h0123456789abcdefE", "_RNvCs1234_7mycrate4main", "_Z1fIiEvT_", "main"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) { demangleName(s[:min(len(s), maxSymbolName)]) })
}

func BenchmarkFirstLookup(b *testing.B) {
	var symbols []elfSymbol
	for n := range uint64(100_000) {
		symbols = append(symbols, elfSymbol{name: "_ZN4core3fmt5write17h0123456789abcdefE", start: guestmap.DirectMap | ram + n*16, size: 16, kind: elf.STT_FUNC})
	}
	data := elfFile{segments: []elfSegment{code(ram)}, symbols: symbols}.bytes()
	for b.Loop() {
		img, err := ParseBytes(data, "k")
		if err != nil {
			b.Fatal(err)
		}
		if _, _, found := img.Lookup(guestmap.DirectMap | ram + 777); !found {
			b.Fatal("not found")
		}
	}
}
