// Package images holds the guest kernel images that tests, benchmarks and the demo boot, built from ../guest by make images.
//
// The go command skips a folder named testdata when it expands ./..., so this package must be named where its own tests are to run.
package images

import (
	"embed"
	"fmt"
)

//go:embed accept cat clock connect count cpuid crash echo files hello hostile httpd idle memclr private resolve sink smp source stdio tcp tls trace udp unix
//go:embed rpc-calls rpc-clock rpc-connect rpc-echo rpc-file rpc-hello rpc-httpd rpc-panic rpc-require rpc-smp
var files embed.FS

// Bytes returns a copy of an image's ELF file. It panics if there is no image of that name, which is a constant of the caller: see Names.
func Bytes(name string) []byte {
	b, err := files.ReadFile(name)
	if err != nil {
		panic(fmt.Sprintf("images: no image %q", name))
	}
	return b
}

// Names returns the names of all images in alphabetical order.
func Names() []string {
	entries, err := files.ReadDir(".")
	if err != nil {
		panic(fmt.Sprintf("images: %v", err))
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
