// Package pipestest makes guests in Go, of package guest, for tests of what
// stands at the monitor's ends of pipes.
package pipestest

import (
	"testing"
	"time"

	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/pipes/guest"
)

// Names of package guest that tests say often.
type (
	Guest     = guest.Guest
	GuestConn = guest.Conn
	Ring      = guest.Ring
)

// The two rings of a pipe.
const (
	Outgoing = guest.Outgoing
	Incoming = guest.Incoming
)

// watchInterval is short enough that a wake-up lost in a test is noticed before
// something else makes up for it, and long enough for a goroutine that a busy
// machine doesn't let run between its store and its signal.
const watchInterval = 200 * time.Millisecond

// NewGuest makes a window of the given size in bytes, and on it what
// [guest.New] makes. WatchInterval defaults to 200 ms.
func NewGuest(windowSize int, o pipes.Options) (*Guest, error) {
	if o.WatchInterval == 0 {
		o.WatchInterval = watchInterval
	}
	return guest.New(make([]byte, windowSize), o)
}

// New makes a guest for a test and closes it at the test's end.
func New(tb testing.TB, windowSize int, o pipes.Options) *Guest {
	tb.Helper()
	g, err := NewGuest(windowSize, o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := g.Close(); err != nil {
			tb.Error(err)
		}
	})
	return g
}

// NewPair makes a guest with one pipe for a test, rings of the given size in
// bytes each way, and closes all at the test's end.
func NewPair(tb testing.TB, size uint32) (host *pipes.Pipe, guest *GuestConn) {
	tb.Helper()
	g := New(tb, 4<<20+4*int(size), pipes.Options{})
	host, guest, err := g.Pair(size, size)
	if err != nil {
		tb.Fatal(err)
	}
	return host, guest
}
