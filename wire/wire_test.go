package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var (
	v4     = Endpoint{Addr: netip.MustParseAddr("127.0.0.1"), Port: 8080}
	v6     = Endpoint{Addr: netip.MustParseAddr("fe80::1"), Port: 443, Scope: 3}
	mapped = Endpoint{Addr: netip.MustParseAddr("::ffff:10.0.0.1"), Port: 1}
)

// message is any decoded message with what its frame header carries besides.
type message struct {
	Flags   Flags
	Request uint64
	Body    any
}

// decode takes one whole frame apart.
func decode(frame []byte) (message, error) {
	h, err := DecodeHeader(frame)
	if err != nil {
		return message{}, err
	}
	p := frame[HeaderSize:]
	if len(p) != int(h.Length) {
		return message{}, ErrLength
	}
	m := message{Flags: h.Flags, Request: h.RequestID}
	if h.Kind == KindReceivedDatagram || h.Kind == KindReceivedDatagramAt {
		// No request asked for it: its sender writes 0, its reader ignores it.
		m.Request = 0
	}
	switch h.Kind {
	case KindNewStreamRequest:
		m.Body, err = DecodeNewStreamRequest(p)
	case KindDataStreamInfo:
		m.Body, err = DecodeDataStreamInfo(p)
	case KindOpen:
		m.Body, err = DecodeOpen(p)
	case KindOpened:
		m.Body, err = DecodeOpened(p)
	case KindReadFileRequest:
		m.Body, err = DecodeReadFileRequest(p)
	case KindFileData:
		m.Body, err = DecodeFileData(p)
	case KindFileDone:
		m.Body, err = DecodeFileDone(p)
	case KindFileInfo:
		m.Body, err = DecodeFileInfo(p)
	case KindFileList:
		m.Body, err = DecodeFileList(p)
	case KindOpenFileRequest:
		m.Body, err = DecodeOpenFileRequest(p)
	case KindReadRequest:
		m.Body, err = DecodeReadRequest(p)
	case KindWriteRequest:
		m.Body, err = DecodeWriteRequest(p)
	case KindStatRequest:
		m.Body, err = DecodeStatRequest(p)
	case KindListRequest:
		m.Body, err = DecodeListRequest(p)
	case KindMkdirRequest:
		m.Body, err = DecodeMkdirRequest(p)
	case KindRemoveRequest:
		m.Body, err = DecodeRemoveRequest(p)
	case KindRenameRequest:
		m.Body, err = DecodeRenameRequest(p)
	case KindTruncateRequest:
		m.Body, err = DecodeTruncateRequest(p)
	case KindSyncRequest:
		m.Body, err = DecodeSyncRequest(p)
	case KindCloseRequest:
		m.Body, err = DecodeCloseRequest(p)
	case KindAcceptConnection:
		m.Body, err = DecodeAcceptConnection(p)
	case KindIncomingConnection:
		if len(p) > incomingConnectionSize {
			m.Body, err = DecodeIncomingTLSConnection(p)
		} else {
			m.Body, err = DecodeIncomingConnection(p)
		}
	case KindSendDatagram:
		m.Body, err = DecodeSendDatagram(p)
	case KindReceivedDatagram:
		m.Body, err = DecodeReceivedDatagram(p)
	case KindSendDatagramFrom:
		m.Body, err = DecodeSendDatagramFrom(p)
	case KindReceivedDatagramAt:
		m.Body, err = DecodeReceivedDatagramAt(p)
	case KindDatagramError:
		m.Body, err = DecodeDatagramError(p)
	case KindResolveName:
		m.Body, err = DecodeResolveName(p)
	case KindResolveAddress:
		m.Body, err = DecodeResolveAddress(p)
	case KindAddresses:
		m.Body, err = DecodeAddresses(p)
	case KindNames:
		m.Body, err = DecodeNames(p)
	}
	return m, err
}

// encode is the inverse of decode.
func encode(b []byte, m message) []byte {
	switch body := m.Body.(type) {
	case NewStreamRequest:
		return AppendNewStreamRequest(b, m.Request, body)
	case DataStreamInfo:
		return AppendDataStreamInfo(b, m.Request, body)
	case Open:
		return AppendOpen(b, m.Request, body)
	case Opened:
		return AppendOpened(b, m.Request, body)
	case ReadFileRequest:
		return AppendReadFileRequest(b, m.Request, body)
	case FileData:
		return AppendFileData(b, m.Request, m.Flags, body)
	case FileDone:
		return AppendFileDone(b, m.Request, body)
	case FileInfo:
		return AppendFileInfo(b, m.Request, body)
	case FileList:
		return AppendFileList(b, m.Request, body)
	case OpenFileRequest:
		return AppendOpenFileRequest(b, m.Request, body)
	case ReadRequest:
		return AppendReadRequest(b, m.Request, body)
	case WriteRequest:
		return AppendWriteRequest(b, m.Request, body)
	case StatRequest:
		return AppendStatRequest(b, m.Request, body)
	case ListRequest:
		return AppendListRequest(b, m.Request, body)
	case MkdirRequest:
		return AppendMkdirRequest(b, m.Request, body)
	case RemoveRequest:
		return AppendRemoveRequest(b, m.Request, body)
	case RenameRequest:
		return AppendRenameRequest(b, m.Request, body)
	case TruncateRequest:
		return AppendTruncateRequest(b, m.Request, body)
	case SyncRequest:
		return AppendSyncRequest(b, m.Request, body)
	case CloseRequest:
		return AppendCloseRequest(b, m.Request, body)
	case AcceptConnection:
		return AppendAcceptConnection(b, m.Request, body)
	case IncomingConnection:
		return AppendIncomingConnection(b, m.Request, body)
	case IncomingTLSConnection:
		return AppendIncomingTLSConnection(b, m.Request, body)
	case SendDatagram:
		return AppendSendDatagram(b, m.Request, body)
	case ReceivedDatagram:
		return AppendReceivedDatagram(b, body)
	case SendDatagramFrom:
		return AppendSendDatagramFrom(b, m.Request, body)
	case ReceivedDatagramAt:
		return AppendReceivedDatagramAt(b, body)
	case DatagramError:
		return AppendDatagramError(b, m.Request, body)
	case ResolveName:
		return AppendResolveName(b, m.Request, body)
	case ResolveAddress:
		return AppendResolveAddress(b, m.Request, body)
	case Addresses:
		return AppendAddresses(b, m.Request, body)
	case Names:
		return AppendNames(b, m.Request, body)
	}
	panic("no such message")
}

