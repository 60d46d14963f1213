package bench

import (
	"errors"
	"io"
	"net"
	"runtime"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fix-project/arcavm/pipes/guest"
	"github.com/fix-project/arcavm/vmm"
)

// The first byte on a connection says what the client will do with it. The
// server sends it back, as it does with all bytes.
const (
	willRest = 'r'
	willTalk = 't'
)

// serverPart is the server of one side, which start says.
func serverPart(s *scope) func(request) (answer, error) {
	return func(q request) (a answer, err error) {
		switch q.Op {
		case "start":
			a.Address, err = startServer(s, q.Name, q.Streams)
		case "cpu":
			var t time.Duration
			t, err = processorTime()
			a.Nanoseconds = t.Nanoseconds()
		case "memory":
			debug.FreeOSMemory()
			var kib uint64
			kib, err = numberIn("/proc/self/status", "RssAnon:")
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			a.Anonymous, a.Stacks = float64(kib)*1024, float64(m.StackInuse)
		default:
			err = errors.New("unknown request " + q.Op)
		}
		return a, err
	}
}

// startServer starts the server of the side of that name and returns its
// address. It echoes on that many streams.
func startServer(s *scope, name string, streams int) (string, error) {
	switch name {
	case "plain":
		return startPlain(s)
	case "booted guest":
		return startBooted(s, streams)
	}
	return startGo(s, streams)
}

func startPlain(s *scope) (string, error) {
	l, err := s.listen()
	if err != nil {
		return "", err
	}
	s.goes(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.keep(c)
			s.goes(func() { echoSmall(c) })
		}
	})
	return l.Addr().String(), nil
}

func startBooted(s *scope, streams int) (string, error) {
	cfg := vmm.Config{
		CPUs:        1,
		Memory:      even(128<<20 + 64<<10*uint64(streams)),
		Window:      even(64<<20 + 32<<10*uint64(streams)),
		StreamLimit: streams + 128,
	}
	g, err := s.boot("echo", cfg, "4096")
	if err != nil {
		return "", err
	}
	return g.at.String(), nil
}

func startGo(s *scope, streams int) (string, error) {
	l, err := s.listen()
	if err != nil {
		return "", err
	}
	g, err := s.rig(64<<20+16<<10*streams, streams+128)
	if err != nil {
		return "", err
	}
	listener, err := g.listener(l)
	if err != nil {
		return "", err
	}
	g.users.Go(func() { serve(listener, func(c *guest.Conn) { g.attend(c) }) })
	return listener.Addr().String(), nil
}

// even rounds up to the unit of a VM's memory and window.
func even(n uint64) uint64 {
	const unit = 2 << 20
	return (n + unit - 1) / unit * unit
}

// echoSmall is echo with hardly any memory of its own.
func echoSmall(c net.Conn) {
	var b [64]byte
	for {
		n, err := c.Read(b[:])
		if err != nil {
			return
		}
		if _, err := c.Write(b[:n]); err != nil {
			return
		}
	}
}

// attend echoes without a goroutine. It forgets the guest's end of a stream
// that will rest, whose memory is the guest's and not to be measured.
func (r *rig) attend(c *guest.Conn) {
	b := make([]byte, 64)
	var turn func()
	turn = func() {
		n, err := c.Read(b)
		if err == nil {
			_, err = c.Write(b[:n])
		}
		if err != nil {
			_ = c.Close()
			return
		}
		if n == 1 && b[0] == willRest {
			r.Guest.Forget(c.ID())
			return
		}
		c.OnReadable(turn)
	}
	c.OnReadable(turn)
}

// clientsPart is the clients of one side. They open connections, and make round
// trips on some.
func clientsPart(s *scope) func(request) (answer, error) {
	var to string
	var open int
	var talking []net.Conn
	return func(q request) (a answer, err error) {
		switch q.Op {
		case "start":
			to = q.Address
		case "warm":
			warm := newScope(s.ctx)
			_, err = dialMany(warm, to, 0, 64)
			err = errors.Join(err, warm.close())
		case "grow":
			var more []net.Conn
			more, err = dialMany(s, to, open, q.Streams)
			open, talking = q.Streams, append(talking, more...)
		case "ping":
			var t trips
			t, err = pingAll(talking, time.Duration(q.Millis)*time.Millisecond)
			if err == nil {
				a.P50, a.P99 = t.micros(0.5), t.micros(0.99)
			}
		default:
			err = errors.New("unknown request " + q.Op)
		}
		return a, err
	}
}

// dialMany opens connections until streams are open, where from are already. It
// returns the new ones that will talk.
func dialMany(s *scope, to string, from, streams int) (talking []net.Conn, err error) {
	var next atomic.Int64
	next.Store(int64(from))
	found := make([][]net.Conn, dialers)
	var work errgroup.Group
	for i := range dialers {
		work.Go(func() error {
			for {
				n := int(next.Add(1)) - 1
				if n >= streams {
					return nil
				}
				c, err := net.Dial("tcp4", to)
				if err != nil {
					return err
				}
				s.keep(c)
				b := []byte{willRest}
				if n%activeShare == 0 {
					b[0] = willTalk
					found[i] = append(found[i], c)
				}
				if _, err := c.Write(b); err != nil {
					return err
				}
				if _, err := io.ReadFull(c, b); err != nil {
					return err
				}
			}
		})
	}
	err = work.Wait()
	return slices.Concat(found...), err
}

// pingAll makes round trips on all connections for that long, with a pause
// after each.
func pingAll(conns []net.Conn, long time.Duration) (trips, error) {
	all := make([]trips, len(conns))
	until := time.Now().Add(long)
	var work errgroup.Group
	for i, c := range conns {
		work.Go(func() error {
			// Connections start one after the other, not all at once.
			time.Sleep(activePause * time.Duration(i) / time.Duration(len(conns)))
			for {
				t, err := ping(c, 1)
				if err != nil {
					return err
				}
				all[i] = append(all[i], t...)
				if time.Now().After(until) {
					return nil
				}
				time.Sleep(activePause)
			}
		})
	}
	err := work.Wait()
	t := slices.Concat(all...)
	slices.Sort(t)
	return t, err
}
