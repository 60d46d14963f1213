package emulated

import (
	"bytes"
	"context"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// A machine that is started instead of another gets the signals of both.
func TestSignalRelay(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	signals := make(chan os.Signal)
	relay := relaySignals(ctx, signals)
	signals <- unix.SIGINT
	var links [2]bytes.Buffer
	for i, next := range []os.Signal{unix.SIGTERM, unix.SIGHUP} {
		m := &machine{}
		m.frames.w = &links[i]
		relay.attach(m)
		signals <- next
	}
	close(signals)
	relay.end()
	for i, want := range [][]unix.Signal{{unix.SIGINT, unix.SIGTERM}, {unix.SIGINT, unix.SIGTERM, unix.SIGHUP}} {
		var got []unix.Signal
		for links[i].Len() > 0 {
			kind, payload, err := readFrame(&links[i])
			must(t, err)
			if kind != frameSignal || len(payload) != 1 {
				t.Fatalf("frame %d with %q", kind, payload)
			}
			got = append(got, unix.Signal(payload[0]))
		}
		// The first signal comes before attach or after it, once in any case;
		// the one before the second attach goes to either machine.
		if i == 1 && len(got) != len(want) || len(got) > len(want) {
			t.Errorf("machine %d got %v, want %v", i, got, want)
		}
	}
}
