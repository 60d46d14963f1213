package relay

import (
	"errors"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/internal/limit"
	"github.com/fix-project/arcavm/network"
)

// logs are the places that log what a guest or a peer can cause, each with a
// rate limit of its own.
type logs struct {
	broken       *limit.Log // the protocol, by the guest
	denied       *limit.Log // by policy
	noPipe       *limit.Log
	unknown      *limit.Log // protocols
	acceptRefuse *limit.Log
	acceptFailed *limit.Log
	bindFailed   *limit.Log
	panicked     *limit.Log
	unanswered   *limit.Log // by a handler
	stdio        *limit.Log // that failed
	reached      [limitCount]*limit.Log
	failures     sync.Map // of failure; those that were shown
}

// failure is a kind of everyday failure: one that a guest causes by asking for
// what isn't there.
type failure struct {
	msg      string
	protocol uint16
	errno    unix.Errno
}

// levelOf is info for the first failure of a kind, and debug for all others.
func (l *logs) levelOf(f failure) slog.Level {
	if _, shown := l.failures.LoadOrStore(f, true); shown {
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

func newLogs() *logs {
	l := new(logs)
	for _, place := range []**limit.Log{
		&l.broken, &l.denied, &l.noPipe, &l.unknown, &l.acceptRefuse, &l.acceptFailed, &l.bindFailed, &l.panicked, &l.unanswered, &l.stdio,
	} {
		*place = limit.NewLog(time.Second, 10)
	}
	for i := range l.reached {
		// A guest may stay at a limit for as long as it likes.
		l.reached[i] = limit.NewLog(10*time.Second, 1)
	}
	return l
}

// failed logs an everyday failure: the first of its kind at info, later ones at
// debug level. A denial is logged as that.
func (s *Stream) failed(msg string, err error, attrs ...slog.Attr) {
	if s.denied(msg, err) {
		return
	}
	attrs = append(attrs, slog.Any("err", err))
	level := s.server.logs.levelOf(failure{msg, s.Protocol, network.Errno(err)})
	if level == slog.LevelInfo {
		attrs = append(attrs, slog.String("more", "at level debug"))
	}
	s.log(level, msg, attrs...)
}

// bindFailed counts and logs that a socket couldn't be made: the monitor's user
// may have to do something about it.
func (s *Stream) bindFailed(msg string, err error) {
	if !s.denied(msg, err) {
		s.server.count.bindsFailed.Add(1)
		s.warn(s.server.logs.bindFailed, msg, slog.Any("err", err))
	}
}

// denied counts and logs a denial by policy. It reports whether err is one.
func (s *Stream) denied(msg string, err error) bool {
	var denied *network.DeniedError
	if !errors.As(err, &denied) {
		return false
	}
	s.server.count.denied.Add(1)
	s.warn(s.server.logs.denied, msg, slog.Any("err", err))
	return true
}
