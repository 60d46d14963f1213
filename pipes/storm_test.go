package pipes_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/pipes/pipestest"
)

// mono is a source of one byte value, and a sink that refuses all others. It
// fails after left bytes.
type mono struct {
	value byte
	left  int
}

func (m *mono) Read(b []byte) (int, error) {
	if m.left -= len(b); m.left < 0 {
		return 0, errSocket
	}
	for i := range b {
		b[i] = m.value
	}
	return len(b), nil
}

func (m *mono) Write(b []byte) (int, error) {
	for i, c := range b {
		if c != m.value {
			return i, fmt.Errorf("byte %d of another pipe, in one of %d", c, m.value)
		}
	}
	if m.left -= len(b); m.left < 0 {
		return len(b), errSocket
	}
	return len(b), nil
}

// Pipes are made, used and torn down in every way at once, slots and memory
// reused all the time. No pipe sees another's bytes, and at the end nothing is
// left.
func TestStorm(t *testing.T) {
	t.Parallel()
	const workers, rounds = 8, 150
	g := pipestest.New(t, 2<<20, pipes.Options{CPUs: 2, Release: func(off, n int64) error { return nil }})
	var wg sync.WaitGroup
	for w := range workers {
		value := byte(w + 1)
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 1))
			for range rounds {
				host, err := g.Table.New(4096<<rng.IntN(3), 4096<<rng.IntN(3), rng.IntN(2))
				if err != nil {
					t.Error(err)
					return
				}
				guest, err := g.Attach(host.Descriptor())
				if err != nil {
					t.Error(err)
					return
				}
				deadlines(t, host, guest.Pipe)
				var use sync.WaitGroup
				for _, p := range []*pipes.Pipe{host, guest.Pipe} {
					in, out := rng.IntN(50_000), rng.IntN(50_000)
					use.Go(func() {
						_, err := p.WriteTo(&mono{value, in})
						if err != nil && err != errSocket && !p.Caused(err) {
							t.Error(err)
						}
					})
					use.Go(func() { p.ReadFrom(&mono{value, out}) })
					ends := []func(){
						func() { p.Close() },
						func() { p.Reset(unix.ECONNRESET) },
						func() { p.CloseWrite(); p.CloseRead() },
						func() { p.CloseRead(); p.CloseWrite() },
						func() { p.CloseRead(); p.Reset(unix.EIO) },
						func() { p.SetDeadline(time.Unix(1, 0)); p.Close() },
					}
					end := ends[rng.IntN(len(ends))]
					use.Go(end)
				}
				use.Wait()
			}
		})
	}
	wg.Wait()
	if s := g.Table.Stats(); s.Open != 0 || s.Opened != workers*rounds || s.Broken != 0 || s.RingBytes != 0 {
		t.Errorf("%+v", s)
	}
}
