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

// Two protocols of an embedding program. The streams of the first are
// connections to a server of the program. The second answers by itself.
func ExampleMux_Handle() {
	var mux relay.Mux
	// The Open's payload names the server. The bytes of guest and server are
	// relayed, and so are ends and resets.
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
	// A clock that ticks when the guest sends a byte.
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
