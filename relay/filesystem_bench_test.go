package relay_test

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	shared "github.com/fix-project/arcavm/share"
	"github.com/fix-project/arcavm/wire"
)

// BenchmarkFiles measures requests about files, one after the other: a call,
// and bytes in pieces of 64 KiB.
func BenchmarkFiles(b *testing.B) {
	const piece = 64 << 10
	dir := b.TempDir()
	long := strings.Repeat(strings.Repeat("n", 14)+"/", 254)
	if err := os.MkdirAll(filepath.Join(dir, long), 0o700); err != nil {
		b.Fatal(err)
	}
	for name, n := range map[string]int{"small": 100, "large": piece} {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, n), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	s, err := shared.Open(dir, true)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	m := start(b, setup{share: s, quiet: true})
	g := m.fileGuest(256 << 10)
	handle := g.mustOpen("large", wire.OpenRead|wire.OpenWrite)
	data := make([]byte, piece)
	for _, c := range []struct {
		name  string
		bytes int64
		do    func() error
	}{
		{"stat", 0, func() error { _, err := g.statPath("small"); return err }},
		{"long path", 0, func() error { _, err := g.statPath(long); return err }},
		{"small file", 0, func() error { _, err := g.readPath("small"); return err }},
		{"open and close", 0, func() error {
			h, err := g.open("small", wire.OpenRead)
			if err != nil {
				return err
			}
			return g.close(h)
		}},
		{"read", piece, func() error { _, err := g.read(handle, 0, piece); return err }},
		{"write", piece, func() error { _, err := g.write(handle, 0, data); return err }},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(c.bytes)
			for b.Loop() {
				if err := c.do(); err != nil && err != io.EOF {
					b.Fatal(err)
				}
				deadline(b, g)
			}
		})
	}
}
