package images_test

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fix-project/arcavm/internal/guestmap"
	"github.com/fix-project/arcavm/testdata/images"
)

const guest = "../guest"

// manifest returns the hash of each name that the manifest lists as this kind.
func manifest(t *testing.T, kind string) map[string]string {
	t.Helper()
	text, err := os.ReadFile("MANIFEST")
	if err != nil {
		t.Fatal(err)
	}
	hashes := map[string]string{}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) == 3 && fields[0] == kind {
			hashes[fields[2]] = fields[1]
		}
	}
	return hashes
}

func hash(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// The images are those of the sources beside them: the manifest was written when they were built.
func TestManifest(t *testing.T) {
	t.Parallel()
	isSource := regexp.MustCompile(`(\.[chS]|\.ld|\.sh|^Makefile)$`)
	sources := map[string]string{}
	err := filepath.WalkDir(guest, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(guest, path)
		switch {
		case err != nil:
			return err
		case name == "build":
			return fs.SkipDir
		case d.IsDir() || !isSource.MatchString(name):
			return nil
		}
		b, err := os.ReadFile(path)
		sources[filepath.ToSlash(name)] = hash(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(manifest(t, "source"), sources); diff != "" {
		t.Errorf("the sources have changed since the images were built: run make images (-manifest +files):\n%s", diff)
	}

	built := map[string]string{}
	for _, name := range images.Names() {
		built[name] = hash(images.Bytes(name))
	}
	if diff := cmp.Diff(manifest(t, "image"), built); diff != "" {
		t.Errorf("the images are not those of the manifest: run make images (-manifest +images):\n%s", diff)
	}
}

// What the loader and the crash report need of an image: PROTOCOL.md, section 2.
func TestImageForm(t *testing.T) {
	t.Parallel()
	for _, name := range images.Names() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, err := elf.NewFile(bytes.NewReader(images.Bytes(name)))
			if err != nil {
				t.Fatal(err)
			}
			if f.Type != elf.ET_EXEC || f.Machine != elf.EM_X86_64 {
				t.Errorf("type %v, machine %v", f.Type, f.Machine)
			}
			streams := !strings.HasPrefix(name, "rpc-")
			note := []byte("\x05\x00\x00\x00\x04\x00\x00\x00\x01\x00\x00\x00Arca\x00\x00\x00\x00\x01\x00\x00\x00")
			hasNote := slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool {
				b := make([]byte, p.Filesz)
				_, err := p.ReadAt(b, 0)
				return p.Type == elf.PT_NOTE && err == nil && bytes.Equal(b, note)
			})
			if hasNote != streams {
				t.Errorf("a note that names ABI version 1: %v, want %v", hasNote, streams)
			}
			if streams && f.Entry != 0xFFFF_8001_0010_0000 {
				t.Errorf("entry %#x", f.Entry)
			}
			if !streams {
				checkOldSegments(t, f.Progs)
			}
			symbols, err := f.Symbols()
			if err != nil {
				t.Fatal(err)
			}
			hasMain := slices.ContainsFunc(symbols, func(s elf.Symbol) bool { return s.Name == "program_main" && s.Size > 0 })
			if !hasMain {
				t.Error("no symbol program_main with a size")
			}
			if bytes.Contains(images.Bytes(name), []byte("testdata/guest")) {
				t.Error("a path of the folder it was built in")
			}
		})
	}
}

// checkOldSegments checks what makes images of the request/response ABI hard to load: segments that share pages, one at virtual address 0,
// physical addresses in the direct map.
func checkOldSegments(t *testing.T, progs []*elf.Prog) {
	t.Helper()
	const directMap, page = guestmap.DirectMap, 4096
	loads, atZero, shared := 0, 0, 0
	end := uint64(0)
	for _, p := range progs {
		switch {
		case p.Type == elf.PT_NOTE:
			t.Error("a PT_NOTE segment")
		case p.Type == elf.PT_LOAD:
			if loads == 0 && p.Paddr != directMap+0x1_0010_0000 {
				t.Errorf("the first segment is at %#x", p.Paddr)
			}
			loads++
			if p.Vaddr == 0 && p.Paddr > directMap {
				atZero++
			}
			if end%page != 0 && p.Paddr/page == end/page {
				shared++
			}
			end = p.Paddr + p.Memsz
		}
	}
	if loads != 6 || atZero != 1 || shared < 3 {
		t.Errorf("%d segments to load, %d of them at virtual address 0, %d that share a page with the one before; want 6, 1, 3 or more", loads, atZero, shared)
	}
}
