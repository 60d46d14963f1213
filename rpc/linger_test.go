package rpc_test

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/rpc"
	"github.com/fix-project/arcavm/rpc/message"
)

// tight is a network whose sockets take little before their peer reads.
type tight struct{ network.Host }

func (n tight) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := n.Host.DialContext(ctx, network, address)
	if tcp, ok := c.(*net.TCPConn); ok {
		err = tcp.SetWriteBuffer(4096)
	}
	return c, err
}

// A peer that takes nothing doesn't keep a stream that its guest has dropped.
func TestLinger(t *testing.T) {
	t.Parallel()
	for name, notifies := range map[string]bool{"notifies": true, "says nothing": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMachineWith(t, rpc.Options{Network: tight{}}, func(s *rpc.Server) { s.SetLinger(10 * time.Millisecond) })
			if notifies {
				m.notify()
			}
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			s := m.Connect("127.0.0.1", uint16(ln.Addr().(*net.TCPAddr).Port))
			conn, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := conn.(*net.TCPConn).SetReadBuffer(4096); err != nil {
				t.Fatal(err)
			}
			const size = 48 << 10
			s.Send(append(message.AppendStreamRequest(nil, message.StreamRequest{Op: message.StreamSend, Length: size}), make([]byte, size)...))
			s.Drop()
			m.settled(t)
			if _, err := io.Copy(io.Discard, conn); !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("the peer reads %v, want a reset", err)
			}
		})
	}
}
