package relay_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/network/outside"
	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/pipes/pipestest"
	"github.com/fix-project/arcavm/relay"
	shared "github.com/fix-project/arcavm/share"
	"github.com/fix-project/arcavm/wire"
)

const (
	attackers   = 4
	targetsEach = 6
	hostileRing = 4096
	// The good streams have CPU 0 for themselves.
	hostileCPUs = 4
	// maxPatience is how often an attacker yields at most for the answer on one
	// of its pipes.
	maxPatience = 100_000
)

// A guest writes wild values over headers and rings of some pipes, makes
// hypercalls with wild arguments, and sets pending bits, on several CPUs at
// once. The monitor doesn't panic, hang or leak, and the streams of the same
// guest that behave carry their bytes. make hostile sets
// ARCAVM_HOSTILE_OPERATIONS and ARCAVM_HOSTILE_SEED for a long run. Not
// parallel: it counts the process's resources.
func TestHostileGuest(t *testing.T) {
	t.Run("no limits", func(t *testing.T) { attackMonitor(t, network.Limits{}) })
	// The good streams don't reach these limits, or only wait at them.
	t.Run("limits", func(t *testing.T) { attackMonitor(t, network.Limits{Bytes: 20 << 20, Accepts: 2, StreamFiles: 2}) })
}

// attackMonitor makes half of the operations.
func attackMonitor(t *testing.T, limits network.Limits) {
	const enough = 100_000 // operations for some of everything
	operations := number(t, "ARCAVM_HOSTILE_OPERATIONS", 2*enough) / 2
	seed := number(t, "ARCAVM_HOSTILE_SEED", 1)
	goroutines := runtime.NumGoroutine()
	h := newHostile(t, limits)
	fds := descriptors(t)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	good := []behaved{&fileReader{h.m.files(hostileRing), 0}}
	for i := range 3 {
		good = append(good, &echoed{conn: h.m.connect(h.outside.Echo), content: pattern(i, 100_000)})
	}
	stop := make(chan struct{})
	var behaving, attacking sync.WaitGroup
	for i, g := range good {
		behaving.Go(func() {
			for round := 1; ; round++ {
				if err := g.round(); err != nil {
					t.Errorf("good stream %d, round %d: %v", i, round, err)
					return
				}
				select {
				case <-stop:
					return
				default:
					// On one processor the scheduler prefers goroutines that
					// wake each other, and would forget the attackers.
					runtime.Gosched()
				}
			}
		})
	}
	for i := range attackers {
		a := &attacker{hostile: h, own: h.targets[i*targetsEach:][:targetsEach], rng: rand.New(rand.NewPCG(seed, uint64(i)))}
		attacking.Go(func() {
			for n := uint64(0); n < operations/attackers; {
				if a.step() {
					n++
				}
			}
		})
	}
	attacking.Wait()
	close(stop)
	behaving.Wait()
	h.ruinControl()
	for i, g := range good {
		if err := g.round(); err != nil {
			t.Errorf("good stream %d after the attack: %v", i, err)
		}
	}
	p, s := h.m.guest.Table.Stats(), h.m.server.Stats()
	t.Logf("%d operations, seed %d: %d pipes, %d broken rings, %d protocol errors, opened %v",
		operations, seed, p.Opened, p.Broken, s.ProtocolErrors, s.Opened)
	t.Logf("outside: %+v", h.outside.Counts())
	if operations >= enough {
		h.wantReached()
	}

	h.end()
	if p := h.m.guest.Table.Stats(); p.Open != 0 || p.RingBytes != 0 {
		t.Errorf("after the end: %+v", p)
	}
	settled(t, "descriptors", fds, func() int { return descriptors(t) })
	settled(t, "goroutines", goroutines, runtime.NumGoroutine)
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 32<<20 {
		t.Errorf("the heap has grown by %d bytes", grown)
	}
}

func number(t *testing.T, variable string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", variable, err)
	}
	return n
}

// wantReached checks that the attack has reached everything.
func (h *hostile) wantReached() {
	t, p, s := h.m.t, h.m.guest.Table.Stats(), h.m.server.Stats()
	t.Helper()
	if p.Broken == 0 || s.ProtocolErrors == 0 || s.FileErrors == 0 || s.LookupsFailed == 0 || s.Denied == 0 || s.Accepted == 0 || s.Opened[wire.ProtocolFileSystem] < 2 {
		t.Error("this was no attack")
	}
	for protocol := range wire.ProtocolTLSListener + 1 {
		if s.Opened[protocol] == 0 {
			t.Errorf("no stream of protocol %d was opened", protocol)
		}
	}
	for _, c := range h.outside.Counts() {
		if c.N == 0 {
			t.Errorf("%s: none", c.Of)
		}
	}
}