var golden = []struct {
	name string
	m    message
	hex  string
}{
	{"NewStreamRequest", message{Request: 1, Body: NewStreamRequest{OutgoingSize: 65536, IncomingSize: 4096, HomeCPU: 2}},
		"10000000 0100 0000 0100000000000000" + "00000100 00100000 02000000 00000000"},
	{"DataStreamInfo", message{Request: 0xffffffffffffffff, Body: DataStreamInfo{Pipe: Descriptor{
		ID: 7<<32 | 5, Header: 0x1000, Outgoing: 0x20000, Incoming: 0x30000, OutgoingSize: 65536, IncomingSize: 4096}}},
		"30000000 0200 0000 ffffffffffffffff" + "00000000 00000000 0500000007000000 0010000000000000" +
			"0000020000000000 0000030000000000 00000100 00100000"},
	{"DataStreamInfo ENOMEM", message{Request: 2, Body: DataStreamInfo{Status: 12}},
		"08000000 0200 0000 0200000000000000" + "0c000000 00000000"},
	{"Open file system", message{Request: 3, Body: Open{Protocol: ProtocolFileSystem}},
		"08000000 0300 0000 0300000000000000" + "0000 0000 00000000"},
	{"Open listener", message{Request: 4, Body: Open{Protocol: ProtocolTCPListener,
		Payload: AppendListen(nil, Listen{Endpoint: v4, Backlog: 128})}},
		"28000000 0300 0000 0400000000000000" + "0100 0000 00000000" +
			"04 00 901f 00000000 7f000001 000000000000000000000000" + "80000000 00000000"},
	{"Open connection by address", message{Request: 5, Body: Open{Protocol: ProtocolTCPConnection,
		Payload: AppendConnect(nil, Connect{Endpoint: v6})}},
		"20000000 0300 0000 0500000000000000" + "0200 0000 00000000" +
			"06 00 bb01 03000000 fe800000000000000000000000000001"},
	{"Open connection by name", message{Request: 6, Body: Open{Protocol: ProtocolTCPConnection,
		Payload: AppendConnect(nil, Connect{Endpoint: Endpoint{Port: 80}, Name: []byte("host.example")})}},
		"2c000000 0300 0000 0600000000000000" + "0200 0000 00000000" +
			"00 00 5000 00000000 00000000000000000000000000000000" + hex.EncodeToString([]byte("host.example"))},
	{"Open connection with options", message{Request: 6, Body: Open{Protocol: ProtocolTCPConnection,
		Payload: AppendConnect(nil, Connect{Endpoint: Endpoint{Port: 80}, Options: &TCPOptions{KeepAlive: 600}, Name: []byte("host.example")})}},
		"30000000 0300 0000 0600000000000000" + "0200 0000 00000000" +
			"00 01 5000 00000000 00000000000000000000000000000000" + "0000 5802" + hex.EncodeToString([]byte("host.example"))},
	{"Open listener with options", message{Request: 4, Body: Open{Protocol: ProtocolTCPListener,
		Payload: AppendListen(nil, Listen{Endpoint: v4, Options: TCPOptions{Flags: TCPDelay, KeepAlive: KeepAliveOff}})}},
		"28000000 0300 0000 0400000000000000" + "0100 0000 00000000" +
			"04 00 901f 00000000 7f000001 000000000000000000000000" + "00000000 0100 ffff"},
	{"Open private", message{Request: 7, Body: Open{Protocol: ProtocolPrivate, Payload: []byte{1, 2}}},
		"0a000000 0300 0000 0700000000000000" + "0080 0000 00000000 0102"},
	{"Opened", message{Request: 8, Body: Opened{Payload: AppendEndpoint(nil, mapped)}},
		"20000000 0400 0000 0800000000000000" + "00000000 00000000" +
			"06 00 0100 00000000 00000000000000000000ffff0a000001"},
	{"Opened ECONNREFUSED", message{Request: 9, Body: Opened{Status: 111}},
		"08000000 0400 0000 0900000000000000" + "6f000000 00000000"},
	{"ReadFileRequest", message{Request: 10, Body: ReadFileRequest{Offset: 4096, Length: ToEnd, Path: []byte("/a/b")}},
		"14000000 1000 0000 0a00000000000000" + "0010000000000000 ffffffffffffffff 2f612f62"},
	{"FileData", message{Request: 11, Flags: More, Body: FileData{Offset: 4096, Data: []byte("xyz")}},
		"13000000 1100 0100 0b00000000000000" + "00000000 00000000 0010000000000000 78797a"},
	{"FileData empty", message{Request: 12, Body: FileData{}},
		"10000000 1100 0000 0c00000000000000" + "00000000 00000000 0000000000000000"},
	{"FileData ENOENT", message{Request: 13, Body: FileData{Status: 2}},
		"10000000 1100 0000 0d00000000000000" + "02000000 00000000 0000000000000000"},
	{"FileDone", message{Request: 0x20, Body: FileDone{Value: 3}},
		"10000000 1200 0000 2000000000000000" + "00000000 00000000 0300000000000000"},
	{"FileDone ENOSPC after some bytes", message{Request: 0x21, Body: FileDone{Status: 28, Value: 512}},
		"10000000 1200 0000 2100000000000000" + "1c000000 00000000 0002000000000000"},
	{"FileInfo", message{Request: 0x22, Body: FileInfo{Size: 1 << 40, Seconds: -1, Nanoseconds: 999_999_999, Mode: 0o100644}},
		"20000000 1300 0000 2200000000000000" + "00000000 00000000 0000000000010000 ffffffffffffffff ffc99a3b a4810000"},
	{"FileInfo ENOENT", message{Request: 0x23, Body: FileInfo{Status: 2}},
		"08000000 1300 0000 2300000000000000" + "02000000 00000000"},
	{"FileList", message{Request: 0x24, Body: FileList{Entries: AppendFileEntry(AppendFileEntry(nil,
		FileEntry{Type: 4, Name: []byte("a")}), FileEntry{Type: 8, Name: []byte("bc")})}},
		"0f000000 1400 0000 2400000000000000" + "00000000 00000000 04 01 61 08 02 6263"},
	{"FileList of the end", message{Request: 0x25, Body: FileList{}},
		"08000000 1400 0000 2500000000000000" + "00000000 00000000"},
	{"OpenFileRequest", message{Request: 0x26, Body: OpenFileRequest{Flags: OpenWrite | OpenCreate | OpenExclusive, Path: []byte("/a")}},
		"0a000000 1500 0000 2600000000000000" + "2a000000 00000000 2f61"},
	{"ReadRequest", message{Request: 0x27, Body: ReadRequest{Handle: 1, Offset: 4096, Length: ToEnd}},
		"18000000 1600 0000 2700000000000000" + "0100000000000000 0010000000000000 ffffffffffffffff"},
	{"WriteRequest", message{Request: 0x28, Body: WriteRequest{Handle: 1, Offset: 5, Data: []byte("xyz")}},
		"13000000 1700 0000 2800000000000000" + "0100000000000000 0500000000000000 78797a"},
	{"StatRequest by handle", message{Request: 0x29, Body: StatRequest{Handle: 7}},
		"10000000 1800 0000 2900000000000000" + "0700000000000000 00000000 00000000"},
	{"StatRequest by path", message{Request: 0x2a, Body: StatRequest{Flags: StatNoFollow, Path: []byte("/a\x00")}},
		"13000000 1800 0000 2a00000000000000" + "0000000000000000 01000000 00000000 2f6100"},
	{"ListRequest", message{Request: 0x2b, Body: ListRequest{Limit: 65536, Path: []byte("/a"), After: []byte("xyz")}},
		"0d000000 1900 0000 2b00000000000000" + "00000100 02000000 2f61 78797a"},
	{"ListRequest from the start", message{Request: 0x2c, Body: ListRequest{Limit: 4096, Path: []byte("/")}},
		"09000000 1900 0000 2c00000000000000" + "00100000 01000000 2f"},
	{"MkdirRequest", message{Request: 0x2d, Body: MkdirRequest{Flags: MkdirParents, Path: []byte("a/b")}},
		"0b000000 1a00 0000 2d00000000000000" + "01000000 00000000 612f62"},
	{"RemoveRequest", message{Request: 0x2e, Body: RemoveRequest{Path: []byte("a")}},
		"01000000 1b00 0000 2e00000000000000" + "61"},
	{"RenameRequest", message{Request: 0x2f, Body: RenameRequest{Old: []byte("a"), New: []byte("/bc")}},
		"0c000000 1c00 0000 2f00000000000000" + "01000000 00000000 61 2f6263"},
	{"TruncateRequest", message{Request: 0x30, Body: TruncateRequest{Handle: 1, Size: 2}},
		"10000000 1d00 0000 3000000000000000" + "0100000000000000 0200000000000000"},
	{"SyncRequest", message{Request: 0x31, Body: SyncRequest{Handle: 1}},
		"08000000 1e00 0000 3100000000000000" + "0100000000000000"},
	{"CloseRequest", message{Request: 0x32, Body: CloseRequest{Handle: 1<<64 - 1}},
		"08000000 1f00 0000 3200000000000000" + "ffffffffffffffff"},
	{"AcceptConnection", message{Request: 14, Body: AcceptConnection{Pipe: 1<<32 | 9}},
		"08000000 2000 0000 0e00000000000000" + "0900000001000000"},
	{"IncomingConnection", message{Request: 15, Body: IncomingConnection{Pipe: 9, Peer: v4, Local: v6}},
		"40000000 2100 0000 0f00000000000000" + "00000000 00000000 0900000000000000" +
			"04 00 901f 00000000 7f000001 000000000000000000000000" +
			"06 00 bb01 03000000 fe800000000000000000000000000001"},
	{"IncomingConnection of a TLS listener", message{Request: 15, Body: IncomingTLSConnection{
		IncomingConnection{Pipe: 9, Peer: v4, Local: v4}, TLSSession{Version: 0x0303, ALPN: []byte("h2")}}},
		"4a000000 2100 0000 0f00000000000000" + "00000000 00000000 0900000000000000" +
			"04 00 901f 00000000 7f000001 000000000000000000000000" +
			"04 00 901f 00000000 7f000001 000000000000000000000000" + "0303 0200 00000000 6832"},
	{"IncomingConnection UNIX", message{Request: 22, Body: IncomingConnection{Pipe: 9}},
		"40000000 2100 0000 1600000000000000" + "00000000 00000000 0900000000000000" +
			"00 00 0000 00000000 00000000000000000000000000000000" +
			"00 00 0000 00000000 00000000000000000000000000000000"},
	{"IncomingConnection EBUSY", message{Request: 16, Body: IncomingConnection{Status: 16}},
		"08000000 2100 0000 1000000000000000" + "10000000 00000000"},
	{"Open UDP bound", message{Request: 17, Body: Open{Protocol: ProtocolUDP,
		Payload: AppendUDPSocket(nil, UDPSocket{Local: v4})}},
		"38000000 0300 0000 1100000000000000" + "0300 0000 00000000" +
			"04 00 901f 00000000 7f000001 000000000000000000000000" +
			"00 00 0000 00000000 00000000000000000000000000000000"},
	{"Open UDP connected", message{Request: 18, Body: Open{Protocol: ProtocolUDP,
		Payload: AppendUDPSocket(nil, UDPSocket{Peer: v6})}},
		"38000000 0300 0000 1200000000000000" + "0300 0000 00000000" +
			"00 00 0000 00000000 00000000000000000000000000000000" +
			"06 00 bb01 03000000 fe800000000000000000000000000001"},
	{"Open TLS connection by address", message{Request: 22, Body: Open{Protocol: ProtocolTLSConnection,
		Payload: AppendTLSConnect(nil, TLSConnect{Connect: Connect{Endpoint: v4}})}},
		"28000000 0300 0000 1600000000000000" + "0700 0000 00000000" +
			"04 00 901f 00000000 7f000001 000000000000000000000000" + "0000 0000 0000 0000"},
	{"Open TLS connection by name", message{Request: 23, Body: Open{Protocol: ProtocolTLSConnection,
		Payload: AppendTLSConnect(nil, TLSConnect{
			Connect:    Connect{Endpoint: Endpoint{Port: 443}, Name: []byte("host")},
			ServerName: []byte("server"), ALPN: AppendALPN(AppendALPN(nil, "h2"), "http/1.1"),
		})}},
		"3e000000 0300 0000 1700000000000000" + "0700 0000 00000000" +
			"00 00 bb01 00000000 00000000000000000000000000000000" + "0400 0600 0c00 0000" +
			hex.EncodeToString([]byte("hostserver\x02h2\x08http/1.1"))},
	{"Open TLS listener", message{Request: 24, Body: Open{Protocol: ProtocolTLSListener,
		Payload: AppendTLSListen(nil, TLSListen{Listen: Listen{Endpoint: v6, Backlog: 128}, ALPN: AppendALPN(nil, "h2")})}},
		"2b000000 0300 0000 1800000000000000" + "0900 0000 00000000" +
			"06 00 bb01 03000000 fe800000000000000000000000000001" + "80000000 0300 0000 026832"},
	{"Opened TLS connection", message{Request: 25, Body: Opened{
		Payload: AppendTLSConnected(nil, TLSConnected{Local: v4, Peer: v6, TLS: TLSSession{Version: 0x0304, ALPN: []byte("h2")}})}},
		"42000000 0400 0000 1900000000000000" + "00000000 00000000" +
			"04 00 901f 00000000 7f000001 000000000000000000000000" +
			"06 00 bb01 03000000 fe800000000000000000000000000001" + "0403 0200 00000000 6832"},
	{"Open UNIX listener", message{Request: 23, Body: Open{Protocol: ProtocolUnixListener,
		Payload: AppendUnixListen(nil, UnixListen{Backlog: 128, Path: []byte("/a/b")})}},
		"14000000 0300 0000 1700000000000000" + "0400 0000 00000000" + "80000000 00000000 2f612f62"},
	{"Open UNIX connection", message{Request: 24, Body: Open{Protocol: ProtocolUnixConnection,
		Payload: AppendUnixConnect(nil, UnixConnect{Path: []byte("/a/b")})}},
		"0c000000 0300 0000 1800000000000000" + "0500 0000 00000000" + "2f612f62"},
	{"SendDatagram", message{Request: 19, Body: SendDatagram{To: v4, Data: []byte("abc")}},
		"1b000000 3000 0000 1300000000000000" + "04 00 901f 00000000 7f000001 000000000000000000000000" + "616263"},
	{"SendDatagram empty, to the peer", message{Request: 20, Body: SendDatagram{}},
		"18000000 3000 0000 1400000000000000" + "00 00 0000 00000000 00000000000000000000000000000000"},
	{"ReceivedDatagram", message{Body: ReceivedDatagram{From: v6, Size: 9000, Dropped: 2, Data: []byte("xy")}},
		"22000000 3100 0000 0000000000000000" + "06 00 bb01 03000000 fe800000000000000000000000000001" +
			"28230000 02000000 7879"},
	{"Open addressed UDP socket", message{Request: 26, Body: Open{Protocol: ProtocolUDP,
		Payload: AppendUDPSocket(nil, UDPSocket{Local: v4, Addressed: true})}},
		"38000000 0300 0000 1a00000000000000" + "0300 0000 00000000" +
			"04 01 901f 00000000 7f000001 000000000000000000000000" + "00 00 0000 00000000 00000000000000000000000000000000"},
	{"SendDatagramFrom", message{Request: 27, Body: SendDatagramFrom{SendDatagram{To: v4, Data: []byte("abc")}, v6}},
		"33000000 3300 0000 1b00000000000000" + "04 00 901f 00000000 7f000001 000000000000000000000000" +
			"06 00 bb01 03000000 fe800000000000000000000000000001" + "616263"},
	{"ReceivedDatagramAt", message{Body: ReceivedDatagramAt{ReceivedDatagram{From: v6, Size: 9000, Dropped: 2, Data: []byte("xy")}, v4}},
		"3a000000 3400 0000 0000000000000000" + "06 00 bb01 03000000 fe800000000000000000000000000001" +
			"28230000 02000000" + "04 00 901f 00000000 7f000001 000000000000000000000000" + "7879"},
	{"DatagramError EMSGSIZE", message{Request: 21, Body: DatagramError{Status: 90, To: v4}},
		"20000000 3200 0000 1500000000000000" + "5a000000 00000000" +
			"04 00 901f 00000000 7f000001 000000000000000000000000"},
	{"Open resolver", message{Request: 22, Body: Open{Protocol: ProtocolResolver}},
		"08000000 0300 0000 1600000000000000" + "0600 0000 00000000"},
	{"ResolveName", message{Request: 23, Body: ResolveName{Family: 6, Name: []byte("a.example")}},
		"11000000 4000 0000 1700000000000000" + "06 00000000000000" + hex.EncodeToString([]byte("a.example"))},
	{"ResolveName of any family", message{Request: 24, Body: ResolveName{Name: []byte("b")}},
		"09000000 4000 0000 1800000000000000" + "00 00000000000000 62"},
	{"ResolveAddress", message{Request: 25, Body: ResolveAddress{Address: Endpoint{Addr: v6.Addr, Scope: 3}}},
		"18000000 4100 0000 1900000000000000" + "06 00 0000 03000000 fe800000000000000000000000000001"},
	{"Addresses", message{Request: 26, Body: Addresses{Endpoints: AppendEndpoint(AppendEndpoint(nil, Endpoint{Addr: v4.Addr}), Endpoint{Addr: v6.Addr, Scope: 3})}},
		"38000000 4200 0000 1a00000000000000" + "00000000 00000000" +
			"04 00 0000 00000000 7f000001 000000000000000000000000" +
			"06 00 0000 03000000 fe800000000000000000000000000001"},
	{"Addresses ENODATA", message{Request: 27, Body: Addresses{Status: 61}},
		"08000000 4200 0000 1b00000000000000" + "3d000000 00000000"},
	{"Names", message{Request: 28, Body: Names{Entries: AppendHostName(AppendHostName(nil, "a"), "bc.example")}},
		"15000000 4300 0000 1c00000000000000" + "00000000 00000000" + "01 61 0a" + hex.EncodeToString([]byte("bc.example"))},
	{"Names ENOENT", message{Request: 29, Body: Names{Status: 2}},
		"08000000 4300 0000 1d00000000000000" + "02000000 00000000"},
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var compare = cmp.Options{cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{})}

