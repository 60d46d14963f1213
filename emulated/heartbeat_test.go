package emulated

import (
	"fmt"
	"os"
	"regexp"
	"testing"
	"time"
)

var heartbeatLine = regexp.MustCompile(`(?m)^ *\d+: +(\d+) .*hpet\d`)

// heartbeats is how many the kernel has counted.
func heartbeats(t *testing.T) (n int) {
	t.Helper()
	text, err := os.ReadFile("/proc/interrupts")
	must(t, err)
	line := heartbeatLine.FindSubmatch(text)
	if line == nil {
		t.Fatalf("no heartbeat in\n%s", text)
	}
	if _, err := fmt.Sscan(string(line[1]), &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// Part of the emulated lane's self-check.
func TestHeartbeat(t *testing.T) {
	if !Inside() {
		t.Skip("for the emulated machine")
	}
	deadline := time.Now().Add(30 * time.Second)
	for first := heartbeats(t); heartbeats(t) == first; {
		if time.Now().After(deadline) {
			t.Fatal("the heart doesn't beat")
		}
	}
}
