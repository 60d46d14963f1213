package relay_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/pipes/pipestest"
	"github.com/fix-project/arcavm/wire"
)

// fault is what a wire does to one direction of a connection.
type fault struct {
	kind  faultKind
	after int // bytes that pass before it happens
	step  int // bytes that pass at a time at most; 0: as many as come
}

type faultKind int

const (
	sound faultKind = iota
	cut             // a reset in both directions
	ended           // a FIN; what follows is swallowed
	stuck           // nothing passes any more, until the guest has gone
)

func (f fault) String() string {
	return fmt.Sprintf("%s after %d, %d at a time", [...]string{"sound", "cut", "ended", "stuck"}[f.kind], f.after, f.step)
}

// script is an exchange over a hostile network: what each end sends, what the
// wires do to it, and how the guest behaves.
type script struct {
	request, answer []byte
	up, down        fault // from the guest, to the guest
	guest           behaviour
	part            int // of the request, or the answer, that an impatient guest waits for
	ring            uint32
}

type behaviour int

const (
	polite     behaviour = iota // sends all, half-closes, reads to the end, closes
	deaf                        // closes its reader first
	impatient                   // closes after a part of the answer
	desperate                   // resets after a part of the request
	hasty                       // closes while the peer sends
	behaviours                  // their number
)

func (s script) String() string {
	return fmt.Sprintf("request of %d (%v), answer of %d (%v), guest %d after %d, ring of %d", len(s.request), s.up, len(s.answer), s.down, s.guest, s.part, s.ring)
}

// hostileNetwork is a proxy between the guest and an application. It carries
// one connection at a time.
type hostileNetwork struct {
	front, back *net.TCPListener
	at, app     netip.AddrPort
}

func newHostileNetwork(t testing.TB) *hostileNetwork {
	n := new(hostileNetwork)
	n.front, n.at = hostListener(t, "127.0.0.1:0")
	n.back, n.app = hostListener(t, "127.0.0.1:0")
	return n
}

// account is what came out at the application's end of the network.
type account struct {
	toApp      []byte
	appEnd     error // nil: end of file
	finToGuest bool  // the guest has been sent a FIN
	err        error // of the test itself
}

// carry accepts a connection of the guest, and plays the application, too. It
// returns when the connection has ended at all four sockets.
func (n *hostileNetwork) carry(s script, guestGone <-chan struct{}) (a account) {
	near, err := n.front.AcceptTCP()
	if err != nil {
		a.err = err
		return a
	}
	defer near.Close()
	far, err := net.Dial("tcp", n.app.String())
	if err != nil {
		a.err = err
		return a
	}
	app, err := n.back.AcceptTCP()
	if err != nil {
		a.err = err
		return a
	}
	limit := time.Now().Add(patience)
	for _, c := range []net.Conn{near, far, app} {
		_ = c.SetDeadline(limit)
	}

	var all sync.WaitGroup
	all.Go(func() {
		// The guest's account shows the application's errors.
		_, _ = app.Write(s.answer)
		_ = app.CloseWrite()
	})
	all.Go(func() {
		a.toApp, a.appEnd = io.ReadAll(app)
	})
	w := &hostileWire{near: near, far: far.(*net.TCPConn), guestGone: guestGone}
	all.Go(func() { w.pump(w.far, w.near, s.up) })
	all.Go(func() {
		if w.pump(w.near, w.far, s.down) {
			a.finToGuest = true
		}
	})
	all.Wait()
	_ = app.Close()
	_ = far.Close()
	return a
}

type hostileWire struct {
	near, far *net.TCPConn
	guestGone <-chan struct{}
}

