package rpc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/fix-project/arcavm/rpc/message"
)

var errMessage = errors.New("the guest has sent a message that breaks the protocol")

// maxControl bounds a request on the control pipe, in bytes.
const maxControl = 64 << 10

// pipe is the monitor's end of a pipe: the guest sends a request and waits for
// the response before it sends the next. One goroutine serves it.
type pipe struct {
	server    *Server
	requests  *ring
	responses *ring
	wake      chan struct{}
	buf       [64]byte
}

// place is where the rings are, as the guest is told.
func (p *pipe) place() message.Pipe {
	return message.Pipe{
		RxOffset: p.responses.offset(), RxLength: p.responses.length(),
		TxOffset: p.requests.offset(), TxLength: p.requests.length(),
	}
}

// need waits until n bytes of requests are readable, no more than the ring's
// capacity, and returns how many there are. io.EOF: the guest has dropped its
// end; io.ErrUnexpectedEOF: in the middle of it.
func (p *pipe) need(n uint64) (uint64, error) {
	r := p.requests
	for {
		// A busy guest doesn't keep the server from its end.
		if err := p.server.watcher.running(); err != nil {
			return 0, err
		}
		// The flag first: after it come no more bytes.
		closed := r.theirFlag.isSet()
		have, err := r.readable()
		switch {
		case err != nil:
			return 0, err
		case have >= n:
			return have, nil
		case closed && have == 0:
			return 0, io.EOF
		case closed:
			return 0, io.ErrUnexpectedEOF
		}
		if err := p.server.watcher.await(watch{r.theirs, r.seen, n - have, r.theirFlag}, p.wake); err != nil {
			return 0, err
		}
	}
}

// drained waits until the guest has read the last response. A guest that goes
// by the protocol has when it sends a request. So each response has the whole
// ring for itself.
func (p *pipe) drained() error {
	r := p.responses
	for {
		closed := r.theirFlag.isSet()
		n, err := r.unread()
		switch {
		case err != nil || n == 0:
			return err
		case closed:
			return io.EOF
		}
		if err := p.server.watcher.await(watch{r.theirs, r.seen, n, r.theirFlag}, p.wake); err != nil {
			return err
		}
	}
}

// next waits for a request and takes its length, which is 1 to limit.
func (p *pipe) next(limit uint64) (uint64, error) {
	if _, err := p.need(message.LengthSize); err != nil {
		return 0, err
	}
	if err := p.drained(); err != nil {
		return 0, err
	}
	b := p.buf[:message.LengthSize]
	p.requests.load(0, b)
	size := binary.LittleEndian.Uint64(b)
	if size == 0 || size > limit {
		return 0, fmt.Errorf("%w: a length of %d", errMessage, size)
	}
	p.requests.move(message.LengthSize)
	p.server.requests.Add(1)
	return size, nil
}

// head waits for a request on a data pipe and returns its size and its first
// bytes, which are not taken.
func (p *pipe) head() (head []byte, size uint64, err error) {
	// No request is larger than RAM.
	size, err = p.next(uint64(len(p.server.alloc.ram)))
	if err != nil {
		return nil, 0, err
	}
	n := min(size, message.HeadSize)
	if _, err := p.need(n); err != nil {
		return nil, 0, unexpected(err)
	}
	head = p.buf[:n]
	p.requests.load(0, head)
	return head, size, nil
}

// serveRequests serves a data pipe: it takes one request after the other, as
// decode reads it from its first bytes, and has it answered, until answer says
// that this was the last, or fails. The request's bytes are for answer to take.
func serveRequests[M any](
	p *pipe, decode func(head []byte, size uint64) (m M, n int, err error), answer func(M) (last bool, err error),
) error {
	for last := false; !last; {
		head, size, err := p.head()
		if err != nil {
			return err
		}
		m, n, err := decode(head, size)
		if err != nil {
			return err
		}
		p.requests.move(uint64(n))
		if last, err = answer(m); err != nil {
			return err
		}
	}
	return nil
}

// whole waits for a request of size bytes and takes it.
func (p *pipe) whole(size uint64) ([]byte, error) {
	b := make([]byte, size)
	for rest := b; len(rest) > 0; {
		have, err := p.need(1)
		if err != nil {
			return nil, unexpected(err)
		}
		n := min(have, uint64(len(rest)))
		p.requests.load(0, rest[:n])
		p.took(n)
		rest = rest[n:]
	}
	return b, nil
}

// took gives n bytes of room back to the guest, which may be waiting for it.
func (p *pipe) took(n uint64) {
	p.requests.move(n)
	p.server.signal()
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// sink takes the bytes of a request, in at most two parts. It returns how many
// it took; fewer than all only with an error.
type sink interface {
	write(a, b []byte) (int, error)
}

// payload passes n bytes of a request straight from the ring to a sink. After
// the sink's error, which it returns as serr, the rest is thrown away.
func (p *pipe) payload(n uint64, to sink) (done uint64, serr, err error) {
	r := p.requests
	chunk := r.capacity() / 4
	for left := n; left > 0; {
		have, err := p.need(min(left, chunk))
		if err != nil {
			return done, serr, unexpected(err)
		}
		have = min(have, left)
		if serr == nil {
			a, b := r.span(0, have)
			var k int
			k, serr = to.write(a, b)
			done += uint64(k)
		}
		left -= have
		p.took(have)
	}
	p.server.fromGuest.Add(done)
	return done, serr, nil
}

// respond sends a response, which fits into the ring.
func (p *pipe) respond(b []byte) {
	var length [message.LengthSize]byte
	binary.LittleEndian.PutUint64(length[:], uint64(len(b)))
	p.responses.store(0, length[:])
	p.responses.store(message.LengthSize, b)
	p.sent(message.LengthSize + uint64(len(b)))
}

func (p *pipe) sent(n uint64) {
	p.responses.move(n)
	p.server.signal()
}

// source gives the bytes of a response, in at most two parts, and returns how
// many it gave.
type source interface {
	read(a, b []byte) int
}

// respondBytes sends up to want bytes, which it reads straight into the ring.
// head appends what comes before n bytes.
func (p *pipe) respondBytes(head func(b []byte, n uint64) []byte, want uint64, from source) {
	r := p.responses
	want = min(want, r.capacity()-message.LengthSize-1-uint64(message.VarintSize(r.capacity())))
	var n uint64
	room := message.LengthSize + 1 + uint64(message.VarintSize(want))
	if want > 0 {
		a, b := r.span(room, want)
		n = uint64(from.read(a, b))
	}
	b := head(p.buf[:message.LengthSize], n)
	binary.LittleEndian.PutUint64(b, uint64(len(b))-message.LengthSize+n)
	// Fewer bytes than wanted may have a shorter length.
	if used := uint64(len(b)); used < room {
		r.shift(room, used, n)
	}
	r.store(0, b)
	p.sent(uint64(len(b)) + n)
	p.server.toGuest.Add(n)
}

// abandoned reports whether the guest has dropped its end without waiting for
// the response.
func (p *pipe) abandoned() bool { return p.responses.theirFlag.isSet() }

// discard frees a pipe that the guest has never heard of.
func (p *pipe) discard() error {
	defer p.server.closed()
	return errors.Join(p.requests.discard(), p.responses.discard())
}

// close drops the monitor's end. After a Close the guest has its response still
// to read, which it doesn't if the flag is set.
func (p *pipe) close(acknowledged bool) error {
	return errors.Join(p.responses.release(!acknowledged), p.requests.release(true))
}
