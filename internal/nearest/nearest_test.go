package nearest_test

import (
	"strings"
	"testing"

	"github.com/fix-project/arcavm/internal/nearest"
)

func TestOf(t *testing.T) {
	t.Parallel()
	names := []string{"cpus", "mem", "window", "share", "timing"}
	for name, want := range map[string]string{
		"cpu": "cpus", "memory": "mem", "shear": "share", "windo": "window", "tmiing": "timing", "x": "", "quite-other": "",
		strings.Repeat("x", 1<<20): "",
	} {
		if got := nearest.Of(name, names); got != want {
			t.Errorf("Of(%.20q) = %q, want %q", name, got, want)
		}
	}
}
