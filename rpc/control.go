package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/rpc/message"
)

// controlPipe is the control pipe with what its guest has shown of itself. Its
// goroutine alone uses it.
type controlPipe struct {
	*pipe
	dialect message.Dialect
}

// serveControl answers the requests on the control pipe. None of them waits for
// the network or for the guest: the guest's kernel holds a lock of its own
// meanwhile.
func (s *Server) serveControl(ctx context.Context, p *pipe) error {
	c := &controlPipe{pipe: p}
	for {
		size, err := c.next(maxControl)
		if err != nil {
			return err
		}
		b, err := c.whole(size)
		if err != nil {
			return err
		}
		m, shown, err := message.DecodeControlRequest(b, c.dialect)
		if err != nil {
			return unknownRequest(b, c.dialect)
		}
		if shown != c.dialect {
			s.log.Debug("guest has shown its dialect", "dialect", shown)
			c.dialect = shown
		}
		s.serveRequest(ctx, c, m)
	}
}

// maxShown is how many bytes of a request are in the error about it.
const maxShown = 64

// unknownRequest is the error for a request that fits no dialect that the guest
// may speak.
func unknownRequest(b []byte, d message.Dialect) error {
	shown, more := b, ""
	if len(shown) > maxShown {
		shown, more = shown[:maxShown], " …"
	}
	of := "dialects A and B"
	if d != message.UnknownDialect {
		of = fmt.Sprintf("dialect %v, which this guest speaks", d)
	}
	return fmt.Errorf("%w: request %d isn't one of %s; its %d bytes are % x%s", errMessage, b[0], of, len(b), shown, more)
}

func (s *Server) serveRequest(ctx context.Context, p *controlPipe, m message.ControlRequest) {
	switch m := m.(type) {
	case message.GetArgs:
		s.answer(p, message.Args(s.o.Args))
	case message.Exit:
		s.log.Debug("guest exits", "code", m.Code)
		if s.o.OnExit != nil {
			s.o.OnExit(m.Code)
		}
		// Guests of dialect B know no Ack, and ask for nothing any more.
		if p.dialect != message.DialectB {
			s.answer(p, message.Ack{})
		}
	case message.Open:
		s.openFile(ctx, p, m)
	case message.Mkdir:
		s.makeFolder(ctx, p, m)
	case message.Listen:
		s.listen(ctx, p, m)
	case message.Connect:
		s.connect(ctx, p, m)
	}
}

// controlEnded tells why the guest can't ask for anything any more: its kernel
// waits for an answer that never comes, so the virtual machine can't go on.
func (s *Server) controlEnded(err error) {
	if errors.Is(err, errStopped) {
		return
	}
	if err == io.EOF {
		err = errors.New("the guest has dropped it")
	}
	s.guestBroken(fmt.Errorf("the control pipe has ended: %w", err))
}

func (s *Server) answer(p *controlPipe, m message.ControlResponse) {
	p.respond(message.AppendControlResponse(p.buf[:0], m))
}

// hand gives the guest a new pipe in answer to a request on the control pipe,
// and serves it.
func (s *Server) hand(ctx context.Context, control *controlPipe, kind string, p *pipe, serve func(context.Context, *pipe) error) {
	s.answer(control, p.place())
	s.start(ctx, kind, p, serve)
}

func (s *Server) openFile(ctx context.Context, control *controlPipe, m message.Open) {
	f, p, err := s.openPiped(ctx, m)
	if err != nil {
		s.noteRefused("open", m.Path, err)
		s.answerRefusedOpen(ctx, control, err)
		return
	}
	s.log.Debug("file opened", "path", cut(m.Path))
	s.hand(ctx, control, "file", p, serveFile(f))
}

