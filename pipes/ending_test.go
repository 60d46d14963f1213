package pipes_test

import (
	"errors"
	"io"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/pipes/pipestest"
)

// What a guest wrote before it ended is read, then end of file. Writes to it
// fail.
func TestEndGuest(t *testing.T) {
	t.Parallel()
	g := pipestest.New(t, 4<<20, pipes.Options{})
	host, guest, err := g.Pair(4096, 4096)
	if err != nil {
		t.Fatal(err)
	}
	half, _, err := g.Pair(4096, 4096) // one that the monitor has closed already
	if err != nil {
		t.Fatal(err)
	}
	if err := half.Close(); err != nil {
		t.Fatal(err)
	}
	deadlines(t, host)
	want := fill(3000, 1)
	if _, err := guest.Write(want); err != nil {
		t.Fatal(err)
	}
	blocked := make(chan error, 1)
	go func() {
		_, err := host.Write(fill(8192, 2)) // twice the ring
		blocked <- err
	}()
	for range 2 {
		g.Table.EndGuest()
	}
	if got, err := io.ReadAll(host); err != nil || string(got) != string(want) {
		t.Errorf("%d bytes came, %v; want %d and end of file", len(got), err, len(want))
	}
	if err := await(t, blocked, "end of the write"); !errors.Is(err, unix.EPIPE) {
		t.Errorf("the write ended with %v, want EPIPE", err)
	}
	if err := host.Close(); err != nil {
		t.Error(err)
	}
	if _, err := g.Table.New(4096, 4096, 0); !errors.Is(err, unix.EPIPE) {
		t.Errorf("a new pipe for a guest that is gone: %v, want EPIPE", err)
	}
	if n := g.Table.Stats().Open; n != 0 {
		t.Errorf("%d pipes are open after both ends have closed", n)
	}
}
