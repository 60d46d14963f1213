package pipes_test

import (
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/pipes/pipestest"
)

// forgetful is a guest whose notifications are dropped while mute is set.
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

// A monitor's end that the guest doesn't wake goes on all the same, and the
// lost wake-up is counted; else none is.
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
		{"close that a hook waits for", true,
			func(host *pipes.Pipe) error {
				failed := make(chan struct{})
				host.OnWriteError(func() { close(failed) })
				<-failed
				return nil
			},
			func(guest *pipes.Pipe) error { return guest.CloseRead() }},
		{"reset that a hook waits for", true,
			func(host *pipes.Pipe) error {
				failed := make(chan struct{})
				host.OnReadError(func() { close(failed) })
				<-failed
				return nil
			},
			func(guest *pipes.Pipe) error { return guest.Reset(unix.ECANCELED) }},
		{"end of a pipe", true,
			func(host *pipes.Pipe) error {
				if err := host.Close(); err != nil {
					return err
				}
				for host.Table().Stats().Open > 0 {
					time.Sleep(time.Second)
				}
				return nil
			},
			func(guest *pipes.Pipe) error { return guest.Close() }},
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
				want := uint64(0)
				if c.mute {
					want = 1
				}
				if s := g.Table.Stats(); s.Rescued != want || s.Forgotten != 0 || c.mute != (notifier.lost.Load() > 0) {
					t.Errorf("%d rescued and %d forgotten, of %d lost", s.Rescued, s.Forgotten, notifier.lost.Load())
				}
				if err := g.Close(); (err != nil) != c.mute {
					t.Errorf("a guest that lost wake-ups (%v) closes with %v", c.mute, err)
				}
				g.Table.Wait()
			})
		})
	}
}

// A notification that comes while the watchdog finds out whether the guest is
// idle isn't lost: a virtual CPU may have had no processor since its store.
func TestNotifiedDuringLook(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		what string
		wait func(host *pipes.Pipe) error
		move func(guest *pipes.Pipe) error
		tell func(pipes.Notifier, pipes.ID) error
	}{
		{"bytes",
			func(host *pipes.Pipe) error { _, err := host.Read(make([]byte, 1)); return err },
			func(guest *pipes.Pipe) error { _, err := guest.Write([]byte{1}); return err },
			pipes.Notifier.NotifyRead},
		{"end of a pipe",
			func(host *pipes.Pipe) error { return host.Close() },
			func(guest *pipes.Pipe) error { return guest.Close() },
			pipes.Notifier.NotifyRead},
	} {
		t.Run(c.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var tell func()
				g, err := pipestest.NewGuest(1<<20, pipes.Options{Halted: func(int) bool {
					tell()
					return true
				}})
				if err != nil {
					t.Fatal(err)
				}
				host, err := g.Table.New(4096, 4096, 0)
				if err != nil {
					t.Fatal(err)
				}
				notifier := &forgetful{Table: g.Table}
				guest, err := pipes.Attach(g.Window, host.Descriptor(), notifier)
				if err != nil {
					t.Fatal(err)
				}
				asked := 0
				tell = func() {
					asked++
					if err := c.tell(g.Table, guest.ID()); err != nil {
						t.Error(err)
					}
				}
				done := make(chan error, 1)
				go func() { done <- c.wait(host) }()
				synctest.Wait()
				notifier.mute.Store(true)
				if err := c.move(guest); err != nil {
					t.Error(err)
				}
				if err := <-done; err != nil {
					t.Error(err)
				}
				time.Sleep(time.Minute)
				if s := g.Table.Stats(); asked != 1 || s.Rescued != 0 || s.Late != 0 {
					t.Errorf("asked %d times whether the guest is idle; %d rescued, %d late", asked, s.Rescued, s.Late)
				}
				notifier.mute.Store(false)
				tell = func() {}
				_ = guest.Close()
				_ = host.Close()
				if err := g.Close(); err != nil {
					t.Error(err)
				}
				g.Table.Wait()
			})
		})
	}
}

