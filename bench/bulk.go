package bench

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/pipes"
)

const (
	bulkChunk = 64 << 10
	mebibyte  = 1 << 20
)

// usage is what some work took.
type usage struct {
	elapsed time.Duration
	cpu     time.Duration // processor time of the whole process
	mallocs uint64
	reads   int         // by whoever reads at the end of the way
	table   pipes.Stats // counted meanwhile
	bytes   int
}

func (u usage) mibPerSecond() float64 { return float64(u.bytes) / mebibyte / u.elapsed.Seconds() }
func (u usage) mib() float64          { return float64(u.bytes) / mebibyte }
func (u usage) cpuPerGiB() float64    { return u.cpu.Seconds() / (u.mib() / 1024) }

func processorTime() (time.Duration, error) {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0, fmt.Errorf("getrusage: %w", err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}

func mallocs() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.Mallocs
}

// flow is one way that bytes go.
type flow struct {
	w       io.Writer
	r       io.Reader
	out, in []byte
}

func newFlow(w io.Writer, r io.Reader) flow {
	return flow{w: w, r: r, out: make([]byte, bulkChunk), in: make([]byte, bulkChunk)}
}

// move sends chunks through every flow at once, and returns when all have arrived.
func move(flows []flow, chunks int) (usage, error) {
	before := mallocs()
	cpu, err := processorTime()
	if err != nil {
		return usage{}, err
	}
	reads := make([]int, len(flows))
	start := time.Now()
	var work errgroup.Group
	for i, f := range flows {
		work.Go(func() error {
			for range chunks {
				if _, err := f.w.Write(f.out); err != nil {
					return err
				}
			}
			return nil
		})
		work.Go(func() error {
			for left := chunks * bulkChunk; left > 0; {
				n, err := f.r.Read(f.in)
				if err != nil {
					return err
				}
				left -= n
				reads[i]++
			}
			return nil
		})
	}
	if err := work.Wait(); err != nil {
		return usage{}, err
	}
	u := usage{elapsed: time.Since(start), bytes: len(flows) * chunks * bulkChunk}
	after, err := processorTime()
	u.cpu, u.mallocs = after-cpu, mallocs()-before
	for _, n := range reads {
		u.reads += n
	}
	return u, err
}

// bulk is one way of the bytes with a number of streams: rings of several sizes beside plain TCP, and a proxy by splice.
type bulk struct {
	toGuest bool
	streams int
	rings   []uint32
}

func (b bulk) way() string {
	if b.toGuest {
		return "TCP → guest"
	}
	return "guest → TCP"
}

func (b bulk) name() string {
	if b.streams == 1 {
		return fmt.Sprintf("bulk %s, 1 stream", b.way())
	}
	return fmt.Sprintf("bulk %s, %d streams", b.way(), b.streams)
}

func (b bulk) run(ctx context.Context, r *runner) error {
	s := newScope(ctx)
	defer s.close()
	l, err := s.listen()
	if err != nil {
		return err
	}
	plain := make([]flow, b.streams)
	spliced := make([]flow, b.streams)
	for i := range b.streams {
		x, y, err := s.plain(l)
		if err != nil {
			return err
		}
		plain[i] = newFlow(x, y)
		if x, y, err = s.spliced(l); err != nil {
			return err
		}
		spliced[i] = newFlow(x, y)
	}
	// As many chunks as plain sockets move in a slice of time.
	const first = 256
	u, err := move(plain, max(1, first/b.streams))
	if err != nil {
		return err
	}
	chunks := max(1, int(u.mibPerSecond()*r.slice().Seconds()*mebibyte/bulkChunk)/b.streams)

	sides := []func() (usage, error){
		func() (usage, error) { return move(plain, chunks) },
		func() (usage, error) { return move(spliced, chunks) },
	}
	for _, ring := range b.rings {
		side, err := b.relayed(s, ring, chunks)
		if err != nil {
			return err
		}
		sides = append(sides, side)
	}
	rows, err := interleave(s.ctx, r.rounds, sides)
	if err != nil {
		return err
	}
	b.report(r, rows)
	return nil
}

