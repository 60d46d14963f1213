package networktest

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

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
	if _, err := n.Listen(t.Context(), "sctp", "0.0.0.0:0"); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Error(err)
	}
}

func TestUNIX(t *testing.T) {
	t.Parallel()
	var n Network
	l, err := n.Listen(t.Context(), "unix", "/run/server")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.DialContext(t.Context(), "unix", "/run/other"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("where nobody listens: %v", err)
	}
	c, err := n.DialContext(t.Context(), "unix", "/run/server")
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if c.RemoteAddr().String() != "/run/server" || c.RemoteAddr().Network() != "unix" || s.LocalAddr().String() != "/run/server" {
		t.Errorf("%v, %v", c.RemoteAddr(), s.LocalAddr())
	}
	io.WriteString(c, "question")
	c.Close()
	if got, err := io.ReadAll(s); err != nil || string(got) != "question" {
		t.Errorf("%q, %v", got, err)
	}
	s.Close()
	l.Close()
	if _, err := n.Listen(t.Context(), "unix", "/run/server"); err != nil {
		t.Errorf("again: %v", err)
	}
}

func TestUDP(t *testing.T) {
	t.Parallel()
	n := &Network{Hosts: map[string]netip.Addr{"server.test": netip.MustParseAddr("192.0.2.1")}}
	ctx := t.Context()
	server, err := n.ListenPacket(ctx, "udp4", "192.0.2.1:53")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.ListenPacket(ctx, "udp", "server.test:53"); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("binding twice: %v", err)
	}
	client, err := n.DialContext(ctx, "udp", "server.test:53")
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := n.ListenPacket(ctx, "udp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1<<16)
	for _, size := range []int{0, 1, maxDatagram} {
		data := make([]byte, size)
		if got, err := client.Write(data); got != size || err != nil {
			t.Fatal(got, err)
		}
		got, from, err := server.ReadFromUDPAddrPort(buf)
		if got != size || err != nil || from.String() != client.LocalAddr().String() {
			t.Errorf("%d bytes of %d from %v, %v", got, size, from, err)
		}
	}
	to := client.LocalAddr().(*net.UDPAddr).AddrPort()
	for _, c := range []struct {
		socket interface {
			WriteToUDPAddrPort([]byte, netip.AddrPort) (int, error)
		}
		text string
	}{{stranger, "not heard"}, {server, "answer"}} {
		if _, err := c.socket.WriteToUDPAddrPort([]byte(c.text), to); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := client.Read(buf); err != nil || string(buf[:got]) != "answer" {
		t.Errorf("%q, %v", buf[:got], err)
	}

	// A socket that is bound to the unspecified address is found at every
	// address, and sends from one.
	if _, err := server.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(netip.MustParseAddr("192.0.2.77"), stranger.LocalAddr().(*net.UDPAddr).AddrPort().Port())); err != nil {
		t.Fatal(err)
	}
	if got, from, err := stranger.ReadFrom(buf[:1]); got != 1 || err != nil || from.String() != "192.0.2.1:53" {
		t.Errorf("%d, %v, %v", got, from, err)
	}
	if _, err := stranger.WriteTo(nil, server.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	if _, from, err := server.ReadFromUDPAddrPort(buf); err != nil || from.Addr() != ownIPv4 {
		t.Errorf("%v, %v", from, err)
	}

	if _, err := client.Write(make([]byte, maxDatagram+1)); !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("too large: %v", err)
	}
	if _, err := server.WriteToUDPAddrPort([]byte("lost"), netip.MustParseAddrPort("192.0.2.9:9")); err != nil {
		t.Errorf("to nobody: %v", err)
	}
	if err := server.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := server.ReadFromUDPAddrPort(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after the deadline: %v", err)
	}
	// A receiver that doesn't read loses datagrams, and delays no sender.
	for range 1000 {
		if _, err := client.Write(make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
	}
	reading := make(chan error, 1)
	go func() {
		_, err := client.Read(buf)
		reading <- err
	}()
	for _, c := range []io.Closer{server, client, stranger} {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := c.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("closed twice: %v", err)
		}
	}
	if err := <-reading; !errors.Is(err, net.ErrClosed) {
		t.Errorf("a read that waited: %v", err)
	}
}
