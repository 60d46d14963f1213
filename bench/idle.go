package bench

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const (
	activeShare = 100                   // one stream in so many is active
	activePause = 50 * time.Millisecond // between round trips on an active stream
)

// idle measures connections that are open and still, and what the few that
// aren't get. Each side is two processes: the server, which is measured, and
// its clients, since the sockets of both would be too many for one process.
type idle struct{ sizes []int }

// still is a side of idle: what keeps connections open.
type still struct {
	name            string
	server, clients *part
	base            answer // the server's memory before there were connections
}

func (i idle) run(s *scope, r *runner) error {
	most := slices.Max(i.sizes)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("getrlimit: %w", err)
	}
	if need := uint64(most + 300); limit.Max < need {
		return fmt.Errorf("%w: %d files and sockets at once, a process may have %d: ulimit -Hn",
			errMissing, need, limit.Max)
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
	// What is allocated once, for the first connections, isn't a stream's.
	if _, err := clients.do(request{Op: "warm"}); err != nil {
		return nil, err
	}
	base, err := server.do(request{Op: "memory"})
	return &still{name, server, clients, base}, err
}

// measured is what one round gave for one side.
type measured struct {
	memory, stacks     float64 // KiB for each stream
	p50, p99           float64 // µs
	idleCPU, activeCPU float64 // the server's, in percent of a core
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

// round watches all sides together while nothing happens, and then has each
// make round trips in turn.
func (i idle) round(
	ctx context.Context, sides []*still, n int, window, active time.Duration,
) ([]measured, error) {
	out := make([]measured, len(sides))
	for k, side := range sides {
		if err := side.lookAtMemory(&out[k], n); err != nil {
			return nil, err
		}
	}
	watches := make([]watch, len(sides))
	for k, side := range sides {
		var err error
		if watches[k], err = side.watch(); err != nil {
			return nil, err
		}
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(window):
	}
	for k, w := range watches {
		var err error
		if out[k].idleCPU, err = w.share(); err != nil {
			return nil, err
		}
	}
	for k, side := range sides {
		if err := side.beActive(&out[k], active); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// lookAtMemory notes how much memory of the server each of n streams takes.
func (s *still) lookAtMemory(m *measured, n int) error {
	now, err := s.server.do(request{Op: "memory"})
	perStream := func(bytes float64) float64 { return bytes / float64(n) / 1024 }
	m.memory = perStream(now.Anonymous - s.base.Anonymous)
	// Stacks that were free before are used first, so there may be fewer.
	m.stacks = perStream(max(0, now.Stacks-s.base.Stacks))
	return err
}

// beActive has the clients make round trips for that long, and notes how long
// those were and what they cost the server.
func (s *still) beActive(m *measured, long time.Duration) error {
	w, err := s.watch()
	if err != nil {
		return err
	}
	trips, err := s.clients.do(request{Op: "ping", Millis: int(long.Milliseconds())})
	if err != nil {
		return err
	}
	m.p50, m.p99 = trips.P50, trips.P99
	m.activeCPU, err = w.share()
	return err
}

// watch is the moment from which a server's processor time is measured.
type watch struct {
	server *part
	used   int64 // processor time until then, in ns
	at     time.Time
}

func (s *still) watch() (watch, error) {
	a, err := s.server.do(request{Op: "cpu"})
	return watch{s.server, a.Nanoseconds, time.Now()}, err
}

// share is the server's processor time since then, in percent of a core.
func (w watch) share() (float64, error) {
	elapsed := time.Since(w.at)
	a, err := w.server.do(request{Op: "cpu"})
	return 100 * float64(a.Nanoseconds-w.used) / float64(elapsed.Nanoseconds()), err
}

func (i idle) report(r *runner, sides []*still, n int, rows [][]measured) {
	group := fmt.Sprintf("%d streams at once", n)
	active := fmt.Sprintf("%d of them active", (n+activeShare-1)/activeShare)
	// The summary shows the most streams, and of these the guest end in Go.
	rank := func(k int) int { return k - 2*n }
	for k, side := range sides[1:] {
		figure := func(name, unit string, f func(measured) float64) Figure {
			ours, theirs := pick(rows[k+1], f), pick(rows[0], f)
			figure := newFigure(group, side.name+": "+name, unit, ours)
			return figure.beside("sockets and goroutines", ours, theirs)
		}
		memory := figure("host memory per idle stream, rings and guest apart", "KiB",
			func(m measured) float64 { return m.memory })
		if n >= 1000 {
			// What a few streams take is less than what a process takes and
			// gives back for other reasons.
			memory = memory.wantAtMost(8)
		}
		load := figure("processor time, idle", "% of a core",
			func(m measured) float64 { return m.idleCPU })
		if n == 10000 {
			load = load.wantBelow(0.5)
		}
		r.add(memory.heads(lineMemory, rank(k), fmt.Sprintf("memory per stream of %d", n)))
		r.add(figure("of that, stacks of goroutines", "KiB",
			func(m measured) float64 { return m.stacks }))
		r.add(load.heads(lineIdle, rank(k), fmt.Sprintf("idle with %d streams", n)))
		r.add(figure(active+", round trip p50", "µs", func(m measured) float64 { return m.p50 }))
		r.add(figure(active+", round trip p99", "µs", func(m measured) float64 { return m.p99 }))
		r.add(figure(active+", processor time", "% of a core",
			func(m measured) float64 { return m.activeCPU }))
	}
}
