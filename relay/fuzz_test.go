package relay_test

import (
	"crypto/tls"
	"io"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/fix-project/arcavm/network/networktest"
	"github.com/fix-project/arcavm/pipes/pipestest"
	"github.com/fix-project/arcavm/relay"
	"github.com/fix-project/arcavm/wire"
)

// A pipe ends when the guest closes it, and is free, whatever the guest sends.
// Protocols that would reach the network are left out.
func FuzzDataPipe(f *testing.F) {
	openFiles := wire.AppendOpen(nil, 1, wire.Open{Protocol: wire.ProtocolFileSystem})
	read := wire.AppendReadFileRequest(nil, 2, wire.ReadFileRequest{Length: wire.ToEnd, Path: []byte("file")})
	f.Add(openFiles)
	f.Add(append(openFiles, read...))
	f.Add(append(append(openFiles, read...), read[:20]...))
	f.Add(wire.AppendOpen(nil, 1, wire.Open{Protocol: 9, Payload: []byte("x")}))
	f.Add(wire.AppendHeader(nil, wire.Header{Kind: wire.KindOpen, Length: 0xffffffff}))
	root := shareBytes(f, 10_000)
	f.Fuzz(func(t *testing.T, b []byte) {
		m := start(t, setup{root: root, noNetwork: true, streams: 4, window: 1 << 20, hasty: true})
		c, err := m.tryPipe(4096, 4096, 0)
		if err != nil {
			t.Fatal(err)
		}
		sendAll(t, c, b)
		c.Close()
		m.wantFree()
	})
}

// sendAll sends b, closes its writer, and reads until the monitor has closed or
// reset its own, as it must.
func sendAll(t *testing.T, c *pipestest.GuestConn, b []byte) {
	t.Helper()
	var writing sync.WaitGroup
	writing.Go(func() {
		c.Write(b)
		c.CloseWrite()
	})
	if _, err := io.Copy(io.Discard, c); isTimeout(err) {
		t.Error(err)
	}
	writing.Wait()
}

func isTimeout(err error) bool {
	timeout, ok := err.(interface{ Timeout() bool })
	return ok && timeout.Timeout()
}

// Whatever a guest sends on the control pipe, the pipes that it has go on, and
// everything ends with the server.
func FuzzControlPipe(f *testing.F) {
	request := wire.AppendNewStreamRequest(nil, 1, wire.NewStreamRequest{OutgoingSize: 4096, IncomingSize: 4096})
	f.Add(request)
	f.Add(append(request, request[:20]...))
	f.Add(wire.AppendNewStreamRequest(nil, 1, wire.NewStreamRequest{OutgoingSize: 5000, IncomingSize: 1 << 31, HomeCPU: 64}))
	f.Add(wire.AppendHeader(nil, wire.Header{Kind: wire.KindNewStreamRequest, Length: 17}))
	root := shareBytes(f, 10_000)
	f.Fuzz(func(t *testing.T, b []byte) {
		m := start(t, setup{root: root, noNetwork: true, streams: 8, window: 1 << 20, hasty: true})
		c, err := m.tryPipe(4096, 4096, 0)
		if err != nil {
			t.Fatal(err)
		}
		sendAll(t, m.control, b)
		if _, err := open(c, wire.ProtocolFileSystem, nil); err != nil {
			t.Error(err)
		}
		m.stop()
		if n := m.server.Stats().Streams; n != 0 {
			t.Errorf("%d streams after the end", n)
		}
	})
}

// A listener ends when the guest closes it, whatever the guest sends to it. One
// pipe waits to be named in an accept, and one connection waits for an accept.
func FuzzListenerPipe(f *testing.F) {
	accept := func(pipe uint64) []byte {
		return wire.AppendAcceptConnection(nil, 1, wire.AcceptConnection{Pipe: pipe})
	}
	f.Add(accept(2))
	f.Add(append(accept(2), accept(2)...))
	f.Add(append(accept(0), accept(1)...))
	f.Add(append(accept(1<<32|2), accept(2)[:20]...))
	listen := wire.AppendListen(nil, wire.Listen{Endpoint: at(netip.MustParseAddrPort("127.0.0.1:0"))})
	f.Fuzz(func(t *testing.T, b []byte) {
		m := start(t, setup{streams: 4, window: 1 << 20, hasty: true})
		l, err := m.tryPipe(4096, 4096, 0)
		if err != nil {
			t.Fatal(err)
		}
		spare, err := m.tryPipe(4096, 4096, 0)
		if err != nil {
			t.Fatal(err)
		}
		p, err := open(l, wire.ProtocolTCPListener, listen)
		if err != nil {
			t.Fatal(err)
		}
		e, err := wire.DecodeEndpoint(p)
		if err != nil {
			t.Fatal(err)
		}
		dialed(t, e.AddrPort())
		sendAll(t, l, b)
		l.Close()
		spare.Close()
		m.wantFree()
	})
}

