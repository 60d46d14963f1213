package emulated

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"
)

// Host and init talk over one virtio-serial port, in frames: a type byte, the
// payload's length as a 32-bit little-endian number, the payload. Everything
// comes in the order it was sent, so when "done" is read no output is missing.
type frameType byte

// The types of frames. All but frameStdin, frameSignal, frameTime and
// frameFiles go to the host.
const (
	frameReady   frameType = iota + 1 // the first program is about to run; JSON []Step
	frameStdout                       // bytes that a program wrote
	frameStderr                       // bytes that a program wrote
	frameExit                         // a program ended; JSON exitReport
	frameFailed                       // init can't go on; a sentence
	frameDone                         // every program has ended; the last frame
	frameStdin                        // bytes for the programs to read; empty at their end
	frameSignal                       // one byte, the signal for the program
	frameTold                         // bytes that a program told the host
	frameTaken                        // the last frameStdin is taken: another may come
	frameAskTime                      // asks for a frameTime
	frameTime                         // JSON hostTime
	frameUp                           // the link is up; the first frame
	frameFiles                        // part of what takeFiles waits for; empty at its end
)

// maxFrame bounds a payload in either direction.
const maxFrame = 64 << 10

// portName is the name of the virtio-serial port.
const portName = "arcavm.link"

type exitReport struct {
	Program  int
	Code     int
	Signal   int           `json:",omitempty"`
	Duration time.Duration // as measured inside
	Error    string        `json:",omitempty"` // why it could not be started
}

// frameWriter writes whole frames; it may be used concurrently.
type frameWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (f *frameWriter) send(t frameType, payload []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		chunk := payload[:min(len(payload), maxFrame)]
		payload = payload[len(chunk):]
		frame := make([]byte, 0, 5+len(chunk))
		frame = append(frame, byte(t))
		frame = binary.LittleEndian.AppendUint32(frame, uint32(len(chunk)))
		frame = append(frame, chunk...)
		if _, err := f.w.Write(frame); err != nil {
			return fmt.Errorf("write to the link: %w", err)
		}
		if len(payload) == 0 {
			return nil
		}
	}
}

func (f *frameWriter) sendJSON(t frameType, v any) error {
	payload, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return f.send(t, payload)
}

// stream is an io.Writer whose bytes become frames of one type.
type stream struct {
	frames *frameWriter
	kind   frameType
}

func (s stream) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := s.frames.send(s.kind, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// readFrame reads one frame; io.EOF between frames is the end of the link.
func readFrame(r io.Reader) (frameType, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:1]); err != nil {
		return 0, nil, err
	}
	if _, err := io.ReadFull(r, head[1:]); err != nil {
		return 0, nil, fmt.Errorf("read from the link: %w", unexpected(err))
	}
	size := binary.LittleEndian.Uint32(head[1:])
	if size > maxFrame {
		return 0, nil, fmt.Errorf("read from the link: a frame of %d bytes, more than %d", size, maxFrame)
	}
	payload := make([]byte, size)
	if _, err := io.ReadFull(r, payload); err != nil {
		return 0, nil, fmt.Errorf("read from the link: %w", unexpected(err))
	}
	return frameType(head[0]), payload, nil
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
