package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/rpc/message"
)

// connectTimeout is how long a connection may take to come about.
const connectTimeout = network.DefaultConnectTimeout

// stream is a TCP connection on a pipe of its own. Without a connection, or
// when it has failed, it looks to the guest as if it had ended: nothing to
// receive, and what is sent goes nowhere.
type stream struct {
	server *host
	pipe   *pipe           // nil: the guest asks by hypercalls
	done   <-chan struct{} // closed when the server stops

	dialed chan struct{}      // closed when conn means something; nil: it does from the start
	giveUp context.CancelFunc // ends the attempt to connect, if there is one
	conn   *net.TCPConn       // nil if there is none
}

// dialing returns a stream that connects meanwhile. It is to be served.
func dialing(ctx context.Context, s *host, address string) *stream {
	st := &stream{server: s, dialed: make(chan struct{})}
	ctx, st.giveUp = context.WithTimeout(ctx, connectTimeout)
	go func() {
		defer close(st.dialed)
		st.dial(ctx, address)
	}()
	return st
}

// connection waits for the attempt to connect, if there is one, and returns nil
// if there is no connection.
func (st *stream) connection() *net.TCPConn {
	if st.dialed != nil {
		<-st.dialed
	}
	return st.conn
}

func (st *stream) serve(ctx context.Context, p *pipe) error {
	st.pipe, st.done = p, ctx.Done()
	defer closeWith(ctx, st.abandon)()
	return serveRequests(p, message.DecodeStreamRequest, func(m message.StreamRequest) (last bool, err error) {
		switch m.Op {
		case message.StreamSend:
			return false, st.send(p, m.Length)
		case message.StreamReceive:
			p.respondBytes(message.AppendStreamBytes, m.Length, st)
		case message.StreamClose:
			st.close()
			p.respond(message.AppendStreamAck(p.buf[:0]))
			return true, nil
		}
		return false, nil
	})
}

func (st *stream) dial(ctx context.Context, address string) {
	var conn *net.TCPConn
	var err error = unix.ENAMETOOLONG
	if len(address) <= maxAddress {
		conn, err = asTCP(st.server.o.Network.DialContext(ctx, "tcp", address))
	}
	if err != nil {
		st.server.connectsFailed.Add(1)
		if !errors.Is(ctx.Err(), context.Canceled) {
			st.server.warn("connect failed; the stream has ended for the guest", "address", address, "err", err)
		}
		return
	}
	st.conn = conn
}

// maxAddress bounds a host and port, in bytes: a name has 255 at most.
const maxAddress = 255 + len("[]:65535")

// send answers with the length of what was to be sent, also if the peer is
// gone: guests try again until all is sent.
func (st *stream) send(p *pipe, n uint64) error {
	_, serr, err := p.payload(n, st)
	if err != nil {
		return err
	}
	if serr != nil && st.connection() != nil {
		st.server.log.Debug("send failed", "peer", st.conn.RemoteAddr(), "err", serr)
	}
	p.respond(message.AppendStreamLength(p.buf[:0], n))
	return nil
}

// write sends both parts to the peer.
func (st *stream) write(a, b []byte) (int, error) {
	if st.connection() == nil {
		return 0, unix.ENOTCONN
	}
	st.server.spend(st.done, len(a)+len(b))
	n, err := st.writeAll(a)
	if err == nil && len(b) > 0 {
		var k int
		k, err = st.writeAll(b)
		n += k
	}
	return n, err
}

const (
	// lingerTimeout is how long the rest of what a guest sent, on a stream that
	// it has dropped, waits for a peer that takes nothing of it.
	lingerTimeout = time.Minute
	// lingerPiece is how much a peer has to take in that time, in bytes.
	lingerPiece = 16 << 10
)

// writeAll waits for a peer that takes nothing for as long as the guest keeps
// the stream, and no longer than lingerTimeout after that, or twice as long.
func (st *stream) writeAll(b []byte) (int, error) {
	n, err := st.writeNow(b)
	if n == len(b) || err != nil {
		return n, err
	}
	for n < len(b) {
		_ = st.conn.SetWriteDeadline(time.Now().Add(st.server.linger))
		k, err := st.conn.Write(b[n:min(n+lingerPiece, len(b))])
		n += k
		switch {
		case err == nil:
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return n, err
		case k == 0 && st.pipe != nil && st.pipe.abandoned():
			_ = st.conn.SetLinger(0)
			_ = st.conn.Close()
			return n, fmt.Errorf("the guest has dropped the stream, and its peer takes nothing: %w", err)
		}
	}
	return n, st.conn.SetWriteDeadline(time.Time{})
}

// writeNow writes what the socket takes without waiting.
func (st *stream) writeNow(b []byte) (n int, err error) {
	raw, err := st.conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	werr := raw.Control(func(fd uintptr) {
		n, err = unix.SendmsgN(int(fd), b, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	})
	switch {
	case werr != nil:
		return 0, werr
	case err == unix.EAGAIN || err == unix.EINTR:
		return 0, nil
	case err != nil:
		return 0, os.NewSyscallError("sendmsg", err)
	}
	return n, nil
}

// read waits until there is something to receive and takes what is there. 0 is
// the end.
func (st *stream) read(a, b []byte) int {
	if st.connection() == nil {
		return 0
	}
	n, err := st.conn.Read(a)
	if err != nil {
		if err != io.EOF && !errors.Is(err, net.ErrClosed) {
			st.server.log.Debug("receive failed", "peer", st.conn.RemoteAddr(), "err", err)
		}
		return 0
	}
	if n == len(a) && len(b) > 0 {
		n += st.readMore(b)
	}
	st.server.spend(st.done, n)
	return n
}

// readMore takes what is there without waiting.
func (st *stream) readMore(b []byte) int {
	n, _ := st.readNow(b)
	return n
}

// readNow takes what is there without waiting. false: nothing is there yet, or
// the connection has failed, which the next read says again.
func (st *stream) readNow(b []byte) (n int, ok bool) {
	raw, err := st.conn.SyscallConn()
	if err != nil {
		return 0, false
	}
	cerr := raw.Control(func(fd uintptr) { n, err = unix.Read(int(fd), b) })
	if err != nil || cerr != nil {
		return 0, false
	}
	return n, true
}

// close ends the connection so that the peer gets everything that was sent.
// Bytes that weren't received would make the kernel send a reset, which can
// overtake what was sent.
func (st *stream) close() {
	st.stopDialing()
	if st.connection() == nil {
		return
	}
	if err := st.conn.CloseWrite(); err == nil {
		var scrap [4096]byte
		for range 64 {
			if st.readMore(scrap[:]) <= 0 {
				break
			}
		}
	}
	st.abandon()
}

func (st *stream) abandon() {
	st.stopDialing()
	if conn := st.connection(); conn != nil {
		_ = conn.Close()
	}
}

func (st *stream) stopDialing() {
	if st.giveUp != nil {
		st.giveUp()
	}
}
