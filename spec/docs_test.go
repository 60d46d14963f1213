package spec_test

import (
	"os"
	"strings"
	"testing"

	"github.com/fix-project/arcavm/spec"
)

// docs/config.md lists each key, and its example can be read.
func TestPage(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/config.md")
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(string(page), "\n## Keys\n")
	list, _, _ = strings.Cut(list, "\n## ")
	for _, key := range spec.Keys() {
		if !strings.Contains(list, "`"+key+"`") {
			t.Errorf("%s is not in the list of keys", key)
		}
	}
	_, example, _ := strings.Cut(string(page), "```toml\n")
	example, _, _ = strings.Cut(example, "```")
	s, err := spec.Parse("docs/config.md", []byte(example))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Check(); err != nil || s.Limits.Bytes != 100<<20 || len(s.Network.Rules) != 2 {
		t.Errorf("%+v, %v", s, err)
	}
}
