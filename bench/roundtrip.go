package bench

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"time"
)

// trips are round trips' durations in order of length.
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

// echo sends back what arrives, as it arrives, until the end.
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

var percentiles = []struct {
	name string
	p    float64
}{{"p50", 0.5}, {"p99", 0.99}, {"p99.9", 0.999}}

// roundTripGo is the echo by a guest end in Go beside a plain one.
func roundTripGo(ctx context.Context, r *runner) error {
	s := newScope(ctx)
	defer s.close()
	l, err := s.listen()
	if err != nil {
		return err
	}
	plain, err := s.echoPlain(l)
	if err != nil {
		return err
	}
	g, err := s.rig(16<<20, 4)
	if err != nil {
		return err
	}
	p, peer, err := g.connect(l, 64<<10, 64<<10)
	if err != nil {
		return err
	}
	s.keep(peer)
	g.users.Go(func() { echo(p) })
	n := 4000
	if r.quick {
		n = 1000
	}
	rows, err := interleave(s.ctx, r.rounds, []func() (trips, error){
		func() (trips, error) { return ping(peer, n) },
		func() (trips, error) { return ping(plain, n) },
	})
	if err != nil {
		return err
	}
	for _, q := range percentiles {
		micros := func(t trips) float64 { return t.micros(q.p) }
		ours, theirs := pick(rows[0], micros), pick(rows[1], micros)
		f := Figure{Group: "round trip of 64 bytes", Name: "guest end in Go, " + q.name, Unit: "µs", Ours: spreadOf(ours)}.beside("plain echo", ours, theirs)
		if q.name == "p50" {
			f = f.wantRatioAtMost(1.3)
		}
		r.add(f)
	}
	return nil
}

// echoPlain is the client's end of a connection to a plain echo.
func (s *scope) echoPlain(l *net.TCPListener) (net.Conn, error) {
	x, y, err := s.plain(l)
	if err != nil {
		return nil, fmt.Errorf("plain connection: %w", err)
	}
	s.goes(func() { echo(y) })
	return x, nil
}
