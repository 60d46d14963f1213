package image

import "bytes"

// Older tells the ABIs of images without a note apart.
type Older int

const (
	// OlderUnknown is that of an image whose symbols are gone.
	OlderUnknown Older = iota
	// OlderPipes have pipes and messages: the request/response ABI.
	OlderPipes
	// OlderHypercalls ask for sockets and files by hypercalls.
	OlderHypercalls
)

// Parts of mangled Rust names: a name is its length and itself, so that crate
// kernel's module pipe is 6kernel4pipe, in either way of mangling.
const (
	kernelCrate = "6kernel"
	pipeModule  = "6kernel4pipe"
)

// Older goes by the image's symbols and returns what they say, and why, as the
// end of a sentence. An image with other symbols than those of Arca's kernel is
// taken for one with pipes. The first call reads the symbol table.
func (i *Image) Older() (older Older, why string) {
	table, err := i.loadSymbols()
	has := func(part string) bool { return bytes.Contains(table.names, []byte(part)) }
	switch {
	case err != nil:
		return OlderUnknown, "it has no ABI note, and its symbols can't be read"
	case len(table.entries) == 0:
		return OlderUnknown, "it has no ABI note and no symbols"
	case has(pipeModule):
		return OlderPipes, "it has no ABI note, and symbols of the kernel's module pipe"
	case has(kernelCrate):
		return OlderHypercalls, "it has no ABI note, and symbols of the kernel but none of its module pipe"
	default:
		return OlderPipes, "it has no ABI note, and no symbols of Arca's kernel"
	}
}
