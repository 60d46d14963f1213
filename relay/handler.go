package relay

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// A Handler serves the streams of one protocol. It answers the Open with
// [Stream.Opened] before anything else. After a status other than 0 it returns.
//
// Serve runs on a goroutine of its own, from the stream's Open on. It must
// return soon after ctx ends, which it does when the server stops or the guest
// resets the stream. When Serve has returned, the server closes both directions
// of the pipe. If it has returned an error that isn't the pipe's own, the
// server resets them with the errno in that error. A [ProtocolError] is for
// what the guest did wrong, and is counted and logged as that.
//
// If Serve panics, the server logs and counts it, and resets the stream with
// EIO. Other streams go on. The server can't do so for goroutines that Serve
// has started, nor between a Reserve of the pipe and its Commit: then the pipe
// stays taken, and the server doesn't end.
//
// The example of package pipes/guest/client tests a Handler without a virtual
// machine.
type Handler interface {
	Serve(ctx context.Context, s *Stream) error
}

// HandlerFunc is a function as a Handler.
type HandlerFunc func(ctx context.Context, s *Stream) error

// Serve calls f.
func (f HandlerFunc) Serve(ctx context.Context, s *Stream) error { return f(ctx, s) }

// Mux hands each stream to the Handler of its protocol, and answers
// EPROTONOSUPPORT if there is none. The zero value has no handlers. Its methods
// may be called concurrently.
type Mux struct {
	mu       sync.RWMutex
	handlers map[uint16]Handler
}

// Handle registers a handler. It panics if the protocol has one already.
func (m *Mux) Handle(protocol uint16, h Handler) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.handlers[protocol]; ok {
		panic(fmt.Sprintf("relay: protocol %d has two handlers", protocol))
	}
	if m.handlers == nil {
		m.handlers = make(map[uint16]Handler)
	}
	m.handlers[protocol] = h
}

// Serve hands s to its Handler.
func (m *Mux) Serve(ctx context.Context, s *Stream) error {
	m.mu.RLock()
	h := m.handlers[s.Protocol]
	m.mu.RUnlock()
	if h == nil {
		s.warn(s.server.logs.unknown, "guest asked for a protocol that nobody handles")
		return s.Opened(unix.EPROTONOSUPPORT, nil)
	}
	return h.Serve(ctx, s)
}
