package relay_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/pipes/pipestest"
	"github.com/fix-project/arcavm/wire"
)

// udpSocket is a guest's UDP socket.
type udpSocket struct {
	*pipestest.GuestConn
	t           testing.TB
	local, peer netip.AddrPort
}

func (m *machine) tryUDP(outgoing, incoming uint32, request wire.UDPSocket) (*udpSocket, error) {
	m.t.Helper()
	c, err := m.tryPipe(outgoing, incoming, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	p, err := open(c, wire.ProtocolUDP, wire.AppendUDPSocket(nil, request))
	if err != nil {
		return nil, err
	}
	ends, err := wire.DecodeUDPSocket(p)
	return &udpSocket{c, m.t, ends.Local.AddrPort(), ends.Peer.AddrPort()}, err
}

func (m *machine) udpBound(ring uint32, on string) *udpSocket {
	m.t.Helper()
	u, err := m.tryUDP(ring, ring, wire.UDPSocket{Local: at(netip.MustParseAddrPort(on))})
	if err != nil {
		m.t.Fatal(err)
	}
	return u
}

func (m *machine) udpConnected(ring uint32, to netip.AddrPort) *udpSocket {
	m.t.Helper()
	u, err := m.tryUDP(ring, ring, wire.UDPSocket{Peer: at(to)})
	if err != nil {
		m.t.Fatal(err)
	}
	return u
}

// send sends a datagram; to the peer if to is the zero value.
func (u *udpSocket) send(request uint64, to netip.AddrPort, data []byte) {
	u.t.Helper()
	var e wire.Endpoint
	if to.IsValid() {
		e = at(to)
	}
	if _, err := u.Write(wire.AppendSendDatagram(nil, request, wire.SendDatagram{To: e, Data: data})); err != nil {
		u.t.Fatal(err)
	}
}

func (u *udpSocket) receive() wire.ReceivedDatagram {
	u.t.Helper()
	h, p, err := receive(u)
	if err != nil {
		u.t.Fatal(err)
	}
	if h.Kind != wire.KindReceivedDatagram {
		u.t.Fatalf("got %v % x", h.Kind, p)
	}
	d, err := wire.DecodeReceivedDatagram(p)
	if err != nil {
		u.t.Fatal(err)
	}
	return d
}

// wantError reads a DatagramError.
func (u *udpSocket) wantError(request uint64, status unix.Errno, to netip.AddrPort) {
	u.t.Helper()
	h, p, err := receive(u)
	if err != nil {
		u.t.Fatal(err)
	}
	if h.Kind != wire.KindDatagramError {
		u.t.Fatalf("got %v, want an error", h.Kind)
	}
	e, err := wire.DecodeDatagramError(p)
	if err != nil {
		u.t.Fatal(err)
	}
	if h.RequestID != request || unix.Errno(e.Status) != status || e.To.AddrPort() != to {
		u.t.Errorf("request %d: %v to %v; want request %d: %v to %v", h.RequestID, unix.Errno(e.Status), e.To.AddrPort(), request, status, to)
	}
}

func (u *udpSocket) wantDatagram(from netip.AddrPort, data []byte) {
	u.t.Helper()
	d := u.receive()
	if d.From.AddrPort() != from || int(d.Size) != len(data) || !bytes.Equal(d.Data, data) {
		u.t.Fatalf("got %d of %d bytes from %v, want %d from %v, or the bytes differ", len(d.Data), d.Size, d.From.AddrPort(), len(data), from)
	}
}

// hostUDP is a socket outside of the guest.
func hostUDP(t testing.TB, on string) (*net.UDPConn, netip.AddrPort) {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(on)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	deadline(t, c)
	return c, c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// wantReceived reads one datagram.
func wantReceived(t testing.TB, c *net.UDPConn, want []byte) (from netip.AddrPort) {
	t.Helper()
	b := make([]byte, 1<<16)
	n, from, err := c.ReadFromUDPAddrPort(b)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b[:n], want) {
		t.Fatalf("%d bytes came, want %d, or they differ", n, len(want))
	}
	return from
}

func sendTo(t testing.TB, c *net.UDPConn, to netip.AddrPort, data []byte) {
	t.Helper()
	if _, err := c.WriteToUDPAddrPort(data, to); err != nil {
		t.Fatal(err)
	}
}

// families are the loopback addresses of this machine, with the largest
// datagram of each family.
func families(t testing.TB) map[string]int {
	t.Helper()
	all := map[string]int{"127.0.0.1:0": 65507}
	if c, err := net.ListenUDP("udp6", &net.UDPAddr{IP: net.IPv6loopback}); err == nil {
		c.Close()
		all["[::1]:0"] = 65527
	}
	return all
}

// Datagrams of all sizes keep their borders and addresses, wherever they are in
// the ring.
func TestUDP(t *testing.T) {
	t.Parallel()
	for on, largest := range families(t) {
		for _, ring := range []uint32{128 << 10, 1 << 20} {
			t.Run(fmt.Sprint(on, " ring ", ring), func(t *testing.T) {
				t.Parallel()
				m := start(t, setup{})
				host, to := hostUDP(t, on)
				bound, connected := m.udpBound(ring, on), m.udpConnected(ring, to)
				if bound.local.Port() == 0 || connected.peer != to || connected.local.Addr() != to.Addr() {
					t.Errorf("bound at %v, connected from %v to %v", bound.local, connected.local, connected.peer)
				}
				for i, n := range []int{0, 1, 1472, 4096, largest, 9000, 30_000, largest - 1, 2} {
					data := pattern(i, n)
					bound.send(1, to, data)
					if from := wantReceived(t, host, data); from != bound.local {
						t.Errorf("from %v, want %v", from, bound.local)
					}
					connected.send(2, netip.AddrPort{}, data)
					wantReceived(t, host, data)
					answer := pattern(100+i, n)
					sendTo(t, host, bound.local, answer)
					bound.wantDatagram(to, answer)
					sendTo(t, host, connected.local, answer)
					connected.wantDatagram(to, answer)
				}
				bound.Close()
				connected.Close()
				m.wantFree()
				s := m.server.Stats()
				if s.ToGuest != s.FromGuest || s.ToGuest == 0 || s.DatagramsDropped != 0 {
					t.Errorf("%+v", s)
				}
			})
		}
	}
}

// A ring that is smaller than a datagram cuts what arrives, and says so.
// Datagrams of the guest are sent whole.
func TestUDPSmallRing(t *testing.T) {
	t.Parallel()
	m := start(t, setup{})
	host, to := hostUDP(t, "127.0.0.1:0")
	u := m.udpBound(4096, "127.0.0.1:0")
	room := 4096 - wire.HeaderSize - wire.ReceivedDatagramPrefixSize
	for i := range 5 {
		data := pattern(i, 20_000)
		u.send(1, to, data)
		wantReceived(t, host, data)
		for _, n := range []int{room - 1, room, room + 1, 65507, 10} {
			data := pattern(i+n, n)
			sendTo(t, host, u.local, data)
			d := u.receive()
			if int(d.Size) != n || d.Dropped != 0 || !bytes.Equal(d.Data, data[:min(n, room)]) {
				t.Errorf("%d of %d bytes, %d lost; want %d of %d, or they differ", len(d.Data), d.Size, d.Dropped, min(n, room), n)
			}
		}
	}
}

// A datagram that can't be sent is answered with an errno, and the socket goes
// on.
func TestUDPSendErrors(t *testing.T) {
	t.Parallel()
	m := start(t, setup{})
	host, to := hostUDP(t, "127.0.0.1:0")
	bound, connected := m.udpBound(128<<10, "127.0.0.1:0"), m.udpConnected(128<<10, to)
	for i, c := range []struct {
		on     *udpSocket
		to     netip.AddrPort
		n      int
		status unix.Errno
	}{
		{bound, to, 65508, unix.EMSGSIZE},
		{connected, netip.AddrPort{}, 65508, unix.EMSGSIZE},
		{connected, netip.AddrPort{}, 65535, unix.EMSGSIZE},
		{bound, netip.AddrPort{}, 10, unix.EDESTADDRREQ},
		{connected, to, 10, unix.EISCONN},
		{bound, netip.MustParseAddrPort("[::1]:9"), 10, unix.EAFNOSUPPORT},
		{bound, netip.AddrPortFrom(to.Addr(), 0), 10, unix.EINVAL},
	} {
		c.on.send(uint64(100+i), c.to, pattern(i, c.n))
		c.on.wantError(uint64(100+i), c.status, c.to)
	}
	bound.send(1, to, []byte("still"))
	wantReceived(t, host, []byte("still"))
	connected.send(1, netip.AddrPort{}, []byte("here"))
	wantReceived(t, host, []byte("here"))
}

func TestUDPOpenErrors(t *testing.T) {
	t.Parallel()
	m := start(t, setup{})
	_, taken := hostUDP(t, "127.0.0.1:0")
	anywhere := netip.MustParseAddrPort("127.0.0.1:0")
	for _, c := range []struct {
		request wire.UDPSocket
		status  unix.Errno
	}{
		{wire.UDPSocket{Local: at(taken)}, unix.EADDRINUSE},
		{wire.UDPSocket{Local: at(netip.MustParseAddrPort("192.0.2.1:0"))}, unix.EADDRNOTAVAIL},
		{wire.UDPSocket{Local: at(anywhere), Peer: at(taken)}, unix.EINVAL},
	} {
		if _, err := m.tryUDP(4096, 4096, c.request); !errors.Is(err, c.status) {
			t.Errorf("%+v: got %v, want %v", c.request, err, c.status)
		}
	}
}

// A connected socket receives from its peer only.
func TestUDPConnectedHearsItsPeer(t *testing.T) {
	t.Parallel()
	m := start(t, setup{})
	host, to := hostUDP(t, "127.0.0.1:0")
	stranger, _ := hostUDP(t, "127.0.0.1:0")
	u := m.udpConnected(4096, to)
	sendTo(t, stranger, u.local, []byte("stranger"))
	sendTo(t, host, u.local, []byte("peer"))
	u.wantDatagram(to, []byte("peer"))
}

// closedPort is an address without a receiver. A socket is bound there, so that
// no other program can receive, and it is connected elsewhere.
func closedPort(t testing.TB, on string) netip.AddrPort {
	t.Helper()
	_, peer := hostUDP(t, on)
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(peer))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// The network's report of a missing receiver reaches the guest, with the
// address, and doesn't end the socket.
func TestUDPRefused(t *testing.T) {
	t.Parallel()
	for on := range families(t) {
		t.Run(on, func(t *testing.T) {
			t.Parallel()
			m := start(t, setup{})
			host, to := hostUDP(t, on)
			closed := closedPort(t, on)
			bound, connected := m.udpBound(4096, on), m.udpConnected(4096, closed)
			for i := range 20 {
				bound.send(1, closed, []byte("anyone?"))
				bound.wantError(0, unix.ECONNREFUSED, closed)
				connected.send(1, netip.AddrPort{}, []byte("anyone?"))
				connected.wantError(0, unix.ECONNREFUSED, closed)
				data := pattern(i, 100)
				bound.send(1, to, data)
				wantReceived(t, host, data)
			}
		})
	}
}

// Errors of earlier datagrams don't affect later ones. Each to an open port
// arrives, each other one is reported.
func TestUDPRefusedAmongOthers(t *testing.T) {
	t.Parallel()
	m := start(t, setup{})
	host, to := hostUDP(t, "127.0.0.1:0")
	closed := closedPort(t, "127.0.0.1:0")
	u := m.udpBound(64<<10, "127.0.0.1:0")
	const n = 50
	var frames []byte
	for i := range n {
		frames = wire.AppendSendDatagram(frames, 1, wire.SendDatagram{To: at(closed), Data: []byte("x")})
		frames = wire.AppendSendDatagram(frames, 1, wire.SendDatagram{To: at(to), Data: pattern(i, 64)})
	}
	if _, err := u.Write(frames); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		wantReceived(t, host, pattern(i, 64))
	}
	// The kernel limits its reports a second, so perhaps not all were refused,
	// but one was.
	u.wantError(0, unix.ECONNREFUSED, closed)
}

