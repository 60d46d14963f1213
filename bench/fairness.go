package bench

import (
	"context"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sync/errgroup"
)

// fairStreams are the light streams and the heavy one.
const fairStreams = 64

// fair are streams of one kind: light ones, each a connection whose other end
// echoes, and a heavy one, which moves as much as it can.
type fair struct {
	light []net.Conn
	heavy flow
}

// trips makes round trips on the light streams for that long, beside the heavy
// one or alone.
func (f fair) trips(ctx context.Context, long time.Duration, beside bool) (t trips, err error) {
	var work errgroup.Group
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	if beside {
		started := make(chan struct{})
		work.Go(func() error {
			for first := true; ctx.Err() == nil; first = false {
				if err := f.turn(); err != nil {
					return err
				}
				if first {
					close(started)
				}
			}
			return nil
		})
		defer func() {
			stop()
			if heavy := work.Wait(); err == nil {
				err = heavy
			}
		}()
		select {
		case <-started:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return pingAll(f.light, long)
}

// turn moves some MiB on the heavy stream.
func (f fair) turn() error {
	const size = 8 * mebibyte
	var work errgroup.Group
	work.Go(func() error { return f.heavy.send(size) })
	work.Go(func() error { return f.heavy.receive(size) })
	return work.Wait()
}

// fairGo has all streams on one relay, with guest ends in Go.
func fairGo(s *scope) (fair, error) {
	const ring = mebibyte
	g, err := s.rig(32<<20+2*ring, fairStreams)
	if err != nil {
		return fair{}, err
	}
	l, err := s.listen()
	if err != nil {
		return fair{}, err
	}
	var f fair
	for range fairStreams - 1 {
		p, peer, err := g.connect(l, 64<<10, 64<<10)
		if err != nil {
			return f, err
		}
		s.keep(peer)
		g.users.Go(func() { echo(p) })
		f.light = append(f.light, peer)
	}
	p, peer, err := g.connect(l, ring, 4<<10)
	if err != nil {
		return f, err
	}
	s.keep(peer)
	var end io.ReadWriter = mover{p}
	f.heavy = copying(end, peer)
	return f, nil
}

func fairPlain(s *scope) (fair, error) {
	l, err := s.listen()
	if err != nil {
		return fair{}, err
	}
	var f fair
	for range fairStreams - 1 {
		c, err := s.echoPlain(l, echo)
		if err != nil {
			return f, err
		}
		f.light = append(f.light, c)
	}
	x, y, err := s.plain(l)
	if err != nil {
		return f, err
	}
	f.heavy = copying(x, y)
	return f, nil
}

// fairRounds are the round trips of one side, round by round.
type fairRounds struct {
	name          string
	alone, beside []trips // without the heavy stream, and with it
}

// slowdowns are by how much the heavy stream makes a percentile longer.
func (f fairRounds) slowdowns(q quantile) []float64 {
	return ratios(pick(f.beside, q.micros), pick(f.alone, q.micros))
}

// fairness measures what light streams get beside one that moves as much as it
// can, and what they get without it.
func fairness(s *scope, r *runner) error {
	ours, err := fairGo(s)
	if err != nil {
		return err
	}
	plain, err := fairPlain(s)
	if err != nil {
		return err
	}
	long := time.Second
	if r.quick {
		long = 200 * time.Millisecond
	}
	var sides []func() (trips, error)
	for _, f := range []fair{ours, plain} {
		for _, beside := range []bool{false, true} {
			sides = append(sides, func() (trips, error) { return f.trips(s.ctx, long, beside) })
		}
	}
	rows, err := interleave(s.ctx, r.rounds, sides)
	if err != nil {
		return err
	}
	reportFairness(r,
		fairRounds{"guest end in Go", rows[0], rows[1]},
		fairRounds{"plain sockets", rows[2], rows[3]})
	return nil
}

// fairGroup is the group of the figures.
var fairGroup = fmt.Sprintf("fairness: %d light streams beside one at full speed", fairStreams-1)

// mostUnfair is how many times plain sockets' slowdown at p99 ours may be. Most
// of it is waiting for a processor, and plain sockets wait for it as well.
const mostUnfair = 1.25

func reportFairness(r *runner, ours, plain fairRounds) {
	for _, f := range []fairRounds{ours, plain} {
		for _, q := range percentiles[:2] {
			alone, beside := pick(f.alone, q.micros), pick(f.beside, q.micros)
			name := fmt.Sprintf("%s: round trip of 64 bytes, %s", f.name, q.name)
			r.add(newFigure(fairGroup, name, "µs", beside).beside("without the one", beside, alone))
		}
	}
	p99 := percentiles[1]
	slower, plainSlower := ours.slowdowns(p99), plain.slowdowns(p99)
	f := newFigure(fairGroup, ours.name+": p99 by that without the one", "times", slower)
	f = f.beside(plain.name, slower, plainSlower).wantRatioAtMost(mostUnfair)
	r.add(f.heads(lineFairness, 0, "fairness: p99 beside bulk"))
}
