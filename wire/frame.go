// Package wire holds the frames and messages of the stream protocol as Go
// values and as bytes (PROTOCOL.md sections 9 and 10). Its functions are pure
// and serve either end: the monitor decodes what a guest encodes and the other
// way round. An Append function appends a whole frame to the caller's buffer
// and returns it, as the built-in append does. A Decode function takes a
// payload, without its frame header, and checks every byte of it. The byte
// slices in decoded values alias the payload.
//
//   - frame: a header of 16 bytes and a payload.
//   - kind: which message a frame is; its table has names and bounds.
//   - protocol: what a stream speaks; its Open names it.
//   - endpoint: an address, a port and a scope.
//   - session: what a TLS handshake has settled.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
)

// Sizes in bytes (PROTOCOL.md sections 9 and 10).
const (
	// HeaderSize is the size of a frame header.
	HeaderSize = 16
	// MaxProtocolPayload is the most that a protocol may add to Open and to
	// Opened.
	MaxProtocolPayload = 4096
	// MaxPath is the longest path of a file.
	MaxPath = 4095
	// MaxPathBytes is how long the paths and names in a request may be
	// together: room for two paths, and for saying which one is too long.
	MaxPathBytes = 8192
	// MaxFileName is the longest name in a folder.
	MaxFileName = 255
	// MaxFileData is the most data in one FileData frame or WriteRequest.
	MaxFileData = 65536
	// FileDataPrefixSize is the size of a FileData payload without its data.
	FileDataPrefixSize = 16
	// WritePrefixSize is the size of a WriteRequest's payload without its data.
	WritePrefixSize = 16
	// MaxFileList is the most bytes of entries in a FileList.
	MaxFileList = 65536
	// FileEntryPrefixSize is the size of an entry of a FileList without its
	// name.
	FileEntryPrefixSize = 2
	// MaxName is the longest host name.
	MaxName = 253
)

// Kind says what message a frame carries.
type Kind uint16

// The message catalogue.
const (
	KindNewStreamRequest   Kind = 0x01
	KindDataStreamInfo     Kind = 0x02
	KindOpen               Kind = 0x03
	KindOpened             Kind = 0x04
	KindReadFileRequest    Kind = 0x10
	KindFileData           Kind = 0x11
	KindFileDone           Kind = 0x12
	KindFileInfo           Kind = 0x13
	KindFileList           Kind = 0x14
	KindOpenFileRequest    Kind = 0x15
	KindReadRequest        Kind = 0x16
	KindWriteRequest       Kind = 0x17
	KindStatRequest        Kind = 0x18
	KindListRequest        Kind = 0x19
	KindMkdirRequest       Kind = 0x1a
	KindRemoveRequest      Kind = 0x1b
	KindRenameRequest      Kind = 0x1c
	KindTruncateRequest    Kind = 0x1d
	KindSyncRequest        Kind = 0x1e
	KindCloseRequest       Kind = 0x1f
	KindAcceptConnection   Kind = 0x20
	KindIncomingConnection Kind = 0x21
	KindSendDatagram       Kind = 0x30
	KindReceivedDatagram   Kind = 0x31
	KindDatagramError      Kind = 0x32
	KindSendDatagramFrom   Kind = 0x33
	KindReceivedDatagramAt Kind = 0x34
	KindResolveName        Kind = 0x40
	KindResolveAddress     Kind = 0x41
	KindAddresses          Kind = 0x42
	KindNames              Kind = 0x43
)

// Protocol numbers, as Open carries them.
const (
	ProtocolFileSystem     uint16 = 0
	ProtocolTCPListener    uint16 = 1
	ProtocolTCPConnection  uint16 = 2
	ProtocolUDP            uint16 = 3
	ProtocolUnixListener   uint16 = 4
	ProtocolUnixConnection uint16 = 5
	ProtocolResolver       uint16 = 6
	ProtocolTLSConnection  uint16 = 7
	ProtocolStdio          uint16 = 8
	ProtocolTLSListener    uint16 = 9
	// ProtocolPrivate is the first of the numbers that embedding programs may
	// give out.
	ProtocolPrivate uint16 = 0x8000
)