// hostile is a machine whose guest attacks it.
type hostile struct {
	m       *machine
	outside *outside.World
	refused netip.AddrPort // no socket listens there
	targets []*target
}

// target is a pipe under attack. Its owner makes it and behaves for a while.
// Then all attackers may attack it.
type target struct {
	mu   sync.RWMutex
	d    *pipes.Descriptor // nil: none
	wild bool

	// Only the owner uses these.
	left     int // steps that it still behaves for
	protocol uint16
	mild     bool // what is sent is right
	silent   bool // nothing is sent: it is for a listener's connection
	cursor   uint64
	answered uint64 // the incoming ring's cursor when the last frame was sent
	patience int    // how often it still waits for an answer before it goes on
}

func newHostile(t *testing.T, limits network.Limits) *hostile {
	t.Helper()
	h := &hostile{m: &machine{t: t, log: &journal{changed: make(chan struct{})}}}
	for range attackers * targetsEach {
		h.targets = append(h.targets, &target{})
	}
	h.outside = outside.New(t)
	closed, refused := hostListener(t, "127.0.0.1:0")
	closed.Close()
	h.refused = refused

	var err error
	if h.m.guest, err = pipestest.NewGuest(4<<20, pipes.Options{CPUs: hostileCPUs, StreamLimit: 64}); err != nil {
		t.Fatal(err)
	}
	var mux relay.Mux
	mux.Handle(wire.ProtocolFileSystem, relay.FileSystem(shared.Share{
		Root: shareBytes(t, fileSize), Named: map[string]shared.Share{"w": {Root: root(t, t.TempDir()), Writable: true}},
	}))
	mux.Handle(wire.ProtocolTCPConnection, relay.TCPConnection())
	mux.Handle(wire.ProtocolTCPListener, relay.TCPListener())
	mux.Handle(wire.ProtocolUDP, relay.UDP())
	unixSockets := sockets(t, h.outside.Folder, true)
	mux.Handle(wire.ProtocolUnixListener, relay.UnixListener(unixSockets))
	mux.Handle(wire.ProtocolUnixConnection, relay.UnixConnection(unixSockets))
	mux.Handle(wire.ProtocolResolver, relay.Resolver())
	trust := relay.TLS{RootCAs: h.outside.Authority.Pool, Certificates: []tls.Certificate{h.outside.Authority.Issue(t, nil)}}
	mux.Handle(wire.ProtocolTLSConnection, relay.TLSConnection(trust))
	mux.Handle(wire.ProtocolTLSListener, relay.TLSListener(trust))
	mux.Handle(wire.ProtocolStdio, relay.Stdio(h.outside.Input, h.outside.Output, nil))
	// The guest reaches only what this test expects.
	h.m.serve(&mux, relay.Options{Network: h.outside.Network(t, "out:"+h.refused.String()), OnListen: h.outside.Call, Limits: limits})
	return h
}

// end ends everything and waits for it.
func (h *hostile) end() {
	t := h.m.t
	h.m.stop()
	for _, c := range h.m.conns {
		c.SetDeadline(time.Time{})
	}
	// The guest owes wake-ups, so Close returns an error.
	_ = h.m.guest.Close()
	waited := make(chan struct{})
	go func() {
		h.m.guest.Table.Wait()
		close(waited)
	}()
	select {
	case <-waited:
	case <-time.After(patience):
		panic("the table's Wait doesn't return")
	}
	h.outside.Close(t)
}

// ruinControl breaks the control pipe.
func (h *hostile) ruinControl() {
	d := h.m.control.Descriptor()
	h.m.guest.Store(d.Header, 1<<60)
	if err := h.m.guest.Table.NotifyRead(d.ID); err != nil {
		h.m.t.Error(err)
	}
}

// behaved is a stream that is checked byte by byte, a round at a time.
type behaved interface{ round() error }

type echoed struct {
	conn    *pipestest.GuestConn
	content []byte
	at      int
}

func (e *echoed) round() error {
	if err := e.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	n := min(1+e.at*7919%5000, len(e.content)-e.at)
	part := e.content[e.at:][:n]
	if e.at += n; e.at == len(e.content) {
		e.at = 0
	}
	if _, err := e.conn.Write(part); err != nil {
		return err
	}
	got := make([]byte, n)
	if _, err := io.ReadFull(e.conn, got); err != nil {
		return err
	}
	if !bytes.Equal(got, part) {
		return errors.New("the bytes differ")
	}
	return nil
}

const fileSize = 10_000

type fileReader struct {
	conn *pipestest.GuestConn
	n    uint64
}

func (f *fileReader) round() error {
	if err := f.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	f.n++
	offset := f.n * 977 % fileSize
	got, _, err := readFile(f.conn, "file", offset, wire.ToEnd)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, pattern(11, fileSize)[offset:]) {
		return fmt.Errorf("%d bytes that are not the file's", len(got))
	}
	return nil
}

