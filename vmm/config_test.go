package vmm

import (
	"crypto/tls"
	"errors"
	"runtime"
	"strings"
	"testing"

	"github.com/fix-project/arcavm/relay"
	"github.com/fix-project/arcavm/vmm/image"
)

func TestConfigRefused(t *testing.T) {
	t.Parallel()
	img := &image.Image{Name: "image", Version: 1}
	for _, c := range []struct {
		name  string
		cfg   Config
		field string
	}{
		{"no image", Config{}, "image"},
		{"neither note nor symbols", Config{Image: &image.Image{Name: "image"}}, "abi"},
		{"a later version", Config{Image: &image.Image{Name: "image", Version: 2}}, "image"},
		{"an older ABI, against the note", Config{Image: img, ABI: image.ABIHypercall}, "abi"},
		{"an ABI that there isn't", Config{Image: img, ABI: 4}, "abi"},
		{"words to an image that takes numbers", Config{Image: &image.Image{}, ABI: image.ABIHypercall, Args: []string{"a"}}, "arguments"},
		{"negative CPUs", Config{Image: img, CPUs: -1}, "cpus"},
		{"too many CPUs", Config{Image: img, CPUs: MaxCPUs + 1}, "cpus"},
		{"too little memory", Config{Image: img, Memory: 2 << 20}, "memory"},
		{"too much memory", Config{Image: img, Memory: 1 << 50}, "memory"},
		{"odd memory", Config{Image: img, Memory: 5<<20 + 1}, "memory"},
		{"too small a window", Config{Image: img, Window: 4096}, "window"},
		{"too large a window", Config{Image: img, Window: 1 << 50}, "window"},
		{"odd window", Config{Image: img, Window: 3 << 20}, "window"},
		{"negative stream limit", Config{Image: img, StreamLimit: -1}, "stream limit"},
		{"too low a ring limit", Config{Image: img, RingLimit: 128<<10 - 1}, "ring limit"},
		{"too high a ring limit", Config{Image: img, RingLimit: 1 << 63}, "ring limit"},
		{"too high a stream limit", Config{Image: img, StreamLimit: MaxStreamLimit + 1}, "stream limit"},
		{"too many arguments", Config{Image: img, Args: make([]string, MaxArgs)}, "arguments"},
		{"a handler of a reserved protocol", Config{Image: img, Handlers: map[uint16]relay.Handler{0x7fff: new(relay.Mux)}}, "handlers"},
		{"an empty certificate", Config{Image: img, TLS: relay.TLS{Certificates: make([]tls.Certificate, 1)}}, "tls"},
		{"a certificate that is none", Config{Image: img, TLS: relay.TLS{Certificates: []tls.Certificate{{Certificate: [][]byte{{1}}}}}}, "tls"},
		{"a folder for sockets without a folder", Config{Image: img, Sockets: Share{Named: map[string]Share{"a": {}}}}, "sockets"},
		{"no handler", Config{Image: img, Handlers: map[uint16]relay.Handler{0x8000: nil}}, "handlers"},
	} {
		err := c.cfg.Validate()
		var bad *ConfigError
		if !errors.As(err, &bad) || bad.Field != c.field {
			t.Errorf("%s: %v, want a ConfigError about %s", c.name, err, c.field)
		}
	}
	if err := (Config{Image: img}).Validate(); err != nil {
		t.Errorf("the defaults are refused: %v", err)
	}
}

func TestDefaultsByABI(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		image  image.Version
		abi    image.ABI
		cpus   int
		memory uint64
	}{
		"by the image":        {1, image.ABIAuto, 1, DefaultMemory},
		"by hand":             {0, image.ABIStream, 1, DefaultMemory},
		"the oldest, by hand": {0, image.ABIHypercall, min(DefaultRPCCPUs, runtime.NumCPU()), DefaultRPCMemory},
		"the older, by hand":  {0, image.ABIRPC, min(DefaultRPCCPUs, runtime.NumCPU()), DefaultRPCMemory},
	} {
		cfg := Config{Image: &image.Image{Version: c.image}, ABI: c.abi}
		got, err := cfg.WithDefaults(), cfg.Validate()
		if err != nil || got.CPUs != c.cpus || got.Memory != c.memory {
			t.Errorf("%s: %d CPUs, %d bytes, %v", name, got.CPUs, got.Memory, err)
		}
	}
}

// The note of an image can't be overruled: as a guest of the older ABI it would
// do anything.
func TestOlderABIOfStreamImage(t *testing.T) {
	t.Parallel()
	err := Config{Image: &image.Image{Name: "img", Version: 1}, ABI: image.ABIRPC}.Validate()
	var bad *ConfigError
	if !errors.As(err, &bad) || bad.Field != "abi" || !strings.Contains(bad.Reason, "img says that it speaks stream, version 1") {
		t.Errorf("got %v", err)
	}
}