// An interrupt isn't lost while the goroutine that raises it has no processor
// between the pending bit and the doorbell.
func TestInterruptUnderWayIsNotLost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g, err := pipestest.NewGuest(1<<20, pipes.Options{})
		if err != nil {
			t.Fatal(err)
		}
		g.Table.BeforeInterrupts(func() { time.Sleep(time.Minute) })
		host, guest, err := g.Pair(4096, 4096)
		if err != nil {
			t.Fatal(err)
		}
		read := make(chan error, 1)
		go func() {
			_, err := guest.Read(make([]byte, 1))
			read <- err
		}()
		synctest.Wait() // it sleeps
		begun := time.Now()
		if _, err := host.Write([]byte{1}); err != nil {
			t.Error(err)
		}
		if err := <-read; err != nil || time.Since(begun) < time.Minute {
			t.Errorf("read after %v: %v", time.Since(begun), err)
		}
		time.Sleep(time.Minute)
		if s := g.Table.Stats(); s.Forgotten != 0 || s.Late != 0 {
			t.Errorf("%d wake-ups lost, %d late", s.Forgotten, s.Late)
		}
		if err := g.Close(); err != nil {
			t.Error(err)
		}
		g.Table.Wait()
	})
}

// A guest's end that isn't woken goes on all the same, and the lost wake-up is
// counted. An end that waits for more than is there hasn't lost one.
func TestForgottenWakeUps(t *testing.T) {
	t.Parallel()
	const size = 4096
	for _, c := range []struct {
		what string
		lost bool
		ring pipestest.Ring // in which the guest sleeps
		fill int            // what the guest has written before
		wait func(guest *pipestest.GuestConn) error
		move func(g *pipestest.Guest, host *pipes.Pipe, flag flag) error
	}{
		{"bytes", true, pipestest.Incoming, 0,
			func(guest *pipestest.GuestConn) error { _, err := guest.Read(make([]byte, 1)); return err },
			func(_ *pipestest.Guest, host *pipes.Pipe, waiting flag) error {
				return waiting.hidden(func() error { _, err := host.Write([]byte{1}); return err })
			}},
		{"room", true, pipestest.Outgoing, size,
			func(guest *pipestest.GuestConn) error { _, err := guest.Write(make([]byte, 1)); return err },
			func(_ *pipestest.Guest, host *pipes.Pipe, waiting flag) error {
				return waiting.hidden(func() error { _, err := io.ReadFull(host, make([]byte, size/2)); return err })
			}},
		{"all of a ring at once", true, pipestest.Incoming, 0,
			func(guest *pipestest.GuestConn) error {
				_, err := io.ReadFull(guest, make([]byte, 2*size))
				return err
			},
			func(_ *pipestest.Guest, host *pipes.Pipe, waiting flag) error {
				return waiting.hidden(func() error {
					go host.Write(make([]byte, 2*size))
					synctest.Wait()
					return nil
				})
			}},
		{"interrupt", true, pipestest.Incoming, 0,
			func(guest *pipestest.GuestConn) error { _, err := guest.Read(make([]byte, 1)); return err },
			func(g *pipestest.Guest, host *pipes.Pipe, _ flag) error {
				g.LoseInterrupts(1)
				_, err := host.Write([]byte{1})
				return err
			}},
		{"interrupt for a close", true, pipestest.Incoming, 0,
			func(guest *pipestest.GuestConn) error {
				if _, err := guest.Read(make([]byte, 1)); err != io.EOF {
					return errors.New("no end of file")
				}
				return nil
			},
			func(g *pipestest.Guest, host *pipes.Pipe, _ flag) error {
				g.LoseInterrupts(1)
				return host.CloseWrite()
			}},
		{"less than what it waits for", false, pipestest.Incoming, 0,
			func(guest *pipestest.GuestConn) error {
				_, _, err := guest.ReserveRead(3)
				if err == nil {
					guest.CommitRead(3)
				}
				return err
			},
			func(_ *pipestest.Guest, host *pipes.Pipe, _ flag) error {
				for range 3 {
					if _, err := host.Write([]byte{1}); err != nil {
						return err
					}
					time.Sleep(time.Minute)
				}
				return nil
			}},
		{"room that is kept back", false, pipestest.Outgoing, size,
			func(guest *pipestest.GuestConn) error { _, err := guest.Write(make([]byte, 1)); return err },
			func(_ *pipestest.Guest, host *pipes.Pipe, waiting flag) error {
				if _, err := io.ReadFull(host, make([]byte, size/2-1)); err != nil {
					return err
				}
				time.Sleep(time.Minute)
				if waiting.load() == 0 {
					return errors.New("the guest was signalled before its time")
				}
				_, err := io.ReadFull(host, make([]byte, size/2))
				return err
			}},
	} {
		t.Run(c.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, err := pipestest.NewGuest(1<<20, pipes.Options{})
				if err != nil {
					t.Fatal(err)
				}
				host, guest, err := g.Pair(size, size)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := guest.Write(make([]byte, c.fill)); err != nil {
					t.Fatal(err)
				}
				done := make(chan error, 1)
				go func() { done <- c.wait(guest) }()
				synctest.Wait() // it sleeps
				if err := c.move(g, host, flagOf(g, guest, c.ring)); err != nil {
					t.Error(err)
				}
				if err := <-done; err != nil {
					t.Error(err)
				}
				err = g.Close()
				want := uint64(0)
				if c.lost {
					want = 1
				}
				if s := g.Table.Stats(); s.Forgotten != want || s.Rescued != 0 || (err != nil) != c.lost {
					t.Errorf("%d forgotten, %d rescued, want %d and 0; Close: %v", s.Forgotten, s.Rescued, want, err)
				}
				g.Table.Wait()
			})
		})
	}
}

