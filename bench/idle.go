package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/pipes/guest"
	"github.com/fix-project/arcavm/vmm"
)

const (
	activeShare = 100                   // one stream in so many is active
	activePause = 50 * time.Millisecond // between round trips on an active stream
)

// idle measures connections that are open and still, and what the few that aren't get. Each side is two processes: the one that serves, which is what
// is measured, and its clients, whose files would be too many for one process.
type idle struct{ sizes []int }

// still is one side.
type still struct {
	name            string
	server, clients *part
	base            answer // memory before there were connections
}

func (i idle) run(s *scope, r *runner) error {
	most := slices.Max(i.sizes)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("getrlimit: %w", err)
	}
	if need := uint64(most + 300); limit.Max < need {
		return fmt.Errorf("%w: %d files and sockets at once, a process may have %d: ulimit -Hn", errMissing, need, limit.Max)
	}
	var sides []*still
	for _, name := range []string{"plain", "guest end in Go", "booted guest"} {
		side, err := newStill(s, name, most)
		if err := r.missing(fmt.Sprintf("%d streams at once, %s", most, name), err); err != nil {
			return err
		}
		if err == nil {
			sides = append(sides, side)
		}
	}
	for _, n := range i.sizes {
		if err := i.measure(s.ctx, r, sides, n); err != nil {
			return fmt.Errorf("%d streams: %w", n, err)
		}
	}
	return nil
}

func newStill(s *scope, name string, most int) (*still, error) {
	server, err := s.part("server", nil)
	if err != nil {
		return nil, err
	}
	at, err := server.do(request{Op: "start", Name: name, Streams: most})
	if err != nil {
		return nil, err
	}
	clients, err := s.part("clients", nil)
	if err != nil {
		return nil, err
	}
	if _, err := clients.do(request{Op: "start", Address: at.Address}); err != nil {
		return nil, err
	}
	// What the first connections cost once isn't theirs.
	if _, err := clients.do(request{Op: "warm"}); err != nil {
		return nil, err
	}
	base, err := server.do(request{Op: "memory"})
	return &still{name, server, clients, base}, err
}

// measured is what one round gave for one side.
type measured struct {
	memory, stacks        float64 // KiB for each stream
	idleCPU               float64 // percent of a core
	p50, p99, activeTrips float64 // µs; processor time of the server in percent of a core
}

func (i idle) measure(ctx context.Context, r *runner, sides []*still, n int) error {
	for _, side := range sides {
		if _, err := side.clients.do(request{Op: "grow", Streams: n}); err != nil {
			return fmt.Errorf("%s: %w", side.name, err)
		}
	}
	window, active := 2*time.Second, time.Second
	if n == 10000 {
		window = 4 * time.Second
	}
	if r.quick {
		window, active = 200*time.Millisecond, 200*time.Millisecond
	}
	rows := make([][]measured, len(sides))
	for range r.rounds {
		round, err := i.round(ctx, sides, n, window, active)
		if err != nil {
			return err
		}
		for k, m := range round {
			rows[k] = append(rows[k], m)
		}
	}
	i.report(r, sides, n, rows)
	return nil
}

