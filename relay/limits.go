package relay

import (
	"cmp"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/internal/limit"
	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/wire"
)

// Limits are how much a guest gets of what costs its host something (PROTOCOL.md section 13). A field's zero value is its default. The number of streams and
// the memory of their rings are limits of the [pipes.Table].
type Limits struct {
	// StreamFiles may be open at once on a stream of the file system protocol, ReadFileRequests at work included: EMFILE. Default [DefaultStreamFiles].
	StreamFiles int
	// Files may be open at once on all streams: ENFILE. Default [DefaultFiles].
	Files int
	// Accepts may wait at once, at all listeners: EAGAIN. Default [DefaultAccepts].
	Accepts int
	// Bytes may be relayed in a second, of connections, files and datagrams, both ways together. What is more waits, but for datagrams from the guest:
	// ENOBUFS. Default: no limit.
	Bytes uint64
	// Operations may be done in a second: Opens, and requests on the control pipe and those of framed protocols. What is more is EAGAIN, for datagrams
	// ENOBUFS. Default: no limit.
	Operations uint64
	// Disk is by how many bytes the guest may make the files of its host grow,
	// each file, folder and socket that it makes counted as 4 KiB more: EDQUOT.
	// Default [DefaultDisk].
	Disk uint64
}

// Defaults of [Limits].
const (
	DefaultStreamFiles = 256
	DefaultFiles       = 4096
	DefaultAccepts     = 4096
	DefaultDisk        = 8 << 30
)

func (l Limits) withDefaults() Limits {
	l.StreamFiles = cmp.Or(l.StreamFiles, DefaultStreamFiles)
	l.Files = cmp.Or(l.Files, DefaultFiles)
	l.Accepts = cmp.Or(l.Accepts, DefaultAccepts)
	l.Disk = cmp.Or(l.Disk, DefaultDisk)
	return l
}

// bytes and operations are what a second may bring.
func (l Limits) bytes() *limit.Rate      { return limit.NewRate(l.Bytes, wire.MaxDatagram) }
func (l Limits) operations() *limit.Rate { return limit.NewRate(l.Operations, 1) }

// Reached counts how often a guest came up against each limit.
type Reached struct {
	Streams    uint64
	RingMemory uint64 // or the end of the window
	Files      uint64 // of a stream or of all
	Accepts    uint64
	Bytes      uint64 // waits, and datagrams refused
	Operations uint64
	Disk       uint64
}

// limitName names a limit.
type limitName int

const (
	limitStreams limitName = iota
	limitRingMemory
	limitFiles
	limitAccepts
	limitBytes
	limitOperations
	limitDisk
	limitCount
)

func (n limitName) String() string {
	return [...]string{"streams", "ring-memory", "files", "accepts", "bytes", "operations", "disk"}[n]
}

// reached counts that the guest came up against a limit on a stream, and says so now and then.
func (s *Server) reached(n limitName, stream pipes.ID) {
	s.count.reached[n].Add(1)
	s.logs.reached[n].Log(s.log, slog.LevelWarn, "guest has reached a limit", slog.Any("stream", stream), slog.String("limit", n.String()))
}

// operation takes one operation of this second's. It reports false if there is none left.
func (s *Stream) operation() bool {
	if s.server.operations.Allow(1) {
		return true
	}
	s.server.reached(limitOperations, s.Pipe.ID())
	return false
}

// spend waits until n bytes may be moved, or done is closed.
func (s *Stream) spend(done <-chan struct{}, n int) {
	if s.server.bytes.Wait(done, n) {
		s.server.reached(limitBytes, s.Pipe.ID())
	}
}

// pace slows a link, each direction by itself.
type pace struct {
	stream          *Stream
	reading, ending chan struct{} // closed when it is of no use to wait: to read, and for anything
	once, endOnce   sync.Once
}

func newPace(s *Stream) *pace {
	return &pace{stream: s, reading: make(chan struct{}), ending: make(chan struct{})}
}

// endReading ends the waiting of the direction to the guest. nil has nobody who waits.
func (p *pace) endReading() {
	if p != nil {
		p.once.Do(func() { close(p.reading) })
	}
}

// end ends all waiting.
func (p *pace) end() {
	if p != nil {
		p.endReading()
		p.endOnce.Do(func() { close(p.ending) })
	}
}

// pacedReader reads a piece at a time, and keeps it until it may be handed on.
type pacedReader struct {
	from *receiving
	pace *pace
}

func (r pacedReader) Read(b []byte) (int, error) {
	s := r.pace.stream
	n, err := r.from.Read(b[:s.server.bytes.Piece(len(b))])
	s.spend(r.pace.reading, n)
	return n, err
}

// pacedWriter writes a piece at a time.
type pacedWriter struct {
	to   *sending
	pace *pace
}

func (w pacedWriter) Write(b []byte) (sent int, _ error) {
	s := w.pace.stream
	for {
		piece := b[sent:][:s.server.bytes.Piece(len(b)-sent)]
		s.spend(w.pace.ending, len(piece))
		n, err := w.to.Write(piece)
		sent += n
		if err != nil || n != len(piece) || sent == len(b) {
			return sent, err
		}
	}
}

// logs are the places that log what a guest or the network can cause.
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

// failure is a kind of what happens every day.
type failure struct {
	msg      string
	protocol uint16
	errno    unix.Errno
}

// levelOf is info for the first failure of a kind, and debug for all later
// ones.
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
		// A guest may live at a limit for as long as it likes.
		l.reached[i] = limit.NewLog(10*time.Second, 1)
	}
	return l
}
