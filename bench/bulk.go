package bench

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/pipes/guest"
	"github.com/fix-project/arcavm/vmm"
)

const (
	bulkChunk = 64 << 10
	// leastBulk is what a stream moves at a time at least: several times what two sockets usually hold, so that with many streams, too, it isn't only their
	// filling and emptying that is measured.
	leastBulk = 32 << 20
	// countUnit is that of what is counted for what is moved.
	countUnit = "/MiB"
)

// flow is one way that bytes go. send and receive move n bytes, each on a goroutine of its own; receive returns when all have arrived.
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

// mover is a guest's end that moves cursors and copies nothing, so that the relay is what is measured.
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

// side moves bytes in one way, a number of flows at once.
type side struct {
	name   string
	flows  []flow
	counts func() counts // nil: nothing but a socket
	least  int           // bytes of each flow at a time, so that rings fill up and it isn't the start that is measured
	each   int           // as many as are moved
}

// calibrate chooses how many bytes take about that long.
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

// move moves bytes through every flow at once, and returns when all have arrived.
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

// moved is what sides did: usage for each round, and system calls per MiB.
type moved struct {
	usage []usage
	calls []calls // in rounds of their own; empty if they can't be counted
}

// measure calibrates the sides, measures them in turn, and counts their system calls.
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

func (b bulk) name() string { return fmt.Sprintf("bulk %s, %s", b.way(), b.many()) }

// short is name for the summary: out is from the guest, in is to it.
func (b bulk) short() string {
	if b.toGuest {
		return b.many() + " in"
	}
	return b.many() + " out"
}

func (b bulk) many() string {
	if b.streams == 1 {
		return "1 stream"
	}
	return fmt.Sprintf("%d streams", b.streams)
}

// line is where the throughput stands in the summary.
func (b bulk) line(o ringSide) line {
	switch {
	case o.name == bootedEnd:
		return lineBulkBooted
	case b.streams == 1 && b.toGuest:
		return lineOneIn
	case b.streams == 1:
		return lineOneOut
	case b.toGuest:
		return lineManyIn
	}
	return lineManyOut
}

// heads puts a figure on a line of the summary, which shows the one with a ring
// of 1 MiB, a guest's end that doesn't add a copy of its own, and one stream
// out, where those were measured.
func (b bulk) heads(f Figure, l line, what string, o ringSide) Figure {
	rank := 0
	for _, preference := range []bool{o.ring == mebibyte, o.name == movingEnd, o.name == bootedEnd, b.streams == 1, b.streams == 64, !b.toGuest} {
		rank *= 2
		if !preference {
			rank++
		}
	}
	label := what + ", " + b.short()
	if o.name == bootedEnd {
		label += ", booted"
	}
	return f.heads(l, rank, label)
}

// The guest's ends that are measured.
const (
	copyingEnd = "Go end copies"
	movingEnd  = "Go end moves cursors"
	bootedEnd  = "booted guest moves cursors"
)

// ringSide is a side that is ours.
type ringSide struct {
	*side
	ring uint32
}

// neighbours are plain sockets and a proxy.
func (b bulk) neighbours(s *scope) (plain, spliced *side, err error) {
	l, err := s.listen()
	if err != nil {
		return nil, nil, err
	}
	plain, spliced = &side{name: "plain"}, &side{name: "io.Copy proxy"}
	for range b.streams {
		x, y, err := s.plain(l)
		if err != nil {
			return nil, nil, err
		}
		plain.flows = append(plain.flows, copying(x, y))
		if x, y, err = s.spliced(l); err != nil {
			return nil, nil, err
		}
		spliced.flows = append(spliced.flows, copying(x, y))
	}
	return plain, spliced, nil
}

// runGo measures guest ends in Go.
func (b bulk) runGo(s *scope, r *runner) error {
	var ours []ringSide
	for _, ring := range b.rings {
		for _, moves := range []bool{true, false} {
			side, err := b.relayed(s, ring, moves)
			if err != nil {
				return err
			}
			ours = append(ours, ringSide{side, ring})
		}
	}
	slirp, err := s.slirped(b.toGuest, b.streams)
	if err := r.missing("bulk through slirp4netns", err); err != nil {
		return err
	}
	return b.run(s, r, ours, slirp)
}

