package main

import (
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/fix-project/arcavm/emulated"
	"github.com/fix-project/arcavm/spec"
)

// inside describes a machine as the arcavm in an emulated one has to make it,
// and lists the files that have to be there for that. The image and the
// arguments are left out.
func inside(loaded *spec.Machine) (*spec.Spec, []emulated.File, error) {
	s := *loaded.Spec
	s.Image, s.Args, s.Emulated, s.Output.ExitFile = "", nil, false, ""
	files, err := copyFolders(&s)
	if err != nil {
		return nil, nil, err
	}
	files = append(files, copyTLS(&s, loaded.PEM)...)
	s.Network.Publish = nil
	for _, p := range loaded.Spec.Network.Publish {
		p.Host = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), p.Guest)
		s.Network.Publish = append(s.Network.Publish, p)
	}
	own, err := ownAddresses()
	s.Network.Own = slices.Concat(s.Network.Own, own)
	return &s, files, err
}

// copyFolders lists the shared folders, and has the description name them where
// they are copied to.
func copyFolders(s *spec.Spec) ([]emulated.File, error) {
	var files []emulated.File
	var folders []spec.Folder
	for i, f := range s.Shares {
		where := s.Where("share", i)
		if info, err := os.Stat(f.Dir); err != nil || !info.IsDir() {
			return nil, &codeError{exitNoInput, fmt.Errorf("%s: %s is not a folder", where, f.Dir)}
		}
		if f.Writable {
			return nil, usageError("%s: with --emulated the folder is copied in, and what the guest writes would be lost; leave out :rw", where)
		}
		copied := emulated.File{Name: "/share", Source: f.Dir}
		if f.Name != "" {
			copied.Name = "/shares/" + f.Name
		}
		files = append(files, copied)
		folders = append(folders, spec.Folder{Name: f.Name, Dir: copied.Name})
	}
	s.Shares = folders
	return files, nil
}

// rootsInside is one of the files where Go's programs look for what the machine
// trusts.
const rootsInside = "/etc/ssl/certs/ca-certificates.crt"

// copyTLS lists what was read for TLS, and what this machine trusts, which the
// emulated one then trusts, too; and has the description name them there.
func copyTLS(s *spec.Spec, read spec.PEM) []emulated.File {
	var files []emulated.File
	for _, path := range []string{
		os.Getenv("SSL_CERT_FILE"), rootsInside, "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem",
	} {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			files = append(files, emulated.File{Name: rootsInside, Source: path})
			break
		}
	}
	add := func(name string, data []byte) string {
		files = append(files, emulated.File{Name: name, Data: data})
		return name
	}
	s.TLS = spec.TLS{}
	for i, data := range read.CA {
		s.TLS.CA = append(s.TLS.CA, add(fmt.Sprintf("/tls/ca%d", i), data))
	}
	if read.Cert != nil {
		s.TLS.Cert, s.TLS.Key = add("/tls/cert", read.Cert), add("/tls/key", read.Key)
	}
	return files
}

// ownAddresses are those by which a program in an emulated machine reaches this
// one: the network between them, and this machine's addresses, to which QEMU
// connects as any of its programs does.
func ownAddresses() ([]netip.Prefix, error) {
	between, err := netip.ParsePrefix(emulated.Network)
	if err != nil {
		return nil, err
	}
	local, err := localIPv4()
	return append([]netip.Prefix{between}, local...), err
}
