package network

import (
	"context"
	"errors"
	"net"
	"sync"
)

// joinedListener is two listeners as one, which has the first one's address. It
// accepts only while a caller waits in Accept, so that other connections stay
// in the kernel's backlog; at most one connection of each listener that comes
// too late for a caller waits here for the next. Each listener may be closed by
// itself. The joined one ends with the first.
type joinedListener struct {
	net.Listener
	second net.Listener

	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	asked   [2]chan struct{} // unbuffered: a send means that Accept waits
	ready   chan accepted    // unbuffered
	running sync.WaitGroup
}

func join(first, second net.Listener) *joinedListener {
	l := &joinedListener{
		Listener: first, second: second,
		asked: [2]chan struct{}{make(chan struct{}), make(chan struct{})}, ready: make(chan accepted),
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.running.Go(func() {
		// A listener without its address is of no use.
		defer l.cancel()
		l.accept(first, l.asked[0])
	})
	l.running.Go(func() { l.accept(second, l.asked[1]) })
	return l
}

// accept accepts connections from ln as Accept asks for them, until ln is
// closed.
func (l *joinedListener) accept(ln net.Listener, asked <-chan struct{}) {
	for {
		select {
		case <-asked:
		case <-l.ctx.Done():
			return
		}
		conn, err := CheckConn(ln.Accept())
		if errors.Is(err, net.ErrClosed) {
			return
		}
		select {
		case l.ready <- accepted{conn, err}:
		case <-l.ctx.Done():
			if err == nil {
				Abandon(conn)
			}
			return
		}
	}
}

// Accept returns the next connection of either listener.
func (l *joinedListener) Accept() (net.Conn, error) {
	for {
		select {
		case a := <-l.ready:
			return a.conn, a.err
		case l.asked[0] <- struct{}{}:
		case l.asked[1] <- struct{}{}:
		case <-l.ctx.Done():
			return nil, net.ErrClosed
		}
	}
}

// Close closes both listeners, and waits until both goroutines have ended.
func (l *joinedListener) Close() error {
	l.cancel()
	err := l.Listener.Close()
	_ = l.second.Close()
	l.running.Wait()
	return err
}

// accepted is the result of an Accept.
type accepted struct {
	conn Conn
	err  error
}
