package bench

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/wire"
)

// idle is a number of connections that are open and still.
type idle struct{ streams int }

// queue is how many connections one listener holds; kernels allow 128 or more.
const queue = 100

// peers listens for connections and leaves them where the kernel queues them, so that the peers' ends cost this process neither files nor
// memory.
func (i idle) peers(s *scope) ([]*net.TCPListener, error) {
	var out []*net.TCPListener
	for range (i.streams + queue - 1) / queue {
		l, err := s.listen()
		if err != nil {
			return nil, err
		}
		out = append(out, l)
	}
	return out, nil
}

// resident is the memory of this process that is in use after garbage has been given back.
func resident() (held, error) {
	debug.FreeOSMemory()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return held{}, fmt.Errorf("memory in use: %w", err)
	}
	var size, pages float64
	if _, err := fmt.Fscan(bytes.NewReader(b), &size, &pages); err != nil {
		return held{}, fmt.Errorf("memory in use: %w", err)
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return held{all: pages * float64(os.Getpagesize()), stacks: float64(m.StackInuse)}, nil
}

func (i idle) run(ctx context.Context, r *runner) error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("getrlimit: %w", err)
	}
	if need := uint64(i.streams + i.streams/queue + 200); limit.Cur < need {
		return fmt.Errorf("%w: %d files and sockets at once, this process may have %d: ulimit -n", errMissing, need, limit.Cur)
	}
	plain, err := i.plain(ctx, r)
	if err != nil {
		return err
	}
	relayed, err := i.relayed(ctx, r)
	if err != nil {
		return err
	}
	group := fmt.Sprintf("%d idle streams", i.streams)
	r.add(Figure{
		Group: group, Name: "host memory per stream, ring apart", Unit: "KiB", Ours: spreadOf(relayed.memory),
	}.beside("socket and goroutine", relayed.memory, plain.memory).wantAtMost(8))
	r.add(Figure{Group: group, Name: "of that, stacks of goroutines", Unit: "KiB", Ours: spreadOf(relayed.stacks)}.beside("socket and goroutine", relayed.stacks, plain.stacks))
	load := Figure{Group: group, Name: "processor time", Unit: "% of a core", Ours: spreadOf(relayed.cpu)}.beside("sockets and goroutines", relayed.cpu, plain.cpu)
	if i.streams == 10000 {
		load = load.wantBelow(0.5)
	}
	r.add(load)
	return nil
}

// still is what connections cost while nothing happens, round by round.
type still struct {
	memory []float64 // KiB for each stream
	stacks []float64 // of that, stacks
	cpu    []float64 // percent of a core
}

// held is memory in use, in bytes.
type held struct{ all, stacks float64 }

// rest looks on. Before there were connections, base was held; rings is the rings' memory, which doesn't count.
func (i idle) rest(ctx context.Context, r *runner, base held, rings int64) (s still, err error) {
	perStream := func(n float64) float64 { return n / float64(i.streams) / 1024 }
	for range r.rounds {
		now, err := resident()
		if err != nil {
			return s, err
		}
		before, err := processorTime()
		if err != nil {
			return s, err
		}
		start := time.Now()
		select {
		case <-ctx.Done():
			return s, ctx.Err()
		case <-time.After(5 * r.slice()):
		}
		after, err := processorTime()
		if err != nil {
			return s, err
		}
		s.memory = append(s.memory, perStream(now.all-base.all-float64(rings)))
		s.stacks = append(s.stacks, perStream(now.stacks-base.stacks))
		s.cpu = append(s.cpu, 100*(after-before).Seconds()/time.Since(start).Seconds())
	}
	return s, nil
}

func (i idle) plain(ctx context.Context, r *runner) (still, error) {
	s := newScope(ctx)
	defer s.close()
	peers, err := i.peers(s)
	if err != nil {
		return still{}, err
	}
	base, err := resident()
	if err != nil {
		return still{}, err
	}
	for n := range i.streams {
		c, err := net.DialTCP("tcp4", nil, peers[n/queue].Addr().(*net.TCPAddr))
		if err != nil {
			return still{}, err
		}
		s.keep(c)
		s.goes(func() { _, _ = io.ReadFull(c, make([]byte, 1)) })
	}
	return i.rest(s.ctx, r, base, 0)
}

func (i idle) relayed(ctx context.Context, r *runner) (still, error) {
	s := newScope(ctx)
	defer s.close()
	peers, err := i.peers(s)
	if err != nil {
		return still{}, err
	}
	g, err := s.rig(32<<20+16<<10*i.streams, i.streams+1)
	if err != nil {
		return still{}, err
	}
	base, err := resident()
	if err != nil {
		return still{}, err
	}
	rings := g.table.Stats().RingBytes
	for n := range i.streams {
		p, err := g.pipe(4<<10, 4<<10)
		if err != nil {
			return still{}, err
		}
		to := addrOf(peers[n/queue])
		if _, err := open(p, wire.ProtocolTCPConnection, wire.AppendConnect(nil, wire.Connect{Endpoint: endpoint(to.Addr(), to.Port())})); err != nil {
			return still{}, err
		}
		// The guest's end is the guest's memory: it is let go of.
		g.ends[p.ID().Slot()].Store(nil)
	}
	return i.rest(s.ctx, r, base, g.table.Stats().RingBytes-rings)
}