// A pipe ends when the guest closes it, and is free, whatever the guest opens
// it with and sends then. Sockets and names are in memory. A server there
// echoes what it gets.
func FuzzProtocolPipe(f *testing.F) {
	network := &networktest.Network{Hosts: map[string]netip.Addr{"a.test": netip.MustParseAddr("192.0.2.1")}}
	server, any4 := at(netip.MustParseAddrPort("192.0.2.1:80")), at(netip.MustParseAddrPort("0.0.0.0:0"))
	l, err := network.Listen(f.Context(), "tcp4", "192.0.2.1:80")
	if err != nil {
		f.Fatal(err)
	}
	var serving sync.WaitGroup
	f.Cleanup(func() {
		l.Close()
		serving.Wait()
	})
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				io.Copy(c, c)
				c.Close()
			})
		}
	})
	name := wire.AppendResolveName(nil, 1, wire.ResolveName{Name: []byte("a.test")})
	accept := wire.AppendAcceptConnection(nil, 1, wire.AcceptConnection{Pipe: 2})
	datagram := wire.AppendSendDatagram(nil, 1, wire.SendDatagram{To: server, Data: []byte("x")})
	from := wire.AppendSendDatagramFrom(nil, 1, wire.SendDatagramFrom{
		SendDatagram: wire.SendDatagram{To: server, Data: []byte("x")}, From: at(netip.MustParseAddrPort("192.0.2.2:0")),
	})
	for _, seed := range []struct {
		protocol      uint16
		payload, then []byte
	}{
		{wire.ProtocolFileSystem, nil, wire.AppendListRequest(nil, 1, wire.ListRequest{Limit: 4096, Path: []byte("/")})},
		{wire.ProtocolTCPListener, wire.AppendListen(nil, wire.Listen{Endpoint: any4}), accept},
		{wire.ProtocolTCPConnection, wire.AppendConnect(nil, wire.Connect{Endpoint: server}), []byte("hello")},
		{wire.ProtocolTCPConnection, wire.AppendConnect(nil, wire.Connect{Endpoint: wire.Endpoint{Port: 80}, Name: []byte("a.test")}), []byte("hello")},
		{wire.ProtocolUDP, wire.AppendUDPSocket(nil, wire.UDPSocket{Local: any4}), append(datagram, datagram...)},
		{wire.ProtocolUDP, wire.AppendUDPSocket(nil, wire.UDPSocket{Peer: server}), datagram[:30]},
		{wire.ProtocolUDP, wire.AppendUDPSocket(nil, wire.UDPSocket{Local: any4, Addressed: true}), from},
		{wire.ProtocolUnixListener, wire.AppendUnixListen(nil, wire.UnixListen{Path: []byte("s")}), accept},
		{wire.ProtocolUnixConnection, wire.AppendUnixConnect(nil, wire.UnixConnect{Path: []byte("../s")}), []byte("hello")},
		{wire.ProtocolResolver, nil, name},
		{wire.ProtocolTLSConnection, tlsConnect(netip.MustParseAddrPort("192.0.2.1:80"), "a.test", "h2"), []byte("hello")},
		{wire.ProtocolStdio, nil, []byte("hello")},
		{wire.ProtocolTLSListener, wire.AppendTLSListen(nil, wire.TLSListen{Listen: wire.Listen{Endpoint: any4}}), accept},
	} {
		f.Add(byte(seed.protocol), seed.payload, seed.then)
	}
	a := networktest.NewAuthority(f)
	trust := relay.TLS{RootCAs: a.Pool, Certificates: []tls.Certificate{a.Issue(f, nil)}}
	root := shareBytes(f, 10_000)
	f.Fuzz(func(t *testing.T, protocol byte, payload, then []byte) {
		open := wire.Open{Protocol: uint16(protocol) % (wire.ProtocolTLSListener + 1), Payload: payload[:min(len(payload), 4096)]}
		m := start(t, setup{
			root: root, network: network, tls: trust, sockets: sockets(t, socketFolder(t), true),
			input: strings.NewReader("typed"), output: io.Discard, streams: 4, window: 1 << 20, hasty: true,
		})
		c, err := m.tryPipe(4096, 4096, 0)
		if err != nil {
			t.Fatal(err)
		}
		sendAll(t, c, append(wire.AppendOpen(nil, 1, open), then...))
		c.Close()
		m.wantFree()
	})
}
