package relay

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// lingerTimeout is how long a peer may take nothing of what a guest has sent,
// once the guest has closed the connection both ways.
const lingerTimeout = time.Minute

// lingering are the links whose guest takes no more, while not all that it sent
// has gone out. Once the guest has closed the other direction, too, only the
// peer keeps their slots, rings and descriptors in use. One timer looks at all
// of them, eight times in the timeout. There is none while there are no such
// links.
type lingering struct {
	timeout time.Duration

	mu    sync.Mutex
	links map[*link]lingerer
	timer *time.Timer // nil while there are no links
}

// lingerer is what the last look saw of a link.
type lingerer struct {
	since time.Time // when its peer last took something, zero while the guest has not closed it
	moved uint64    // bytes
}

func (s *lingering) add(l *link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.links == nil {
		s.links = make(map[*link]lingerer)
	}
	s.links[l] = lingerer{}
	if s.timer == nil {
		s.timer = time.AfterFunc(s.timeout/8, func() { s.look(time.Now()) })
	}
}

func (s *lingering) remove(l *link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.links, l)
	if len(s.links) == 0 && s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
}

// look aborts the links whose time is over.
func (s *lingering) look(now time.Time) {
	for _, l := range s.stalled(now) {
		l.stream.server.count.peersStalled.Add(1)
		l.abort(fmt.Errorf("the guest has closed, and for %v its peer took nothing: %w", s.timeout, unix.ETIMEDOUT))
	}
}

func (s *lingering) stalled(now time.Time) (over []*link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for l, seen := range s.links {
		moved := l.stream.fromGuest.Load()
		switch {
		case !l.stream.Pipe.WriterEnded():
			continue
		case seen.since.IsZero() || moved != seen.moved:
			s.links[l] = lingerer{now, moved}
		case now.Sub(seen.since) >= s.timeout:
			over = append(over, l)
			delete(s.links, l)
		}
	}
	if s.timer != nil {
		s.timer.Reset(s.timeout / 8)
	}
	return over
}
