package bench

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fix-project/arcavm/pipes/guest"
	"github.com/fix-project/arcavm/vmm"
)

// dialers is how many goroutines open connections.
const dialers = 8

// dialAll opens connections to an address, dialers at once. It reads each to
// its end, which must come after one byte, and closes it. Both ends are in this
// process, so the usage is that of both.
func dialAll(ctx context.Context, to *net.TCPAddr, connections int) (usage, error) {
	allocated := mallocs()
	cpu, err := processorTime()
	if err != nil {
		return usage{}, err
	}
	work, ctx := errgroup.WithContext(ctx)
	var left atomic.Int64
	left.Store(int64(connections))
	start := time.Now()
	for range dialers {
		work.Go(func() error {
			for left.Add(-1) >= 0 && ctx.Err() == nil {
				if err := dialOnce(ctx, to); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := work.Wait(); err != nil {
		return usage{}, err
	}
	u := usage{elapsed: time.Since(start)}
	after, err := processorTime()
	u.cpu, u.mallocs = after-cpu, mallocs()-allocated
	return u, err
}

func dialOnce(ctx context.Context, to *net.TCPAddr) error {
	c, err := net.DialTCP("tcp4", nil, to)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	b := make([]byte, 2)
	if n, err := io.ReadFull(c, b); n != 1 || err != io.ErrUnexpectedEOF {
		return errors.Join(errors.New("a connection didn't bring one byte and an end"), err)
	}
	return nil
}

func servePlain(l *net.TCPListener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = c.Write([]byte{1})
		c.Close()
	}
}

// connections measures how many connections a second a guest accepts, sends a
// byte on, and closes.
type connections struct {
	name, label string // of the guest's end; the label is for the summary
	line        line
}

func (c connections) run(s *scope, r *runner, ours *net.TCPAddr) error {
	l, err := s.listen()
	if err != nil {
		return err
	}
	s.goes(func() { servePlain(l) })
	n := 800
	if r.quick {
		n = 100
	}
	rows, err := interleave(s.ctx, r.rounds, []func() (usage, error){
		func() (usage, error) { return dialAll(s.ctx, ours, n) },
		func() (usage, error) { return dialAll(s.ctx, l.Addr().(*net.TCPAddr), n) },
	})
	if err != nil {
		return err
	}
	c.report(r, n, rows[0], rows[1])
	return nil
}

// report reports rounds in which n connections were opened.
func (c connections) report(r *runner, n int, ours, plain []usage) {
	figure := func(what, unit string, of func(usage) float64) Figure {
		is, was := pick(ours, of), pick(plain, of)
		f := newFigure("connections", "accept, a byte, close; "+c.name+what, unit, is)
		return f.beside("Go listener", is, was)
	}
	speed := figure("", "/s", func(u usage) float64 { return float64(n) / u.elapsed.Seconds() })
	speed.Higher = true
	r.add(speed.wantRatioAtLeast(0.8).heads(c.line, 0, "connections, "+c.label))
	r.add(figure(": processor time, both ends", "µs", func(u usage) float64 {
		return float64(u.cpu.Nanoseconds()) / 1e3 / float64(n)
	}))
	r.add(figure(": allocations, both ends", "", func(u usage) float64 {
		return float64(u.mallocs) / float64(n)
	}))
}

func connectionsGo(s *scope, r *runner) error {
	l, err := s.listen()
	if err != nil {
		return err
	}
	g, err := s.rig(32<<20, 256)
	if err != nil {
		return err
	}
	listener, err := g.listener(l)
	if err != nil {
		return err
	}
	g.users.Go(func() {
		serve(listener, func(c *guest.Conn) {
			_, _ = c.Write([]byte{1})
			_ = c.Close()
		})
	})
	c := connections{"guest end in Go", "Go end", lineConnectionsGo}
	return c.run(s, r, listener.Addr().(*net.TCPAddr))
}

func connectionsBooted(s *scope, r *runner) error {
	g, err := s.boot("accept", vmm.Config{})
	if err != nil {
		return err
	}
	c := connections{"booted guest", "booted guest", lineConnectionsBooted}
	return c.run(s, r, net.TCPAddrFromAddrPort(g.at))
}