// attacker is one of the guest's CPUs.
type attacker struct {
	*hostile
	own []*target
	rng *rand.Rand

	renewed int      // pipes made
	silent  []uint64 // the last pipes made for a listener's connection that no accept has named yet
	mild    bool     // the frame that is being made shall be right
}

// mildPipes are the protocols of an attacker's first pipes. It behaves on them
// until it lets go of them, so that every handler has work when the attack
// begins.
var mildPipes = []uint16{
	noProtocol, wire.ProtocolTLSListener, wire.ProtocolTLSConnection, noProtocol, wire.ProtocolTCPListener, wire.ProtocolResolver, wire.ProtocolStdio,
	wire.ProtocolUnixConnection, wire.ProtocolUnixListener, wire.ProtocolUDP, wire.ProtocolTCPConnection, wire.ProtocolFileSystem,
}

// noProtocol is for a pipe that waits for a connection of a listener.
const noProtocol = 0xffff

// odd is true once in n times, and never for a frame that shall be right.
func (a *attacker) odd(n int) bool { return !a.mild && a.rng.IntN(n) == 0 }

// step makes one operation. It reports false if it waits instead.
func (a *attacker) step() bool {
	if a.rng.IntN(2) == 0 && a.join(a.targets[a.rng.IntN(len(a.targets))]) {
		return true
	}
	t := a.own[a.rng.IntN(len(a.own))]
	switch {
	case t.d == nil:
		a.renew(t)
	case t.left > 0:
		return a.behave(t)
	case !t.wild:
		t.mu.Lock()
		t.wild = true
		t.mu.Unlock()
	case a.rng.IntN(100) == 0:
		a.abandon(t)
	default:
		a.attack(t.d)
	}
	return true
}

// join attacks a pipe of any owner, if its owner has let go of it.
func (a *attacker) join(t *target) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.wild {
		a.attack(t.d)
	}
	return t.wild
}

// renew makes a pipe, if the monitor has one.
func (a *attacker) renew(t *target) {
	a.m.mu.Lock()
	info, err := a.newPipe()
	a.m.mu.Unlock()
	if err != nil {
		a.m.t.Error(err)
		return
	}
	if info.Status != 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	p := info.Pipe
	t.d = &pipes.Descriptor{
		ID: pipes.ID(p.ID), Header: p.Header, Outgoing: p.Outgoing, Incoming: p.Incoming,
		OutgoingSize: p.OutgoingSize, IncomingSize: p.IncomingSize,
	}
	t.wild, t.mild, t.cursor, t.answered, t.left, t.patience = false, false, 0, 0, a.rng.IntN(50), 0
	t.protocol = wire.ProtocolFileSystem
	switch n := a.rng.IntN(100); {
	case a.renewed < len(mildPipes):
		t.mild, t.protocol, t.left = true, mildPipes[a.renewed], 10
	case n < 3: // few: each takes a port of the host
		t.protocol = wire.ProtocolTCPConnection
	case n < 7:
		t.protocol = wire.ProtocolTCPListener
	case n < 10:
		t.protocol = wire.ProtocolUnixListener
	case n < 15:
		t.protocol = wire.ProtocolUnixConnection
	case n < 25:
		t.protocol = wire.ProtocolUDP
	case n < 32:
		t.protocol = wire.ProtocolResolver
	case n < 35: // few, as with TCP
		t.protocol = wire.ProtocolTLSConnection
	case n < 39:
		t.protocol = wire.ProtocolTLSListener
	case n < 43:
		t.protocol = wire.ProtocolStdio
	case n < 50:
		t.protocol = noProtocol
	case n < 60:
		t.protocol = uint16(a.rng.IntN(noProtocol))
	}
	a.renewed++
	if t.silent = t.protocol == noProtocol; t.silent {
		a.silent = append(a.silent[max(0, len(a.silent)-targetsEach+1):], p.ID)
	}
	// Without these, the attack would begin before a handler that waits for
	// something gets far.
	switch {
	case t.mild, t.protocol == wire.ProtocolTLSConnection: // a handshake takes long
		t.patience = maxPatience
	case t.silent, a.rng.IntN(3) == 0:
		t.patience = maxPatience / 10
	}
}

func (a *attacker) newPipe() (wire.DataStreamInfo, error) {
	if err := a.m.control.SetDeadline(time.Now().Add(patience)); err != nil {
		return wire.DataStreamInfo{}, err
	}
	request := wire.NewStreamRequest{OutgoingSize: hostileRing, IncomingSize: hostileRing, HomeCPU: a.cpu()}
	switch a.rng.IntN(100) {
	case 0:
		request.OutgoingSize = uint32(a.value())
	case 1:
		request.IncomingSize = uint32(a.value())
	case 2:
		request.HomeCPU = uint32(a.value()) | hostileCPUs
	}
	if _, err := a.m.control.Write(wire.AppendNewStreamRequest(nil, 1, request)); err != nil {
		return wire.DataStreamInfo{}, err
	}
	_, p, err := receive(a.m.control)
	if err != nil {
		return wire.DataStreamInfo{}, err
	}
	return wire.DecodeDataStreamInfo(p)
}

