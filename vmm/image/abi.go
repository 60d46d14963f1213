package image

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// ABI is how a guest and its monitor talk. It is read from an image by
// [Image.ABI], or chosen by a user.
type ABI int

const (
	// ABIAuto is no ABI yet. As a choice it leaves the ABI to the image; as an
	// answer it says that nothing in the image tells.
	ABIAuto ABI = iota
	// ABIStream is that of PROTOCOL.md.
	ABIStream
	// ABIRPC is Arca's older request/response ABI: its guests ask by messages.
	ABIRPC
	// ABIHypercall is the oldest: its guests ask by hypercalls 5 to 15, and
	// their arguments are numbers.
	ABIHypercall
)

var abiNames = []string{ABIAuto: "auto", ABIStream: "stream", ABIRPC: "rpc", ABIHypercall: "hypercall"}

// ABINames returns the names that [ParseABI] takes.
func ABINames() []string { return slices.Clone(abiNames) }

// ParseABI returns the ABI of that name.
func ParseABI(name string) (ABI, error) {
	if i := slices.Index(abiNames, name); i >= 0 {
		return ABI(i), nil
	}
	return ABIAuto, fmt.Errorf("%q must be one of %s", name, strings.Join(abiNames, ", "))
}

func (a ABI) String() string {
	if a < 0 || int(a) >= len(abiNames) {
		return fmt.Sprintf("ABI %d", int(a))
	}
	return abiNames[a]
}

// Older reports whether a is one of those before that of PROTOCOL.md.
func (a ABI) Older() bool { return a == ABIRPC || a == ABIHypercall }

// Version is the version of the ABI of PROTOCOL.md that an image's note names.
// Images of the older ABIs have no note, and version 0.
type Version uint32

// version1 is the one version that there is.
const version1 Version = 1

func (v Version) String() string {
	switch v {
	case 0:
		return "no version"
	case version1:
		return "stream, version 1"
	}
	return fmt.Sprintf("unknown version %d", uint32(v))
}

// Parts of mangled Rust names: a name is its length and itself, so that crate
// kernel's module pipe is 6kernel4pipe, in either way of mangling.
const (
	kernelCrate = "6kernel"
	pipeModule  = "6kernel4pipe"
)

// ABI returns what the image speaks, and from what that is known, as the end of
// a sentence. Its note counts, and without a note its symbols: the first call
// then reads the symbol table. An image whose symbols aren't those of Arca's
// kernel is taken for one of the request/response ABI. The answer is ABIAuto if
// the note's version is unknown, or if there are neither note nor symbols.
func (i *Image) ABI() (abi ABI, why string) {
	switch i.Version {
	case 0:
		return i.olderABI()
	case version1:
		return ABIStream, "its note says so"
	}
	return ABIAuto, fmt.Sprintf("its note names %v", i.Version)
}

func (i *Image) olderABI() (abi ABI, why string) {
	table, err := i.loadSymbols()
	has := func(part string) bool { return bytes.Contains(table.names, []byte(part)) }
	switch {
	case err != nil:
		return ABIAuto, "it has no ABI note, and its symbols can't be read"
	case len(table.entries) == 0:
		return ABIAuto, "it has no ABI note and no symbols"
	case has(pipeModule):
		return ABIRPC, "it has no ABI note, and symbols of the kernel's module pipe"
	case has(kernelCrate):
		return ABIHypercall, "it has no ABI note, and symbols of the kernel but none of its module pipe"
	default:
		return ABIRPC, "it has no ABI note, and no symbols of Arca's kernel"
	}
}