// relayed returns what moves the chunks through a relay with rings of that size.
func (b bulk) relayed(s *scope, ring uint32, chunks int) (func() (usage, error), error) {
	const small = 4 << 10
	outgoing, incoming := ring, uint32(small)
	if b.toGuest {
		outgoing, incoming = small, ring
	}
	g, err := s.rig(16<<20+2*b.streams*int(ring), b.streams)
	if err != nil {
		return nil, err
	}
	l, err := s.listen()
	if err != nil {
		return nil, err
	}
	flows := make([]flow, b.streams)
	for i := range flows {
		p, peer, err := g.connect(l, outgoing, incoming)
		if err != nil {
			return nil, err
		}
		s.keep(peer)
		if b.toGuest {
			flows[i] = newFlow(peer, p)
		} else {
			flows[i] = newFlow(p, peer)
		}
	}
	return func() (usage, error) {
		before := g.table.Stats()
		u, err := move(flows, chunks)
		u.table = since(before, g.table.Stats())
		return u, err
	}, nil
}

// since returns what was counted in between.
func since(before, after pipes.Stats) pipes.Stats {
	for _, d := range []struct{ was, is *pipes.DirectionStats }{
		{&before.Pipes.Read, &after.Pipes.Read}, {&before.Pipes.Write, &after.Pipes.Write},
	} {
		d.is.Bytes -= d.was.Bytes
		d.is.Chunks -= d.was.Chunks
		d.is.Signals -= d.was.Signals
		d.is.Wakes -= d.was.Wakes
		d.is.SpuriousWakes -= d.was.SpuriousWakes
	}
	return after
}

func (b bulk) report(r *runner, rows [][]usage) {
	group := b.name()
	plain, spliced := rows[0], rows[1]
	for i, ring := range b.rings {
		ours := rows[i+2]
		label := fmt.Sprintf("ring %d KiB: ", ring>>10)
		figure := func(name, unit string, higher bool, f func(usage) float64) Figure {
			values := pick(ours, f)
			return Figure{Group: group, Name: label + name, Unit: unit, Higher: higher, Ours: spreadOf(values)}.beside("plain", values, pick(plain, f))
		}
		rate := figure("throughput", "MiB/s", true, usage.mibPerSecond)
		if b.streams == 1 || b.streams == 64 {
			rate = rate.wantRatioAtLeast(0.95)
		}
		r.add(rate)
		values := pick(ours, usage.mibPerSecond)
		r.add(Figure{
			Group: group, Name: label + "throughput and a proxy's", Unit: "MiB/s", Higher: true, Ours: spreadOf(values),
		}.beside("io.Copy proxy", values, pick(spliced, usage.mibPerSecond)))
		r.add(figure("processor time", "s/GiB", false, usage.cpuPerGiB))
		b.count(r, label, ours, plain)
	}
}

// count reports what is counted and not timed.
func (b bulk) count(r *runner, label string, ours, plain []usage) {
	group := b.name()
	side := func(u usage) pipes.DirectionStats {
		if b.toGuest {
			return u.table.Pipes.Write
		}
		return u.table.Pipes.Read
	}
	signals := pick(ours, func(u usage) float64 { d := side(u); return float64(d.Signals+d.Wakes) / u.mib() })
	r.add(Figure{Group: group, Name: label + "signals of both ends", Unit: "/MiB", Ours: spreadOf(signals)}.wantBelow(4))

	calls := pick(ours, func(u usage) float64 { return float64(side(u).Chunks) / u.mib() })
	theirs := pick(plain, func(u usage) float64 {
		if b.toGuest {
			return float64(u.reads) / u.mib()
		}
		return mebibyte / bulkChunk
	})
	r.add(Figure{Group: group, Name: label + "chunks", Unit: "/MiB", Ours: spreadOf(calls)}.beside("plain", calls, theirs).wantRatioAtMost(1))

	perChunk := pick(ours, func(u usage) float64 { return float64(u.mallocs) / float64(side(u).Chunks) })
	f := Figure{Group: group, Name: label + "allocations per chunk", Ours: spreadOf(perChunk)}
	if b.streams == 1 {
		// What starts and ends a round allocates too.
		f = f.wantBelow(0.1)
	}
	r.add(f)
}
