package wire

import "encoding/binary"

const unixListenPrefixSize = 8

// UnixListen is the payload of an Open for a UNIX listener.
type UnixListen struct {
	Backlog uint32 // 0: the host's default
	Path    []byte // 1 to 4088 bytes
}

// AppendUnixListen appends m as the payload of an Open, without a frame header.
func AppendUnixListen(b []byte, m UnixListen) []byte {
	return append(binary.LittleEndian.AppendUint64(b, uint64(m.Backlog)), m.Path...)
}

// DecodeUnixListen decodes the payload of an Open. It doesn't judge the path
// beyond its length.
func DecodeUnixListen(p []byte) (UnixListen, error) {
	if len(p) <= unixListenPrefixSize || len(p) > MaxProtocolPayload {
		return UnixListen{}, malformed(KindOpen, ErrLength)
	}
	if binary.LittleEndian.Uint32(p[4:]) != 0 {
		return UnixListen{}, malformed(KindOpen, ErrReserved)
	}
	return UnixListen{Backlog: binary.LittleEndian.Uint32(p), Path: p[unixListenPrefixSize:]}, nil
}

// UnixConnect is the payload of an Open for a UNIX connection.
type UnixConnect struct {
	Path []byte // 1 to 4096 bytes
}

// AppendUnixConnect appends m as the payload of an Open, without a frame
// header.
func AppendUnixConnect(b []byte, m UnixConnect) []byte { return append(b, m.Path...) }

// DecodeUnixConnect decodes the payload of an Open. It doesn't judge the path
// beyond its length.
func DecodeUnixConnect(p []byte) (UnixConnect, error) {
	if len(p) == 0 || len(p) > MaxProtocolPayload {
		return UnixConnect{}, malformed(KindOpen, ErrLength)
	}
	return UnixConnect{Path: p}, nil
}
