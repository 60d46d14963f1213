package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/internal/limit"
	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/wire"
)

// Stream is a data pipe of a guest, from its first frame on, or from the
// AcceptConnection that named it.
type Stream struct {
	// Pipe is the host end. The bytes after the Open belong to the protocol.
	Pipe *pipes.Pipe
	// Protocol is the number in the Open.
	Protocol uint16
	// Payload is the protocol's part of the Open.
	Payload []byte

	server  *Server
	request uint64      // of the Open
	claimed atomic.Bool // by the first frame or by an accept, whichever came first

	answered atomic.Bool // the Open

	relayed bool // handed over to a link; its handler's goroutine alone looks at it

	toGuest, fromGuest atomic.Uint64 // bytes relayed

	writing sync.Mutex // one whole frame at a time
	frame   []byte     // guarded by writing
}

// Opened answers the stream's Open. It waits while the pipe has no room.
func (s *Stream) Opened(status unix.Errno, payload []byte) error {
	s.answered.Store(true)
	s.server.opened(s.Protocol, status)
	return s.write(func(b []byte) []byte {
		return wire.AppendOpened(b, s.request, wire.Opened{Status: uint32(status), Payload: payload})
	})
}

// noPayload refuses an Open with a payload, for protocols that have none.
func noPayload(s *Stream) error {
	if len(s.Payload) > 0 {
		return ProtocolError(fmt.Errorf("payload in an Open of protocol %s: %w", wire.ProtocolName(s.Protocol), wire.ErrLength))
	}
	return nil
}

// keepFrame is up to how many bytes a stream keeps a buffer for its next frame,
// and for the guest's next.
const keepFrame = 1 << 10

// write sends the frame that encode appends, in one piece. It may be called
// concurrently.
func (s *Stream) write(encode func([]byte) []byte) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.frame = encode(s.frame[:0])
	_, err := s.Pipe.Write(s.frame)
	if cap(s.frame) > keepFrame {
		s.frame = nil
	}
	return err
}

// Logger is the server's, with the stream's id and protocol in each record. A
// record that a guest can cause again and again belongs at debug level.
func (s *Stream) Logger() *slog.Logger {
	return s.server.log.With(slog.Any("stream", s.Pipe.ID()), s.protocol())
}

// Network is the server's.
func (s *Stream) Network() network.Network { return s.server.network }

// Count adds bytes that a handler has moved by itself to the [Stats].
// [Stream.Relay] counts its own.
func (s *Stream) Count(toGuest, fromGuest int) {
	s.toGuest.Add(uint64(toGuest))
	s.fromGuest.Add(uint64(fromGuest))
}

func (s *Stream) log(level slog.Level, msg string, attrs ...slog.Attr) {
	log := s.server.log
	if !log.Enabled(context.Background(), level) {
		return
	}
	log.LogAttrs(context.Background(), level, msg, s.attrs(attrs)...)
}

// warn logs at a limited rate.
func (s *Stream) warn(place *limit.Log, msg string, attrs ...slog.Attr) {
	place.Log(s.server.log, slog.LevelWarn, msg, s.attrs(attrs)...)
}

func (s *Stream) attrs(more []slog.Attr) []slog.Attr {
	return append(more, slog.Any("stream", s.Pipe.ID()), s.protocol())
}

func (s *Stream) protocol() slog.Attr { return slog.String("protocol", wire.ProtocolName(s.Protocol)) }

// frames reads a guest's frames from a pipe.
type frames struct {
	pipe io.Reader
	buf  []byte
}

// next returns the next frame, which must be of the given kind. The payload is
// a copy, which the guest can't change, and valid until the next call. The
// error is io.EOF if the guest has closed its end between two frames, a
// [ProtocolError] for a malformed frame, and otherwise the pipe's.
func (f *frames) next(kind wire.Kind) (request uint64, payload []byte, err error) {
	h, err := f.header()
	if err != nil {
		return 0, nil, err
	}
	if h.Kind != kind {
		return 0, nil, unexpected(h.Kind)
	}
	payload, err = f.payload(int(h.Length))
	return h.RequestID, payload, err
}

// header returns the next frame's header, checked. Its errors are those of
// next.
func (f *frames) header() (wire.Header, error) {
	if f.buf == nil || cap(f.buf) > keepFrame {
		f.buf = make([]byte, wire.HeaderSize, 64)
	}
	if _, err := io.ReadFull(f.pipe, f.buf[:wire.HeaderSize]); err != nil {
		return wire.Header{}, truncated(err)
	}
	h, err := wire.DecodeHeader(f.buf[:wire.HeaderSize])
	if err != nil {
		return h, ProtocolError(err)
	}
	return h, nil
}

// payload returns a copy of the next n bytes of a frame.
func (f *frames) payload(n int) ([]byte, error) {
	if cap(f.buf) < n {
		f.buf = make([]byte, n)
	}
	p := f.buf[:n]
	if _, err := io.ReadFull(f.pipe, p); err == io.EOF {
		return nil, truncated(io.ErrUnexpectedEOF)
	} else if err != nil {
		return nil, truncated(err)
	}
	return p, nil
}

func unexpected(k wire.Kind) error { return ProtocolError(errors.New("unexpected " + k.String())) }

func truncated(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return ProtocolError(err)
	}
	return err
}
