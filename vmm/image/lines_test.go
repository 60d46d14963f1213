package image_test

import (
	"bytes"
	"debug/dwarf"
	"debug/elf"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fix-project/arcavm/internal/guestmap"
	"github.com/fix-project/arcavm/testdata/images"
	"github.com/fix-project/arcavm/vmm/image"
)

// lineImages are a C kernel with gcc's DWARF 5, and what rustc makes of
// testdata/lines/lines.rs.
func lineImages(t testing.TB) map[string][]byte {
	t.Helper()
	all := map[string][]byte{"trace": images.Bytes("trace")}
	for _, name := range []string{"lines-dwarf4", "lines-dwarf5", "lines-dwarf5-zlib"} {
		b, err := os.ReadFile(filepath.Join("testdata", "lines", name))
		if err != nil {
			t.Fatal(err)
		}
		all[name] = b
	}
	return all
}

func parsed(t testing.TB, data []byte, name string) *image.Image {
	t.Helper()
	img, err := image.ParseBytes(data, name)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// Line says what debug/dwarf says of each address that the line table has.
func TestLineAgrees(t *testing.T) {
	t.Parallel()
	for name, data := range lineImages(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			img := parsed(t, data, name)
			if err := img.LinesErr(); err != nil {
				t.Fatal(err)
			}
			f, err := elf.NewFile(bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			d, err := f.DWARF()
			if err != nil {
				t.Fatal(err)
			}
			compared := 0
			units := d.Reader()
			for {
				unit, err := units.Next()
				if err != nil {
					t.Fatal(err)
				}
				if unit == nil {
					break
				}
				units.SkipChildren()
				lines, err := d.LineReader(unit)
				if err != nil {
					t.Fatal(err)
				}
				if lines == nil {
					continue
				}
				folder, _ := unit.Val(dwarf.AttrCompDir).(string)
				var last, e dwarf.LineEntry
				for ; ; last = e {
					if err := lines.Next(&e); err == io.EOF {
						break
					} else if err != nil {
						t.Fatal(err)
					}
					if last.File == nil || last.EndSequence || last.Address < guestmap.DirectMap {
						continue
					}
					for a := last.Address; a < e.Address; a++ {
						file, line, found := img.Line(a)
						if found != (last.Line != 0) {
							t.Errorf("%#x: found %v, line %d", a, found, last.Line)
						}
						want := strings.TrimPrefix(path.Clean(last.File.Name), path.Clean(folder)+"/")
						if found && (line != last.Line || strings.TrimPrefix(file, path.Clean(folder)+"/") != want) {
							t.Errorf("%#x: %s:%d, want %s:%d", a, file, line, want, last.Line)
						}
						compared++
					}
				}
			}
			if compared < 50 {
				t.Errorf("%d addresses compared", compared)
			}
		})
	}
}

// A function's lines are found by its symbol; what isn't code has none.
func TestLine(t *testing.T) {
	t.Parallel()
	for name, data := range lineImages(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			img := parsed(t, data, name)
			symbol, want := "outer", "lines.rs"
			if name == "trace" {
				symbol, want = "frameless", "programs/trace.c"
			}
			found := false
			for s := range img.Symbols() {
				if s.Name != symbol {
					continue
				}
				found = true
				if file, line, ok := img.Line(s.Start); !ok || file != want || line < 10 || line > 60 {
					t.Errorf("%s is at %s:%d, %v", symbol, file, line, ok)
				}
			}
			if !found {
				t.Errorf("no symbol %s", symbol)
			}
			for _, a := range []uint64{0, 1, guestmap.DirectMap, 1<<64 - 1} {
				if file, line, ok := img.Line(a); ok {
					t.Errorf("%#x is at %s:%d", a, file, line)
				}
			}
		})
	}
	// A stripped image has symbols, or not, but no lines, and that is no error.
	img := parsed(t, images.Bytes("hello"), "hello")
	if _, _, ok := img.Line(img.Entry); ok || img.LinesErr() != nil {
		t.Errorf("an image without debug information: found %v, %v", ok, img.LinesErr())
	}
}

// What the compiler has inlined is found, with its name and where it is called.
func TestInlined(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]image.Inlined{
		"trace":             {Function: "inlined", File: "programs/trace.c", Line: 90},
		"lines-dwarf4":      {Function: "core::hint::black_box", File: "lines.rs", Line: 17},
		"lines-dwarf5":      {Function: "core::hint::black_box", File: "lines.rs", Line: 17},
		"lines-dwarf5-zlib": {Function: "core::hint::black_box", File: "lines.rs", Line: 17},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			img := parsed(t, lineImages(t)[name], name)
			found := 0
			var others []image.Inlined
			for s := range img.Symbols() {
				for a := s.Start; a < s.Start+s.Size; a++ {
					for _, c := range img.Inlined(a) {
						if c == want {
							found++
						} else if len(others) < 20 {
							others = append(others, c)
						}
					}
				}
			}
			if found == 0 {
				t.Errorf("%+v isn't found, but %+v", want, others)
			}
		})
	}
	if c := parsed(t, images.Bytes("hello"), "hello").Inlined(0xFFFF_8001_0010_0000); c != nil {
		t.Errorf("an image without debug information has %+v", c)
	}
}

