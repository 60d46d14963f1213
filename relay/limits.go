package relay

import (
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/fix-project/arcavm/internal/limit"
	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/share"
	"github.com/fix-project/arcavm/wire"
)

// budget is what all streams of a guest together may use of its host: limits,
// and how much of each is in use.
type budget struct {
	limits            network.Limits
	bytes, operations *limit.Rate
	accepts           atomic.Int64 // that wait
	disk              *share.Quota
	greetings         *turns // for TLS handshakes of connections that the guest makes
	greeted           *turns // and of those that it accepts
	large             largeDatagrams
}

func newBudget(l network.Limits) *budget {
	return &budget{
		limits:     l,
		bytes:      limit.NewRate(l.Bytes, wire.MaxDatagram),
		operations: limit.NewRate(l.Operations, 1),
		disk:       share.NewQuota(l.Disk),
		greetings:  newTurns(maxGreetings, maxPeerGreetings),
		greeted:    newTurns(maxGreeted, maxPeerGreeted),
		large:      newLargeDatagrams(),
	}
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

// reached counts that the guest has reached a limit on a stream, and logs it at
// a limited rate.
func (s *Server) reached(n limitName, stream pipes.ID) {
	s.count.reached[n].Add(1)
	s.logs.reached[n].Log(s.log, slog.LevelWarn, "guest has reached a limit", slog.Any("stream", stream), slog.String("limit", n.String()))
}

// operation takes one of this second's operations. It reports false if there is
// none left.
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

// pace limits the bytes of a link. Each direction waits by itself.
type pace struct {
	stream          *Stream
	reading, ending chan struct{} // closed when it is of no use to wait: to read, and for anything
	once, endOnce   sync.Once
}

func newPace(s *Stream) *pace {
	return &pace{stream: s, reading: make(chan struct{}), ending: make(chan struct{})}
}

// endReading ends the waits of the direction to the guest. p may be nil.
func (p *pace) endReading() {
	if p != nil {
		p.once.Do(func() { close(p.reading) })
	}
}

// end ends all waits. p may be nil.
func (p *pace) end() {
	if p != nil {
		p.endReading()
		p.endOnce.Do(func() { close(p.ending) })
	}
}

// pacedReader reads a piece at a time, and returns it when it may be relayed.
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