// relayed is a relay with rings of that size, and a guest end in Go that moves cursors, or copies for real.
func (b bulk) relayed(s *scope, ring uint32, moves bool) (*side, error) {
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
	out := &side{name: copyingEnd, counts: g.counts}
	if moves {
		out.name = movingEnd
	}
	for range b.streams {
		p, peer, err := g.connect(l, outgoing, incoming)
		if err != nil {
			return nil, err
		}
		s.keep(peer)
		var end io.ReadWriter = p
		if moves {
			end = mover{p}
		}
		if b.toGuest {
			out.flows = append(out.flows, copying(peer, end))
		} else {
			out.flows = append(out.flows, copying(end, peer))
		}
	}
	return out, nil
}

// runBooted measures booted guests, a VM for each size of ring.
func (b bulk) runBooted(s *scope, r *runner) error {
	var ours []ringSide
	for _, ring := range b.rings {
		side, err := b.booted(s, ring)
		if err != nil {
			return err
		}
		ours = append(ours, ringSide{side, ring})
	}
	return b.run(s, r, ours, nil)
}

func (b bulk) booted(s *scope, ring uint32) (*side, error) {
	// Besides those in use the guest holds pipes ready for what it accepts next.
	pipes := b.streams + 64
	cfg := vmm.Config{Window: even(64<<20 + uint64(pipes)*2*uint64(ring)), StreamLimit: 2 * pipes}
	program := "source"
	if b.toGuest {
		program = "sink"
	}
	g, err := s.boot(program, cfg, fmt.Sprint(ring))
	if err != nil {
		return nil, err
	}
	out := &side{name: bootedEnd, counts: g.counts}
	for range b.streams {
		c, err := s.dial(g)
		if err != nil {
			return nil, err
		}
		out.flows = append(out.flows, guestFlow(c, b.toGuest))
	}
	return out, nil
}

// guestFlow talks to the guests source and sink, which are told first how many bytes are to go.
func guestFlow(c net.Conn, toGuest bool) flow {
	number, answer := make([]byte, 8), make([]byte, 1)
	tell := func(n int) error {
		binary.LittleEndian.PutUint64(number, uint64(n))
		_, err := c.Write(number)
		return err
	}
	if !toGuest {
		return flow{tell, reads(c)}
	}
	write := writes(c)
	return flow{
		send: func(n int) error {
			if err := tell(n); err != nil {
				return err
			}
			return write(n)
		},
		receive: func(int) error {
			_, err := io.ReadFull(c, answer)
			return err
		},
	}
}

// run measures our sides beside plain sockets, a proxy and, unless nil, slirp.
func (b bulk) run(s *scope, r *runner, ours []ringSide, slirp *side) error {
	plain, spliced, err := b.neighbours(s)
	if err != nil {
		return err
	}
	sides := []*side{plain, spliced}
	for _, o := range ours {
		o.least = max(2*int(o.ring), mebibyte)
		sides = append(sides, o.side)
	}
	for _, side := range sides {
		// Where kernel code is interpreted, as much would take minutes.
		if !r.quick && side.name != bootedEnd {
			side.least = max(side.least, leastBulk)
		}
	}
	if slirp != nil {
		sides = append(sides, slirp)
	}
	all, err := r.measure(s, sides)
	if err != nil {
		return err
	}
	for i, o := range ours {
		b.report(r, o, all[i+2], all[0], all[1])
		if slirp != nil && o.name == copyingEnd {
			b.reportSlirp(r, o, all[i+2], all[len(all)-1])
		}
	}
	return nil
}

func (o ringSide) label() string { return fmt.Sprintf("ring %d KiB, %s: ", o.ring>>10, o.name) }

// reportSlirp compares throughput only: slirp4netns and what is behind it are other processes.
func (b bulk) reportSlirp(r *runner, o ringSide, ours, slirp moved) {
	values := pick(ours.usage, usage.mibPerSecond)
	r.add(Figure{
		Group: b.name(), Name: o.label() + "throughput and slirp4netns'", Unit: "MiB/s", Higher: true, Ours: spreadOf(values),
	}.beside("slirp4netns", values, pick(slirp.usage, usage.mibPerSecond)))
}

