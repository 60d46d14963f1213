package emulated

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// makeELF makes the smallest ELF file with a section .modinfo of these entries,
// and a dynamic loader if one is given.
func makeELF(t *testing.T, modinfo []string, loader ...string) []byte {
	t.Helper()
	names := "\x00.shstrtab\x00.modinfo\x00"
	info := strings.Join(modinfo, "\x00") + "\x00"
	const headerSize, progSize, sectionSize = 64, 56, 64
	header := elf.Header64{
		Type: uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: 1,
		Ehsize: headerSize, Phentsize: progSize, Shentsize: sectionSize, Shnum: 3, Shstrndx: 1,
	}
	copy(header.Ident[:], "\x7fELF\x02\x01\x01")
	var progs []elf.Prog64
	interpreter := strings.Join(loader, "")
	if interpreter != "" {
		at := uint64(headerSize + progSize)
		progs = append(progs, elf.Prog64{Type: uint32(elf.PT_INTERP), Off: at, Filesz: uint64(len(interpreter))})
		header.Phnum, header.Phoff = 1, headerSize
	}
	data := uint64(headerSize + progSize*len(progs) + len(interpreter))
	header.Shoff = data + uint64(len(names)+len(info))
	sections := []elf.Section64{
		{},
		{Name: 1, Type: uint32(elf.SHT_STRTAB), Off: data, Size: uint64(len(names))},
		{Name: 11, Type: uint32(elf.SHT_PROGBITS), Off: data + uint64(len(names)), Size: uint64(len(info))},
	}
	var b bytes.Buffer
	for _, part := range []any{header, progs, []byte(interpreter), []byte(names), []byte(info), sections} {
		must(t, binary.Write(&b, binary.LittleEndian, part))
	}
	return b.Bytes()
}

func writeFile(t *testing.T, name string, data []byte) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(name), 0o755))
	must(t, os.WriteFile(name, data, 0o644))
}

func TestLoadModules(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "modules.builtin"), []byte("kernel/lib/built-in.ko\n"))
	compress := func(w io.WriteCloser, err error, data []byte) {
		must(t, err)
		_, err = w.Write(data)
		must(t, err)
		must(t, w.Close())
	}
	var b bytes.Buffer
	top := makeELF(t, []string{"license=GPL", "depends=mid_one,built_in,base"})
	writeFile(t, filepath.Join(dir, "kernel/arch/top.ko"), top)
	mid := makeELF(t, []string{"depends=base"})
	w, err := xz.NewWriter(&b)
	compress(w, err, mid)
	writeFile(t, filepath.Join(dir, "kernel/mid-one.ko.xz"), b.Bytes())
	b.Reset()
	base := makeELF(t, []string{"depends="})
	z, err := zstd.NewWriter(&b)
	compress(z, err, base)
	writeFile(t, filepath.Join(dir, "kernel/base.ko.zst"), b.Bytes())
	b.Reset()
	alone := makeELF(t, nil)
	compress(gzip.NewWriter(&b), nil, alone)
	writeFile(t, filepath.Join(dir, "kernel/alone.ko.gz"), b.Bytes())

	modules, err := loadModules(dir, []string{"top", "alone", "mid-one"})
	must(t, err)
	in := func(name string) string { return filepath.Join(dir, "kernel", name) }
	want := []module{
		{"base", in("base.ko.zst"), base}, {"mid_one", in("mid-one.ko.xz"), mid},
		{"top", in("arch/top.ko"), top}, {"alone", in("alone.ko.gz"), alone},
	}
	if diff := cmp.Diff(want, modules, cmp.AllowUnexported(module{})); diff != "" {
		t.Errorf("modules (-want +got):\n%s", diff)
	}
	if _, err := loadModules(dir, []string{"absent"}); err == nil || !strings.Contains(err.Error(), "absent") {
		t.Errorf("a missing module was found: %v", err)
	}
}
