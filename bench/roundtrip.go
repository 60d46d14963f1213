package bench

import (
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/fix-project/arcavm/pipes/guest"
	"github.com/fix-project/arcavm/vmm"
)

// trips are the durations of round trips, in order of length.
type trips []time.Duration

func (t trips) micros(p float64) float64 { return float64(percentile(t, p).Nanoseconds()) / 1000 }

// ping makes round trips of 64 bytes on a connection whose other end echoes.
func ping(c net.Conn, n int) (trips, error) {
	message := make([]byte, 64)
	t := make(trips, n)
	for i := range t {
		start := time.Now()
		if _, err := c.Write(message); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(c, message); err != nil {
			return nil, err
		}
		t[i] = time.Since(start)
	}
	slices.Sort(t)
	return t, nil
}

// echo sends back what arrives, as it arrives, until the connection ends.
func echo(c net.Conn) {
	b := make([]byte, 4<<10)
	for {
		n, err := c.Read(b)
		if err != nil {
			return
		}
		if _, err := c.Write(b[:n]); err != nil {
			return
		}
	}
}

// echoInHandler is echo for a guest that answers in its interrupt handler, as
// soon as something arrives. What comes must fit into the ring, since a handler
// can't wait.
func echoInHandler(p *guest.Conn) {
	var answer func()
	answer = func() {
		for {
			if _, err := p.WriteAvailable(p); err != nil || p.SubscribeReadable(answer) {
				return
			}
		}
	}
	p.OnReadable(answer)
}

// echoByTwo is echo by two goroutines: one reads, and hands over to the other,
// which writes.
func echoByTwo(c net.Conn) {
	messages := make(chan []byte, 1)
	var writing sync.WaitGroup
	writing.Go(func() {
		for b := range messages {
			_, _ = c.Write(b)
		}
	})
	defer writing.Wait()
	defer close(messages)
	// At most one is being written, one is handed over, and one is read into.
	var buffers [3][4 << 10]byte
	for i := 0; ; i = (i + 1) % len(buffers) {
		n, err := c.Read(buffers[i][:])
		if err != nil {
			return
		}
		messages <- buffers[i][:n]
	}
}

type quantile struct {
	name string
	p    float64
}

// micros is the duration in µs that this share of round trips doesn't exceed.
func (q quantile) micros(t trips) float64 { return t.micros(q.p) }

var percentiles = []quantile{{"p50", 0.5}, {"p99", 0.99}, {"p99.9", 0.999}}

const roundTrips = "round trip of 64 bytes"

// goTrips are the round trips to guest ends in Go and to plain echoes.
type goTrips struct{ waits, handler, plain, byTwo []trips }

// roundTripGo measures echoes by guest ends in Go beside plain ones: by a
// goroutine that waits, and in the interrupt handler. The relay wakes that
// goroutine, so it also stands beside a plain echo in which one goroutine wakes
// another.
func roundTripGo(s *scope, r *runner) error {
	l, err := s.listen()
	if err != nil {
		return err
	}
	g, err := s.rig(16<<20, 4)
	if err != nil {
		return err
	}
	n := 4000
	if r.quick {
		n = 1000
	}
	var sides []func() (trips, error)
	side := func(c net.Conn) {
		sides = append(sides, func() (trips, error) { return ping(c, n) })
	}
	for _, serve := range []func(*guest.Conn){
		func(p *guest.Conn) { g.users.Go(func() { echo(p) }) },
		echoInHandler,
	} {
		p, peer, err := g.connect(l, 64<<10, 64<<10)
		if err != nil {
			return err
		}
		s.keep(peer)
		serve(p)
		side(peer)
	}
	for _, serve := range []func(net.Conn){echo, echoByTwo} {
		plain, err := s.echoPlain(l, serve)
		if err != nil {
			return err
		}
		side(plain)
	}
	rows, err := interleave(s.ctx, r.rounds, sides)
	if err != nil {
		return err
	}
	reportGoTrips(r, goTrips{waits: rows[0], handler: rows[1], plain: rows[2], byTwo: rows[3]})
	return nil
}