// pump carries one direction, and reports whether it has ended it with a FIN.
func (w *hostileWire) pump(to, from *net.TCPConn, f fault) (fin bool) {
	buf := make([]byte, 32<<10)
	if f.step > 0 {
		buf = buf[:f.step]
	}
	left := f.after
	for {
		b := buf
		if f.kind != sound {
			if left == 0 {
				break
			}
			b = buf[:min(left, len(buf))]
		}
		n, err := from.Read(b)
		left -= n
		if n > 0 {
			if _, err := to.Write(b[:n]); err != nil {
				_, _ = io.Copy(io.Discard, from)
				return false
			}
		}
		switch {
		case err == io.EOF:
			return to.CloseWrite() == nil
		case err != nil:
			w.reset()
			return false
		}
	}
	switch f.kind {
	case cut:
		w.reset()
	case ended:
		fin = to.CloseWrite() == nil
		_, _ = io.Copy(io.Discard, from)
	case stuck:
		<-w.guestGone
		w.reset()
	}
	return fin
}

func (w *hostileWire) reset() {
	for _, c := range []*net.TCPConn{w.near, w.far} {
		_ = c.SetLinger(0)
		_ = c.Close()
	}
}

// seen is what a guest saw of a connection.
type seen struct {
	opened, reading, writing error
	read                     []byte
	eof                      bool
}

// play has a guest's end behave by the script.
func (s script) play(c *pipestest.GuestConn) (g seen) {
	defer c.Close()
	var sending sync.WaitGroup
	send := func(b []byte) {
		sending.Go(func() {
			if _, g.writing = c.Write(b); g.writing == nil {
				g.writing = c.CloseWrite()
			}
		})
	}
	switch s.guest {
	case polite:
		send(s.request)
		g.read, g.reading = io.ReadAll(c)
		g.eof = g.reading == nil
	case deaf:
		_ = c.CloseRead()
		send(s.request)
	case impatient:
		send(s.request)
		g.read = make([]byte, min(s.part, len(s.answer)))
		n, err := io.ReadFull(c, g.read)
		g.read = g.read[:n]
		if g.eof = err == io.EOF || err == io.ErrUnexpectedEOF; !g.eof {
			g.reading = err
		}
		_ = c.Close()
	case desperate:
		_, g.writing = c.Write(s.request[:min(s.part, len(s.request))])
		_ = c.Reset(unix.ECANCELED)
	case hasty:
		_, g.writing = c.Write(s.request)
	}
	sending.Wait()
	return g
}

// run makes one connection and checks its result.
func (s script) run(m *machine, n *hostileNetwork) error {
	guestGone := make(chan struct{})
	carried := make(chan account, 1)
	go func() { carried <- n.carry(s, guestGone) }()
	c, err := m.tryPipe(s.ring, s.ring, 0)
	if err != nil {
		return err
	}
	var g seen
	// A wire that is cut at once may be faster than the answer to the Open.
	if _, err := open(c, wire.ProtocolTCPConnection, connectTo(n.at)); err == nil {
		g = s.play(c)
	} else {
		g.opened = err
		_ = c.Close()
	}
	close(guestGone)
	a := <-carried
	if a.err != nil {
		return a.err
	}
	return s.check(a, g)
}

// passes is the part of b that a direction lets through.
func (f fault) passes(b []byte) []byte {
	if f.kind == sound {
		return b
	}
	return b[:min(len(b), f.after)]
}

func (f fault) resets() bool { return f.kind == cut || f.kind == stuck }

