package client

import (
	"context"
	"net"
	"syscall"
	"time"

	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/pipes/guest"
	"github.com/fix-project/arcavm/wire"
)

// defaultRing is the size of a stream's rings, unless [Client.With] says
// otherwise, in bytes.
const defaultRing = 64 << 10

// Rings is what a client asks of a new pipe.
type Rings struct {
	Outgoing uint32 // bytes, a power of two from 4 KiB to 64 MiB
	Incoming uint32 // likewise
	CPU      uint32 // the home CPU, which the pipe's interrupts go to
}

// Client opens streams for a guest. All methods may be called by several
// goroutines at once.
type Client struct {
	control *control
	rings   Rings
}

// New returns a client that asks for pipes on a control pipe. While it is in
// use nothing else may read or write that pipe.
func New(g *guest.Guest, pipe *guest.Conn) *Client {
	c := &control{guest: g, pipe: pipe, turn: make(chan struct{}, 1)}
	return &Client{control: c, rings: Rings{Outgoing: defaultRing, Incoming: defaultRing}}
}

// With returns a client on the same control pipe whose streams have these
// rings. Without, a ring has 64 KiB, and the home CPU is 0.
func (c *Client) With(r Rings) *Client {
	return &Client{control: c.control, rings: r}
}

// Pipe asks for a pipe that nothing has been opened on yet: for a protocol that
// is spoken by hand. Otherwise [Client.Open] is simpler. An error is EMFILE, if
// all slots are in use, ENOMEM, if the window is full, EINVAL, for [Rings] that
// can't be, or what the context ended with.
func (c *Client) Pipe(ctx context.Context) (*guest.Conn, error) {
	p, err := c.control.newPipe(ctx, c.rings)
	if err != nil {
		return nil, &net.OpError{Op: "new stream", Net: "pipe", Err: err}
	}
	return p, nil
}

// Open makes a stream of any protocol, an embedding program's for instance,
// with that protocol's payload of at most wire.MaxProtocolPayload bytes. It
// returns the stream and the payload of the answer. A refusal is the errno of
// the monitor's answer; EPROTONOSUPPORT is that of a protocol that has no
// handler. When ctx ends before the answer is there, the attempt does, too.
func (c *Client) Open(ctx context.Context, protocol uint16, payload []byte) (*Conn, []byte, error) {
	p, answer, err := c.open(ctx, protocol, payload)
	if err != nil {
		return nil, nil, &net.OpError{Op: "open", Net: wire.ProtocolName(protocol), Err: err}
	}
	return &Conn{Conn: p}, answer, nil
}

// open is Open with an error that isn't wrapped yet.
func (c *Client) open(ctx context.Context, protocol uint16, payload []byte) (*guest.Conn, []byte, error) {
	p, err := c.control.newPipe(ctx, c.rings)
	if err != nil {
		return nil, nil, err
	}
	stop := interrupt(ctx, p)
	answer, err := OpenPipe(p, protocol, payload)
	if stop() {
		err = ctx.Err()
	}
	if err != nil {
		// A reset ends what the monitor may still be trying.
		_ = p.Reset(syscall.ECANCELED)
		return nil, nil, err
	}
	return p, answer, nil
}

// openRequest is the request id of an Open. A pipe has one, so any will do.
const openRequest = 1

// OpenPipe opens a protocol on a new pipe of [Client.Pipe], and returns the
// payload of the answer, or the status as a [syscall.Errno]. It waits for the
// answer, at most until the pipe's deadlines. After an error the caller has the
// pipe to close.
func OpenPipe(p *guest.Conn, protocol uint16, payload []byte) ([]byte, error) {
	if len(payload) > wire.MaxProtocolPayload {
		return nil, syscall.EMSGSIZE
	}
	if _, err := p.Write(wire.AppendOpen(nil, openRequest, wire.Open{Protocol: protocol, Payload: payload})); err != nil {
		return nil, err
	}
	h, answer, err := ReadFrame(p)
	if err != nil {
		return nil, err
	}
	if h.Kind != wire.KindOpened || h.RequestID != openRequest {
		return nil, unexpected(h)
	}
	m, err := wire.DecodeOpened(answer)
	if err == nil {
		err = status(m.Status)
	}
	return m.Payload, err
}

// status is an answer's status as an error.
func status(s uint32) error {
	if s == 0 {
		return nil
	}
	return syscall.Errno(s)
}

// interrupt ends what waits at p when ctx does. The caller calls stop when it
// waits no more; stop reports whether ctx has ended first, and the deadlines of
// p are none then.
func interrupt(ctx context.Context, p *guest.Conn) (stop func() bool) {
	if ctx.Done() == nil {
		return func() bool { return false }
	}
	done := make(chan struct{})
	halt := context.AfterFunc(ctx, func() {
		_ = p.SetDeadline(time.Unix(1, 0))
		close(done)
	})
	return func() bool {
		if halt() {
			return false
		}
		<-done
		_ = p.SetDeadline(time.Time{})
		return true
	}
}

// control is the guest's end of the control pipe.
type control struct {
	guest   *guest.Guest
	pipe    *guest.Conn
	turn    chan struct{} // full while a request is under way: one at a time
	request uint64        // id of the last request; the turn's
}

// newPipe asks for a pipe. A request that ctx has cut off is answered all the
// same: the next turn finds that answer and gives its pipe back.
func (c *control) newPipe(ctx context.Context, r Rings) (*guest.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case c.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-c.turn }()
	stop := interrupt(ctx, c.pipe)
	p, err := c.ask(r)
	if stop() && err != nil {
		err = ctx.Err()
	}
	return p, err
}

// ask sends a request and waits for its answer. The caller has the turn.
func (c *control) ask(r Rings) (*guest.Conn, error) {
	c.request++
	var frame [64]byte
	m := wire.NewStreamRequest{OutgoingSize: r.Outgoing, IncomingSize: r.Incoming, HomeCPU: r.CPU}
	if err := putFrame(c.pipe, wire.AppendNewStreamRequest(frame[:0], c.request, m)); err != nil {
		return nil, err
	}
	for {
		h, payload, err := takeFrame(c.pipe, frame[:0])
		if err != nil {
			return nil, err
		}
		if h.Kind != wire.KindDataStreamInfo || h.RequestID > c.request {
			return nil, unexpected(h)
		}
		p, err := c.attach(payload)
		if h.RequestID == c.request {
			return p, err
		}
		if err == nil {
			_ = p.Close()
		}
	}
}

// attach returns the guest's end of the pipe that an answer describes.
func (c *control) attach(answer []byte) (*guest.Conn, error) {
	info, err := wire.DecodeDataStreamInfo(answer)
	if err == nil {
		err = status(info.Status)
	}
	if err != nil {
		return nil, err
	}
	d := info.Pipe
	return c.guest.Attach(pipes.Descriptor{
		ID: pipes.ID(d.ID), Header: d.Header, Outgoing: d.Outgoing, Incoming: d.Incoming,
		OutgoingSize: d.OutgoingSize, IncomingSize: d.IncomingSize,
	})
}
