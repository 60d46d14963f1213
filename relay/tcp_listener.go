package relay

import (
	"context"
	"io"
	"net"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/wire"
)

// TCPListener returns the handler of protocol 1: it listens, and relays each
// connection on the pipe that an AcceptConnection names. It accepts a
// connection only when the guest has asked for one, so that others stay in the
// kernel's backlog.
func TCPListener() Handler {
	return HandlerFunc(serveTCPListener)
}

func serveTCPListener(ctx context.Context, s *Stream) error {
	m, err := wire.DecodeListen(s.Payload)
	if err != nil {
		return ProtocolError(err)
	}
	ln, err := listen(ctx, s.Network(), m)
	if err != nil {
		s.bindFailed("listen failed", err)
		return s.Opened(network.Errno(err), nil)
	}
	ln = optionsListener{ln, m.Options}
	return serveListener(ctx, s, ln, wire.AppendEndpoint(nil, boundEndpoint(s, ln)), wire.ProtocolTCPConnection)
}

// listen binds and listens. An IPv6 socket serves IPv6 only, whatever the
// host's settings.
func listen(ctx context.Context, from network.Network, m wire.Listen) (net.Listener, error) {
	at, err := localAddress(m.Endpoint)
	if err != nil {
		return nil, err
	}
	return listenOn(ctx, from, network.Name("tcp", at), at.String(), m.Backlog)
}

// boundEndpoint tells the embedding program where ln is bound, and returns
// where it is as the guest sees it.
func boundEndpoint(s *Stream, ln net.Listener) wire.Endpoint {
	if s.server.onListen != nil {
		defer closeOnPanic(ln)
		s.server.onListen(endpoint(ln.Addr()).AddrPort())
	}
	return guestEndpoint(ln, ln.Addr())
}

// guestEndpoint is a local address of ln, or of a connection of it, as the
// guest sees it. A published port's address on the host isn't told to the
// guest.
func guestEndpoint(ln net.Listener, local net.Addr) wire.Endpoint {
	for {
		switch l := ln.(type) {
		case interface{ GuestAddr() net.Addr }:
			return endpoint(l.GuestAddr())
		case interface{ NetListener() net.Listener }:
			ln = l.NetListener()
		case *tlsListener:
			ln = l.Listener
		default:
			return endpoint(local)
		}
	}
}

// optionsListener sets the options of each connection.
type optionsListener struct {
	net.Listener
	options wire.TCPOptions
}

// NetListener returns the listener that l wraps.
func (l optionsListener) NetListener() net.Listener { return l.Listener }

func (l optionsListener) Accept() (net.Conn, error) {
	conn, err := network.CheckConn(l.Listener.Accept())
	if err != nil {
		return nil, err
	}
	setTCPOptions(conn, l.options)
	return conn, nil
}

// closeOnPanic is deferred around a call of the embedding program's function:
// if that panics, c would be left open.
func closeOnPanic(c io.Closer) {
	if cause := recover(); cause != nil {
		_ = c.Close()
		panic(cause)
	}
}