func (s script) check(a account, g seen) error {
	request, answer := s.up.passes(s.request), s.down.passes(s.answer)
	switch {
	case !bytes.HasPrefix(request, a.toApp):
		return errors.New("the application read what the guest didn't send")
	case !bytes.HasPrefix(answer, g.read):
		return errors.New("the guest read what the application didn't send")
	case g.eof && !a.finToGuest:
		return fmt.Errorf("the guest read an end of file after %d bytes, which nobody sent", len(g.read))
	case g.eof && len(g.read) != len(answer):
		return fmt.Errorf("the guest read %d of %d bytes, and end of file", len(g.read), len(answer))
	case g.reading != nil && !gone(g.reading):
		return fmt.Errorf("reading: %w", g.reading)
	case g.writing != nil && !gone(g.writing) && !errors.Is(g.writing, net.ErrClosed):
		return fmt.Errorf("writing: %w", g.writing)
	case g.opened != nil && !gone(g.opened):
		return fmt.Errorf("opening: %w", g.opened)
	case s.up.resets() || s.down.resets() || s.guest != polite:
		return nil
	case g.opened != nil || g.reading != nil || g.writing != nil:
		return fmt.Errorf("the guest's opening, reading or writing: %w", errors.Join(g.opened, g.reading, g.writing))
	case a.appEnd != nil:
		return fmt.Errorf("the application's end: %w", a.appEnd)
	case len(a.toApp) != len(request):
		return fmt.Errorf("the application read %d of %d bytes, and end of file", len(a.toApp), len(request))
	}
	return nil
}

// leftovers counts the resources of process and table. check fails the test if
// there are more of them when it is called. For tests that aren't parallel.
func leftovers(m *machine) (check func()) {
	m.t.Helper()
	stats := m.guest.Table.Stats()
	// The server's goroutines run once it has answered.
	m.pipe().Close()
	settled(m.t, "pipes", stats.Open, func() int { return m.guest.Table.Stats().Open })
	streams := m.server.Stats().Streams
	fds, goroutines := descriptors(m.t), runtime.NumGoroutine()
	return func() {
		m.t.Helper()
		settled(m.t, "pipes", stats.Open, func() int { return m.guest.Table.Stats().Open })
		settled(m.t, "bytes of rings", int(stats.RingBytes), func() int { return int(m.guest.Table.Stats().RingBytes) })
		settled(m.t, "streams", streams, func() int { return m.server.Stats().Streams })
		settled(m.t, "descriptors", fds, func() int { return descriptors(m.t) })
		settled(m.t, "goroutines", goroutines, runtime.NumGoroutine)
	}
}

// play runs scripts on several networks at once. Not for parallel tests: it
// counts the process's resources.
func play(t *testing.T, scripts func(yield func(script) bool)) {
	t.Helper()
	m := start(t, setup{quiet: true})
	const workers = 8
	var networks []*hostileNetwork
	for range workers {
		networks = append(networks, newHostileNetwork(t))
	}
	check := leftovers(m)
	next := make(chan script)
	var all sync.WaitGroup
	for _, n := range networks {
		all.Go(func() {
			for s := range next {
				if err := s.run(m, n); err != nil {
					t.Errorf("%v: %v", s, err)
				}
			}
		})
	}
	for s := range scripts {
		if t.Failed() {
			break
		}
		next <- s
	}
	close(next)
	all.Wait()
	if !t.Failed() {
		check()
	}
	s := m.server.Stats()
	t.Logf("%d pipes, %d bytes from the guest, %d to it", m.guest.Table.Stats().Opened, s.FromGuest, s.ToGuest)
}

// An exchange is disturbed after each of its bytes in each direction, in all
// ways. The ends get no byte that wasn't sent, miss none before a FIN, and can
// tell an end from a reset.
func TestNetworkFailsAfterEachByte(t *testing.T) {
	request, answer := pattern(21, 12), pattern(22, 12)
	play(t, func(yield func(script) bool) {
		for _, kind := range []faultKind{cut, ended} {
			for after := range len(request) + 1 {
				for _, step := range []int{0, 1} {
					f, well := fault{kind, after, step}, fault{step: step}
					for _, guest := range []behaviour{polite, impatient, hasty} {
						s := script{request: request, answer: answer, guest: guest, part: after, ring: 4096}
						s.up, s.down = f, well
						if !yield(s) {
							return
						}
						s.up, s.down = well, f
						if !yield(s) {
							return
						}
					}
				}
			}
		}
	})
}

