package relay_test

import (
	"fmt"
	"net/netip"

	"github.com/fix-project/arcavm/network/outside"
	"github.com/fix-project/arcavm/wire"
)

// frame is the next one for t: its Open, or a request of its protocol. It is
// well-formed, with wild values. Sometimes its header is wrong.
func (a *attacker) frame(t *target) []byte {
	a.mild = t.mild
	var b []byte
	switch {
	case t.cursor == 0:
		b = wire.AppendOpen(nil, a.rng.Uint64(), wire.Open{Protocol: t.protocol, Payload: a.openPayload(t.protocol)})
	case t.protocol == wire.ProtocolTCPListener, t.protocol == wire.ProtocolUnixListener, t.protocol == wire.ProtocolTLSListener:
		pipe := uint64(a.id())
		if len(a.silent) > 0 && !a.odd(2) {
			pipe, a.silent = a.silent[0], a.silent[1:]
		}
		b = wire.AppendAcceptConnection(nil, a.rng.Uint64(), wire.AcceptConnection{Pipe: pipe})
	case t.protocol == wire.ProtocolUDP:
		m := wire.SendDatagram{To: a.endpoint(), Data: make([]byte, a.rng.IntN(200))}
		b = wire.AppendSendDatagram(nil, a.rng.Uint64(), m)
		if a.odd(2) {
			b = wire.AppendSendDatagramFrom(nil, a.rng.Uint64(), wire.SendDatagramFrom{SendDatagram: m, From: a.endpoint()})
		}
	case t.protocol == wire.ProtocolResolver:
		b = a.lookup()
	default:
		b = a.fileRequest()
	}
	if a.odd(16) {
		b[a.rng.IntN(wire.HeaderSize)] ^= 1 << a.rng.IntN(8)
	}
	return b
}

func (a *attacker) openPayload(protocol uint16) []byte {
	options := wire.TCPOptions{Flags: wire.TCPFlags(a.rng.IntN(2)), KeepAlive: wire.KeepAliveOff}
	if a.odd(4) {
		options = wire.TCPOptions{Flags: wire.TCPFlags(a.value()), KeepAlive: uint16(a.value())}
	}
	local := at(netip.MustParseAddrPort("127.0.0.1:0"))
	switch protocol {
	case wire.ProtocolFileSystem, wire.ProtocolResolver, wire.ProtocolStdio:
		if a.odd(16) {
			return make([]byte, 1+a.rng.IntN(40))
		}
		return nil
	case wire.ProtocolTCPConnection:
		to := a.outside.Echo
		if a.odd(2) {
			to = a.refused
		}
		m := a.peer(to)
		if a.rng.IntN(2) == 0 {
			m.Options = &options
		}
		return wire.AppendConnect(nil, m)
	case wire.ProtocolTLSConnection:
		to := a.outside.TLS
		if a.odd(3) {
			to = []netip.AddrPort{a.outside.Echo, a.refused}[a.rng.IntN(2)]
		}
		m := wire.TLSConnect{Connect: a.peer(to), ALPN: a.alpn()}
		if a.odd(4) {
			m.ServerName = []byte([]string{outside.NameServer, "other.test", "127.0.0.1", "\xff", "a\x00b"}[a.rng.IntN(5)])
		}
		return wire.AppendTLSConnect(nil, m)
	case wire.ProtocolTLSListener:
		return wire.AppendTLSListen(nil, wire.TLSListen{Listen: wire.Listen{Endpoint: local, Backlog: a.rng.Uint32()}, ALPN: a.alpn()})
	case wire.ProtocolTCPListener:
		switch {
		case a.odd(4):
			local = at(a.outside.Echo)
		case a.odd(4):
			local.Port = outside.PublishedTCP
		}
		return wire.AppendListen(nil, wire.Listen{Endpoint: local, Backlog: a.rng.Uint32(), Options: options})
	case wire.ProtocolUDP:
		if a.odd(4) {
			local.Port = outside.PublishedUDP
		}
		m := wire.UDPSocket{Local: local}
		if a.rng.IntN(3) == 0 {
			m = wire.UDPSocket{Peer: a.endpoint()}
		}
		m.Addressed = a.rng.IntN(2) == 0
		return wire.AppendUDPSocket(nil, m)
	case wire.ProtocolUnixListener:
		path := a.socket()
		if a.mild { // a socket of its own
			path = fmt.Sprint(a.rng.Uint64())
		}
		return wire.AppendUnixListen(nil, wire.UnixListen{Backlog: a.rng.Uint32(), Path: []byte(path)})
	case wire.ProtocolUnixConnection:
		return wire.AppendUnixConnect(nil, wire.UnixConnect{Path: []byte(a.socket())})
	default:
		return make([]byte, a.rng.IntN(40))
	}
}