var protocolNames = [...]string{
	ProtocolFileSystem:     "files",
	ProtocolTCPListener:    "tcp-listener",
	ProtocolTCPConnection:  "tcp",
	ProtocolUDP:            "udp",
	ProtocolUnixListener:   "unix-listener",
	ProtocolUnixConnection: "unix",
	ProtocolResolver:       "resolver",
	ProtocolTLSConnection:  "tls",
	ProtocolStdio:          "stdio",
	ProtocolTLSListener:    "tls-listener",
}

// ProtocolName returns what people call a protocol, such as "tcp"; one that
// PROTOCOL.md doesn't have is its number.
func ProtocolName(protocol uint16) string {
	if int(protocol) < len(protocolNames) {
		return protocolNames[protocol]
	}
	return strconv.Itoa(int(protocol))
}

// catalogue has the name of each kind in PROTOCOL.md, and the shortest and the
// longest payload that it allows, in bytes. A kind without a name doesn't
// exist.
var catalogue = [...]struct {
	name        string
	least, most uint32
}{
	KindNewStreamRequest:   {"NewStreamRequest", newStreamRequestSize, newStreamRequestSize},
	KindDataStreamInfo:     {"DataStreamInfo", statusSize, dataStreamInfoSize},
	KindOpen:               {"Open", openPrefixSize, openPrefixSize + MaxProtocolPayload},
	KindOpened:             {"Opened", statusSize, statusSize + MaxProtocolPayload},
	KindReadFileRequest:    {"ReadFileRequest", readFilePrefixSize + 1, readFilePrefixSize + MaxPathBytes},
	KindFileData:           {"FileData", statusSize, FileDataPrefixSize + MaxFileData},
	KindFileDone:           {"FileDone", statusSize, fileDoneSize},
	KindFileInfo:           {"FileInfo", statusSize, fileInfoSize},
	KindFileList:           {"FileList", statusSize, statusSize + MaxFileList},
	KindOpenFileRequest:    {"OpenFileRequest", openFilePrefixSize + 1, openFilePrefixSize + MaxPathBytes},
	KindReadRequest:        {"ReadRequest", readRequestSize, readRequestSize},
	KindWriteRequest:       {"WriteRequest", WritePrefixSize, WritePrefixSize + MaxFileData},
	KindStatRequest:        {"StatRequest", statPrefixSize, statPrefixSize + MaxPathBytes},
	KindListRequest:        {"ListRequest", listPrefixSize + 1, listPrefixSize + MaxPathBytes},
	KindMkdirRequest:       {"MkdirRequest", mkdirPrefixSize + 1, mkdirPrefixSize + MaxPathBytes},
	KindRemoveRequest:      {"RemoveRequest", 1, MaxPathBytes},
	KindRenameRequest:      {"RenameRequest", renamePrefixSize + 2, renamePrefixSize + MaxPathBytes},
	KindTruncateRequest:    {"TruncateRequest", truncateRequestSize, truncateRequestSize},
	KindSyncRequest:        {"SyncRequest", handleRequestSize, handleRequestSize},
	KindCloseRequest:       {"CloseRequest", handleRequestSize, handleRequestSize},
	KindAcceptConnection:   {"AcceptConnection", acceptConnectionSize, acceptConnectionSize},
	KindIncomingConnection: {"IncomingConnection", statusSize, incomingConnectionSize + tlsSessionSize + MaxALPNName},
	KindSendDatagram:       {"SendDatagram", EndpointSize, EndpointSize + MaxDatagram},
	KindReceivedDatagram:   {"ReceivedDatagram", ReceivedDatagramPrefixSize, ReceivedDatagramPrefixSize + MaxDatagram},
	KindSendDatagramFrom:   {"SendDatagramFrom", SendDatagramFromPrefixSize, SendDatagramFromPrefixSize + MaxDatagram},
	KindReceivedDatagramAt: {"ReceivedDatagramAt", ReceivedDatagramAtPrefixSize, ReceivedDatagramAtPrefixSize + MaxDatagram},
	KindDatagramError:      {"DatagramError", datagramErrorSize, datagramErrorSize},
	KindResolveName:        {"ResolveName", resolveNamePrefixSize + 1, resolveNamePrefixSize + MaxName},
	KindResolveAddress:     {"ResolveAddress", EndpointSize, EndpointSize},
	KindAddresses:          {"Addresses", statusSize, statusSize + MaxAddresses*EndpointSize},
	KindNames:              {"Names", statusSize, statusSize + MaxNameBytes},
}