// Exchanges of all sizes over networks of all kinds, with guests of all kinds.
func TestNetworkFailsAnywhere(t *testing.T) {
	count := 2000
	if testing.Short() || raceEnabled {
		count = 300
	}
	seed := number(t, "ARCAVM_HOSTILE_SEED", 1)
	random := rand.New(rand.NewPCG(seed, 0))
	direction := func(size int) fault {
		f := fault{kind: faultKind(random.IntN(4)), after: random.IntN(size + 1)}
		if size < 1000 {
			f.step = random.IntN(3)
		}
		return f
	}
	size := func() int { return 1 << random.IntN(17) >> random.IntN(2) }
	play(t, func(yield func(script) bool) {
		for i := range count {
			s := script{request: pattern(i, size()), answer: pattern(i+1, size()), guest: behaviour(random.IntN(int(behaviours))), ring: 4096 << random.IntN(4)}
			s.up, s.down = direction(len(s.request)), direction(len(s.answer))
			if s.guest == polite && (s.up.kind == stuck || s.down.kind == stuck) {
				s.guest = desperate // a polite guest at a stuck network waits for ever
			}
			if s.up.kind == stuck || s.down.kind == stuck {
				s.request, s.part = s.request[:min(len(s.request), 4096)], 0
			} else {
				s.part = random.IntN(max(len(s.request), len(s.answer)) + 1)
			}
			if !yield(s) {
				return
			}
		}
	})
}

// The four directions close in every order. Before each close, bytes go through
// all that are open.
func TestHalfCloseInEveryOrder(t *testing.T) {
	m := start(t, setup{quiet: true})
	l, to := hostListener(t, "127.0.0.1:0")
	check := leftovers(m)
	acts := map[string]func(g *pipestest.GuestConn, p *net.TCPConn) error{
		"guest's writer": func(g *pipestest.GuestConn, _ *net.TCPConn) error { return g.CloseWrite() },
		"guest's reader": func(g *pipestest.GuestConn, _ *net.TCPConn) error { return g.CloseRead() },
		"peer's writer":  func(_ *pipestest.GuestConn, p *net.TCPConn) error { return p.CloseWrite() },
		"peer's reader":  func(_ *pipestest.GuestConn, p *net.TCPConn) error { return p.CloseRead() },
	}
	names := []string{"guest's writer", "guest's reader", "peer's writer", "peer's reader"}
	var orders [][]string
	var permute func(done, left []string)
	permute = func(done, left []string) {
		if len(left) == 0 {
			orders = append(orders, done)
		}
		for i, name := range left {
			rest := append(append([]string(nil), left[:i]...), left[i+1:]...)
			permute(append(done[:len(done):len(done)], name), rest)
		}
	}
	permute(nil, names)
	for i, order := range orders {
		g := m.connect(to)
		p, err := l.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		deadline(t, p)
		closed := map[string]bool{}
		for _, name := range order {
			if !closed["guest's writer"] && !closed["peer's reader"] {
				transfer(t, order, g, p, pattern(i, 500))
			}
			if !closed["peer's writer"] && !closed["guest's reader"] {
				transfer(t, order, p, g, pattern(i+1, 500))
			}
			// ENOTCONN: there is nothing left to shut down.
			if err := acts[name](g, p); err != nil && !errors.Is(err, unix.ENOTCONN) {
				t.Errorf("%q: closing %s: %v", order, name, err)
			}
			closed[name] = true
			switch {
			case name == "guest's writer" && !closed["peer's reader"]:
				wantEOF(t, p)
			case name == "peer's writer" && !closed["guest's reader"]:
				wantEOF(t, g)
			}
		}
		p.Close()
		g.Close()
	}
	check()
}

func transfer(t *testing.T, order []string, from io.Writer, to io.Reader, b []byte) {
	t.Helper()
	if _, err := from.Write(b); err != nil {
		t.Fatalf("%q: %v", order, err)
	}
	wantBytes(t, to, b)
}

