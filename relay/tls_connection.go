package relay

import (
	"context"
	"crypto/tls"
	"log/slog"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/wire"
)

// TLSConnection returns the handler of protocol 7: it connects as
// [TCPConnection] does, does TLS as the client, and relays the bytes inside.
func TLSConnection(t TLS) Handler {
	return HandlerFunc(func(ctx context.Context, s *Stream) error { return serveTLSConnection(ctx, s, t) })
}

func serveTLSConnection(ctx context.Context, s *Stream, t TLS) error {
	m, err := wire.DecodeTLSConnect(s.Payload)
	if err != nil {
		return ProtocolError(err)
	}
	conn, err := dialTLS(ctx, s, m, t)
	if err != nil {
		s.server.count.connectsFailed.Add(1)
		s.failed("connect failed", err)
		return s.Opened(network.Errno(err), nil)
	}
	session := conn.session()
	s.log(slog.LevelDebug, "connected", slog.Any("peer", conn.RemoteAddr()), slog.String("tls", tls.VersionName(session.Version)))
	err = s.Opened(0, wire.AppendTLSConnected(nil, wire.TLSConnected{
		Local: endpoint(conn.LocalAddr()), Peer: endpoint(conn.RemoteAddr()), TLS: session,
	}))
	if err != nil {
		network.Abandon(conn)
		return err
	}
	relayConn(s, conn)
	return nil
}

// dialTLS connects and does the handshake, both within the time of a connect.
func dialTLS(ctx context.Context, s *Stream, m wire.TLSConnect, t TLS) (*tlsConn, error) {
	ctx, cancel := context.WithTimeout(ctx, s.server.patience)
	defer cancel()
	raw, err := dial(ctx, s, m.Connect)
	if err != nil {
		return nil, err
	}
	s.Pipe.OnWriteError(cancel)
	cfg := tlsConfig(m.ALPN)
	cfg.RootCAs, cfg.ServerName = t.RootCAs, serverName(m)
	conn := newTLSConn(raw, cfg, tls.Client)
	if err := conn.handshake(ctx, s.server.greetings); err != nil {
		return nil, err
	}
	return conn, nil
}

// serverName is the name that the server's certificate must be for.
func serverName(m wire.TLSConnect) string {
	switch {
	case len(m.ServerName) > 0:
		return string(m.ServerName)
	case len(m.Name) > 0:
		return string(m.Name)
	default:
		return m.Endpoint.Addr.String()
	}
}
