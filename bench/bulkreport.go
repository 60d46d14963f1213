package bench

import (
	"fmt"

	"github.com/fix-project/arcavm/pipes"
)

func (o ringSide) label() string { return fmt.Sprintf("ring %d KiB, %s: ", o.ring>>10, o.name) }

// reportSlirp compares throughput only: the work of slirp4netns is done by
// other processes, whose processor time isn't this one's.
func (b bulk) reportSlirp(r *runner, o ringSide, ours, slirp moved) {
	values := pick(ours.usage, usage.mibPerSecond)
	f := newFigure(b.name(), o.label()+"throughput and slirp4netns'", "MiB/s", values)
	f.Higher = true
	r.add(f.beside("slirp4netns", values, pick(slirp.usage, usage.mibPerSecond)))
}

func (b bulk) report(r *runner, o ringSide, ours, plain, spliced moved) {
	label := o.label()
	at := &Point{Way: b.way(), Series: o.name, Ring: int(o.ring), Streams: b.streams}
	figure := func(name, unit string, f func(usage) float64, beside string, theirs moved) Figure {
		values := pick(ours.usage, f)
		figure := newFigure(b.name(), label+name, unit, values)
		return figure.beside(beside, values, pick(theirs.usage, f))
	}
	rate := figure("throughput", "MiB/s", usage.mibPerSecond, "plain", plain)
	rate.Higher, rate.Point = true, at
	if b.streams == 1 || b.streams == 64 {
		rate = rate.wantRatioAtLeast(0.95)
	}
	rate = b.heads(rate, b.line(o), "bulk", o)
	const proxied = "io.Copy proxy"
	proxy := figure("throughput and a proxy's", "MiB/s", usage.mibPerSecond, proxied, spliced)
	proxy.Higher = true
	r.add(rate)
	r.add(proxy)
	r.add(figure("processor time", "s/GiB", usage.cpuPerGiB, "plain", plain))
	r.add(figure("processor time and a proxy's", "s/GiB", usage.cpuPerGiB, proxied, spliced))
	b.count(r, o, ours, plain)
}

// count reports what is counted rather than timed.
func (b bulk) count(r *runner, o ringSide, ours, plain moved) {
	c := counted{b, o, b.name() + ": counted per MiB", ours, plain}
	c.systemCalls(r)
	c.signals(r)
	if o.name == bootedEnd {
		r.add(c.perMiB("exits to the monitor", func(n counts) float64 { return float64(n.exits) }))
		r.add(c.perMiB("hypercalls", func(n counts) float64 { return float64(n.hypercalls) }))
	}
	chunks := c.perMiB("chunks", counts.chunks)
	chunks.Neutral = true
	r.add(chunks)
	c.allocations(r)
}

// counted is what was counted while a side of ours moved bytes, and what was
// counted of plain sockets.
type counted struct {
	bulk
	side        ringSide
	group       string
	ours, plain moved
}

// perMiB is a figure of something that our side counts.
func (c counted) perMiB(name string, f func(counts) float64) Figure {
	values := pick(c.ours.usage, func(u usage) float64 { return f(u.counts) / u.mib() })
	return newFigure(c.group, c.side.label()+name, countUnit, values)
}

// directions sums what both directions of all pipes count.
func directions(f func(pipes.DirectionStats) uint64) func(counts) float64 {
	return func(n counts) float64 { return n.both(f) }
}

// systemCalls adds figures only where system calls can be counted. Without the
// tracepoint those that move bytes are all that is counted.
func (c counted) systemCalls(r *runner) {
	if len(c.ours.calls) == 0 {
		return
	}
	figure := func(name string, f func(calls) float64) Figure {
		values := pick(c.ours.calls, f)
		figure := newFigure(c.group, c.side.label()+name, countUnit, values)
		return figure.beside("plain", values, pick(c.plain.calls, f))
	}
	want := func(f Figure) Figure {
		return c.heads(f.wantRatioAtMost(1), lineSystemCalls, "system calls", c.side)
	}
	const name = "system calls of both ends"
	moving := figure(name+" that move bytes or ring doorbells",
		func(n calls) float64 { return n.moving })
	if r.calls.tracepoint == 0 {
		r.add(want(moving))
		return
	}
	r.add(want(figure(name, func(n calls) float64 { return n.all })))
	r.add(moving)
}

func (c counted) signals(r *runner) {
	type direction = pipes.DirectionStats
	wakes := directions(func(d direction) uint64 { return d.Wakes })
	doorbells := func(n counts) float64 { return float64(n.pipes.Doorbells) }
	signals := c.perMiB("signals: notifications and interrupts",
		func(n counts) float64 { return wakes(n) + doorbells(n) })
	r.add(c.heads(signals.wantBelow(4), lineSignals, "signals", c.side))
	r.add(c.perMiB("notifications by the guest", wakes))
	r.add(c.perMiB("of these spurious",
		directions(func(d direction) uint64 { return d.SpuriousWakes })))
	r.add(c.perMiB("interrupts", doorbells))
	r.add(c.perMiB("wake-ups of the guest, sent",
		directions(func(d direction) uint64 { return d.Signals })))
	suppressed := c.perMiB("wake-ups of the guest, suppressed",
		directions(func(d direction) uint64 { return d.Suppressed }))
	suppressed.Neutral = true
	r.add(suppressed)
	rescued := c.perMiB("wake-ups rescued",
		func(n counts) float64 { return float64(lost(n.pipes)) })
	r.add(c.heads(rescued.wantAtMost(0), lineLost, "lost wake-ups", c.side))
}

func (c counted) allocations(r *runner) {
	ours, plain := pick(c.ours.usage, usage.allocations), pick(c.plain.usage, usage.allocations)
	all := newFigure(c.group, c.side.label()+"allocations", countUnit, ours)
	r.add(all.beside("plain", ours, plain))
	// What starts and ends a round allocates as well, once a round. So it is
	// taken off by the round: rounds differ in length.
	perChunk := make([]float64, len(c.ours.usage))
	for i, u := range c.ours.usage {
		beyond := max(0, float64(u.mallocs)-float64(c.plain.usage[i].mallocs))
		perChunk[i] = beyond / max(1, u.counts.chunks())
	}
	name := c.side.label() + "allocations per chunk beyond plain's"
	beyond := newFigure(c.group, name, "/chunk", perChunk)
	r.add(c.heads(beyond.wantBelow(0.1), lineAllocations, "allocations", c.side))
}