func TestGolden(t *testing.T) {
	t.Parallel()
	for _, g := range golden {
		t.Run(g.name, func(t *testing.T) {
			t.Parallel()
			want := unhex(t, g.hex)
			got := encode([]byte("before"), g.m)
			if diff := cmp.Diff(append([]byte("before"), want...), got); diff != "" {
				t.Errorf("encoded (-want +got):\n%s", diff)
			}
			m, err := decode(want)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(g.m, m, compare); diff != "" {
				t.Errorf("decoded (-want +got):\n%s", diff)
			}
		})
	}
}

func TestMalformed(t *testing.T) {
	t.Parallel()
	long := func(n int) string { return strings.Repeat("61", n) }
	ep4 := "04 00 901f 00000000 7f000001 000000000000000000000000"
	for _, c := range []struct {
		name string
		hex  string
		want error
	}{
		{"short header", "00000000 0300 0000 01000000000000", ErrLength},
		{"kind 0", "00000000 0000 0000 0000000000000000", ErrKind},
		{"kind between", "00000000 0500 0000 0000000000000000", ErrKind},
		{"flag 2", "10000000 1100 0200 0000000000000000 00000000000000000000000000000000", ErrFlags},
		{"MORE on a request", "10000000 0100 0100 0000000000000000 00000100001000000200000000000000", ErrFlags},
		{"absurd length", "ffffffff 1000 0000 0000000000000000", ErrLength},
		{"NewStreamRequest short", "0f000000 0100 0000 0000000000000000", ErrLength},
		{"NewStreamRequest reserved", "10000000 0100 0000 0000000000000000 00000100 00100000 02000000 01000000", ErrReserved},
		{"DataStreamInfo without descriptor", "08000000 0200 0000 0000000000000000 00000000 00000000", ErrLength},
		{"DataStreamInfo half", "09000000 0200 0000 0000000000000000 01000000 00000000 00", ErrLength},
		{"status reserved", "08000000 0200 0000 0000000000000000 01000000 01000000", ErrReserved},
		{"Open reserved", "08000000 0300 0000 0000000000000000 0000 0100 00000000", ErrReserved},
		{"Open reserved high", "08000000 0300 0000 0000000000000000 0000 0000 00000080", ErrReserved},
		{"Open long", "09100000 0300 0000 0000000000000000 0000 0000 00000000" + long(4097), ErrLength},
		{"ReadFileRequest no path", "10000000 1000 0000 0000000000000000 00000000000000000000000000000000", ErrLength},
		{"ReadFileRequest long path", "11200000 1000 0000 0000000000000000 00000000000000000000000000000000" + long(8193), ErrLength},
		{"FileData no offset", "08000000 1100 0000 0000000000000000 00000000 00000000", ErrLength},
		{"FileDone short", "0c000000 1200 0000 0000000000000000 00000000 00000000 00000000", ErrLength},
		{"FileInfo short", "10000000 1300 0000 0000000000000000 00000000 00000000 0000000000000000", ErrLength},
		{"FileList half an entry", "0a000000 1400 0000 0000000000000000 00000000 00000000 04 01", ErrLength},
		{"FileList short name", "0b000000 1400 0000 0000000000000000 00000000 00000000 04 02 61", ErrLength},
		{"FileList empty name", "0c000000 1400 0000 0000000000000000 00000000 00000000 04 00 04 00", ErrLength},
		{"OpenFileRequest no path", "08000000 1500 0000 0000000000000000 01000000 00000000", ErrLength},
		{"OpenFileRequest undefined flag", "09000000 1500 0000 0000000000000000 40000000 00000000 61", ErrFlags},
		{"OpenFileRequest reserved", "09000000 1500 0000 0000000000000000 01000000 01000000 61", ErrReserved},
		{"ReadRequest long", "19000000 1600 0000 0000000000000000 000000000000000000000000000000000000000000000000 00", ErrLength},
		{"WriteRequest short", "0f000000 1700 0000 0000000000000000 000000000000000000000000000000", ErrLength},
		{"WriteRequest long", "11000100 1700 0000 0000000000000000 00000000000000000000000000000000" + long(65537), ErrLength},
		{"StatRequest of nothing", "10000000 1800 0000 0000000000000000 0000000000000000 00000000 00000000", ErrLength},
		{"StatRequest by handle and path", "11000000 1800 0000 0000000000000000 0100000000000000 00000000 00000000 61", ErrLength},
		{"StatRequest undefined flag", "11000000 1800 0000 0000000000000000 0000000000000000 02000000 00000000 61", ErrFlags},
		{"ListRequest without path", "09000000 1900 0000 0000000000000000 00000100 00000000 61", ErrLength},
		{"ListRequest path beyond the end", "09000000 1900 0000 0000000000000000 00000100 02000000 61", ErrLength},
		{"ListRequest path of 4 GiB", "09000000 1900 0000 0000000000000000 00000100 ffffffff 61", ErrLength},
		{"ListRequest long name", "09010000 1900 0000 0000000000000000 00000100 01000000 61" + long(256), ErrLength},
		{"MkdirRequest undefined flag", "09000000 1a00 0000 0000000000000000 02000000 00000000 61", ErrFlags},
		{"RemoveRequest no path", "00000000 1b00 0000 0000000000000000", ErrLength},
		{"RenameRequest no new path", "0a000000 1c00 0000 0000000000000000 02000000 00000000 6161", ErrLength},
		{"RenameRequest no old path", "0a000000 1c00 0000 0000000000000000 00000000 00000000 6161", ErrLength},
		{"RenameRequest reserved", "0a000000 1c00 0000 0000000000000000 01000000 01000000 6161", ErrReserved},
		{"TruncateRequest short", "08000000 1d00 0000 0000000000000000 0000000000000000", ErrLength},
		{"SyncRequest long", "10000000 1e00 0000 0000000000000000 00000000000000000000000000000000", ErrLength},
		{"CloseRequest empty", "00000000 1f00 0000 0000000000000000", ErrLength},
		{"AcceptConnection long", "09000000 2000 0000 0000000000000000 000000000000000000", ErrLength},
		{"IncomingConnection short", "10000000 2100 0000 0000000000000000 00000000 00000000 0000000000000000", ErrLength},
		{"IncomingConnection of a TLS listener without family", "48000000 2100 0000 0000000000000000 00000000 00000000 0000000000000000" +
			strings.Repeat("00", 48) + "0303 0000 00000000", ErrFamily},
		{"IncomingConnection half a TLS session", "44000000 2100 0000 0000000000000000 00000000 00000000 0000000000000000" + ep4 + ep4 +
			"03030000", ErrLength},
		{"IncomingConnection no TLS version", "48000000 2100 0000 0000000000000000 00000000 00000000 0000000000000000" + ep4 + ep4 +
			"0000 0000 00000000", ErrVersion},
		{"IncomingConnection long ALPN name", "48010000 2100 0000 0000000000000000 00000000 00000000 0000000000000000" + ep4 + ep4 +
			"0303 0001 00000000" + long(256), ErrLength},
		{"IncomingConnection no family", "40000000 2100 0000 0000000000000000 00000000 00000000 0000000000000000" + ep4 + long(0) +
			"00 00 901f 00000000 00000000000000000000000000000000", ErrFamily},
		{"IncomingConnection one family", "40000000 2100 0000 0000000000000000 00000000 00000000 0000000000000000" + ep4 + strings.Repeat("00", 24), ErrFamily},
		{"IncomingConnection ports without family", "40000000 2100 0000 0000000000000000 00000000 00000000 0000000000000000" +
			"00 00 901f 00000000 00000000000000000000000000000000" + "00 00 901f 00000000 00000000000000000000000000000000", ErrFamily},
		{"SendDatagram short", "17000000 3000 0000 0000000000000000 04 00 901f 00000000 7f000001 0000000000000000000000", ErrLength},
		{"SendDatagram long", "18000100 3000 0000 0000000000000000", ErrLength},
		{"SendDatagram port without address", "18000000 3000 0000 0000000000000000 00 00 901f 00000000 00000000000000000000000000000000", ErrAddress},
		{"ReceivedDatagram from nowhere", "20000000 3100 0000 0000000000000000 00 00 0000 00000000 00000000000000000000000000000000" +
			"00000000 00000000", ErrFamily},
		{"ReceivedDatagram longer than its size", "22000000 3100 0000 0000000000000000" + ep4 + "01000000 00000000 6161", ErrLength},
		{"SendDatagramFrom short", "2f000000 3300 0000 0000000000000000" + ep4 + strings.Repeat("00", 23), ErrLength},
		{"SendDatagramFrom long", "30000100 3300 0000 0000000000000000", ErrLength},
		{"SendDatagramFrom a port of no address", "30000000 3300 0000 0000000000000000" + ep4 +
			"00 00 901f 00000000 00000000000000000000000000000000", ErrAddress},
		{"ReceivedDatagramAt short", "37000000 3400 0000 0000000000000000" + ep4 + strings.Repeat("00", 31), ErrLength},
		{"ReceivedDatagramAt nowhere", "38000000 3400 0000 0000000000000000" + ep4 + "00000000 00000000" + strings.Repeat("00", 24), ErrFamily},
		{"ReceivedDatagramAt longer than its size", "39000000 3400 0000 0000000000000000" + ep4 + "00000000 00000000" + ep4 + "61", ErrLength},
		{"DatagramError short", "08000000 3200 0000 0000000000000000 5a000000 00000000", ErrLength},
		{"DatagramError reserved", "20000000 3200 0000 0000000000000000 5a000000 01000000" + ep4, ErrReserved},
		{"ResolveName without name", "08000000 4000 0000 0000000000000000 00 00000000000000", ErrLength},
		{"ResolveName long name", "06010000 4000 0000 0000000000000000 00 00000000000000" + long(MaxName+1), ErrLength},
		{"ResolveName reserved", "09000000 4000 0000 0000000000000000 04 01000000000000 61", ErrReserved},
		{"ResolveName reserved high", "09000000 4000 0000 0000000000000000 04 00000000000080 61", ErrReserved},
		{"ResolveName family 10", "09000000 4000 0000 0000000000000000 0a 00000000000000 61", ErrFamily},
		{"ResolveName NUL", "0a000000 4000 0000 0000000000000000 00 00000000000000 6100", ErrName},
		{"ResolveAddress short", "17000000 4100 0000 0000000000000000 04 00 0000 00000000 7f000001 0000000000000000000000", ErrLength},
		{"ResolveAddress with a port", "18000000 4100 0000 0000000000000000" + ep4, ErrReserved},
		{"ResolveAddress no family", "18000000 4100 0000 0000000000000000 00 00 0000 00000000 00000000000000000000000000000000", ErrFamily},
		{"Addresses none", "08000000 4200 0000 0000000000000000 00000000 00000000", ErrLength},
		{"Addresses half", "14000000 4200 0000 0000000000000000 00000000 00000000 04 00 0000 00000000 7f000001", ErrLength},
		{"Addresses too many", "20060000 4200 0000 0000000000000000 00000000 00000000" + strings.Repeat("04 00 0000 00000000 7f000001 000000000000000000000000", 65), ErrLength},
		{"Addresses with a port", "20000000 4200 0000 0000000000000000 00000000 00000000" + ep4, ErrReserved},
		{"Addresses reserved", "08000000 4200 0000 0000000000000000 02000000 01000000", ErrReserved},
		{"Names none", "08000000 4300 0000 0000000000000000 00000000 00000000", ErrLength},
		{"Names empty name", "0b000000 4300 0000 0000000000000000 00000000 00000000 01 61 00", ErrLength},
		{"Names beyond the end", "0a000000 4300 0000 0000000000000000 00000000 00000000 02 61", ErrLength},
		{"Names long name", "07010000 4300 0000 0000000000000000 00000000 00000000 fe" + long(254), ErrLength},
		{"Names NUL", "0b000000 4300 0000 0000000000000000 00000000 00000000 02 6100", ErrName},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if m, err := decode(unhex(t, c.hex)); !errors.Is(err, c.want) {
				t.Errorf("got %+v, %v, want %v", m, err, c.want)
			}
		})
	}
}

