package image

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/fix-project/arcavm/testdata/images"
)

// symbolOf returns the symbol of the image with this name.
func symbolOf(t *testing.T, img *Image, name string) Symbol {
	t.Helper()
	for s := range img.Symbols() {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("%s has no symbol %s", img.Name, name)
	return Symbol{}
}

// A call that never returns is the last instruction of its function: the
// address that it would return to is the function's all the same, also if that
// is where the next one starts. A function's start is its own otherwise.
func TestLookupCall(t *testing.T) {
	t.Parallel()
	file := images.Bytes("rpc-panic")
	parse := func(b []byte) *Image {
		img, err := ParseBytes(b, "rpc-panic")
		if err != nil {
			t.Fatal(err)
		}
		return img
	}
	want := func(img *Image, address uint64, name string, offset uint64) {
		t.Helper()
		s, got, ok := img.LookupCall(address)
		if s.Name != name || got != offset || ok != (name != "") {
			t.Errorf("%#x is %s+%d, %v; want %s+%d", address, s.Name, got, ok, name, offset)
		}
	}
	img := parse(file)
	first, second := symbolOf(t, img, "last_function"), symbolOf(t, img, "inner_function")
	end := first.Start + first.Size
	if _, _, ok := img.Lookup(end); ok {
		t.Fatal("the image's functions have no room between them, which this test takes for granted")
	}
	want(img, first.Start+1, first.Name, 1)
	want(img, end, first.Name, first.Size)
	want(img, end+1, "", 0)
	want(img, second.Start, second.Name, 0)
	want(img, ^uint64(0), "", 0)

	// The same with the first function, and a call at its end, up to the
	// second.
	for name, code := range map[string][]byte{
		"call rel32": {0xE8, 1, 2, 3, 4}, "call rax": {0xFF, 0xD0}, "call r8": {0x41, 0xFF, 0xD0}, "call [rip+disp32]": {0xFF, 0x15, 1, 2, 3, 4},
	} {
		patched := bytes.Clone(file)
		place := func(address uint64) uint64 {
			for _, s := range img.Segments {
				if address-s.Virtual < s.FileSize {
					return s.Offset + address - s.Virtual
				}
			}
			t.Fatal("no segment")
			return 0
		}
		copy(patched[place(second.Start)-uint64(len(code)):], code)
		entry := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, first.Start), first.Size)
		at := bytes.Index(patched, entry)
		if at < 0 {
			t.Fatal("no entry in the symbol table")
		}
		grown := second.Start - first.Start
		binary.LittleEndian.PutUint64(patched[at+8:], grown)
		t.Run(name, func(t *testing.T) {
			img := parse(patched)
			s, offset, ok := img.LookupCall(second.Start)
			if s.Name != first.Name || offset != grown || !ok {
				t.Errorf("behind the call is %s+%d, %v", s.Name, offset, ok)
			}
			if s, offset, _ := img.Lookup(second.Start); s.Name != second.Name || offset != 0 {
				t.Errorf("what is exact is %s+%d", s.Name, offset)
			}
			if s, offset, _ := img.LookupCall(second.Start + 1); s.Name != second.Name || offset != 1 {
				t.Errorf("behind the start is %s+%d", s.Name, offset)
			}
		})
	}
}
