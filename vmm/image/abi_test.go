package image

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/fix-project/arcavm/testdata/images"
)

// Images without a note are told apart by their symbols.
func TestABIBySymbols(t *testing.T) {
	t.Parallel()
	calls := images.Bytes("rpc-calls")
	replaced := func(old, by string) []byte { return bytes.ReplaceAll(calls, []byte(old), []byte(by)) }
	stripped := bytes.Clone(calls)
	// The section headers: offset, number, and the section of their names.
	binary.LittleEndian.PutUint64(stripped[40:], 0)
	binary.LittleEndian.PutUint16(stripped[60:], 0)
	binary.LittleEndian.PutUint16(stripped[62:], 0)
	broken := bytes.Clone(calls)
	binary.LittleEndian.PutUint64(broken[40:], uint64(len(broken)))
	for _, c := range []struct {
		name  string
		bytes []byte
		want  ABI
	}{
		{"sockets by hypercalls", calls, ABIHypercall},
		{"no sockets", replaced("6kernel4host3net", "6kernel5other2ab"), ABIHypercall},
		{"module pipe", replaced("6kernel4host3net", "6kernel4pipe3net"), ABIRPC},
		{"module pipe, the newer mangling", replaced("_ZN6kernel4host3net4call17h0123456789abcdefE", "_RNvNtCsabcdefghijk_6kernel4pipe4call2ab3cde"), ABIRPC},
		{"another kernel's", replaced("6kernel4host3net", "6colonel4host3ne"), ABIRPC},
		{"guest of our own", images.Bytes("rpc-hello"), ABIRPC},
		{"stripped", stripped, ABIAuto},
		{"section headers beyond the end", broken, ABIAuto},
	} {
		img, err := ParseBytes(c.bytes, c.name)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got, why := img.ABI(); got != c.want || why == "" {
			t.Errorf("%s: %v (%s), want %v", c.name, got, why, c.want)
		}
	}
}