// A guest that doesn't read loses whole datagrams, is told how many, and has
// lost nothing else.
func TestUDPDropped(t *testing.T) {
	t.Parallel()
	m := start(t, setup{})
	host, to := hostUDP(t, "127.0.0.1:0")
	u := m.udpBound(4096, "127.0.0.1:0")
	const size = 1000
	raw, err := host.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var buffer int
	if err := raw.Control(func(fd uintptr) { buffer, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF) }); err != nil {
		t.Fatal(err)
	}
	// Twice what the kernel's buffer and the ring have room for, at least.
	sent := uint32(2*buffer/size + 10)
	for i := range sent {
		sendTo(t, host, u.local, pattern(int(i), size))
	}
	last := []byte("last")
	for received := uint32(0); ; received++ {
		// Each frame that is read makes room, finally for this datagram.
		sendTo(t, host, u.local, last)
		sent++
		d := u.receive()
		if d.From.AddrPort() != to || int(d.Size) != len(d.Data) {
			t.Fatalf("%d of %d bytes from %v", len(d.Data), d.Size, d.From.AddrPort())
		}
		if !bytes.Equal(d.Data, last) {
			if len(d.Data) != size {
				t.Fatalf("a datagram of %d bytes", len(d.Data))
			}
			continue
		}
		if d.Dropped == 0 || d.Dropped > sent-received {
			t.Errorf("%d lost of %d, %d received", d.Dropped, sent, received)
		}
		if n := m.server.Stats().DatagramsDropped; n < uint64(d.Dropped) {
			t.Errorf("%d counted, the guest was told of %d", n, d.Dropped)
		}
		break
	}
	u.Close()
	m.wantFree()
}