// Thousands of connections, out and in, that one side gives up: before they are
// made, while they wait to be accepted, or after.
func TestConnectAndAbort(t *testing.T) {
	count := 5000
	if testing.Short() || raceEnabled {
		count = 500
	}
	m := start(t, setup{quiet: true, connectTimeout: 50 * time.Millisecond})
	l, to := hostListener(t, "127.0.0.1:0")
	nobody := full(t)
	inside := m.listen("127.0.0.1:0", 0)
	inside.warm()
	var peers sync.WaitGroup
	check := leftovers(m)
	peers.Go(func() {
		for i := 0; ; i++ {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			peers.Go(func() { misbehave(c, i) })
		}
	})

	// The answers of a listener must be read, though this test doesn't need
	// them.
	asked, answered := make(chan struct{}, count), make(chan struct{})
	go func() {
		defer close(answered)
		for range asked {
			if _, _, err := receive(inside); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	const workers = 8
	var next atomic.Int64
	var guests sync.WaitGroup
	for w := range workers {
		random := rand.New(rand.NewPCG(2, uint64(w)))
		guests.Go(func() {
			for next.Add(1) <= int64(count) && !t.Failed() {
				c, err := m.tryPipe(4096, 4096, 0)
				if err != nil {
					t.Error(err)
					return
				}
				abort(t, m, c, inside, to, nobody, asked, random)
			}
		})
	}
	guests.Wait()
	close(asked)
	<-answered
	l.Close()
	peers.Wait()
	if !t.Failed() {
		check()
	}
}

// abort uses a pipe for a connection that comes to nothing.
func abort(t *testing.T, m *machine, c *pipestest.GuestConn, inside *listening, to, nobody netip.AddrPort, asked chan<- struct{}, random *rand.Rand) {
	openFrame := func(to netip.AddrPort) []byte {
		return wire.AppendOpen(nil, 5, wire.Open{Protocol: wire.ProtocolTCPConnection, Payload: connectTo(to)})
	}
	end := func() {
		if random.IntN(2) == 0 {
			_ = c.Close()
		} else {
			_ = c.Reset(unix.ECANCELED)
		}
	}
	switch random.IntN(8) {
	case 0: // no server accepts, and the guest doesn't wait for one
		_, _ = c.Write(openFrame(nobody))
		end()
	case 1: // no server accepts, and the guest waits
		if random.IntN(8) != 0 {
			end()
			return
		}
		if _, err := open(c, wire.ProtocolTCPConnection, connectTo(nobody)); !errors.Is(err, unix.ETIMEDOUT) {
			t.Errorf("a connect that nobody accepts: %v, want ETIMEDOUT", err)
		}
		end()
	case 2: // a connect that is given up
		_, _ = c.Write(openFrame(to))
		end()
	case 3: // an accept, whose client resets at once
		if err := ask(m, inside, c.ID()); err != nil {
			t.Error(err)
		}
		asked <- struct{}{}
		if p, err := net.Dial("tcp", inside.at.String()); err == nil {
			_ = p.(*net.TCPConn).SetLinger(0)
			_ = p.Close()
		}
		end()
	case 4: // an accept that is given up
		if err := ask(m, inside, c.ID()); err != nil {
			t.Error(err)
		}
		asked <- struct{}{}
		end()
	case 5: // bytes go out with the Open
		_, _ = c.Write(append(openFrame(to), pattern(1, 2000)...))
		end()
	default:
		_, _ = open(c, wire.ProtocolTCPConnection, connectTo(to))
		misbehave(c, random.IntN(6))
		end()
	}
}

// ask asks a listener that several guests share for a connection.
func ask(m *machine, l *listening, id pipes.ID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, err := l.Write(wire.AppendAcceptConnection(nil, 1, wire.AcceptConnection{Pipe: uint64(id)}))
	return err
}
