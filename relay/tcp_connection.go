package relay

import (
	"context"
	"log/slog"
	"net"
	"strconv"

	"github.com/fix-project/arcavm/wire"
)

// TCPConnection returns the handler of protocol 2: it connects to an address, or to a host by name, and relays.
func TCPConnection() Handler {
	return HandlerFunc(serveTCPConnection)
}

func serveTCPConnection(ctx context.Context, s *Stream) error {
	m, err := wire.DecodeConnect(s.Payload)
	if err != nil {
		return protocolError(err)
	}
	conn, err := dial(ctx, s, m)
	if err != nil {
		s.server.count.connectsFailed.Add(1)
		s.log(slog.LevelDebug, "connect failed", slog.Any("err", err))
		return s.Opened(errnoOf(err), nil)
	}
	s.log(slog.LevelDebug, "connected", slog.Any("peer", conn.RemoteAddr()))
	ends := wire.AppendEndpoint(nil, endpoint(conn.LocalAddr()))
	ends = wire.AppendEndpoint(ends, endpoint(conn.RemoteAddr()))
	if err := s.Opened(0, ends); err != nil {
		abandon(conn)
		return err
	}
	return relayTCP(ctx, s, conn)
}

// dial connects. A guest that can't be told the result any more ends the attempt.
func dial(ctx context.Context, s *Stream, m wire.Connect) (*net.TCPConn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.Pipe.OnWriteError(cancel)
	target := m.Endpoint.AddrPort().String()
	if len(m.Name) > 0 {
		target = net.JoinHostPort(string(m.Name), strconv.Itoa(int(m.Endpoint.Port)))
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", target)
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// endpoint is a TCP address as the wire carries it. Its zone becomes an interface index.
func endpoint(a net.Addr) wire.Endpoint {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return wire.Endpoint{}
	}
	ap := tcp.AddrPort()
	e := wire.Endpoint{Addr: ap.Addr().WithZone("").Unmap(), Port: ap.Port()}
	if tcp.Zone != "" {
		if index, err := strconv.ParseUint(tcp.Zone, 10, 32); err == nil {
			e.Scope = uint32(index)
		} else if i, err := net.InterfaceByName(tcp.Zone); err == nil {
			e.Scope = uint32(i.Index)
		}
	}
	return e
}

// abandon closes a connection that nobody takes with a reset, as the kernel does with those left in a backlog.
func abandon(conn *net.TCPConn) {
	_ = conn.SetLinger(0)
	_ = conn.Close()
}
