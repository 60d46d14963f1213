package main

import (
	"slices"
	"testing"

	"github.com/fix-project/arcavm/spec"
)

// A flag has several limits, and the flag may be given several times.
func TestLimitFlag(t *testing.T) {
	t.Parallel()
	var got spec.Limits
	l := limitFlag{to: &got}
	for _, text := range []string{"streams=1", "ring-memory=2M,stream-files=3", "streams=2"} {
		if err := l.Set(text); err != nil {
			t.Error(err)
		}
	}
	want := spec.Limits{Streams: 2, RingMemory: 2 << 20, StreamFiles: 3}
	if got != want || !slices.Equal(l.names, []string{"streams", "ring-memory", "stream-files"}) {
		t.Errorf("got %+v by %q, want %+v", got, l.names, want)
	}
}