// The datagrams that a guest sent before it closed its end are sent, whether it
// reads or not.
func TestUDPSendAndClose(t *testing.T) {
	t.Parallel()
	m := start(t, setup{})
	host, to := hostUDP(t, "127.0.0.1:0")
	for i := range 20 {
		u := m.udpBound(64<<10, "127.0.0.1:0")
		u.CloseRead()
		var frames []byte
		frames = wire.AppendSendDatagram(frames, 1, wire.SendDatagram{Data: []byte("to nobody")})
		for j := range 10 {
			frames = wire.AppendSendDatagram(frames, 1, wire.SendDatagram{To: at(to), Data: pattern(i*j, 3000)})
		}
		if _, err := u.Write(frames); err != nil {
			t.Fatal(err)
		}
		u.Close()
		for j := range 10 {
			wantReceived(t, host, pattern(i*j, 3000))
		}
	}
	m.wantFree()
}

// A guest closes its pipe while the monitor waits: for a datagram, or for room.
func TestUDPAbandoned(t *testing.T) {
	t.Parallel()
	for name, leave := range map[string]func(*machine, *udpSocket){
		"close":      func(m *machine, u *udpSocket) { u.Close() },
		"half-close": func(m *machine, u *udpSocket) { u.CloseWrite() },
		"reset":      func(m *machine, u *udpSocket) { u.Reset(unix.ECANCELED) },
		"stop":       func(m *machine, u *udpSocket) { m.stop() },
	} {
		for _, full := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " full ", full), func(t *testing.T) {
				t.Parallel()
				m := start(t, setup{})
				host, _ := hostUDP(t, "127.0.0.1:0")
				u := m.udpBound(4096, "127.0.0.1:0")
				if full {
					for range 5 {
						sendTo(t, host, u.local, make([]byte, 1500))
					}
					// One frame is in the ring, and the next has no room.
					if _, err := io.ReadFull(u, make([]byte, 10)); err != nil {
						t.Fatal(err)
					}
				}
				leave(m, u)
				if name == "half-close" {
					if _, err := io.Copy(io.Discard, u); err != nil {
						t.Error(err)
					}
				}
				u.Close()
				m.wait("the stream doesn't end", func() bool { return m.server.Stats().Streams == 0 })
			})
		}
	}
}

