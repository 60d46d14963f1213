package bench

import (
	"context"
	"io"
	"net"
	"slices"
	"sync"
)

// scope holds what an item has opened. All of it is closed when the item ends, or as soon as its context does, so that nothing hangs.
type scope struct {
	ctx    context.Context
	unhook func() bool

	mu      sync.Mutex
	closers []io.Closer
	rigs    []*rig
	running sync.WaitGroup
}

func newScope(ctx context.Context) *scope {
	ctx, cancel := context.WithCancel(ctx)
	s := &scope{ctx: ctx}
	s.unhook = context.AfterFunc(ctx, s.closeAll)
	s.closers = append(s.closers, closeFunc(cancel))
	return s
}

type closeFunc func()

func (f closeFunc) Close() error { f(); return nil }

// keep closes c at the end.
func (s *scope) keep(c io.Closer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closers = append(s.closers, c)
}

// goes runs f on a goroutine that close waits for. f ends when what the scope holds is closed.
func (s *scope) goes(f func()) { s.running.Go(f) }

func (s *scope) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range slices.Backward(s.closers) {
		_ = c.Close()
	}
	s.closers = nil
}

func (s *scope) close() {
	s.unhook()
	s.closeAll()
	for _, r := range s.rigs {
		r.close()
	}
	s.running.Wait()
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

// spliced makes a connection through a proxy that is two io.Copy, so that the kernel moves the bytes.
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
