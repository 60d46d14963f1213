package spec

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/vmm"
)

// Each name is a limit of its own, and units count.
func TestLimits(t *testing.T) {
	t.Parallel()
	var l Limits
	for _, text := range []string{"streams=1", "ring-memory=2M", "stream-files=3", "files=4K", "accepts=5", "bytes=6G", "operations=7", "disk=9M", "log=8"} {
		if _, err := l.Set(text); err != nil {
			t.Error(err)
		}
	}
	var got vmm.Config
	l.apply(&got)
	want := vmm.Config{
		StreamLimit: 1, RingLimit: 2 << 20, LogLimit: 8,
		Limits: network.Limits{StreamFiles: 3, Files: 4 << 10, Accepts: 5, Bytes: 6 << 30, Operations: 7, Disk: 9 << 20},
	}
	if got.StreamLimit != want.StreamLimit || got.RingLimit != want.RingLimit || got.LogLimit != want.LogLimit || !cmp.Equal(got.Limits, want.Limits) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
