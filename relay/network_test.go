package relay_test

import (
	"context"
	"errors"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/relay"
	"github.com/fix-project/arcavm/wire"
)

// socketPair is a connection that isn't TCP.
func socketPair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		deadline(t, c)
		ends[i] = c.(*net.UnixConn)
	}
	return ends[0], ends[1]
}

// oneConn is a network on which every connect gets the same connection.
type oneConn struct {
	relay.Host
	conn    net.Conn
	address chan string
}

func (n oneConn) DialContext(_ context.Context, _, address string) (net.Conn, error) {
	n.address <- address
	return n.conn, nil
}

// A connection needn't be TCP to be relayed and half-closed.
func TestConnOfAnotherKind(t *testing.T) {
	t.Parallel()
	inside, outside := socketPair(t)
	network := oneConn{conn: inside, address: make(chan string, 1)}
	m := start(t, setup{network: network})
	g := m.pipe()
	to := wire.Connect{Endpoint: wire.Endpoint{Port: 80}, Name: []byte("server.test")}
	if _, err := open(g, wire.ProtocolTCPConnection, wire.AppendConnect(nil, to)); err != nil {
		t.Fatal(err)
	}
	if got := <-network.address; got != "server.test:80" {
		t.Errorf("the network was asked for %q", got)
	}
	const size = 1 << 20
	request, answer := pattern(1, size), pattern(2, size)
	go func() {
		g.Write(request)
		g.CloseWrite()
	}()
	wantAll(t, outside, request)
	go func() {
		outside.Write(answer)
		outside.CloseWrite()
	}()
	wantAll(t, g, answer)
	g.Close()
	m.wantFree()
}

// The guest's reset ends a connection that knows no RST.
func TestConnOfAnotherKindReset(t *testing.T) {
	t.Parallel()
	inside, outside := socketPair(t)
	m := start(t, setup{network: oneConn{conn: inside, address: make(chan string, 1)}})
	g := m.pipe()
	to := wire.Connect{Endpoint: wire.Endpoint{Port: 80}, Name: []byte("server.test")}
	if _, err := open(g, wire.ProtocolTCPConnection, wire.AppendConnect(nil, to)); err != nil {
		t.Fatal(err)
	}
	g.Reset(unix.ECONNABORTED)
	wantEOF(t, outside)
	m.wantFree()
}

// What can't be half-closed can't be relayed, and isn't leaked.
func TestConnWithoutHalfClose(t *testing.T) {
	t.Parallel()
	inside, outside := net.Pipe()
	t.Cleanup(func() { outside.Close() })
	deadline(t, outside)
	m := start(t, setup{network: oneConn{conn: inside, address: make(chan string, 1)}})
	to := wire.Connect{Endpoint: wire.Endpoint{Port: 80}, Name: []byte("server.test")}
	if _, err := open(m.pipe(), wire.ProtocolTCPConnection, wire.AppendConnect(nil, to)); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("got %v, want EOPNOTSUPP", err)
	}
	wantEOF(t, outside)
}
