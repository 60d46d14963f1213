package spec_test

import (
	"testing"

	"github.com/fix-project/arcavm/spec"
)

func TestSize(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]struct {
		bytes uint64
		text  string
	}{
		"64K": {64 << 10, "64K"}, "512M": {512 << 20, "512M"}, "512MiB": {512 << 20, "512M"}, "2g": {2 << 30, "2G"},
		" 1T ": {1 << 40, "1T"}, "1024M": {1 << 30, "1G"}, "1025M": {1025 << 20, "1025M"},
	} {
		var s spec.Size
		if err := s.Set(text); err != nil || uint64(s) != want.bytes || s.String() != want.text {
			t.Errorf("%q: %d, %q, %v", text, s, s.String(), err)
		}
	}
	for _, text := range []string{"", "M", "12", "1.5G", "-1M", "1X", "0x1M", "16777216T"} {
		var s spec.Size
		if err := s.Set(text); err == nil {
			t.Errorf("%q is %d", text, s)
		}
	}
}
