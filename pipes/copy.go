package pipes

import (
	"errors"
	"io"
)

// Bounds of what ReadFrom and WriteTo move at most between two cursor moves, in
// bytes.
const (
	minChunk = 64 << 10
	maxChunk = 256 << 10
)

// chunk is the most that ReadFrom and WriteTo move between two cursor moves: a
// system call's worth. An eighth of a ring is small enough for the other end to
// be at work meanwhile, so that a lap of the ring is many chunks and still
// about one signal each way.
func (h *half) chunk() int { return int(min(maxChunk, max(minChunk, h.cursor.size/8))) }

// cut shortens what is there to at most n bytes.
func cut(a, b []byte, n int) (x, y []byte) {
	if n <= len(a) {
		return a[:n], nil
	}
	return a, b[:min(len(b), n-len(a))]
}

// VectorReader is a reader that [Pipe.ReadFrom] makes better use of: a socket,
// for instance.
type VectorReader interface {
	io.Reader
	// ReadVector reads into a, and if that is full into b, which may be empty.
	// It calls wait before it waits, and need not if it doesn't.
	ReadVector(a, b []byte, wait func()) (n int, err error)
}

// VectorWriter is a writer that [Pipe.WriteTo] makes better use of.
type VectorWriter interface {
	io.Writer
	// WriteVector writes all of a, then of b.
	WriteVector(a, b []byte) (n int, err error)
}

var errInvalidCount = errors.New("pipes: invalid count from Read or Write")

// maxEmptyReads is how often in a row a reader may give neither bytes nor an
// error.
const maxEmptyReads = 100

// ReadFrom reads from r straight into ring memory until r ends. It waits for
// room, at most until the write deadline. It doesn't close the writer at the
// end. If r is a [VectorReader], it reads into both parts of ring memory where
// that wraps, and signals the other end less often while r has more to give.
//
// An error of r is returned as it is; one of this pipe as a *net.OpError that
// [Pipe.Caused] knows. While r.Read waits, this pipe's end isn't noticed: see
// [Pipe.OnWriteError] for how to get r.Read to return.
func (p *Pipe) ReadFrom(r io.Reader) (int64, error) {
	h := &p.wr
	in := source{r: r, flush: h.flush, chunk: h.chunk()}
	in.v, _ = r.(VectorReader)
	defer h.commitAfterPanic(&in.inside)
	var total int64
	n, err := h.begin(1)
	for err == nil {
		var full bool
		var rerr error
		n, full, rerr = in.read(h.spans(n))
		if rerr != nil {
			if err = h.commit(n); err != nil {
				break
			}
			if rerr == io.EOF {
				rerr = nil
			}
			return total + int64(n), rerr
		}
		total += int64(n)
		if full {
			n, err = h.nextOfMore(n, 1)
		} else {
			n, err = h.next(n, 1)
		}
	}
	return total, p.fail("write", err)
}

// source is what ReadFrom reads from.
type source struct {
	r      io.Reader
	v      VectorReader // r, if it is one
	flush  func()
	chunk  int
	empty  int  // reads in a row that gave neither bytes nor an error
	inside bool // r runs
}

// read reads into the parts of a ring. full says that a VectorReader filled all
// that it was given, so that there may be more.
func (s *source) read(x, y []byte) (n int, full bool, err error) {
	x, y = cut(x, y, s.chunk)
	s.inside = true
	if s.v != nil {
		n, err = s.v.ReadVector(x, y, s.flush)
	} else {
		y = nil
		n, err = s.r.Read(x)
	}
	s.inside = false
	if n < 0 || n > len(x)+len(y) {
		return 0, false, errInvalidCount
	}
	if n > 0 || err != nil {
		s.empty = 0
	} else if s.empty++; s.empty == maxEmptyReads {
		err = io.ErrNoProgress
	}
	return n, s.v != nil && n == len(x)+len(y), err
}

// WriteTo writes to w straight from ring memory until the other end has closed
// its writer and all bytes are written. It waits for bytes, at most until the
// read deadline. Bytes that w took are read, those that it didn't take stay.
//
// An error of w is returned as it is; one of this pipe as a *net.OpError that
// [Pipe.Caused] knows. While w.Write waits, a reset by the other end isn't
// noticed: see [Pipe.OnReadError] for how to get w.Write to return.
func (p *Pipe) WriteTo(w io.Writer) (int64, error) {
	h := &p.rd
	out := newSink(h, w)
	defer h.commitAfterPanic(&out.inside)
	var total int64
	n, err := h.begin(1)
	for err == nil {
		var werr error
		n, werr = out.write(h.spans(n))
		total += int64(n)
		if werr != nil {
			_ = h.commit(n) // closed meanwhile or not, w's error is what ended this
			return total, werr
		}
		n, err = h.next(n, 1)
	}
	if err == io.EOF {
		return total, nil
	}
	return total, p.fail("read", err)
}

// WriteAvailable is [Pipe.WriteTo] that returns nil where that would wait for
// bytes: for an end that needs no goroutine while nothing is there. The caller
// then has itself called by [Pipe.SubscribeReadable]. Unlike WriteTo it returns
// [io.EOF] when the other end has closed its writer and all bytes are written.
// It still waits for its turn.
func (p *Pipe) WriteAvailable(w io.Writer) (int64, error) {
	h := &p.rd
	out := newSink(h, w)
	defer h.commitAfterPanic(&out.inside)
	var total int64
	n, err := h.beginNow()
	for err == nil {
		var werr error
		n, werr = out.write(h.spans(n))
		total += int64(n)
		if werr != nil {
			_ = h.commit(n) // closed meanwhile or not, w's error is what ended this
			return total, werr
		}
		n, err = h.nextNow(n)
	}
	if err == errWouldWait {
		return total, nil
	}
	return total, p.fail("read", err)
}

// sink is what WriteTo writes to.
type sink struct {
	w      io.Writer
	v      VectorWriter // w, if it is one
	chunk  int
	inside bool // w runs
}

func newSink(h *half, w io.Writer) sink {
	v, _ := w.(VectorWriter)
	return sink{w: w, v: v, chunk: h.chunk()}
}

// write writes from the parts of a ring.
func (s *sink) write(x, y []byte) (n int, err error) {
	x, y = cut(x, y, s.chunk)
	s.inside = true
	if s.v != nil && len(y) > 0 {
		n, err = s.v.WriteVector(x, y)
	} else {
		y = nil
		n, err = s.w.Write(x)
	}
	s.inside = false
	switch want := len(x) + len(y); {
	case n < 0 || n > want:
		return 0, errInvalidCount
	case n < want && err == nil:
		err = io.ErrShortWrite
	}
	return n, err
}

// commitAfterPanic ends an operation whose reader or writer, an embedding
// program's, has panicked: that must not keep the turn for ever.
func (h *half) commitAfterPanic(inside *bool) {
	if *inside {
		_ = h.commit(0)
	}
}
