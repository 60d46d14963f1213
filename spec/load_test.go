package spec_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/spec"
	"github.com/fix-project/arcavm/testdata/images"
	"github.com/fix-project/arcavm/vmm/image"
)

// imageFile writes one of the committed images to a file.
func imageFile(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, images.Bytes(name), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// What a description says is in the configuration, and what it names is open.
func TestLoad(t *testing.T) {
	t.Parallel()
	s := &spec.Spec{
		Image: imageFile(t, "hello"), Args: []string{"a", "b"}, CPUs: 3, Memory: 64 << 20, Window: 2 << 20,
		Shares:  []spec.Folder{{Dir: t.TempDir()}, {Name: "out", Dir: t.TempDir(), Writable: true}},
		Sockets: []spec.Folder{{Dir: t.TempDir()}},
		Limits:  spec.Limits{Streams: 7, Files: 8},
	}
	m, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.OpenFolders(); err != nil {
		t.Error(err)
	}
	c := m.Config
	if c.CPUs != 3 || c.Memory != 64<<20 || c.Window != 2<<20 || len(c.Args) != 2 || c.StreamLimit != 7 || c.Limits.Files != 8 || c.Network == nil {
		t.Errorf("%+v", c)
	}
	if c.Image.Name != s.Image || c.Share.Root == nil || c.Share.Writable || !c.Share.Named["out"].Writable || c.Sockets.Root == nil {
		t.Errorf("image %s, share %+v, sockets %+v", c.Image.Name, c.Share, c.Sockets)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.Share.Named["out"].Root.Stat("."); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close a folder is open: %v", err)
	}
}

// Errors name the key, by the words of its origin if it has one.
func TestLoadErrors(t *testing.T) {
	t.Parallel()
	hello := imageFile(t, "hello")
	for want, s := range map[string]*spec.Spec{
		"image: open /none: no such file or directory":           {Image: "/none"},
		"cpus: 99 is not in 1 to 64":                             {Image: hello, CPUs: 99},
		"mem: 1 MiB is not between 4 MiB and 256 GiB":            {Image: hello, Memory: 1 << 20},
		"limit.streams: 200000 is not in 1 to 131072":            {Image: hello, Limits: spec.Limits{Streams: 200000}},
		"tls-cert: tls-cert and tls-key go together":             {Image: hello, TLS: spec.TLS{Cert: "c"}},
		"tls-ca: open /none: no such file or directory":          {Image: hello, TLS: spec.TLS{CA: []string{"/none"}}},
		"tls-ca: " + hello + " holds no certificate in PEM form": {Image: hello, TLS: spec.TLS{CA: []string{hello}}},
		"share: open /none: no such file or directory":           {Image: hello, Shares: []spec.Folder{{Dir: "/none"}}},
		"sockets: " + hello + " is not a folder":                 {Image: hello, Sockets: []spec.Folder{{Dir: hello}}},
		"abi: the note in " + hello + " says that it speaks stream, version 1, not one of the older ABIs; leave the choice to it": {Image: hello, ABI: image.ABIRPC},
	} {
		m, err := s.Load()
		if err == nil {
			err = errors.Join(m.OpenFolders(), m.Close())
		}
		var given *spec.Error
		if !errors.As(err, &given) || given.Error() != want {
			t.Errorf("got %v\nwant %s", err, want)
		}
	}
	s := &spec.Spec{Image: "/none"}
	s.Say("image", "IMAGE")
	if _, err := s.Load(); !errors.Is(err, unix.ENOENT) || err.Error() != "IMAGE: open /none: no such file or directory" {
		t.Error(err)
	}
}
