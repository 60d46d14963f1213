package relay_test

import (
	"net/netip"

	"github.com/fix-project/arcavm/wire"
)

// frame is the next one for t: its Open, or a request of its protocol. It is right, but for its values; now and then its header isn't.
func (a *attacker) frame(t *target) []byte {
	var b []byte
	switch {
	case t.cursor == 0:
		b = wire.AppendOpen(nil, a.rng.Uint64(), wire.Open{Protocol: t.protocol, Payload: a.openPayload(t.protocol)})
	case t.protocol == wire.ProtocolTCPListener, t.protocol == wire.ProtocolUnixListener:
		b = wire.AppendAcceptConnection(nil, a.rng.Uint64(), wire.AcceptConnection{Pipe: uint64(a.id())})
	case t.protocol == wire.ProtocolUDP:
		b = wire.AppendSendDatagram(nil, a.rng.Uint64(), wire.SendDatagram{To: a.endpoint(), Data: make([]byte, a.rng.IntN(200))})
	default:
		b = a.fileRequest()
	}
	if a.rng.IntN(8) == 0 {
		b[a.rng.IntN(wire.HeaderSize)] ^= 1 << a.rng.IntN(8)
	}
	return b
}

func (a *attacker) openPayload(protocol uint16) []byte {
	options := wire.TCPOptions{Flags: wire.TCPFlags(a.rng.IntN(2)), KeepAlive: wire.KeepAliveOff}
	if a.rng.IntN(4) == 0 {
		options = wire.TCPOptions{Flags: wire.TCPFlags(a.value()), KeepAlive: uint16(a.value())}
	}
	local := at(netip.MustParseAddrPort("127.0.0.1:0"))
	switch protocol {
	case wire.ProtocolFileSystem:
		return nil
	case wire.ProtocolTCPConnection:
		m := wire.Connect{Endpoint: at([]netip.AddrPort{a.echo, a.refused}[a.rng.IntN(2)])}
		if a.rng.IntN(2) == 0 {
			m.Options = &options
		}
		return wire.AppendConnect(nil, m)
	case wire.ProtocolTCPListener:
		if a.rng.IntN(4) == 0 {
			local = at(a.echo)
		}
		return wire.AppendListen(nil, wire.Listen{Endpoint: local, Backlog: a.rng.Uint32(), Options: options})
	case wire.ProtocolUDP:
		m := wire.UDPSocket{Local: local}
		if a.rng.IntN(3) == 0 {
			m = wire.UDPSocket{Peer: a.endpoint()}
		}
		return wire.AppendUDPSocket(nil, m)
	case wire.ProtocolUnixListener:
		return wire.AppendUnixListen(nil, wire.UnixListen{Backlog: a.rng.Uint32(), Path: []byte(a.socket())})
	case wire.ProtocolUnixConnection:
		return wire.AppendUnixConnect(nil, wire.UnixConnect{Path: []byte(a.socket())})
	default:
		return make([]byte, a.rng.IntN(40))
	}
}

func (a *attacker) socket() string {
	return []string{"s", "/s", "../s", "s/s", "\x00", ".", "t"}[a.rng.IntN(7)]
}

// endpoint is the echo server's, where no UDP socket is, or a wild one.
func (a *attacker) endpoint() wire.Endpoint {
	e := at(a.echo)
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

// fileRequest is a request of any kind about files. Only w may be written; the good streams read file.
func (a *attacker) fileRequest() []byte {
	request, handle := a.rng.Uint64(), uint64(a.rng.IntN(6))
	// Offsets that the disk has room for, or none at all.
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

func (a *attacker) path() []byte {
	paths := []string{"file", "/", "../file", "none", "file/file", "\x00", "\xff", "w", "w/a", "w/b", "w/d", "w/d/e", "w/d/e/f", "w/../file", "w/../../file"}
	return []byte(paths[a.rng.IntN(len(paths))])
}
