package pipes_test

import (
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/pipes/pipestest"
)

// forgetful is a guest whose notifications get lost while mute is set.
type forgetful struct {
	*pipes.Table
	mute atomic.Bool
	lost atomic.Int32
}

func (f *forgetful) NotifyRead(id pipes.ID) error {
	if f.mute.Load() {
		f.lost.Add(1)
		return nil
	}
	return f.Table.NotifyRead(id)
}

func (f *forgetful) NotifyWrite(id pipes.ID) error {
	if f.mute.Load() {
		f.lost.Add(1)
		return nil
	}
	return f.Table.NotifyWrite(id)
}

// A monitor's end that the guest forgets to wake goes on all the same, and the loss is counted; what isn't lost is not.
func TestLostWakeUps(t *testing.T) {
	t.Parallel()
	const size = 4096
	full := make([]byte, size)
	for _, c := range []struct {
		what string
		mute bool
		wait func(host *pipes.Pipe) error // at the monitor's end; sleeps
		move func(guest *pipes.Pipe) error
	}{
		{"bytes", true,
			func(host *pipes.Pipe) error { _, err := host.Read(make([]byte, 1)); return err },
			func(guest *pipes.Pipe) error { _, err := guest.Write([]byte{1}); return err }},
		{"room", true,
			func(host *pipes.Pipe) error { _, err := host.Write(make([]byte, size+1)); return err },
			func(guest *pipes.Pipe) error { _, err := io.ReadFull(guest, full); return err }},
		{"end of file", true,
			func(host *pipes.Pipe) error {
				if _, err := host.Read(make([]byte, 1)); err != io.EOF {
					return errors.New("no end of file")
				}
				return nil
			},
			func(guest *pipes.Pipe) error { return guest.CloseWrite() }},
		{"hook", true,
			func(host *pipes.Pipe) error {
				ready := make(chan struct{})
				host.OnReadable(func() { close(ready) })
				<-ready
				return nil
			},
			func(guest *pipes.Pipe) error { _, err := guest.Write([]byte{1}); return err }},
		{"nothing", false,
			func(host *pipes.Pipe) error { _, err := host.Read(make([]byte, 1)); return err },
			func(guest *pipes.Pipe) error { _, err := guest.Write([]byte{1}); return err }},
	} {
		t.Run(c.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, err := pipestest.NewGuest(1<<20, pipes.Options{})
				if err != nil {
					t.Fatal(err)
				}
				host, err := g.Table.New(size, size, 0)
				if err != nil {
					t.Fatal(err)
				}
				notifier := &forgetful{Table: g.Table}
				guest, err := pipes.Attach(g.Window, host.Descriptor(), notifier)
				if err != nil {
					t.Fatal(err)
				}
				done := make(chan error, 1)
				go func() { done <- c.wait(host) }()
				synctest.Wait() // it sleeps
				notifier.mute.Store(c.mute)
				if err := c.move(guest); err != nil {
					t.Error(err)
				}
				if err := <-done; err != nil {
					t.Error(err)
				}
				want := uint64(notifier.lost.Load())
				if s := g.Table.Stats(); s.Rescued != want || c.mute != (want == 1) {
					t.Errorf("%d rescued, of %d lost", s.Rescued, want)
				}
				if err := g.Close(); (err != nil) != c.mute {
					t.Errorf("a guest that lost wake-ups (%v) closes with %v", c.mute, err)
				}
				g.Table.Wait()
			})
		})
	}
}

// What a closed table leaves behind is nothing, whether its watchdog has looked or not.
func TestWatchdogEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, err := pipestest.NewGuest(1<<20, pipes.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.Table.New(4096, 4096, 0); err != nil {
			t.Fatal(err)
		}
		if err := g.Close(); err != nil {
			t.Error(err)
		}
		g.Table.Wait()
	})
}
