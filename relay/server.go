// Package relay is the monitor's half of the stream protocol (PROTOCOL.md
// sections 9 to 12): the control pump, which makes pipes, and the protocols
// that they speak, each a [Handler] in a file of its own.
//
// A [Server] has a goroutine for the control pipe. A data pipe has none until
// its first frame arrives. Then a handler serves it on a goroutine of its own.
// A relayed connection keeps one, which moves bytes from the socket to the
// ring. Bytes from the ring to the socket go on the thread that notifies; a
// goroutine takes over when they are many, or have to wait. No byte is copied
// in between, but for TLS. All goroutines end with the context that
// [Server.Serve] was given.
//
// Guests are hostile: one that breaks the protocol on a pipe loses that pipe,
// with EPROTO.
//
// Words of this package:
//
//   - stream: a data pipe that a guest has opened, and what serves it
//   - handler: serves the streams of one protocol
//   - peer: the other end of a connection, or the sender of a datagram
//   - link: a stream and a connection whose bytes are relayed both ways
//   - accept: a guest's request for a connection of a listener
//   - claim: take a pipe for an accept, before its first frame arrives
//   - breach: what a guest did against the protocol
//   - greeting: a TLS handshake
package relay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/wire"
)

// Options are what a Server may be told. The zero value is good.
type Options struct {
	// Logger gets the life of streams at debug level; as warnings, at a limited
	// rate for each kind, a guest's mistakes, what was denied to it, and what
	// its host couldn't do; as errors, panics of handlers. nil discards all of
	// it. docs/output.md lists the keys.
	Logger *slog.Logger
	// Limits are how much the guest gets.
	Limits network.Limits
	// OnListen is called with the bound address of each listener that the guest
	// opens, before the guest is told of it.
	OnListen func(netip.AddrPort)
	// ConnectTimeout is how long a connect may take, name look-up and TLS
	// handshake included. A handshake of a TLS listener's client may take as
	// long. 0 is [network.DefaultConnectTimeout].
	ConnectTimeout time.Duration
	// Network is where sockets and addresses come from. nil is [network.Host].
	Network network.Network
}

// Server serves the pipes of one virtual machine.
type Server struct {
	table    *pipes.Table
	control  *pipes.Pipe
	handler  Handler
	onListen func(netip.AddrPort)
	network  network.Network
	patience time.Duration // for connecting
	log      *slog.Logger
	logs     *logs

	*budget
	count     counters
	lingering lingering
	life
	registry
}

// life is a server's goroutines, and whether it may start more.
type life struct {
	beginning sync.RWMutex // held to begin something or, for a moment, to stop
	stopping  bool         // guarded by beginning
	running   sync.WaitGroup
}

// registry is the streams of a server.
type registry struct {
	mu      sync.Mutex
	ctx     context.Context // nil before Serve
	streams map[pipes.ID]*Stream
	ended   sync.Cond // a stream has ended
	closed  traffic   // of streams that have ended
}

// New returns a server for the pipes of table. control is the control pipe.
// handler, usually a [Mux], gets every stream that the guest opens.
func New(table *pipes.Table, control *pipes.Pipe, handler Handler, o Options) *Server {
	s := &Server{
		table:    table,
		control:  control,
		handler:  handler,
		onListen: o.OnListen,
		network:  o.Network,
		patience: cmp.Or(o.ConnectTimeout, network.DefaultConnectTimeout),
		log:      o.Logger,
		logs:     newLogs(),
		budget:   newBudget(o.Limits.WithDefaults()),
		registry: registry{streams: make(map[pipes.ID]*Stream)},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.network == nil {
		s.network = network.Host{}
	}
	s.lingering.timeout = lingerTimeout
	s.count.opened = make(map[uint16]uint64)
	s.ended.L = &s.mu
	return s
}

// Serve serves until ctx is done. Then it resets all pipes, so that TCP peers
// see a reset, and returns when every goroutine that it has started has ended.
// It may be called once.
func (s *Server) Serve(ctx context.Context) error {
	s.mu.Lock()
	if s.ctx != nil {
		s.mu.Unlock()
		return errors.New("relay: Serve called twice")
	}
	s.ctx = ctx
	s.mu.Unlock()
	s.start(s.pump)

	<-ctx.Done()
	s.beginning.Lock()
	s.stopping = true
	s.beginning.Unlock()
	// After this no stream is added.
	_ = s.control.Reset(unix.ECONNRESET)
	s.mu.Lock()
	streams := s.list()
	s.mu.Unlock()
	for _, st := range streams {
		_ = st.Pipe.Reset(unix.ECONNRESET)
	}
	s.running.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.streams {
		s.closed.add(st)
	}
	clear(s.streams)
	return nil
}

// Drain waits until every stream has ended by itself, or ctx is done. The
// caller sees to it that the guest opens no more. It may be called while Serve
// runs.
func (s *Server) Drain(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.ended.Broadcast()
	})
	defer stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.streams) > 0 && ctx.Err() == nil {
		s.ended.Wait()
	}
}

