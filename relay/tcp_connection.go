package relay

import (
	"context"
	"log/slog"
	"net"
	"strconv"
	"time"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/wire"
)

// TCPConnection returns the handler of protocol 2: it connects to an address,
// or to a host by name, and relays.
func TCPConnection() Handler {
	return HandlerFunc(serveTCPConnection)
}

func serveTCPConnection(ctx context.Context, s *Stream) error {
	m, err := wire.DecodeConnect(s.Payload)
	if err != nil {
		return ProtocolError(err)
	}
	conn, err := dial(ctx, s, m)
	if err != nil {
		s.server.count.connectsFailed.Add(1)
		s.failed("connect failed", err)
		return s.Opened(network.Errno(err), nil)
	}
	if m.Options != nil {
		setTCPOptions(conn, *m.Options)
	}
	s.log(slog.LevelDebug, "connected", slog.Any("peer", conn.RemoteAddr()))
	ends := wire.AppendEndpoint(nil, endpoint(conn.LocalAddr()))
	ends = wire.AppendEndpoint(ends, endpoint(conn.RemoteAddr()))
	if err := s.Opened(0, ends); err != nil {
		network.Abandon(conn)
		return err
	}
	relayConn(s, conn)
	return nil
}

// setTCPOptions sets what differs from Go's defaults, which are this
// protocol's, too: TCP_NODELAY, and keep-alive as [net.KeepAliveConfig] has it.
// Errors are ignored: a socket that can't take an option has ended, and fails
// when it is used.
func setTCPOptions(conn network.Conn, o wire.TCPOptions) {
	tcp := network.AsTCP(conn)
	if tcp == nil {
		return
	}
	if o.Flags&wire.TCPDelay != 0 {
		_ = tcp.SetNoDelay(false)
	}
	switch o.KeepAlive {
	case 0:
	case wire.KeepAliveOff:
		_ = tcp.SetKeepAlive(false)
	default:
		every := time.Duration(o.KeepAlive) * time.Second
		_ = tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: every, Interval: every})
	}
}

func dial(ctx context.Context, s *Stream, m wire.Connect) (network.Conn, error) {
	target := m.Endpoint.AddrPort().String()
	if len(m.Name) > 0 {
		target = net.JoinHostPort(string(m.Name), strconv.Itoa(int(m.Endpoint.Port)))
	}
	return dialOn(ctx, s, "tcp", target)
}

// dialOn connects. The attempt ends when the guest takes no more answers.
func dialOn(ctx context.Context, s *Stream, kind, address string) (network.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, s.server.patience)
	defer cancel()
	s.Pipe.OnWriteError(cancel)
	return network.CheckConn(s.Network().DialContext(ctx, kind, address))
}
