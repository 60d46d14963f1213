package bench

import (
	"fmt"
	"io"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fix-project/arcavm/pipes/guest"
)

// bulkChunk is what is written and read at a time.
const bulkChunk = 64 << 10

// flow is one way of one stream. send and receive move n bytes, each on a
// goroutine of its own; receive returns when all have arrived.
type flow struct{ send, receive func(n int) error }

// writes sends in chunks.
func writes(w io.Writer) func(int) error {
	b := make([]byte, bulkChunk)
	return func(n int) error {
		for n > 0 {
			k, err := w.Write(b[:min(n, len(b))])
			if err != nil {
				return err
			}
			n -= k
		}
		return nil
	}
}

// reads receives in chunks.
func reads(r io.Reader) func(int) error {
	b := make([]byte, bulkChunk)
	return func(n int) error {
		for n > 0 {
			k, err := r.Read(b[:min(n, len(b))])
			if err != nil {
				return err
			}
			n -= k
		}
		return nil
	}
}

func copying(w io.Writer, r io.Reader) flow { return flow{writes(w), reads(r)} }

// mover is a guest's end that moves cursors and copies nothing, so that little
// but the relay is measured.
type mover struct{ *guest.Conn }

func (m mover) Read(b []byte) (int, error) {
	x, y, err := m.ReserveRead(1)
	if err != nil {
		return 0, err
	}
	n := min(len(b), len(x)+len(y))
	m.CommitRead(n)
	return n, nil
}

func (m mover) Write(b []byte) (int, error) {
	for n := 0; n < len(b); {
		x, y, err := m.ReserveWrite(1)
		if err != nil {
			return n, err
		}
		k := min(len(b)-n, len(x)+len(y))
		m.CommitWrite(k)
		n += k
	}
	return len(b), nil
}

// side moves bytes one way on several flows at once.
type side struct {
	name   string
	flows  []flow
	counts func() counts // nil: the side is sockets only
	least  int           // bytes of each flow in a round, at least: enough to fill rings
	each   int           // bytes of each flow in a round, see calibrate
}

// calibrate chooses how many bytes each flow moves in a round, so that it takes
// about that long.
func (s *side) calibrate(slice time.Duration) error {
	for s.each = max(s.least, bulkChunk); ; s.each *= 4 {
		u, err := s.move()
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if u.elapsed >= slice/4 {
			chunks := float64(s.each) / bulkChunk * slice.Seconds() / u.elapsed.Seconds()
			s.each = max(s.least, int(chunks)*bulkChunk, bulkChunk)
			return nil
		}
	}
}

// move moves bytes on all flows at once, and returns when all have arrived.
func (s *side) move() (u usage, err error) {
	var counted counts
	if s.counts != nil {
		counted = s.counts()
	}
	allocated := mallocs()
	cpu, err := processorTime()
	if err != nil {
		return usage{}, err
	}
	start := time.Now()
	var work errgroup.Group
	for _, f := range s.flows {
		work.Go(func() error { return f.send(s.each) })
		work.Go(func() error { return f.receive(s.each) })
	}
	if err := work.Wait(); err != nil {
		return usage{}, err
	}
	u = usage{elapsed: time.Since(start), bytes: len(s.flows) * s.each}
	after, err := processorTime()
	u.cpu, u.mallocs = after-cpu, mallocs()-allocated
	if s.counts != nil {
		u.counts = s.counts().since(counted)
	}
	return u, err
}

// moved is what a side did: usage for each round, and system calls per MiB.
type moved struct {
	usage []usage
	calls []calls // of rounds of their own; empty: they can't be counted
}

// measure calibrates the sides, measures them in turn, and then counts their
// system calls in turn: counting slows them.
func (r *runner) measure(s *scope, sides []*side) ([]moved, error) {
	var timed []func() (usage, error)
	var counted []func() (calls, error)
	for _, side := range sides {
		if err := side.calibrate(r.slice()); err != nil {
			return nil, err
		}
		timed = append(timed, side.move)
		counted = append(counted, func() (calls, error) {
			var u usage
			n, err := r.calls.count(func() (err error) { u, err = side.move(); return err })
			return calls{n.all / u.mib(), n.moving / u.mib()}, err
		})
	}
	rows, err := interleave(s.ctx, r.rounds, timed)
	if err != nil {
		return nil, err
	}
	called := make([][]calls, len(sides))
	if r.calls != nil {
		if called, err = interleave(s.ctx, min(r.rounds, 2), counted); err != nil {
			return nil, err
		}
	}
	out := make([]moved, len(sides))
	for i := range sides {
		out[i] = moved{rows[i], called[i]}
	}
	return out, nil
}
