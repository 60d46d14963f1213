package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/rpc/message"
)

const (
	// controlBlock is the block of each of the control pipe's rings, in bytes,
	// if the arguments need no more.
	controlBlock = 16 << 10
	// streamBlock is the block of each of a connection's rings.
	streamBlock = 64 << 10
	// A pipe's ring takes no more of the memory that can be spared than one
	// part in these.
	fileShare   = 16
	streamShare = 512
)

// Options say what a Server serves.
type Options struct {
	// RAM is all of the guest's RAM, zero but for what Reserved names, a
	// multiple of 4 KiB, 1 MiB at least. It must stay mapped until Serve has
	// returned and no other method is under way.
	RAM []byte

	// Args are the guest's arguments, the image's path first.
	Args []string

	// Reserved are the parts of RAM that are in use, by the image's segments
	// for instance. The page at offset 0 needs no mention.
	Reserved []Range

	// Share is what the guest can reach of the host's files. The zero value
	// shares nothing.
	Share Share

	// Logger gets the life of pipes at debug level, and at a limited rate as
	// warnings what went wrong and could not be told to the guest. nil discards
	// them.
	Logger *slog.Logger

	// OnListen is called with the bound address of each listener that the guest
	// opens, before the guest learns of it. It must not wait.
	OnListen func(netip.AddrPort)

	// Network is where sockets come from; its connections are *net.TCPConn. nil
	// is the host's.
	Network Network

	// Limits are how much the guest gets: of Files and Disk, and of Bytes,
	// which wait. The others don't apply.
	Limits network.Limits

	// Pipes may be open at once, the control pipe included. 0 is
	// [DefaultPipes].
	Pipes int

	// OnExit is called when the guest asks to exit. It must not wait.
	OnExit func(code int32)

	// OnBroken is called once if the guest has made the shared allocator
	// unusable, or if its control pipe has ended: the virtual machine can't go
	// on. It must not wait, nor use the Server.
	OnBroken func(error)

	// Signal raises the interrupt of GSI 0. It is called only after the guest
	// has shown that it knows it, by a notification. It must not wait.
	Signal func()
}

// DefaultPipes bounds what a guest can make its host hold, whose memory a pipe
// costs some KiB of, and perhaps a descriptor.
const DefaultPipes = 16384

// Network connects and listens as package net does.
type Network interface {
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
	Listen(ctx context.Context, network, address string) (net.Listener, error)
}

// Entry is what the guest is given in its registers at its start. Offsets count
// from the start of RAM.
type Entry struct {
	Allocator uint64 // RSI: offset of the allocator's raw data
	RxOffset  uint64 // RDX: the ring of the control pipe that the guest reads
	RxLength  uint64 // RCX
	TxOffset  uint64 // R8: the ring that it writes
	TxLength  uint64 // R9
}

// Server serves the pipes of one virtual machine.
type Server struct {
	*host
	watcher *watcher
	control *pipe

	mu      sync.Mutex
	open    int
	serving bool
	running sync.WaitGroup
}

// New initialises the allocator in RAM, reserves what is in use, and makes the
// control pipe's rings. EINVAL: RAM's size, or a range. ENOMEM: RAM is too
// small for what it must hold.
func New(o Options) (*Server, error) {
	h, err := newHost(o)
	if err != nil {
		return nil, err
	}
	s := &Server{host: h, watcher: newWatcher()}
	args := uint64(len(message.AppendControlResponse(nil, message.Args(o.Args))))
	responses := max(controlBlock, message.LengthSize+args+ringOverhead+1)
	if s.control, err = s.newPipe(controlBlock, responses, 1); err != nil {
		return nil, fmt.Errorf("control pipe: %w", err)
	}
	if s.control.responses.capacity() < message.LengthSize+args {
		return nil, fmt.Errorf("control pipe for %d bytes of arguments: %w", args, unix.ENOMEM)
	}
	return s, nil
}

// Entry returns what the guest is given at its start.
func (s *Server) Entry() Entry {
	at := s.control.place()
	return Entry{s.alloc.place, at.RxOffset, at.RxLength, at.TxOffset, at.TxLength}
}