// behave makes a step on the pipe as a good guest would, or nearly. It reports
// false if it waits for the monitor instead.
func (a *attacker) behave(t *target) bool {
	runtime.Gosched()
	if t.patience > 0 && (t.silent || t.cursor > 0) && a.m.guest.Load(t.d.Header+128) == t.answered && a.m.guest.Load(t.d.Header+128+8)&0xffff == 0 {
		t.patience--
		return false
	}
	t.left--
	if a.rng.IntN(4) == 0 { // what came is read
		a.m.guest.Store(t.d.Header+128+64, a.m.guest.Load(t.d.Header+128))
		_ = a.m.guest.Table.NotifyWrite(t.d.ID)
		return true
	}
	t.answered = a.m.guest.Load(t.d.Header + 128)
	frame := a.frame(t)
	room := hostileRing - (t.cursor - a.m.guest.Load(t.d.Header+64))
	if uint64(len(frame)) > room {
		return true
	}
	ring := a.m.guest.Window[t.d.Outgoing:][:t.d.OutgoingSize]
	at := t.cursor % hostileRing
	scribble(ring, frame[scribble(ring[at:], frame):])
	t.cursor += uint64(len(frame))
	a.m.guest.Store(t.d.Header, t.cursor)
	_ = a.m.guest.Table.NotifyRead(t.d.ID)
	return true
}

// abandon closes both directions for good, whatever is in the ring.
func (a *attacker) abandon(t *target) {
	t.mu.Lock()
	d := t.d
	t.d, t.wild = nil, false
	t.mu.Unlock()
	const closed = 1
	a.m.guest.Store(d.Header+8, closed)
	_ = a.m.guest.Table.NotifyRead(d.ID)
	a.m.guest.Store(d.Header+128+72, closed)
	_ = a.m.guest.Table.NotifyWrite(d.ID)
}

// attack attacks a pipe, or memory beside it.
func (a *attacker) attack(d *pipes.Descriptor) {
	g := a.m.guest
	switch n := a.rng.IntN(16); {
	case n < 8:
		word := d.Header + []uint64{0, 8, 64, 72, 128, 136, 192, 200}[n]
		value := a.value()
		if a.rng.IntN(2) == 0 { // near what is there
			value = g.Load(word) + uint64(a.rng.IntN(5)) - 2
		}
		g.Store(word, value)
	case n < 10:
		_ = g.Table.NotifyRead(d.ID)
	case n < 12:
		_ = g.Table.NotifyWrite(d.ID)
	case n == 12:
		_ = g.Table.NotifyRead(a.id())
	case n == 13:
		_ = g.Table.NotifyWrite(a.id())
	case n == 14: // the bitmap of a CPU that no good stream lives on
		g.Store(g.Table.PendingOffset()+uint64(a.cpu())*g.Table.PendingStride()+8*uint64(a.rng.IntN(74)), a.value())
	default:
		ring := []uint64{d.Outgoing, d.Incoming}[a.rng.IntN(2)]
		scribble(g.Window[ring+uint64(a.rng.IntN(hostileRing)):], []byte{0xff})
	}
}

// scribble is copy, but the race detector doesn't see it: a guest may write
// what the monitor reads at the same time.
//
//go:norace
func scribble(to, from []byte) int {
	n := min(len(to), len(from))
	for i := range n {
		to[i] = from[i]
	}
	return n
}

// cpu is a CPU without good streams.
func (a *attacker) cpu() uint32 { return 1 + uint32(a.rng.IntN(hostileCPUs-1)) }

// id is a pipe's, or nearly.
func (a *attacker) id() pipes.ID {
	id := pipes.ID(a.rng.IntN(66))
	if a.rng.IntN(2) == 0 {
		return id | pipes.ID(a.value())<<32
	}
	// The current generation, also of good streams and of the control pipe.
	if p, err := a.m.guest.Table.Pipe(id); err == nil {
		return p.ID()
	}
	return id
}

// value is a number that a check may get wrong, or any other.
func (a *attacker) value() uint64 {
	switch a.rng.IntN(4) {
	case 0:
		return uint64(a.rng.IntN(5)) - 2
	case 1:
		return 1<<a.rng.IntN(64) + uint64(a.rng.IntN(3)) - 1
	case 2: // a state and a waiting flag
		return uint64(a.rng.IntN(4)) | uint64(a.rng.IntN(3)*a.rng.IntN(200))<<16 | uint64(a.rng.IntN(2))<<32
	}
	return a.rng.Uint64()
}