// String returns the message's name in the catalogue.
func (k Kind) String() string {
	if int(k) < len(catalogue) && catalogue[k].name != "" {
		return catalogue[k].name
	}
	return fmt.Sprintf("kind %#x", uint16(k))
}

// bounds returns the shortest and the longest payload that the kind allows.
func (k Kind) bounds() (least, most uint32, ok bool) {
	if int(k) >= len(catalogue) || catalogue[k].name == "" {
		return 0, 0, false
	}
	return catalogue[k].least, catalogue[k].most, true
}

// Flags are the flags of a frame.
type Flags uint16

// More says that another frame of this answer follows. Only FileData carries
// it.
const More Flags = 1

// What a decoder finds wrong. Decode functions wrap one of these with the
// message's name; all of them mean EPROTO to the other end.
var (
	ErrKind     = errors.New("unknown kind")
	ErrFlags    = errors.New("undefined flag")
	ErrLength   = errors.New("wrong length")
	ErrReserved = errors.New("reserved field is not 0")
	ErrFamily   = errors.New("unknown address family")
	ErrAddress  = errors.New("address bytes beyond the family's")
	ErrName     = errors.New("host name with a NUL byte")
	ErrOptions  = errors.New("options that don't exist")
)

func malformed(k Kind, err error) error {
	return fmt.Errorf("malformed %v: %w", k, err)
}

// Header is a frame header.
type Header struct {
	Length    uint32 // of the payload
	Kind      Kind
	Flags     Flags
	RequestID uint64
}

// AppendHeader appends the 16 bytes of h.
func AppendHeader(b []byte, h Header) []byte {
	b = binary.LittleEndian.AppendUint32(b, h.Length)
	b = binary.LittleEndian.AppendUint16(b, uint16(h.Kind))
	b = binary.LittleEndian.AppendUint16(b, uint16(h.Flags))
	return binary.LittleEndian.AppendUint64(b, h.RequestID)
}

// DecodeHeader reads a frame header from the first 16 bytes of b. It refuses
// unknown kinds, flags that the kind doesn't have, and lengths out of the
// kind's bounds, so that a caller may take Length bytes without fear. With such
// an error it still returns the header as it was read.
func DecodeHeader(b []byte) (Header, error) {
	if len(b) < HeaderSize {
		return Header{}, fmt.Errorf("frame header: %w", ErrLength)
	}
	h := Header{
		Length:    binary.LittleEndian.Uint32(b[0:]),
		Kind:      Kind(binary.LittleEndian.Uint16(b[4:])),
		Flags:     Flags(binary.LittleEndian.Uint16(b[6:])),
		RequestID: binary.LittleEndian.Uint64(b[8:]),
	}
	least, most, ok := h.Kind.bounds()
	switch {
	case !ok:
		return h, malformed(h.Kind, ErrKind)
	case h.Flags&^More != 0, h.Flags != 0 && h.Kind != KindFileData:
		return h, malformed(h.Kind, fmt.Errorf("%w: %#x", ErrFlags, uint16(h.Flags)))
	case h.Length < least || h.Length > most:
		return h, malformed(h.Kind, fmt.Errorf("%w: %d", ErrLength, h.Length))
	}
	return h, nil
}

// statusSize is the size of { status u32 · 0 u32 }, with which each answer
// begins.
const statusSize = 8

func appendStatus(b []byte, status uint32) []byte {
	return binary.LittleEndian.AppendUint64(b, uint64(status))
}

// decodeStatus reads the status and returns the rest of the payload. The rest
// of a failed answer may be missing; otherwise it must be as long as the
// message says.
func decodeStatus(k Kind, p []byte) (status uint32, rest []byte, err error) {
	if len(p) < statusSize {
		return 0, nil, malformed(k, ErrLength)
	}
	if binary.LittleEndian.Uint32(p[4:]) != 0 {
		return 0, nil, malformed(k, ErrReserved)
	}
	return binary.LittleEndian.Uint32(p), p[statusSize:], nil
}