// NotifyRead is hypercall NOTIFY_READ: the guest has written to some ring. From
// the first notification on the guest is looked at only when it notifies, and
// is told by Signal what the monitor has done. It doesn't wait. The argument,
// which guests of this ABI have no meaning for, is ignored.
func (s *Server) NotifyRead(uint64) error {
	s.watcher.notify()
	return nil
}

// NotifyWrite is hypercall NOTIFY_WRITE: the guest has read from some ring.
// Otherwise as [Server.NotifyRead].
func (s *Server) NotifyWrite(uint64) error {
	s.watcher.notify()
	return nil
}

// signal tells a guest that knows the interrupt that a ring has changed.
func (s *Server) signal() {
	if !s.watcher.notified.Load() || s.o.Signal == nil {
		return
	}
	s.signals.Add(1)
	s.o.Signal()
}

// Serve serves until ctx is done. Then it closes what is open, and returns when
// every goroutine that it started has ended and every pipe's memory has been
// given up. It may be called once.
func (s *Server) Serve(ctx context.Context) error {
	s.mu.Lock()
	if s.serving {
		s.mu.Unlock()
		return errors.New("rpc: Serve called twice")
	}
	s.serving = true
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		s.alloc.hurry()
		s.watcher.stop()
	})
	defer stop()
	s.start(ctx, "control pipe", s.control, func(ctx context.Context, p *pipe) error {
		err := s.serveControl(ctx, p)
		s.controlEnded(err)
		return err
	})
	err := s.watcher.run()
	cancel()
	s.running.Wait()
	if err != nil {
		return fmt.Errorf("looking for requests: %w", err)
	}
	return nil
}

// closeWith has shut called when ctx is done, and by the function that it
// returns, which comes back when the descriptor is closed: a second Close of a
// socket or a file returns while the first still has it open.
func closeWith(ctx context.Context, shut func()) (end func()) {
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		shut()
		close(closed)
	})
	return func() {
		if stop() {
			shut()
			return
		}
		<-closed
	}
}

// newPipe makes a pipe whose rings have blocks of these sizes, or of less where
// memory is scarce. The guest has not heard of it.
func (s *Server) newPipe(requests, responses, share uint64) (*pipe, error) {
	s.mu.Lock()
	s.open++
	open := s.open
	s.mu.Unlock()
	// Two rings take two pages at least: a guest with more pipes than that has
	// freed rings that are in use.
	if open > len(s.o.RAM)/(2*pageSize) {
		s.closed()
		return nil, fmt.Errorf("%d pipes: %w", open, unix.ENOMEM)
	}
	if open > s.o.Pipes {
		s.closed()
		s.pipesLimited.Add(1)
		s.warn("guest has reached a limit", "limit", "streams")
		return nil, fmt.Errorf("%d pipes: %w", open, unix.EMFILE)
	}
	rq, rs, err := newRings(s.alloc, requests, responses, share)
	if err != nil {
		s.closed()
		return nil, err
	}
	s.opened.Add(1)
	return &pipe{server: s, requests: rq, responses: rs, wake: make(chan struct{}, 1)}, nil
}

// start serves a pipe that the guest has been told of on a goroutine that Serve
// waits for. serve returns nil after a Close that it has acknowledged, and
// never before its context is done otherwise but with an error.
func (s *Server) start(ctx context.Context, kind string, p *pipe, serve func(context.Context, *pipe) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running.Add(1)
	go func() {
		defer s.running.Done()
		s.end(kind, p, serve(ctx, p))
	}()
}

// end drops the monitor's end of a pipe, err being why it was left.
func (s *Server) end(kind string, p *pipe, err error) {
	cerr := p.close(err == nil)
	defer s.closed()
	if !errors.Is(err, errStopped) {
		s.signal()
	}
	switch {
	case errors.Is(err, errStopped):
	case err == nil, err == io.EOF:
		s.log.Debug("pipe closed", "kind", kind)
	default:
		s.broken.Add(1)
		s.warn("pipe ended", "kind", kind, "err", err)
		cerr = nil
	}
	// The virtual machine is going away, or has been torn down already: its
	// memory must not be touched.
	if cerr != nil && !errors.Is(err, errStopped) {
		s.broken.Add(1)
		s.warn("a closed pipe's memory is lost to the guest", "kind", kind, "err", cerr)
	}
}

func (s *Server) closed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open--
}