// peer is an address, or a name with that port.
func (a *attacker) peer(to netip.AddrPort) wire.Connect {
	if a.odd(3) {
		return wire.Connect{Endpoint: wire.Endpoint{Port: to.Port()}, Name: a.name()}
	}
	return wire.Connect{Endpoint: at(to)}
}

// alpn is a list of ALPN names, or nearly one.
func (a *attacker) alpn() []byte {
	lists := []string{"", "\x02h2", "\x08http/1.1\x02h2"}
	if a.odd(4) {
		lists = []string{"\x00", "\x05h2", "\x01\x00"}
	}
	return []byte(lists[a.rng.IntN(len(lists))])
}

func (a *attacker) name() []byte {
	if a.mild {
		return []byte(outside.NameServer)
	}
	names := []string{outside.NameServer, outside.NameServer, outside.NameMany, outside.NameStalls, "none.test", "denied", "127.0.0.1", "::1", "\xff", "a\x00b"}
	return []byte(names[a.rng.IntN(len(names))])
}

// lookup is a request to the resolver.
func (a *attacker) lookup() []byte {
	request := a.rng.Uint64()
	if a.rng.IntN(3) == 0 {
		e := wire.Endpoint{Addr: a.outside.Echo.Addr()}
		if a.odd(3) {
			e = a.endpoint()
		}
		return wire.AppendResolveAddress(nil, request, wire.ResolveAddress{Address: e})
	}
	family := []uint8{0, 4, 6}[a.rng.IntN(3)]
	if a.odd(16) {
		family = uint8(a.value())
	}
	return wire.AppendResolveName(nil, request, wire.ResolveName{Family: family, Name: a.name()})
}

func (a *attacker) socket() string {
	if a.mild {
		return outside.Socket
	}
	return []string{outside.Socket, outside.Socket, "s", "/s", "../s", "s/s", "\x00", ".", "t"}[a.rng.IntN(9)]
}

// endpoint is the UDP server's address, or a wild one.
func (a *attacker) endpoint() wire.Endpoint {
	e := at(a.outside.Echo)
	if !a.odd(2) {
		return e
	}
	switch a.rng.IntN(4) {
	case 0:
		e = wire.Endpoint{}
	case 1:
		e.Port = uint16(a.value())
	case 2:
		e.Addr = netip.AddrFrom16([16]byte{1: byte(a.rng.Uint32()), 15: byte(a.rng.Uint32())})
	}
	return e
}

