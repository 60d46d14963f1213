package relay

import (
	"context"
	"io"
	"net"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/wire"
)

// TCPListener returns the handler of protocol 1: it listens, and relays each connection on the pipe that an AcceptConnection names. It takes a
// connection from the kernel only when the guest has asked for one, so that the kernel's backlog holds the others.
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

// listen binds and listens. An IPv6 address takes IPv6 connections only, whatever the host's settings.
func listen(ctx context.Context, from network.Network, m wire.Listen) (net.Listener, error) {
	at, err := localAddress(m.Endpoint)
	if err != nil {
		return nil, err
	}
	return listenOn(ctx, from, network.Name("tcp", at), at.String(), m.Backlog)
}

// boundEndpoint tells the embedding program where ln is bound, and returns where the guest believes it is.
func boundEndpoint(s *Stream, ln net.Listener) wire.Endpoint {
	if s.server.onListen != nil {
		defer closeOnPanic(ln)
		s.server.onListen(endpoint(ln.Addr()).AddrPort())
	}
	return guestEndpoint(ln, ln.Addr())
}

// guestEndpoint is a local address of ln, or of a connection that it accepted, as the guest sees it. One who listens on a published port is told nothing
// of where that is on the host.
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

// optionsListener sets options of each connection.
type optionsListener struct {
	net.Listener
	options wire.TCPOptions
}

// NetListener returns the listener that l was made of.
func (l optionsListener) NetListener() net.Listener { return l.Listener }

func (l optionsListener) Accept() (net.Conn, error) {
	conn, err := network.CheckConn(l.Listener.Accept())
	if err != nil {
		return nil, err
	}
	setTCPOptions(conn, l.options)
	return conn, nil
}

// closeOnPanic is deferred where an embedding program is told of what it then doesn't get to close.
func closeOnPanic(c io.Closer) {
	if cause := recover(); cause != nil {
		_ = c.Close()
		panic(cause)
	}
}