func TestUDPProtocolErrors(t *testing.T) {
	t.Parallel()
	header := func(h wire.Header) []byte { return wire.AppendHeader(nil, h) }
	to := at(netip.MustParseAddrPort("127.0.0.1:9"))
	for name, bytes := range map[string][]byte{
		"another kind":    wire.AppendAcceptConnection(nil, 1, wire.AcceptConnection{}),
		"monitor's kind":  wire.AppendReceivedDatagram(nil, wire.ReceivedDatagram{From: to, Size: 1, Data: []byte("x")}),
		"no address":      header(wire.Header{Kind: wire.KindSendDatagram, Length: wire.EndpointSize - 1}),
		"too long":        header(wire.Header{Kind: wire.KindSendDatagram, Length: wire.EndpointSize + wire.MaxDatagram + 1}),
		"strange family":  append(header(wire.Header{Kind: wire.KindSendDatagram, Length: wire.EndpointSize}), bytes.Repeat([]byte{9}, wire.EndpointSize)...),
		"cut in header":   header(wire.Header{Kind: wire.KindSendDatagram, Length: 100})[:9],
		"cut in address":  wire.AppendSendDatagram(nil, 1, wire.SendDatagram{To: to})[:wire.HeaderSize],
		"cut in data":     wire.AppendSendDatagram(nil, 1, wire.SendDatagram{To: to, Data: []byte("data")})[:wire.HeaderSize+wire.EndpointSize+2],
		"cut before data": wire.AppendSendDatagram(nil, 1, wire.SendDatagram{To: to, Data: []byte("data")})[:wire.HeaderSize+wire.EndpointSize],
		"cut large data":  wire.AppendSendDatagram(nil, 1, wire.SendDatagram{To: to, Data: make([]byte, 10_000)})[:9000],
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := start(t, setup{})
			u := m.udpBound(4096, "127.0.0.1:0")
			u.Write(bytes)
			u.CloseWrite()
			wantReadError(t, u, unix.EPROTO)
			m.wait("not counted", func() bool { return m.server.Stats().ProtocolErrors == 1 })
			u.Close()
			m.wantFree()
		})
	}
	for name, payload := range map[string][]byte{
		"nothing":      nil,
		"one endpoint": wire.AppendEndpoint(nil, to),
		"no addresses": make([]byte, 2*wire.EndpointSize),
	} {
		t.Run("Open with "+name, func(t *testing.T) {
			t.Parallel()
			m := start(t, setup{})
			if _, err := open(m.pipe(), wire.ProtocolUDP, payload); !errors.Is(err, unix.EPROTO) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// A policy judges each datagram, and changes nothing else.
func TestUDPPolicy(t *testing.T) {
	t.Parallel()
	m := start(t, setup{network: network.NewPolicy(network.Host{}, nil, nil)})
	host, to := hostUDP(t, "127.0.0.1:0")
	_, stranger := hostUDP(t, "127.0.0.1:0")
	u := m.udpBound(4096, "127.0.0.1:0")
	u.send(5, to, []byte("first"))
	u.wantError(5, unix.EACCES, to)
	sendTo(t, host, u.local, make([]byte, 9000))
	if d := u.receive(); d.Size != 9000 || len(d.Data) >= 4096 {
		t.Errorf("%d of %d bytes", len(d.Data), d.Size)
	}
	u.send(6, to, []byte("answer"))
	wantReceived(t, host, []byte("answer"))
	u.send(7, stranger, []byte("hello"))
	u.wantError(7, unix.EACCES, stranger)
	if _, err := m.tryUDP(4096, 4096, wire.UDPSocket{Peer: at(to)}); !errors.Is(err, unix.EACCES) {
		t.Errorf("connect: %v", err)
	}
	if n := m.server.Stats().Denied; n != 3 {
		t.Errorf("%d counted", n)
	}
}

// memoryNetwork is a network whose sockets don't look like the kernel's to the
// handlers.
type memoryNetwork struct{ network.Host }

type memoryPackets struct{ network.PacketConn }

type memoryConn struct{ net.Conn }

func (n memoryNetwork) ListenPacket(ctx context.Context, network, address string) (network.PacketConn, error) {
	c, err := n.Host.ListenPacket(ctx, network, address)
	return memoryPackets{c}, err
}

func (n memoryNetwork) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := n.Host.DialContext(ctx, network, address)
	return memoryConn{c}, err
}

// UDP works on any network.
func TestUDPOnAnotherNetwork(t *testing.T) {
	t.Parallel()
	m := start(t, setup{network: memoryNetwork{}})
	host, to := hostUDP(t, "127.0.0.1:0")
	bound, connected := m.udpBound(64<<10, "127.0.0.1:0"), m.udpConnected(64<<10, to)
	for i := range 100 {
		data := pattern(i, i*i)
		bound.send(1, to, data)
		wantReceived(t, host, data)
		connected.send(1, netip.AddrPort{}, data)
		wantReceived(t, host, data)
		sendTo(t, host, bound.local, data)
		bound.wantDatagram(to, data)
		sendTo(t, host, connected.local, data)
		connected.wantDatagram(to, data)
	}
	bound.send(7, to, make([]byte, 65508))
	bound.wantError(7, unix.EMSGSIZE, to)
	bound.Close()
	connected.Close()
	m.wantFree()
}

// Moving a datagram doesn't allocate.
func TestUDPNoAllocations(t *testing.T) {
	m := start(t, setup{quiet: true})
	host, to := hostUDP(t, "127.0.0.1:0")
	u := m.udpBound(64<<10, "127.0.0.1:0")
	frame := wire.AppendSendDatagram(nil, 1, wire.SendDatagram{To: at(to), Data: make([]byte, 1400)})
	in := make([]byte, wire.HeaderSize+wire.ReceivedDatagramPrefixSize+1400)
	if n := testing.AllocsPerRun(500, func() {
		u.Write(frame)
		n, from, err := host.ReadFromUDPAddrPort(in)
		if err != nil || n != 1400 {
			t.Fatal(n, err)
		}
		host.WriteToUDPAddrPort(in[:n], from)
		if _, err := io.ReadFull(u, in); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkUDPRoundTrip(b *testing.B) {
	m := start(b, setup{quiet: true})
	host, to := hostUDP(b, "127.0.0.1:0")
	u := m.udpBound(64<<10, "127.0.0.1:0")
	u.SetDeadline(time.Time{})
	host.SetDeadline(time.Time{})
	frame := wire.AppendSendDatagram(nil, 1, wire.SendDatagram{To: at(to), Data: make([]byte, 1400)})
	in := make([]byte, wire.HeaderSize+wire.ReceivedDatagramPrefixSize+1400)
	for b.Loop() {
		u.Write(frame)
		n, from, err := host.ReadFromUDPAddrPort(in)
		if err != nil {
			b.Fatal(err)
		}
		host.WriteToUDPAddrPort(in[:n], from)
		if _, err := io.ReadFull(u, in); err != nil {
			b.Fatal(err)
		}
	}
}
