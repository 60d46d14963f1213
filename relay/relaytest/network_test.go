package relaytest

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

func TestNetwork(t *testing.T) {
	t.Parallel()
	n := &Network{Hosts: map[string]netip.Addr{"server.test": netip.MustParseAddr("192.0.2.1")}}
	ctx := t.Context()
	l, err := n.Listen(ctx, "tcp4", "192.0.2.1:80")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Listen(ctx, "tcp", "server.test:80"); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("listening twice: %v", err)
	}
	c, err := n.DialContext(ctx, "tcp", "server.test:80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if c.RemoteAddr().String() != "192.0.2.1:80" || s.RemoteAddr().String() != c.LocalAddr().String() {
		t.Errorf("%v → %v, and %v → %v", c.LocalAddr(), c.RemoteAddr(), s.LocalAddr(), s.RemoteAddr())
	}
	if _, err := io.WriteString(c, "question"); err != nil {
		t.Fatal(err)
	}
	if err := c.(*conn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(s); err != nil || string(got) != "question" {
		t.Errorf("%q, %v", got, err)
	}
	waiting, err := n.DialContext(ctx, "tcp", "192.0.2.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer waiting.Close()
	l.Close()
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after close: %v", err)
	}
	if _, err := waiting.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("a connection that nobody accepted: %v", err)
	}
	for address, want := range map[string]error{"192.0.2.1:80": unix.ECONNREFUSED, "192.0.2.1:x": nil, "nowhere.test:1": nil} {
		if c, err := n.DialContext(ctx, "tcp", address); err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%s: %v, %v", address, c, err)
		}
	}
}

func TestFreePorts(t *testing.T) {
	t.Parallel()
	var n Network
	a, err1 := n.Listen(t.Context(), "tcp", "0.0.0.0:0")
	b, err2 := n.Listen(t.Context(), "tcp", "0.0.0.0:0")
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if a.Addr().String() == b.Addr().String() {
		t.Errorf("both listen on %v", a.Addr())
	}
	_, port, _ := net.SplitHostPort(b.Addr().String())
	if _, err := n.DialContext(t.Context(), "tcp", net.JoinHostPort("192.0.2.9", port)); err != nil {
		t.Error(err)
	}
	if _, err := n.ListenPacket(t.Context(), "udp", "0.0.0.0:0"); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Error(err)
	}
}
