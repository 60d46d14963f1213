package bench

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"

	"github.com/fix-project/arcavm/vmm"
)

const (
	// leastBulk is what a stream moves in a round at least. It is several times
	// what two sockets usually hold, so that filling and emptying them weighs
	// little, with many streams, too.
	leastBulk = 32 << 20
	// countUnit is the unit of what is counted while bytes are moved.
	countUnit = "/MiB"
)

// bulk is throughput one way on a number of streams, with rings of several
// sizes, beside plain TCP and a proxy.
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

// short is name for the summary: out is from the guest to TCP, in is to it.
func (b bulk) short() string {
	if b.toGuest {
		return b.many() + " in"
	}
	return b.many() + " out"
}

func (b bulk) many() string { return manyStreams(b.streams) }

func manyStreams(n int) string {
	if n == 1 {
		return "1 stream"
	}
	return fmt.Sprintf("%d streams", n)
}

// line is where a side's throughput stands in the summary.
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

// heads puts a figure on a line of the summary. Where they were measured, the
// line shows rings of 1 MiB, a guest end in Go that adds no copy of its own,
// and one stream out, in this order of importance.
func (b bulk) heads(f Figure, l line, what string, o ringSide) Figure {
	rank := 0
	for _, preference := range []bool{
		o.ring == mebibyte, o.name == movingEnd, o.name == bootedEnd,
		b.streams == 1, b.streams == 64, !b.toGuest,
	} {
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

// ringSide is a side with a guest, which has rings.
type ringSide struct {
	*side
	ring uint32
}

// neighbours makes the sides of plain sockets and of a proxy.
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

// runGo measures guest ends in Go, two for each size of ring.
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

// relayed makes a side with a relay, rings of that size, and guest ends in Go
// that move cursors or copy.
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
	// The guest has more pipes than streams, ready for what it accepts next.
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

// guestFlow is a flow on a connection to the guests source or sink. Each time
// they are first told how many bytes are to go.
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

// run measures our sides beside plain sockets, a proxy and slirp. slirp may be
// nil.
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
		// A booted guest whose kernel code is interpreted would take minutes.
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