// round looks at all sides while nothing happens, at the same time, and then has each be active in turn.
func (i idle) round(ctx context.Context, sides []*still, n int, window, active time.Duration) ([]measured, error) {
	out := make([]measured, len(sides))
	perStream := func(bytes float64) float64 { return bytes / float64(n) / 1024 }
	for k, side := range sides {
		now, err := side.server.do(request{Op: "memory"})
		if err != nil {
			return nil, err
		}
		out[k].memory = perStream(now.Anonymous - side.base.Anonymous)
		out[k].stacks = perStream(max(0, now.Stacks-side.base.Stacks)) // the base may have had some to spare
	}
	before, started := make([]int64, len(sides)), make([]time.Time, len(sides))
	for k, side := range sides {
		a, err := side.server.do(request{Op: "cpu"})
		if err != nil {
			return nil, err
		}
		before[k], started[k] = a.Nanoseconds, time.Now()
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(window):
	}
	share := func(k int) (float64, error) {
		elapsed := time.Since(started[k])
		a, err := sides[k].server.do(request{Op: "cpu"})
		return 100 * float64(a.Nanoseconds-before[k]) / float64(elapsed.Nanoseconds()), err
	}
	var err error
	for k := range sides {
		if out[k].idleCPU, err = share(k); err != nil {
			return nil, err
		}
	}
	for k, side := range sides {
		a, err := side.server.do(request{Op: "cpu"})
		if err != nil {
			return nil, err
		}
		before[k], started[k] = a.Nanoseconds, time.Now()
		trips, err := side.clients.do(request{Op: "ping", Millis: int(active.Milliseconds())})
		if err != nil {
			return nil, err
		}
		out[k].p50, out[k].p99 = trips.P50, trips.P99
		if out[k].activeTrips, err = share(k); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (i idle) report(r *runner, sides []*still, n int, rows [][]measured) {
	group := fmt.Sprintf("%d streams at once", n)
	active := fmt.Sprintf("%d of them active", (n+activeShare-1)/activeShare)
	rank := func(k int) int { return k - 2*n } // most streams, and the guest end in Go
	for k, side := range sides[1:] {
		figure := func(name, unit string, f func(measured) float64) Figure {
			ours, theirs := pick(rows[k+1], f), pick(rows[0], f)
			return Figure{Group: group, Name: side.name + ": " + name, Unit: unit, Ours: spreadOf(ours)}.beside("sockets and goroutines", ours, theirs)
		}
		memory := figure("host memory per idle stream, rings and guest apart", "KiB", func(m measured) float64 { return m.memory })
		if n >= 1000 {
			// What a few streams take is lost in what the process takes or gives back for other reasons.
			memory = memory.wantAtMost(8)
		}
		load := figure("processor time, idle", "% of a core", func(m measured) float64 { return m.idleCPU })
		if n == 10000 {
			load = load.wantBelow(0.5)
		}
		r.add(memory.heads(lineMemory, rank(k), fmt.Sprintf("memory per stream of %d", n)))
		r.add(figure("of that, stacks of goroutines", "KiB", func(m measured) float64 { return m.stacks }))
		r.add(load.heads(lineIdle, rank(k), fmt.Sprintf("idle with %d streams", n)))
		r.add(figure(active+", round trip p50", "µs", func(m measured) float64 { return m.p50 }))
		r.add(figure(active+", round trip p99", "µs", func(m measured) float64 { return m.p99 }))
		r.add(figure(active+", processor time", "% of a core", func(m measured) float64 { return m.activeTrips }))
	}
}

// The first byte on a connection says what it is for; the server sends it back.
const (
	willRest = 'r'
	willTalk = 't'
)

// serverPart serves connections in the way that it is told.
func serverPart(s *scope) func(request) (answer, error) {
	return func(q request) (a answer, err error) {
		switch q.Op {
		case "start":
			a.Address, err = startServer(s, q.Name, q.Streams)
		case "cpu":
			var t time.Duration
			t, err = processorTime()
			a.Nanoseconds = t.Nanoseconds()
		case "memory":
			debug.FreeOSMemory()
			var kib uint64
			kib, err = numberIn("/proc/self/status", "RssAnon:")
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			a.Anonymous, a.Stacks = float64(kib)*1024, float64(m.StackInuse)
		default:
			err = errors.New("unknown request " + q.Op)
		}
		return a, err
	}
}

func startServer(s *scope, name string, streams int) (string, error) {
	switch name {
	case "plain":
		l, err := s.listen()
		if err != nil {
			return "", err
		}
		s.goes(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				s.keep(c)
				s.goes(func() { echoSmall(c) })
			}
		})
		return l.Addr().String(), nil
	case "booted guest":
		cfg := vmm.Config{
			CPUs: 1, Memory: even(128<<20 + 64<<10*uint64(streams)), Window: even(64<<20 + 32<<10*uint64(streams)), StreamLimit: streams + 128,
		}
		g, err := s.boot("echo", cfg, "4096")
		if err != nil {
			return "", err
		}
		return g.at.String(), nil
	}
	l, err := s.listen()
	if err != nil {
		return "", err
	}
	g, err := s.rig(64<<20+16<<10*streams, streams+128)
	if err != nil {
		return "", err
	}
	listener, err := g.listener(l)
	if err != nil {
		return "", err
	}
	g.users.Go(func() { serve(listener, func(c *guest.Conn) { g.attend(c) }) })
	return listener.Addr().String(), nil
}

