package bench

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/wire"
)

const (
	dialers   = 8  // at once
	accepting = 16 // accepts that the guest has asked for at once
)

// dialAll opens connections to an address, several at once, reads each to its end, which must be after a byte, and closes it. It returns
// connections per second.
func dialAll(to *net.TCPAddr, connections int) (float64, error) {
	var work errgroup.Group
	var left atomic.Int64
	left.Store(int64(connections))
	start := time.Now()
	for range dialers {
		work.Go(func() error {
			for left.Add(-1) >= 0 {
				if err := dialOnce(to); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := work.Wait()
	return float64(connections) / time.Since(start).Seconds(), err
}

func dialOnce(to *net.TCPAddr) error {
	c, err := net.DialTCP("tcp4", nil, to)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	b := make([]byte, 2)
	if n, err := io.ReadFull(c, b); n != 1 || err != io.ErrUnexpectedEOF {
		return errors.Join(errors.New("a connection didn't bring one byte and an end"), err)
	}
	return nil
}

// serveGuest is an accept loop in the guest: a byte for each connection, then close. It returns when the listener's stream ends.
func (r *rig) serveGuest(listener *pipes.Pipe) {
	waiting := make([]*pipes.Pipe, accepting)
	ask := func(i int) error {
		p, err := r.pipe(4<<10, 4<<10)
		if err != nil {
			return err
		}
		waiting[i] = p
		_, err = listener.Write(wire.AppendAcceptConnection(nil, uint64(i), wire.AcceptConnection{Pipe: uint64(p.ID())}))
		return err
	}
	for i := range waiting {
		if ask(i) != nil {
			return
		}
	}
	for {
		h, payload, err := receive(listener)
		if err != nil || h.RequestID >= accepting {
			return
		}
		c, err := wire.DecodeIncomingConnection(payload)
		if err != nil || c.Status != 0 {
			return
		}
		p := waiting[h.RequestID]
		if _, err := p.Write([]byte{1}); err != nil {
			return
		}
		_ = p.Close()
		if ask(int(h.RequestID)) != nil {
			return
		}
	}
}

func servePlain(l *net.TCPListener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = c.Write([]byte{1})
		c.Close()
	}
}

// connections measures how many connections a second are accepted, get a byte and are closed.
func connections(ctx context.Context, r *runner) error {
	s := newScope(ctx)
	defer s.close()
	l, err := s.listen()
	if err != nil {
		return err
	}
	s.goes(func() { servePlain(l) })

	g, err := s.rig(32<<20, 256)
	if err != nil {
		return err
	}
	listener, err := g.pipe(64<<10, 64<<10)
	if err != nil {
		return err
	}
	bound, err := open(listener, wire.ProtocolTCPListener, wire.AppendListen(nil, wire.Listen{
		Endpoint: endpoint(addrOf(l).Addr(), 0), Backlog: 1024,
	}))
	if err != nil {
		return err
	}
	at, err := wire.DecodeEndpoint(bound)
	if err != nil {
		return err
	}
	g.users.Go(func() { g.serveGuest(listener) })

	n := 800
	if r.quick {
		n = 200
	}
	rows, err := interleave(s.ctx, r.rounds, []func() (float64, error){
		func() (float64, error) { return dialAll(net.TCPAddrFromAddrPort(at.AddrPort()), n) },
		func() (float64, error) { return dialAll(l.Addr().(*net.TCPAddr), n) },
	})
	if err != nil {
		return err
	}
	r.add(Figure{
		Group: "connections", Name: "accept, a byte, close; guest end in Go", Unit: "/s", Higher: true, Ours: spreadOf(rows[0]),
	}.beside("Go listener", rows[0], rows[1]).wantRatioAtLeast(0.8))
	return nil
}
