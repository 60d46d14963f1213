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
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// withInterpreter makes makeELF add a PT_INTERP program header.
const withInterpreter = "interpreter"

// makeELF makes the smallest ELF file with a section .modinfo of these entries.
func makeELF(t *testing.T, modinfo []string, options ...string) []byte {
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
	if len(options) > 0 {
		progs = append(progs, elf.Prog64{Type: uint32(elf.PT_INTERP)})
		header.Phnum, header.Phoff = 1, headerSize
	}
	data := uint64(headerSize + progSize*len(progs))
	header.Shoff = data + uint64(len(names)+len(info))
	sections := []elf.Section64{
		{},
		{Name: 1, Type: uint32(elf.SHT_STRTAB), Off: data, Size: uint64(len(names))},
		{Name: 11, Type: uint32(elf.SHT_PROGBITS), Off: data + uint64(len(names)), Size: uint64(len(info))},
	}
	var b bytes.Buffer
	for _, part := range []any{header, progs, []byte(names), []byte(info), sections} {
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
	want := []module{{"base", base}, {"mid_one", mid}, {"top", top}, {"alone", alone}}
	if diff := cmp.Diff(want, modules, cmp.AllowUnexported(module{})); diff != "" {
		t.Errorf("modules (-want +got):\n%s", diff)
	}
	if _, err := loadModules(dir, []string{"absent"}); err == nil || !strings.Contains(err.Error(), "absent") {
		t.Errorf("a missing module was found: %v", err)
	}
}

func TestNewestKernel(t *testing.T) {
	t.Parallel()
	cache := t.TempDir()
	if k, ok := newestKernel(cache); ok {
		t.Errorf("found %v in an empty folder", k)
	}
	now := time.Now()
	for i, name := range []string{"linux-image-2_amd64/lib", "linux-image-1_amd64/usr/lib"} {
		root := filepath.Join(cache, strings.Split(name, "/")[0])
		writeFile(t, filepath.Join(root, "boot", "vmlinuz-6.1"), nil)
		must(t, os.MkdirAll(filepath.Join(cache, name, "modules", "6.1"), 0o755))
		must(t, os.Chtimes(root, now, now.Add(time.Duration(i)*time.Hour)))
	}
	writeFile(t, filepath.Join(cache, "linux-image-3_amd64", "boot", "vmlinuz-6.1"), nil) // without modules
	k, ok := newestKernel(cache)
	root := filepath.Join(cache, "linux-image-1_amd64")
	want := kernel{image: filepath.Join(root, "boot/vmlinuz-6.1"), modules: filepath.Join(root, "usr/lib/modules/6.1")}
	if !ok || k != want {
		t.Errorf("found %+v, want %+v", k, want)
	}
}