// debugSections are those that a hostile image has filled as it likes.
var debugSections = []string{".debug_info", ".debug_abbrev", ".debug_rnglists", ".debug_str"}

// Whatever the debug information says, reading it ends.
func FuzzInlined(f *testing.F) {
	trace := images.Bytes("trace")
	e, err := elf.NewFile(bytes.NewReader(trace))
	if err != nil {
		f.Fatal(err)
	}
	for i, name := range debugSections {
		b, err := e.Section(name).Data()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint8(i), uint16(0))
	}
	main := parsed(f, trace, "trace").Entry
	f.Fuzz(func(t *testing.T, section []byte, which uint8, at uint16) {
		data := bytes.Clone(trace)
		s := e.Section(debugSections[int(which)%len(debugSections)])
		copy(data[s.Offset:s.Offset+s.FileSize], section)
		img := parsed(t, data, "trace")
		for _, a := range []uint64{main, main + uint64(at), main + 0x25a} {
			if calls := img.Inlined(a); len(calls) > 16 {
				t.Errorf("%d calls", len(calls))
			}
		}
	})
}

// debugLine returns where an image's section .debug_line lies in the file.
func debugLine(t testing.TB, data []byte) (start, end uint64) {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	s := f.Section(".debug_line")
	return s.Offset, s.Offset + s.FileSize
}

// Headers whose counts promise more than there is cost no more than what is
// there.
func TestHostileLines(t *testing.T) {
	t.Parallel()
	unit := func(body string) string { return string([]byte{byte(len(body)), byte(len(body) >> 8), 0, 0}) + body }
	const (
		many    = "\xff\xff\xff\xff\xff\xff\xff\x7f"
		head5   = "\x05\x00\x08\x00\x40\x00\x00\x00\x01\x01\x01\xfb\x0e\x02\x00"
		head4   = "\x04\x00\x10\x00\x00\x00\x01\x01\x01\xfb\x0e\x02\x00"
		noRange = "\x04\x00\x10\x00\x00\x00\x01\x01\x01\xfb\x00\x02\x00"
	)
	for name, section := range map[string]string{
		"folders that take no bytes": unit(head5 + "\x00" + many + strings.Repeat("\x00", 64)),
		"very many folders":          unit(head5 + "\x01\x01\x08" + many + strings.Repeat("\x00", 64)),
		"a form that isn't known":    unit(head5 + "\x01\x01\x7f" + many + strings.Repeat("\x00", 64)),
		"a line range of 0":          unit(noRange + strings.Repeat("\x00", 64)),
		"a header beyond the unit":   unit("\x04\x00\xff\xff\xff\x7f\x01\x01\x01\xfb\x0e\x02\x00"),
		"a unit beyond the section":  "\xff\xff\xff\x7f" + head4,
		"a 64-bit length":            "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff" + head4,
		"a reserved length":          "\xf5\xff\xff\xff" + head4,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			data := images.Bytes("trace")
			start, end := debugLine(t, data)
			clear(data[start:end])
			copy(data[start:end], section)
			img := parsed(t, data, "trace")
			began := time.Now()
			if _, _, ok := img.Line(img.Entry); ok || img.LinesErr() == nil {
				t.Errorf("found %v, %v", ok, img.LinesErr())
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// Units of a version that isn't known are left out.
func TestLaterLines(t *testing.T) {
	t.Parallel()
	data := images.Bytes("trace")
	start, _ := debugLine(t, data)
	before := parsed(t, images.Bytes("trace"), "trace")
	data[start+4] = 6
	after := parsed(t, data, "trace")
	if err := after.LinesErr(); err != nil {
		t.Fatal(err)
	}
	lost, kept := 0, 0
	for s := range before.Symbols() {
		_, _, had := before.Line(s.Start)
		_, _, has := after.Line(s.Start)
		switch {
		case had && has:
			kept++
		case had:
			lost++
		case has:
			t.Errorf("%s has got a line", s.Name)
		}
	}
	if lost == 0 || kept == 0 {
		t.Errorf("%d functions without their lines, %d with them", lost, kept)
	}
}

// Whatever an image's debug information says, reading it ends, takes memory in
// proportion, and names are cut.
func FuzzLines(f *testing.F) {
	for _, data := range lineImages(f) {
		start, end := debugLine(f, data)
		f.Add(data[start:end], uint64(0))
	}
	trace := images.Bytes("trace")
	start, end := debugLine(f, trace)
	f.Fuzz(func(t *testing.T, section []byte, address uint64) {
		data := bytes.Clone(trace)
		clear(data[start:end])
		copy(data[start:end], section)
		img, err := image.ParseBytes(data, "trace")
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range []uint64{address, img.Entry, img.Entry + address%4096} {
			file, line, found := img.Line(a)
			if found && (line < 1 || len(file) > 2048) || !found && (file != "" || line != 0) {
				t.Errorf("%#x: %q:%d, %v", a, file, line, found)
			}
		}
		if err := img.LinesErr(); err != nil && errors.Unwrap(err) == nil {
			t.Errorf("%v wraps nothing", err)
		}
	})
}