// openPiped makes the pipe before it opens the file, which may make or empty
// it: a guest that gets none has changed nothing.
func (s *Server) openPiped(ctx context.Context, m message.Open) (f *file, p *pipe, err error) {
	if err = s.holdFile(); err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			s.dropFile()
		}
	}()
	t, err := s.findShared(ctx, m.Path, m.Mode)
	if err != nil {
		return nil, nil, err
	}
	requests, responses := t.ringSizes(m.Mode)
	if p, err = s.newPipe(requests, responses, fileShare); err != nil {
		return nil, nil, err
	}
	if f, err = s.openTarget(ctx, t); err != nil {
		return nil, nil, errors.Join(err, p.discard())
	}
	return f, p, nil
}

func (s *Server) makeFolder(ctx context.Context, control *controlPipe, m message.Mkdir) {
	if err := s.mkdirShared(ctx, m.Path); err != nil {
		s.noteRefused("mkdir", m.Path, err)
		s.answer(control, message.Err{Kind: errKind(err)})
		return
	}
	s.answer(control, message.Ack{})
}

func (h *host) noteRefused(op, path string, err error) {
	h.filesRefused.Add(1)
	h.overQuota(err)
	switch {
	case h.o.Share.None():
		h.warn(op+" refused: no folder is shared with the guest", "path", path)
	case errors.Is(err, unix.EROFS):
		h.warn(op+" refused: what is shared with the guest is read-only", "path", path)
	default:
		h.log.Debug(op+" refused", "path", cut(path), "err", err)
	}
}

// answerRefusedOpen tells the guest that its file can't be opened. Guests of
// dialect B know no such answer: they get a file that is empty. A guest that
// hasn't shown its dialect yet is taken for one of A.
func (s *Server) answerRefusedOpen(ctx context.Context, control *controlPipe, err error) {
	if control.dialect == message.DialectB {
		if p, perr := s.newPipe(pageSize, pageSize, fileShare); perr == nil {
			s.hand(ctx, control, "file", p, serveFile(absent{}))
			return
		}
	}
	s.answer(control, message.Err{Kind: errKind(err)})
}

// listen listens before it answers. Guests expect no error: if it fails they
// get a listener at which no client arrives.
func (s *Server) listen(ctx context.Context, control *controlPipe, m message.Listen) {
	address := netip.AddrPortFrom(netip.AddrFrom4(m.IP), m.Port)
	p, err := s.newPipe(pageSize, pageSize, 1)
	if err != nil {
		s.warn("no memory for a listener", "address", address, "err", err)
		s.answer(control, message.Err{Kind: errKind(err)})
		return
	}
	l := &listener{server: s}
	var bound netip.AddrPort
	if l.ln, bound, err = s.bind(ctx, address); err != nil {
		s.warn("listen failed; nobody will arrive at this listener", "address", address, "err", err)
	} else {
		s.log.Debug("listening", "local", bound)
		if s.o.OnListen != nil {
			s.o.OnListen(bound)
		}
	}
	s.hand(ctx, control, "listener", p, l.serve)
}

func (h *host) bind(ctx context.Context, address netip.AddrPort) (net.Listener, netip.AddrPort, error) {
	ln, err := h.o.Network.Listen(ctx, "tcp4", address.String())
	if err != nil {
		return nil, netip.AddrPort{}, err
	}
	// A network of an embedding program may break its contract.
	if ln == nil {
		return nil, netip.AddrPort{}, errors.New("no listener, and no error")
	}
	bound, ok := ln.Addr().(*net.TCPAddr)
	if !ok {
		_ = ln.Close()
		return nil, netip.AddrPort{}, fmt.Errorf("a listener whose address is a %T", ln.Addr())
	}
	return ln, bound.AddrPort(), nil
}

// connect answers at once; the stream's own goroutine connects. Guests expect
// no error: if it fails they get a stream that has ended.
func (s *Server) connect(ctx context.Context, control *controlPipe, m message.Connect) {
	address := net.JoinHostPort(m.Host, strconv.Itoa(int(m.Port)))
	p, err := s.newPipe(streamBlock, streamBlock, streamShare)
	if err != nil {
		s.warn("no memory for a connection", "address", address, "err", err)
		s.answer(control, message.Err{Kind: errKind(err)})
		return
	}
	s.hand(ctx, control, "stream", p, dialing(ctx, s.host, address).serve)
}