// What a guest with a busy CPU hasn't done yet is late, not lost. The watchdog
// makes up for it all the same.
func TestLateWakeUps(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g, err := pipestest.NewGuest(1<<20, pipes.Options{CPUs: 2, Halted: func(cpu int) bool { return cpu == 0 }})
		if err != nil {
			t.Fatal(err)
		}
		host, err := g.Table.New(4096, 4096, 1)
		if err != nil {
			t.Fatal(err)
		}
		notifier := &forgetful{Table: g.Table}
		p, err := pipes.Attach(g.Window, host.Descriptor(), notifier)
		if err != nil {
			t.Fatal(err)
		}
		guest, err := g.Attach(host.Descriptor())
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		for i, c := range []struct {
			wait, move func() error
		}{
			{
				func() error { _, err := host.Read(make([]byte, 1)); return err },
				func() error { notifier.mute.Store(true); _, err := p.Write([]byte{1}); return err },
			},
			{
				func() error { _, err := guest.Read(make([]byte, 1)); return err },
				func() error {
					return flagOf(g, guest, pipestest.Incoming).hidden(func() error { _, err := host.Write([]byte{1}); return err })
				},
			},
			{
				func() error { _, err := guest.Read(make([]byte, 1)); return err },
				func() error { g.LoseInterrupts(1); _, err := host.Write([]byte{1}); return err },
			},
		} {
			go func() { done <- c.wait() }()
			synctest.Wait() // it sleeps
			if err := c.move(); err != nil {
				t.Error(err)
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
			time.Sleep(time.Second)
			if s := g.Table.Stats(); s.Late != uint64(i+1) {
				t.Errorf("%d late, want %d", s.Late, i+1)
			}
		}
		if err := g.Close(); err != nil {
			t.Error(err)
		}
		g.Table.Wait()
	})
}

// flag is the word of a ring header in which the guest says that it waits. The
// word's lower half is the guest's state.
type flag struct {
	g  *pipestest.Guest
	at uint64
}

// flagOf returns the guest's flag in a ring: it is the producer of its outgoing
// ring and the consumer of its incoming one.
func flagOf(g *pipestest.Guest, c *pipestest.GuestConn, r pipestest.Ring) flag {
	at := c.Descriptor().Header + uint64(r) + 8
	if r == pipestest.Incoming {
		at += 64
	}
	return flag{g, at}
}

func (f flag) load() uint64 { return f.g.Load(f.at) >> 32 }

// hidden does something while the monitor can't see that the guest waits, as if
// the monitor had not looked.
func (f flag) hidden(do func() error) error {
	f.g.Store(f.at, 0)
	err := do()
	f.g.Store(f.at, 1<<32)
	return err
}

// BenchmarkWatchdog audits 10,000 idle pipes: that costs no memory. In a
// virtual machine they are audited in ten batches, one every two seconds.
func BenchmarkWatchdog(b *testing.B) {
	const streams = 10_000
	g := pipestest.New(b, 96<<20, pipes.Options{StreamLimit: streams, WatchInterval: time.Hour})
	for range streams {
		host, guest, err := g.Pair(4096, 4096)
		if err != nil {
			b.Fatal(err)
		}
		// As a relay leaves an idle connection: hooks at the monitor's end, and
		// a thread that waits at the guest's.
		host.OnReadable(func() {})
		host.OnReadError(func() {})
		host.OnWriteError(func() {})
		guest.OnReadable(func() {})
	}
	b.ReportAllocs()
	for b.Loop() {
		g.Table.Audit() // without a wait: an idle pipe isn't suspicious
	}
	perPipe := b.Elapsed().Seconds() / float64(b.N) / streams
	b.ReportMetric(perPipe*1e9, "ns/pipe")
	b.ReportMetric(100*perPipe*pipes.WatchBatch/2, "%core")
}

// A closed table leaves nothing behind, whether its watchdog has audited it or
// not.
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