// start runs f on a goroutine that Serve waits for. It reports false, and
// doesn't run f, if the server is stopping. A virtual CPU's thread may call it.
func (l *life) start(f func()) bool {
	l.beginning.RLock()
	defer l.beginning.RUnlock()
	if l.stopping {
		return false
	}
	l.running.Go(f)
	return true
}

// list returns the streams. mu is held.
func (r *registry) list() []*Stream {
	list := make([]*Stream, 0, len(r.streams))
	for _, st := range r.streams {
		list = append(list, st)
	}
	return list
}

// pump answers the requests on the control pipe.
func (s *Server) pump() {
	in := frames{pipe: s.control}
	var out []byte
	for {
		request, payload, err := in.next(wire.KindNewStreamRequest)
		if err == nil {
			var m wire.NewStreamRequest
			if m, err = wire.DecodeNewStreamRequest(payload); err != nil {
				err = ProtocolError(err)
			} else {
				out = wire.AppendDataStreamInfo(out[:0], request, s.newStream(m))
				_, err = s.control.Write(out)
			}
		}
		if err != nil {
			s.end(s.control, "control pipe ended", err, nil)
			return
		}
	}
}

// newStream makes a pipe. Nothing runs for it until its first frame arrives.
func (s *Server) newStream(m wire.NewStreamRequest) wire.DataStreamInfo {
	if !s.operations.Allow(1) {
		s.count.pipesRefused.Add(1)
		s.reached(limitOperations, s.control.ID())
		return wire.DataStreamInfo{Status: uint32(unix.EAGAIN)}
	}
	p, err := s.table.New(m.OutgoingSize, m.IncomingSize, int(m.HomeCPU))
	if err != nil {
		s.noPipe(err)
		return wire.DataStreamInfo{Status: uint32(network.Errno(err))}
	}
	st := &Stream{Pipe: p, server: s}
	if !s.add(st) {
		_ = p.Reset(unix.ECONNRESET)
		return wire.DataStreamInfo{Status: uint32(unix.ECONNRESET)}
	}
	s.await(st)
	d := p.Descriptor()
	return wire.DataStreamInfo{Pipe: wire.Descriptor{
		ID: uint64(d.ID), Header: d.Header,
		Outgoing: d.Outgoing, Incoming: d.Incoming,
		OutgoingSize: d.OutgoingSize, IncomingSize: d.IncomingSize,
	}}
}

// noPipe counts and logs why the guest got no pipe. The record has the control
// pipe's id, as there is no stream.
func (s *Server) noPipe(err error) {
	s.count.pipesRefused.Add(1)
	switch {
	case errors.Is(err, unix.EMFILE):
		s.reached(limitStreams, s.control.ID())
	case errors.Is(err, unix.ENOMEM):
		s.reached(limitRingMemory, s.control.ID())
	default:
		s.logs.noPipe.Log(s.log, slog.LevelWarn, "no new pipe", slog.Any("stream", s.control.ID()), slog.Any("err", err))
	}
}

