package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
)

// scope holds what an item has opened. All of it is closed when the item ends,
// or as soon as its context does, so that nothing hangs.
type scope struct {
	ctx    context.Context
	unhook func() bool

	mu      sync.Mutex
	closers []io.Closer // guarded by mu

	// These are for the item's own goroutine.
	rigs    []*rig
	guests  []*booted
	parts   []*part
	running sync.WaitGroup
}

func newScope(ctx context.Context) *scope {
	ctx, cancel := context.WithCancel(ctx)
	s := &scope{ctx: ctx, closers: []io.Closer{closeFunc(cancel)}}
	s.unhook = context.AfterFunc(ctx, s.closeAll)
	return s
}

type closeFunc func()

func (f closeFunc) Close() error { f(); return nil }

// keep has c closed at the scope's end, at once if that has come.
func (s *scope) keep(c io.Closer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		_ = c.Close()
		return
	}
	s.closers = append(s.closers, c)
}

// goes runs f on a goroutine that close waits for. f must end when what the
// scope holds is closed.
func (s *scope) goes(f func()) { s.running.Go(f) }

func (s *scope) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range slices.Backward(s.closers) {
		_ = c.Close()
	}
	s.closers = nil
}

// close closes all and waits. It returns an error if a guest has lost a wake-up
// or ended by itself: then nothing that was measured counts.
func (s *scope) close() error {
	s.unhook()
	// The audit must come first: closing wakes those whose wake-up was lost.
	if s.ctx.Err() == nil {
		for _, r := range s.rigs {
			r.Guest.Table.Audit()
		}
	}
	var errs []error
	for _, p := range s.parts {
		errs = append(errs, p.close())
	}
	for _, g := range s.guests {
		errs = append(errs, g.close())
	}
	s.closeAll()
	for _, r := range s.rigs {
		errs = append(errs, r.close())
	}
	s.running.Wait()
	return errors.Join(errs...)
}

// errRescued is the error for n wake-ups that were lost, and that the watchdog
// made up for. It is nil if there were none.
func errRescued(n uint64) error {
	if n == 0 {
		return nil
	}
	return fmt.Errorf("%w: %d wake-ups were lost and rescued by the watchdog", errBroken, n)
}

func (s *scope) rig(window, streams int) (*rig, error) {
	r, err := newRig(s.ctx, window, streams)
	if err == nil {
		s.rigs = append(s.rigs, r)
	}
	return r, err
}

func (s *scope) listen() (*net.TCPListener, error) {
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err == nil {
		s.keep(l)
	}
	return l, err
}

// plain makes a TCP connection over loopback.
func (s *scope) plain(l *net.TCPListener) (x, y *net.TCPConn, err error) {
	x, err = net.DialTCP("tcp4", nil, l.Addr().(*net.TCPAddr))
	if err != nil {
		return nil, nil, err
	}
	s.keep(x)
	y, err = l.AcceptTCP()
	if err != nil {
		return nil, nil, err
	}
	s.keep(y)
	return x, y, nil
}

// spliced makes a connection through a proxy of two io.Copy, which have the
// kernel move the bytes by splice.
func (s *scope) spliced(l *net.TCPListener) (x, y *net.TCPConn, err error) {
	x, in, err := s.plain(l)
	if err != nil {
		return nil, nil, err
	}
	out, y, err := s.plain(l)
	if err != nil {
		return nil, nil, err
	}
	s.goes(func() { _, _ = io.Copy(out, in) })
	s.goes(func() { _, _ = io.Copy(in, out) })
	return x, y, nil
}

// echoPlain makes a connection whose other end echo serves, and returns the
// client's end.
func (s *scope) echoPlain(l *net.TCPListener, echo func(net.Conn)) (net.Conn, error) {
	x, y, err := s.plain(l)
	if err != nil {
		return nil, fmt.Errorf("plain connection: %w", err)
	}
	s.goes(func() { echo(y) })
	return x, nil
}