func reportGoTrips(r *runner, t goTrips) {
	for _, q := range percentiles {
		f := tripFigure("guest end in Go, ", q, t.waits, "plain echo", t.plain)
		h := tripFigure("guest end in Go, in its interrupt handler, ", q,
			t.handler, "plain echo", t.plain)
		if q.name == "p50" {
			f = f.wantRatioAtMost(1.3).heads(lineTripGo, 0, "round trip, Go end")
			h = h.wantRatioAtMost(1.3).heads(lineTripHandler, 0, "round trip, Go handler")
		}
		r.add(f)
		r.add(tripFigure("guest end in Go and an echo by two goroutines, ", q,
			t.waits, "plain echo by two goroutines", t.byTwo))
		r.add(h)
	}
}

func tripFigure(label string, q quantile, ours []trips, neighbour string, theirs []trips) Figure {
	is := pick(ours, q.micros)
	f := newFigure(roundTrips, label+q.name, "µs", is)
	return f.beside(neighbour, is, pick(theirs, q.micros))
}

// bootedTrips are the round trips to a booted guest and to a plain echo, and
// the floors: a bare port exit, and an interrupt whose handler makes one. The
// floors have no rounds where they can't be measured.
type bootedTrips struct{ guest, plain, exit, interruptAndExit []trips }

// roundTripBooted measures the echo of a booted guest beside a plain one, and
// beside what a hypercall and an interrupt cost at least.
func roundTripBooted(s *scope, r *runner) error {
	g, err := s.boot("echo", vmm.Config{})
	if err != nil {
		return err
	}
	conn, err := s.dial(g)
	if err != nil {
		return err
	}
	l, err := s.listen()
	if err != nil {
		return err
	}
	plain, err := s.echoPlain(l, echo)
	if err != nil {
		return err
	}
	n := 1000
	if r.quick {
		n = 200
	}
	sides := []func() (trips, error){
		func() (trips, error) { return ping(conn, n) },
		func() (trips, error) { return ping(plain, n) },
	}
	floor, err := s.floors()
	if err == nil {
		sides = append(sides,
			func() (trips, error) { return floor.exit(s.ctx) },
			func() (trips, error) { return floor.interruptAndExit(s.ctx) })
	} else if err := r.missing("floors of hypercall and interrupt", err); err != nil {
		return err
	}
	rows, err := interleave(s.ctx, r.rounds, sides)
	if err != nil {
		return err
	}
	t := bootedTrips{guest: rows[0], plain: rows[1]}
	if floor != nil {
		t.exit, t.interruptAndExit = rows[2], rows[3]
	}
	reportBootedTrips(r, t)
	return nil
}

func reportBootedTrips(r *runner, t bootedTrips) {
	limit := 0.0 // µs; 0: there are no floors
	if len(t.exit) > 0 {
		limit = reportFloors(r, t)
	}
	for _, q := range percentiles {
		f := tripFigure("booted guest, ", q, t.guest, "plain echo", t.plain)
		if q.name == "p50" {
			f = f.heads(lineTripBooted, 0, "round trip, booted guest")
			if limit > 0 {
				f = f.wantAtMost(limit)
			}
		}
		r.add(f)
	}
}

// reportFloors returns what a round trip to a booted guest should take at most,
// in µs: a plain one, and 1.5 times an exit and an interrupt.
func reportFloors(r *runner, t bootedTrips) (limit float64) {
	median := percentiles[0].micros
	plain, exit := pick(t.plain, median), pick(t.exit, median)
	both := pick(t.interruptAndExit, median)
	interrupt, limits := make([]float64, len(exit)), make([]float64, len(exit))
	for i := range exit {
		interrupt[i] = both[i] - exit[i]
		limits[i] = plain[i] + 1.5*(exit[i]+interrupt[i])
	}
	r.add(newFigure(roundTrips, "floor of a hypercall: a bare port exit", "µs", exit))
	r.add(newFigure(roundTrips,
		"floor of an interrupt: eventfd to handler, less the handler's port exit", "µs", interrupt))
	return spreadOf(limits).Median
}
