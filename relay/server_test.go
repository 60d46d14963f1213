package relay

import (
	"testing"
	"time"

	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/pipes/pipestest"
)

// Starting a goroutine from a virtual CPU's thread doesn't wait for the lock of
// the streams.
func TestStartWaitsForNobody(t *testing.T) {
	t.Parallel()
	g, err := pipestest.NewGuest(1<<20, pipes.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	control, _, err := g.Pair(4096, 4096)
	if err != nil {
		t.Fatal(err)
	}
	s := New(g.Table, control, new(Mux), Options{})
	s.mu.Lock()
	defer s.mu.Unlock()
	started := make(chan struct{})
	go s.start(func() { close(started) })
	select {
	case <-started:
	case <-time.After(30 * time.Second):
		t.Fatal("it waits")
	}
	s.running.Wait()
}