// even rounds up to what a VM's memory must be a multiple of.
func even(n uint64) uint64 {
	const unit = 2 << 20
	return (n + unit - 1) / unit * unit
}

// echoSmall is echo with hardly any memory of its own.
func echoSmall(c net.Conn) {
	var b [64]byte
	for {
		n, err := c.Read(b[:])
		if err != nil {
			return
		}
		if _, err := c.Write(b[:n]); err != nil {
			return
		}
	}
}

// attend echoes without a goroutine. The guest's end of a stream that will rest is let go of: it is the guest's memory, which doesn't count.
func (r *rig) attend(c *guest.Conn) {
	b := make([]byte, 64)
	var turn func()
	turn = func() {
		n, err := c.Read(b)
		if err == nil {
			_, err = c.Write(b[:n])
		}
		if err != nil {
			_ = c.Close()
			return
		}
		if n == 1 && b[0] == willRest {
			r.Guest.Forget(c.ID())
			return
		}
		c.OnReadable(turn)
	}
	c.OnReadable(turn)
}

// clientsPart opens connections and makes round trips on some of them.
func clientsPart(s *scope) func(request) (answer, error) {
	var to string
	var open int
	var talking []net.Conn
	return func(q request) (a answer, err error) {
		switch q.Op {
		case "start":
			to = q.Address
		case "warm":
			warm := newScope(s.ctx)
			_, err = dialMany(warm, to, 0, 64)
			err = errors.Join(err, warm.close())
		case "grow":
			var more []net.Conn
			more, err = dialMany(s, to, open, q.Streams)
			open, talking = q.Streams, append(talking, more...)
		case "ping":
			var t trips
			t, err = pingAll(talking, time.Duration(q.Millis)*time.Millisecond)
			if err == nil {
				a.P50, a.P99 = t.micros(0.5), t.micros(0.99)
			}
		default:
			err = errors.New("unknown request " + q.Op)
		}
		return a, err
	}
}

// dialMany opens connections until there are that many, and returns those that will talk.
func dialMany(s *scope, to string, from, streams int) (talking []net.Conn, err error) {
	var next atomic.Int64
	next.Store(int64(from))
	found := make([][]net.Conn, dialers)
	var work errgroup.Group
	for i := range dialers {
		work.Go(func() error {
			for {
				n := int(next.Add(1)) - 1
				if n >= streams {
					return nil
				}
				c, err := net.Dial("tcp4", to)
				if err != nil {
					return err
				}
				s.keep(c)
				b := []byte{willRest}
				if n%activeShare == 0 {
					b[0] = willTalk
					found[i] = append(found[i], c)
				}
				if _, err := c.Write(b); err != nil {
					return err
				}
				if _, err := io.ReadFull(c, b); err != nil {
					return err
				}
			}
		})
	}
	err = work.Wait()
	return slices.Concat(found...), err
}

// pingAll makes round trips on all connections for that long, on each with a pause after each.
func pingAll(conns []net.Conn, long time.Duration) (trips, error) {
	all := make([]trips, len(conns))
	until := time.Now().Add(long)
	var work errgroup.Group
	for i, c := range conns {
		work.Go(func() error {
			// Not all at once.
			time.Sleep(activePause * time.Duration(i) / time.Duration(len(conns)))
			for {
				t, err := ping(c, 1)
				if err != nil {
					return err
				}
				all[i] = append(all[i], t...)
				if time.Now().After(until) {
					return nil
				}
				time.Sleep(activePause)
			}
		})
	}
	err := work.Wait()
	t := slices.Concat(all...)
	slices.Sort(t)
	return t, err
}