func TestMalformedOpenPayload(t *testing.T) {
	t.Parallel()
	listen := func(p []byte) error { _, err := DecodeListen(p); return err }
	connect := func(p []byte) error { _, err := DecodeConnect(p); return err }
	udp := func(p []byte) error { _, err := DecodeUDPSocket(p); return err }
	tlsConnect := func(p []byte) error { _, err := DecodeTLSConnect(p); return err }
	tlsListen := func(p []byte) error { _, err := DecodeTLSListen(p); return err }
	tlsConnected := func(p []byte) error { _, err := DecodeTLSConnected(p); return err }
	unixListen := func(p []byte) error { _, err := DecodeUnixListen(p); return err }
	unixConnect := func(p []byte) error { _, err := DecodeUnixConnect(p); return err }
	ep4 := "04 00 901f 00000000 7f000001 000000000000000000000000"
	none := "00 00 901f 00000000 00000000 000000000000000000000000"
	for _, c := range []struct {
		name   string
		decode func([]byte) error
		hex    string
		want   error
	}{
		{"listen without backlog", listen, ep4, ErrLength},
		{"listen without family", listen, none + "00000000 00000000", ErrFamily},
		{"listen with an unknown option", listen, ep4 + "00000000 0200 0000", ErrOptions},
		{"listen with a long keep-alive", listen, ep4 + "00000000 0000 0080", ErrOptions},
		{"endpoint reserved", listen, "04 01 901f 00000000 7f000001 000000000000000000000000 00000000 00000000", ErrReserved},
		{"endpoint family 10", connect, "0a 00 901f 00000000 7f000001 000000000000000000000000", ErrFamily},
		{"endpoint scope with IPv4", connect, "04 00 901f 01000000 7f000001 000000000000000000000000", ErrAddress},
		{"endpoint rest with IPv4", connect, "04 00 901f 00000000 7f000001 000000000000000000000001", ErrAddress},
		{"endpoint address without family", connect, "00 00 901f 00000000 7f000001 000000000000000000000000 61", ErrAddress},
		{"UDP short", udp, ep4, ErrLength},
		{"UDP without addresses", udp, strings.Repeat("00", 48), ErrFamily},
		{"UDP with a port of no address", udp, ep4 + none, ErrAddress},
		{"connect short", connect, "04 00 901f", ErrLength},
		{"connect address and name", connect, ep4 + "61", ErrLength},
		{"connect neither", connect, none, ErrLength},
		{"connect without the options announced", connect, "04 01 901f 00000000 7f000001 000000000000000000000000 0000", ErrLength},
		{"connect with an unknown option", connect, "04 01 901f 00000000 7f000001 000000000000000000000000 0080 0000", ErrOptions},
		{"connect with options and neither", connect, "00 01 901f 00000000 00000000 000000000000000000000000 0100 0000", ErrLength},
		{"connect with a further reserved bit", connect, "04 03 901f 00000000 7f000001 000000000000000000000000 0100 0000", ErrReserved},
		{"connect long name", connect, none + strings.Repeat("61", MaxName+1), ErrLength},
		{"connect NUL", connect, none + "6100", ErrName},
		{"TLS connect short", tlsConnect, ep4 + "0000 0000 0000", ErrLength},
		{"TLS connect reserved", tlsConnect, ep4 + "0000 0000 0000 0100", ErrReserved},
		{"TLS connect address and name", tlsConnect, ep4 + "0100 0000 0000 0000 61", ErrLength},
		{"TLS connect neither", tlsConnect, none + "0000 0100 0000 0000 61", ErrLength},
		{"TLS connect cut", tlsConnect, ep4 + "0000 0200 0000 0000 61", ErrLength},
		{"TLS connect more", tlsConnect, ep4 + "0000 0100 0000 0000 6161", ErrLength},
		{"TLS connect long name", tlsConnect, none + "fe00 0000 0000 0000" + strings.Repeat("61", MaxName+1), ErrLength},
		{"TLS connect long server name", tlsConnect, ep4 + "0000 fe00 0000 0000" + strings.Repeat("61", MaxName+1), ErrLength},
		{"TLS connect long list", tlsConnect, ep4 + "0000 0000 0204 0000" + strings.Repeat("0161", (MaxALPN+2)/2), ErrLength},
		{"TLS connect NUL", tlsConnect, none + "0200 0000 0000 0000 6100", ErrName},
		{"TLS connect NUL in server name", tlsConnect, ep4 + "0000 0100 0000 0000 00", ErrName},
		{"TLS connect empty ALPN name", tlsConnect, ep4 + "0000 0000 0100 0000 00", ErrALPN},
		{"TLS connect cut ALPN name", tlsConnect, ep4 + "0000 0000 0200 0000 0261", ErrALPN},
		{"TLS connect family", tlsConnect, "0a" + ep4[2:] + "0000 0000 0000 0000", ErrFamily},
		{"TLS listen short", tlsListen, ep4 + "00000000 0000", ErrLength},
		{"TLS listen without family", tlsListen, none + "00000000 0000 0000", ErrFamily},
		{"TLS listen reserved", tlsListen, ep4 + "00000000 0000 0100", ErrReserved},
		{"TLS listen cut", tlsListen, ep4 + "00000000 0300 0000 0161", ErrLength},
		{"TLS listen long list", tlsListen, ep4 + "00000000 0204 0000" + strings.Repeat("0161", (MaxALPN+2)/2), ErrLength},
		{"TLS listen empty ALPN name", tlsListen, ep4 + "00000000 0100 0000 00", ErrALPN},
		{"TLS connected short", tlsConnected, ep4 + "0403 0000 00000000", ErrLength},
		{"TLS connected no version", tlsConnected, ep4 + ep4 + "0000 0000 00000000", ErrVersion},
		{"TLS connected reserved", tlsConnected, ep4 + ep4 + "0403 0000 01000000", ErrReserved},
		{"TLS connected cut", tlsConnected, ep4 + ep4 + "0403 0200 00000000 68", ErrLength},
		{"UNIX listen without path", unixListen, "01000000 00000000", ErrLength},
		{"UNIX listen long path", unixListen, "01000000 00000000" + strings.Repeat("61", MaxProtocolPayload-7), ErrLength},
		{"UNIX listen reserved", unixListen, "01000000 00000001 61", ErrReserved},
		{"UNIX connect without path", unixConnect, "", ErrLength},
		{"UNIX connect long path", unixConnect, strings.Repeat("61", MaxProtocolPayload+1), ErrLength},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if err := c.decode(unhex(t, c.hex)); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

func TestEndpointAddrPort(t *testing.T) {
	t.Parallel()
	for e, want := range map[Endpoint]string{
		v4: "127.0.0.1:8080", v6: "[fe80::1%3]:443", mapped: "[::ffff:10.0.0.1]:1",
	} {
		if got := e.AddrPort().String(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestAllocations(t *testing.T) {
	buf := make([]byte, 0, 4096)
	for _, g := range golden {
		frame := unhex(t, g.hex)
		var m message
		if n := testing.AllocsPerRun(100, func() { buf = encode(buf[:0], g.m) }); n != 0 {
			t.Errorf("encoding %s: %v allocations", g.name, n)
		}
		// Putting the message into an interface is the test's own allocation.
		if n := testing.AllocsPerRun(100, func() { m, _ = decode(frame) }); n > 1 {
			t.Errorf("decoding %s: %v allocations", g.name, n)
		}
		_ = m
	}
}

// Every kind has a frame that the tests above take apart, and that FuzzFrame
// begins with.
func TestEveryKindIsGolden(t *testing.T) {
	t.Parallel()
	seen := map[Kind]bool{}
	for _, g := range golden {
		h, err := DecodeHeader(unhex(t, g.hex))
		if err != nil {
			t.Fatal(err)
		}
		seen[h.Kind] = true
	}
	for k := range Kind(0xffff) {
		if _, _, ok := k.bounds(); ok && !seen[k] {
			t.Errorf("no golden frame of kind %v", k)
		}
	}
}

func FuzzFrame(f *testing.F) {
	for _, g := range golden {
		frame := unhex(f, g.hex)
		f.Add(frame)
		frame = bytes.Clone(frame)
		frame[8] ^= 1 // another request id
		f.Add(frame)
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		m, err := decode(frame)
		if err != nil {
			return
		}
		again, err := decode(encode(nil, m))
		if err != nil {
			t.Fatalf("%+v doesn't decode again: %v", m, err)
		}
		if diff := cmp.Diff(m, again, compare); diff != "" {
			t.Errorf("round trip (-first +second):\n%s", diff)
		}
	})
}

func FuzzHeader(f *testing.F) {
	for _, g := range golden {
		f.Add(unhex(f, g.hex)[:HeaderSize])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := DecodeHeader(b)
		if err == nil && !bytes.Equal(AppendHeader(nil, h), b[:HeaderSize]) {
			t.Errorf("%x decodes to %+v", b, h)
		}
	})
}

// fuzzPayload checks a decoder whose messages have one encoding only.
func fuzzPayload[M any](f *testing.F, decode func([]byte) (M, error), encode func([]byte, M) []byte, seeds ...M) {
	for _, m := range seeds {
		f.Add(encode(nil, m))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := decode(b); err == nil && !bytes.Equal(encode(nil, m), b) {
			t.Errorf("%x decodes to %+v", b, m)
		}
	})
}

func FuzzEndpoint(f *testing.F) {
	fuzzPayload(f, DecodeEndpoint, AppendEndpoint, v4, v6, mapped, Endpoint{})
}

func FuzzListen(f *testing.F) {
	fuzzPayload(f, DecodeListen, AppendListen, Listen{Endpoint: v4}, Listen{Endpoint: v6, Backlog: 1, Options: TCPOptions{Flags: TCPDelay}})
}

func FuzzConnect(f *testing.F) {
	fuzzPayload(f, DecodeConnect, AppendConnect, Connect{Endpoint: v4}, Connect{Name: []byte("a.example")},
		Connect{Endpoint: v6, Options: &TCPOptions{KeepAlive: 1}})
}

func FuzzTLSConnect(f *testing.F) {
	fuzzPayload(f, DecodeTLSConnect, AppendTLSConnect, TLSConnect{Connect: Connect{Endpoint: v4}},
		TLSConnect{Connect: Connect{Name: []byte("a.example")}, ServerName: []byte("b"), ALPN: AppendALPN(AppendALPN(nil, "h2"), "x")})
}

func FuzzTLSListen(f *testing.F) {
	fuzzPayload(f, DecodeTLSListen, AppendTLSListen, TLSListen{Listen: Listen{Endpoint: v4}},
		TLSListen{Listen: Listen{Endpoint: v6, Backlog: 1}, ALPN: AppendALPN(nil, "h2")})
}

func FuzzTLSConnected(f *testing.F) {
	fuzzPayload(f, DecodeTLSConnected, AppendTLSConnected, TLSConnected{Local: v4, Peer: v6, TLS: TLSSession{Version: 0x0304}},
		TLSConnected{Local: v4, Peer: v4, TLS: TLSSession{Version: 0x0303, ALPN: []byte("h2")}})
}

func TestIncomingTLSConnectionRefused(t *testing.T) {
	t.Parallel()
	m := IncomingTLSConnection{IncomingConnection: IncomingConnection{Status: 24}}
	p := AppendIncomingTLSConnection(nil, 1, m)[HeaderSize:]
	if got, err := DecodeIncomingTLSConnection(p); err != nil || got.Status != 24 || len(p) != 8 {
		t.Errorf("%x decodes to %+v, %v", p, got, err)
	}
	p = AppendIncomingConnection(nil, 1, IncomingConnection{Peer: v4, Local: v4})[HeaderSize:]
	if _, err := DecodeIncomingTLSConnection(p); !errors.Is(err, ErrLength) {
		t.Errorf("no session: %v", err)
	}
}

func FuzzIncomingTLSConnection(f *testing.F) {
	ends := IncomingConnection{Pipe: 9, Peer: v4, Local: v6}
	for _, m := range []IncomingTLSConnection{{ends, TLSSession{Version: 0x0304}}, {ends, TLSSession{Version: 0x0303, ALPN: []byte("h2")}}} {
		f.Add(AppendIncomingTLSConnection(nil, 0, m)[HeaderSize:])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeIncomingTLSConnection(b)
		if err == nil && m.Status == 0 && !bytes.Equal(AppendIncomingTLSConnection(nil, 0, m)[HeaderSize:], b) {
			t.Errorf("%x decodes to %+v", b, m)
		}
	})
}

func TestALPNNames(t *testing.T) {
	t.Parallel()
	want := []string{"h2", "http/1.1", strings.Repeat("x", MaxALPNName)}
	var list []byte
	for _, name := range want {
		list = AppendALPN(list, name)
	}
	if diff := cmp.Diff(want, ALPNNames(list)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func FuzzNewStreamRequest(f *testing.F) {
	fuzzPayload(f, DecodeNewStreamRequest, func(b []byte, m NewStreamRequest) []byte {
		return append(b, AppendNewStreamRequest(nil, 0, m)[HeaderSize:]...)
	}, NewStreamRequest{OutgoingSize: 4096, IncomingSize: 4096})
}

func FuzzOpen(f *testing.F) {
	fuzzPayload(f, DecodeOpen, func(b []byte, m Open) []byte {
		return append(b, AppendOpen(nil, 0, m)[HeaderSize:]...)
	}, Open{Protocol: 2, Payload: []byte("x")})
}

func FuzzReadFileRequest(f *testing.F) {
	fuzzPayload(f, DecodeReadFileRequest, func(b []byte, m ReadFileRequest) []byte {
		return append(b, AppendReadFileRequest(nil, 0, m)[HeaderSize:]...)
	}, ReadFileRequest{Length: ToEnd, Path: []byte("/a")})
}

func FuzzAcceptConnection(f *testing.F) {
	fuzzPayload(f, DecodeAcceptConnection, func(b []byte, m AcceptConnection) []byte {
		return append(b, AppendAcceptConnection(nil, 0, m)[HeaderSize:]...)
	}, AcceptConnection{Pipe: 1<<32 | 9})
}

func FuzzUDPSocket(f *testing.F) {
	fuzzPayload(f, DecodeUDPSocket, AppendUDPSocket, UDPSocket{Local: v4}, UDPSocket{Local: v6, Peer: v6}, UDPSocket{Local: v4, Addressed: true})
}

func FuzzUnixListen(f *testing.F) {
	fuzzPayload(f, DecodeUnixListen, AppendUnixListen, UnixListen{Path: []byte("/a")}, UnixListen{Backlog: 1, Path: []byte("a\x00")})
}

func FuzzUnixConnect(f *testing.F) {
	fuzzPayload(f, DecodeUnixConnect, AppendUnixConnect, UnixConnect{Path: []byte("/a")})
}

func FuzzIncomingConnection(f *testing.F) {
	fuzzMeaning(f, DecodeIncomingConnection, AppendIncomingConnection, IncomingConnection{Pipe: 9, Peer: v4, Local: v6}, IncomingConnection{Pipe: 9}, IncomingConnection{Status: 16})
}

func FuzzSendDatagram(f *testing.F) {
	fuzzPayload(f, DecodeSendDatagram, func(b []byte, m SendDatagram) []byte {
		return append(b, AppendSendDatagram(nil, 0, m)[HeaderSize:]...)
	}, SendDatagram{To: v4, Data: []byte("x")}, SendDatagram{})
}

func FuzzSendDatagramFrom(f *testing.F) {
	fuzzPayload(f, DecodeSendDatagramFrom, func(b []byte, m SendDatagramFrom) []byte {
		return append(b, AppendSendDatagramFrom(nil, 0, m)[HeaderSize:]...)
	}, SendDatagramFrom{SendDatagram{To: v4, Data: []byte("x")}, v6}, SendDatagramFrom{})
}

func FuzzReceivedDatagramAt(f *testing.F) {
	fuzzPayload(f, DecodeReceivedDatagramAt, func(b []byte, m ReceivedDatagramAt) []byte {
		return append(b, AppendReceivedDatagramAt(nil, m)[HeaderSize:]...)
	}, ReceivedDatagramAt{ReceivedDatagram{From: v4, Size: 1, Data: []byte("x")}, v6})
}

func FuzzOpenFileRequest(f *testing.F) {
	fuzzPayload(f, DecodeOpenFileRequest, func(b []byte, m OpenFileRequest) []byte {
		return append(b, AppendOpenFileRequest(nil, 0, m)[HeaderSize:]...)
	}, OpenFileRequest{Flags: OpenRead, Path: []byte("/a")})
}

func FuzzReadRequest(f *testing.F) {
	fuzzPayload(f, DecodeReadRequest, func(b []byte, m ReadRequest) []byte {
		return append(b, AppendReadRequest(nil, 0, m)[HeaderSize:]...)
	}, ReadRequest{Handle: 1, Length: ToEnd})
}

func FuzzWriteRequest(f *testing.F) {
	fuzzPayload(f, DecodeWriteRequest, func(b []byte, m WriteRequest) []byte {
		return append(b, AppendWriteRequest(nil, 0, m)[HeaderSize:]...)
	}, WriteRequest{Handle: 1, Data: []byte("x")})
}

func FuzzStatRequest(f *testing.F) {
	fuzzPayload(f, DecodeStatRequest, func(b []byte, m StatRequest) []byte {
		return append(b, AppendStatRequest(nil, 0, m)[HeaderSize:]...)
	}, StatRequest{Handle: 1}, StatRequest{Flags: StatNoFollow, Path: []byte("/a")})
}

func FuzzListRequest(f *testing.F) {
	fuzzPayload(f, DecodeListRequest, func(b []byte, m ListRequest) []byte {
		return append(b, AppendListRequest(nil, 0, m)[HeaderSize:]...)
	}, ListRequest{Limit: 4096, Path: []byte("/a"), After: []byte("b")})
}

func FuzzMkdirRequest(f *testing.F) {
	fuzzPayload(f, DecodeMkdirRequest, func(b []byte, m MkdirRequest) []byte {
		return append(b, AppendMkdirRequest(nil, 0, m)[HeaderSize:]...)
	}, MkdirRequest{Flags: MkdirParents, Path: []byte("/a")})
}

func FuzzRemoveRequest(f *testing.F) {
	fuzzPayload(f, DecodeRemoveRequest, func(b []byte, m RemoveRequest) []byte {
		return append(b, AppendRemoveRequest(nil, 0, m)[HeaderSize:]...)
	}, RemoveRequest{Path: []byte("/a")})
}

func FuzzRenameRequest(f *testing.F) {
	fuzzPayload(f, DecodeRenameRequest, func(b []byte, m RenameRequest) []byte {
		return append(b, AppendRenameRequest(nil, 0, m)[HeaderSize:]...)
	}, RenameRequest{Old: []byte("a"), New: []byte("b")})
}

func FuzzTruncateRequest(f *testing.F) {
	fuzzPayload(f, DecodeTruncateRequest, func(b []byte, m TruncateRequest) []byte {
		return append(b, AppendTruncateRequest(nil, 0, m)[HeaderSize:]...)
	}, TruncateRequest{Handle: 1, Size: 2})
}

func FuzzSyncRequest(f *testing.F) {
	fuzzPayload(f, DecodeSyncRequest, func(b []byte, m SyncRequest) []byte {
		return append(b, AppendSyncRequest(nil, 0, m)[HeaderSize:]...)
	}, SyncRequest{Handle: 1})
}

func FuzzCloseRequest(f *testing.F) {
	fuzzPayload(f, DecodeCloseRequest, func(b []byte, m CloseRequest) []byte {
		return append(b, AppendCloseRequest(nil, 0, m)[HeaderSize:]...)
	}, CloseRequest{Handle: 1})
}

func FuzzFileList(f *testing.F) {
	fuzzPayload(f, DecodeFileList, func(b []byte, m FileList) []byte {
		return append(b, AppendFileList(nil, 0, m)[HeaderSize:]...)
	}, FileList{Entries: AppendFileEntry(nil, FileEntry{Type: 4, Name: []byte("a")})}, FileList{Status: 5})
}

func FuzzResolveName(f *testing.F) {
	fuzzPayload(f, DecodeResolveName, func(b []byte, m ResolveName) []byte {
		return append(b, AppendResolveName(nil, 0, m)[HeaderSize:]...)
	}, ResolveName{Family: 4, Name: []byte("a.example")}, ResolveName{Name: []byte("b")})
}

func FuzzResolveAddress(f *testing.F) {
	fuzzPayload(f, DecodeResolveAddress, func(b []byte, m ResolveAddress) []byte {
		return append(b, AppendResolveAddress(nil, 0, m)[HeaderSize:]...)
	}, ResolveAddress{Address: Endpoint{Addr: v4.Addr}}, ResolveAddress{Address: Endpoint{Addr: v6.Addr, Scope: 3}})
}

func FuzzAddresses(f *testing.F) {
	fuzzPayload(f, DecodeAddresses, func(b []byte, m Addresses) []byte {
		return append(b, AppendAddresses(nil, 0, m)[HeaderSize:]...)
	}, Addresses{Endpoints: AppendEndpoint(nil, Endpoint{Addr: v4.Addr})}, Addresses{Status: 61})
}

func FuzzNames(f *testing.F) {
	fuzzPayload(f, DecodeNames, func(b []byte, m Names) []byte {
		return append(b, AppendNames(nil, 0, m)[HeaderSize:]...)
	}, Names{Entries: AppendHostName(AppendHostName(nil, "a"), "bc.example")}, Names{Status: 2})
}

// A failed FileDone or FileInfo has two encodings: what decodes must mean the
// same after another round.
func FuzzFileDone(f *testing.F) {
	fuzzMeaning(f, DecodeFileDone, AppendFileDone, FileDone{Value: 3}, FileDone{Status: 28, Value: 512})
}

func FuzzFileInfo(f *testing.F) {
	fuzzMeaning(f, DecodeFileInfo, AppendFileInfo, FileInfo{Size: 1, Mode: 0o100644}, FileInfo{Status: 2})
}

func fuzzMeaning[M comparable](f *testing.F, decode func([]byte) (M, error), encode func([]byte, uint64, M) []byte, seeds ...M) {
	for _, m := range seeds {
		f.Add(encode(nil, 0, m)[HeaderSize:])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decode(b)
		if err != nil {
			return
		}
		if again, err := decode(encode(nil, 0, m)[HeaderSize:]); err != nil || again != m {
			t.Errorf("%x decodes to %+v, and that to %+v, %v", b, m, again, err)
		}
	})
}