// add adds st to the streams. It reports false if the server is stopping.
func (s *Server) add(st *Stream) bool {
	s.beginning.RLock()
	defer s.beginning.RUnlock()
	if s.stopping {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams[st.Pipe.ID()] = st
	return true
}

// await serves st from its first frame on, unless an accept claims it before.
func (s *Server) await(st *Stream) {
	st.Pipe.OnReadable(func() {
		s.start(func() {
			if st.claimed.CompareAndSwap(false, true) {
				s.run(st)
			}
		})
	})
}

// claim takes a pipe for an accepted connection. No frame may have arrived on
// it.
func (s *Server) claim(id pipes.ID) (*Stream, unix.Errno) {
	if id == s.control.ID() {
		return nil, unix.EBUSY
	}
	s.mu.Lock()
	st := s.streams[id]
	s.mu.Unlock()
	switch {
	case st == nil:
		return nil, unix.ENOENT
	case !st.claimed.CompareAndSwap(false, true):
		return nil, unix.EBUSY
	}
	st.Pipe.OnReadable(nil)
	return st, 0
}

// unclaim makes a claimed pipe unused again.
func (s *Server) unclaim(st *Stream) {
	st.claimed.Store(false)
	s.await(st)
}

// run serves a claimed stream to its end, or until its handler hands it over to
// a link. The handler's context ends with the server's, or when the guest
// resets the stream.
func (s *Server) run(st *Stream) {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	st.Pipe.OnReadError(cancel)
	err := s.open(ctx, st)
	if !st.relayed {
		s.finish(st, err)
	}
}

// open reads a stream's Open and hands the stream to its handler.
func (s *Server) open(ctx context.Context, st *Stream) error {
	in := frames{pipe: st.Pipe}
	request, payload, err := in.next(wire.KindOpen)
	if err == io.EOF {
		return nil
	}
	if err != nil {
		return err
	}
	m, err := wire.DecodeOpen(payload)
	if err != nil {
		return ProtocolError(err)
	}
	st.request, st.Protocol, st.Payload = request, m.Protocol, m.Payload
	st.log(slog.LevelDebug, "stream opened")
	if !st.operation() {
		return st.Opened(unix.EAGAIN, nil)
	}
	err = s.handle(ctx, st)
	if err == nil && !st.answered.Load() && ctx.Err() == nil {
		st.warn(s.logs.unanswered, "handler returned without an answer to the Open")
	}
	return err
}

// handle has the handler serve a stream. A panic ends this stream only.
func (s *Server) handle(ctx context.Context, st *Stream) (err error) {
	defer func() {
		if cause := recover(); cause != nil {
			s.count.panics.Add(1)
			s.logs.panicked.Log(s.log, slog.LevelError, "handler panicked", slog.Any("stream", st.Pipe.ID()), st.protocol(),
				slog.Any("panic", cause), slog.String("stack", string(debug.Stack())))
			err = fmt.Errorf("handler panicked: %w", unix.EIO)
		}
	}()
	return s.handler.Serve(ctx, st)
}

// opened counts an answer to an Open. Protocols are told apart only once a
// handler has taken a stream, as a guest can name any number.
func (s *Server) opened(protocol uint16, status unix.Errno) {
	if status != 0 {
		s.count.refused.Add(1)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count.opened[protocol]++
}

// finish closes the monitor's end of a stream. The pipe is free when the guest
// has closed its own end, too.
func (s *Server) finish(st *Stream, err error) {
	s.mu.Lock()
	delete(s.streams, st.Pipe.ID())
	s.closed.add(st)
	s.ended.Broadcast()
	s.mu.Unlock()
	st.Pipe.OnReadable(nil)
	st.Pipe.OnReadError(nil)
	st.Pipe.OnWriteError(nil)
	s.end(st.Pipe, "stream ended", err, st)
}

// end closes p in good order, or resets it if err is more than the news that
// the guest has ended it. st is nil for the control pipe.
func (s *Server) end(p *pipes.Pipe, msg string, err error, st *Stream) {
	level := slog.LevelDebug
	switch {
	case isBreach(p, err):
		s.count.protocolErrors.Add(1)
		_ = p.Reset(unix.EPROTO)
		level, msg = slog.LevelWarn, "guest broke the stream protocol"
	case s.ctx.Err() != nil:
		// The virtual machine ends: pipes are reset, however far their handlers
		// are.
		_ = p.Reset(unix.ECONNRESET)
	case err == nil, err == io.EOF, p.Caused(err):
		_ = p.Close()
	default:
		_ = p.Reset(network.Errno(err))
	}
	if !s.log.Enabled(context.Background(), level) {
		return
	}
	attrs := []slog.Attr{slog.Any("stream", p.ID())}
	if st != nil {
		attrs = append(attrs, st.protocol(),
			slog.Uint64("to_guest", st.toGuest.Load()), slog.Uint64("from_guest", st.fromGuest.Load()))
	}
	if err != nil && err != io.EOF {
		attrs = append(attrs, slog.Any("err", err))
	}
	if level == slog.LevelWarn {
		s.logs.broken.Log(s.log, level, msg, attrs...)
		return
	}
	s.log.LogAttrs(context.Background(), level, msg, attrs...)
}
