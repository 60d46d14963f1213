package relay_test

import (
	"context"
	"errors"
	"io"
	"net"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/relay"
	"github.com/fix-project/arcavm/wire"
)

// Two protocols of an embedding program: one whose streams are connections to a server of its own, and one that answers by itself.
func ExampleMux_Handle() {
	var mux relay.Mux
	// The Open's payload names the server. What the guest and the server send each other is relayed, ends and resets too.
	mux.Handle(wire.ProtocolPrivate, relay.HandlerFunc(func(ctx context.Context, s *relay.Stream) error {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", "/run/example/"+string(s.Payload))
		if err != nil {
			s.Logger().Debug("no such server", "err", err)
			return s.Opened(unix.ECONNREFUSED, nil)
		}
		if err := s.Opened(0, nil); err != nil {
			conn.Close()
			return err
		}
		s.Relay(conn.(*net.UnixConn))
		return nil
	}))
	// A clock that ticks as often as the guest sends a byte.
	mux.Handle(wire.ProtocolPrivate+1, relay.HandlerFunc(func(_ context.Context, s *relay.Stream) error {
		if err := s.Opened(0, nil); err != nil {
			return err
		}
		b := make([]byte, 1)
		for {
			if _, err := s.Pipe.Read(b); errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
			n, err := s.Pipe.Write([]byte("tick\n"))
			s.Count(n, len(b))
			if err != nil {
				return err
			}
		}
	}))
}