func (b bulk) report(r *runner, o ringSide, ours, plain, spliced moved) {
	label := o.label()
	at := &Point{Way: b.way(), Series: o.name, Ring: int(o.ring), Streams: b.streams}
	figure := func(name, unit string, f func(usage) float64, neighbour string, theirs moved) Figure {
		values := pick(ours.usage, f)
		return Figure{Group: b.name(), Name: label + name, Unit: unit, Ours: spreadOf(values)}.beside(neighbour, values, pick(theirs.usage, f))
	}
	rate := figure("throughput", "MiB/s", usage.mibPerSecond, "plain", plain)
	rate.Higher, rate.Point = true, at
	if b.streams == 1 || b.streams == 64 {
		rate = rate.wantRatioAtLeast(0.95)
	}
	rate = b.heads(rate, b.line(o), "bulk", o)
	proxy := figure("throughput and a proxy's", "MiB/s", usage.mibPerSecond, "io.Copy proxy", spliced)
	proxy.Higher = true
	r.add(rate)
	r.add(proxy)
	r.add(figure("processor time", "s/GiB", usage.cpuPerGiB, "plain", plain))
	r.add(figure("processor time and a proxy's", "s/GiB", usage.cpuPerGiB, "io.Copy proxy", spliced))
	b.count(r, o, ours, plain)
}

// count reports what is counted and not timed.
func (b bulk) count(r *runner, o ringSide, ours, plain moved) {
	group, label := b.name()+": counted per MiB", o.label()
	if len(ours.calls) > 0 {
		figure := func(name string, f func(calls) float64) Figure {
			values := pick(ours.calls, f)
			return Figure{Group: group, Name: label + name, Unit: countUnit, Ours: spreadOf(values)}.beside("plain", values, pick(plain.calls, f))
		}
		moving := figure("system calls of both ends that move bytes or ring doorbells", func(c calls) float64 { return c.moving })
		if r.calls.tracepoint == 0 {
			moving = b.heads(moving.wantRatioAtMost(1), lineSystemCalls, "system calls", o)
		} else {
			all := figure("system calls of both ends", func(c calls) float64 { return c.all })
			r.add(b.heads(all.wantRatioAtMost(1), lineSystemCalls, "system calls", o))
		}
		r.add(moving)
	}
	perMiB := func(name string, f func(counts) float64) Figure {
		values := pick(ours.usage, func(u usage) float64 { return f(u.counts) / u.mib() })
		return Figure{Group: group, Name: label + name, Unit: countUnit, Ours: spreadOf(values)}
	}
	direction := func(f func(pipes.DirectionStats) uint64) func(counts) float64 {
		return func(c counts) float64 { return c.both(f) }
	}
	wakes := direction(func(d pipes.DirectionStats) uint64 { return d.Wakes })
	doorbells := func(c counts) float64 { return float64(c.pipes.Doorbells) }
	signals := perMiB("signals: notifications and interrupts", func(c counts) float64 { return wakes(c) + doorbells(c) })
	r.add(b.heads(signals.wantBelow(4), lineSignals, "signals", o))
	r.add(perMiB("notifications by the guest", wakes))
	r.add(perMiB("of these spurious", direction(func(d pipes.DirectionStats) uint64 { return d.SpuriousWakes })))
	r.add(perMiB("interrupts", doorbells))
	r.add(perMiB("wake-ups of the guest, sent", direction(func(d pipes.DirectionStats) uint64 { return d.Signals })))
	suppressed := perMiB("wake-ups of the guest, suppressed", direction(func(d pipes.DirectionStats) uint64 { return d.Suppressed }))
	suppressed.Neutral = true
	r.add(suppressed)
	rescued := perMiB("wake-ups rescued", func(c counts) float64 { return float64(lost(c.pipes)) })
	r.add(b.heads(rescued.wantAtMost(0), lineLost, "lost wake-ups", o))
	if o.name == bootedEnd {
		r.add(perMiB("exits to the monitor", func(c counts) float64 { return float64(c.exits) }))
		r.add(perMiB("hypercalls", func(c counts) float64 { return float64(c.hypercalls) }))
	}
	chunks := perMiB("chunks", counts.chunks)
	chunks.Neutral = true
	r.add(chunks)

	allocations, theirs := pick(ours.usage, usage.allocations), pick(plain.usage, usage.allocations)
	r.add(Figure{Group: group, Name: label + "allocations", Unit: countUnit, Ours: spreadOf(allocations)}.beside("plain", allocations, theirs))
	// What starts and ends a round allocates too, for plain sockets as well; but rounds differ in length.
	perChunk := make([]float64, len(ours.usage))
	for i, u := range ours.usage {
		perChunk[i] = max(0, float64(u.mallocs)-float64(plain.usage[i].mallocs)) / max(1, u.counts.chunks())
	}
	beyond := Figure{Group: group, Name: label + "allocations per chunk beyond plain's", Unit: "/chunk", Ours: spreadOf(perChunk)}
	r.add(b.heads(beyond.wantBelow(0.1), lineAllocations, "allocations", o))
}