// fileRequest is a request of any kind about files. Only w may be written. The
// good streams read file.
func (a *attacker) fileRequest() []byte {
	if a.mild || a.rng.IntN(2) == 0 {
		return a.openFileRequest()
	}
	request, handle := a.rng.Uint64(), uint64(a.rng.IntN(6))
	// The disk has room for this offset, or none can have.
	offset := uint64(a.rng.IntN(1 << 16))
	if a.rng.IntN(2) == 0 {
		offset = a.value() | 1<<63
	}
	switch a.rng.IntN(12) {
	case 0:
		return wire.AppendReadFileRequest(nil, request, wire.ReadFileRequest{Offset: a.value(), Length: a.value(), Path: a.path()})
	case 1:
		flags := wire.OpenFlags(a.value())
		if a.rng.IntN(4) != 0 {
			flags = []wire.OpenFlags{wire.OpenRead, wire.OpenRead | wire.OpenWrite | wire.OpenCreate, wire.OpenAppend | wire.OpenCreate,
				wire.OpenWrite | wire.OpenTruncate, wire.OpenWrite | wire.OpenCreate | wire.OpenExclusive}[a.rng.IntN(5)]
		}
		return wire.AppendOpenFileRequest(nil, request, wire.OpenFileRequest{Flags: flags, Path: a.path()})
	case 2:
		return wire.AppendReadRequest(nil, request, wire.ReadRequest{Handle: handle, Offset: a.value(), Length: a.value()})
	case 3:
		return wire.AppendWriteRequest(nil, request, wire.WriteRequest{Handle: handle, Offset: offset, Data: make([]byte, a.rng.IntN(200))})
	case 4:
		m := wire.StatRequest{Handle: handle}
		if handle == 0 || a.rng.IntN(2) == 0 {
			m = wire.StatRequest{Flags: uint32(a.rng.IntN(3)), Path: a.path()}
		}
		return wire.AppendStatRequest(nil, request, m)
	case 5:
		limit := uint32(4096)
		if a.rng.IntN(2) == 0 {
			limit = uint32(a.value())
		}
		return wire.AppendListRequest(nil, request, wire.ListRequest{Limit: limit, Path: a.path(), After: a.path()})
	case 6:
		return wire.AppendMkdirRequest(nil, request, wire.MkdirRequest{Flags: uint32(a.rng.IntN(3)), Path: a.path()})
	case 7:
		return wire.AppendRemoveRequest(nil, request, wire.RemoveRequest{Path: a.path()})
	case 8:
		return wire.AppendRenameRequest(nil, request, wire.RenameRequest{Old: a.path(), New: a.path()})
	case 9:
		return wire.AppendTruncateRequest(nil, request, wire.TruncateRequest{Handle: handle, Size: offset})
	case 10:
		return wire.AppendSyncRequest(nil, request, wire.SyncRequest{Handle: handle})
	default:
		return wire.AppendCloseRequest(nil, request, wire.CloseRequest{Handle: handle})
	}
}

// openFileRequest opens one of two files, or is about the first that is open.
func (a *attacker) openFileRequest() []byte {
	const handle = 1
	request, path, offset := a.rng.Uint64(), []byte("w/a"), uint64(a.rng.IntN(10_000))
	if a.rng.IntN(2) == 0 {
		path = []byte("w/b")
	}
	switch a.rng.IntN(6) {
	case 0, 1:
		flags := wire.OpenRead | wire.OpenWrite | wire.OpenCreate
		if a.odd(4) {
			flags = wire.OpenRead | wire.OpenAppend | wire.OpenCreate
		}
		return wire.AppendOpenFileRequest(nil, request, wire.OpenFileRequest{Flags: flags, Path: path})
	case 2:
		return wire.AppendReadRequest(nil, request, wire.ReadRequest{Handle: handle, Offset: offset, Length: uint64(a.rng.IntN(10_000))})
	case 3:
		return wire.AppendTruncateRequest(nil, request, wire.TruncateRequest{Handle: handle, Size: offset})
	default:
		return wire.AppendWriteRequest(nil, request, wire.WriteRequest{Handle: handle, Offset: offset, Data: make([]byte, a.rng.IntN(1000))})
	}
}

func (a *attacker) path() []byte {
	paths := []string{"file", "/", "../file", "none", "file/file", "\x00", "\xff", "w", "w/a", "w/b", "w/d", "w/d/e", "w/d/e/f", "w/../file", "w/../../file"}
	return []byte(paths[a.rng.IntN(len(paths))])
}
