package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
)

const (
	// MaxALPN is the longest list of ALPN names in bytes, their lengths
	// included.
	MaxALPN = 1024
	// MaxALPNName is the longest ALPN name in bytes.
	MaxALPNName = 255

	tlsConnectSize = EndpointSize + 8
	tlsListenSize  = EndpointSize + 8
	tlsSessionSize = 8
)

// What a decoder finds wrong in a payload about TLS.
var (
	ErrALPN    = errors.New("malformed list of ALPN names")
	ErrVersion = errors.New("TLS version 0")
)

// TLSConnect is the payload of an Open for a TLS connection.
type TLSConnect struct {
	Connect
	// ServerName is what the certificate must be for, at most MaxName bytes;
	// empty: Name or the address.
	ServerName []byte
	// ALPN are the names that the guest speaks, best first, each after a byte
	// with its length; at most MaxALPN bytes.
	ALPN []byte
}

// AppendTLSConnect appends m as the payload of an Open, without a frame header.
// Beyond what [AppendConnect] wants, nothing in it must be too long.
func AppendTLSConnect(b []byte, m TLSConnect) []byte {
	b = AppendEndpoint(b, m.Endpoint)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(m.Name)))
	b = binary.LittleEndian.AppendUint16(b, uint16(len(m.ServerName)))
	b = binary.LittleEndian.AppendUint16(b, uint16(len(m.ALPN)))
	b = binary.LittleEndian.AppendUint16(b, 0)
	b = append(b, m.Name...)
	b = append(b, m.ServerName...)
	return append(b, m.ALPN...)
}

// DecodeTLSConnect decodes the payload of an Open. It doesn't judge the names
// beyond their lengths and NUL bytes.
func DecodeTLSConnect(p []byte) (TLSConnect, error) {
	if len(p) < tlsConnectSize {
		return TLSConnect{}, malformed(KindOpen, ErrLength)
	}
	e, err := DecodeEndpoint(p[:EndpointSize])
	if err != nil {
		return TLSConnect{}, malformed(KindOpen, err)
	}
	fixed, rest := p[EndpointSize:tlsConnectSize], p[tlsConnectSize:]
	name := int(binary.LittleEndian.Uint16(fixed))
	server := int(binary.LittleEndian.Uint16(fixed[2:]))
	alpn := int(binary.LittleEndian.Uint16(fixed[4:]))
	switch {
	case binary.LittleEndian.Uint16(fixed[6:]) != 0:
		return TLSConnect{}, malformed(KindOpen, ErrReserved)
	case e.Addr.IsValid() != (name == 0), name > MaxName, server > MaxName, alpn > MaxALPN, len(rest) != name+server+alpn:
		return TLSConnect{}, malformed(KindOpen, ErrLength)
	case bytes.IndexByte(rest[:name+server], 0) >= 0:
		return TLSConnect{}, malformed(KindOpen, ErrName)
	case !validALPN(rest[name+server:]):
		return TLSConnect{}, malformed(KindOpen, ErrALPN)
	}
	return TLSConnect{
		Connect:    Connect{Endpoint: e, Name: rest[:name]},
		ServerName: rest[name : name+server],
		ALPN:       rest[name+server:],
	}, nil
}

// TLSListen is the payload of an Open for a TLS listener.
type TLSListen struct {
	Listen
	ALPN []byte // as in TLSConnect
}

// AppendTLSListen appends m as the payload of an Open, without a frame header.
// The list must not be longer than MaxALPN.
func AppendTLSListen(b []byte, m TLSListen) []byte {
	b = binary.LittleEndian.AppendUint32(AppendEndpoint(b, m.Endpoint), m.Backlog)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(m.ALPN)))
	return append(b, m.ALPN...)
}

// DecodeTLSListen decodes the payload of an Open.
func DecodeTLSListen(p []byte) (TLSListen, error) {
	if len(p) < tlsListenSize {
		return TLSListen{}, malformed(KindOpen, ErrLength)
	}
	fixed, alpn := p[EndpointSize:tlsListenSize], p[tlsListenSize:]
	e, err := DecodeEndpoint(p[:EndpointSize])
	switch n := int(binary.LittleEndian.Uint16(fixed[4:])); {
	case err != nil:
	case !e.Addr.IsValid():
		err = ErrFamily
	case binary.LittleEndian.Uint16(fixed[6:]) != 0:
		err = ErrReserved
	case n > MaxALPN, n != len(alpn):
		err = ErrLength
	case !validALPN(alpn):
		err = ErrALPN
	}
	if err != nil {
		return TLSListen{}, malformed(KindOpen, err)
	}
	return TLSListen{Listen: Listen{Endpoint: e, Backlog: binary.LittleEndian.Uint32(fixed)}, ALPN: alpn}, nil
}

// TLSSession is what a handshake has settled.
type TLSSession struct {
	Version uint16 // as TLS writes it, such as 0x0304 for 1.3; never 0
	ALPN    []byte // the name chosen, without a length; empty: none. At most MaxALPNName bytes
}

func appendTLSSession(b []byte, s TLSSession) []byte {
	b = binary.LittleEndian.AppendUint16(b, s.Version)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(s.ALPN)))
	b = binary.LittleEndian.AppendUint32(b, 0)
	return append(b, s.ALPN...)
}

func decodeTLSSession(p []byte) (TLSSession, error) {
	if len(p) < tlsSessionSize {
		return TLSSession{}, ErrLength
	}
	s := TLSSession{Version: binary.LittleEndian.Uint16(p), ALPN: p[tlsSessionSize:]}
	switch {
	case s.Version == 0:
		return TLSSession{}, ErrVersion
	case binary.LittleEndian.Uint32(p[4:]) != 0:
		return TLSSession{}, ErrReserved
	case len(s.ALPN) > MaxALPNName, len(s.ALPN) != int(binary.LittleEndian.Uint16(p[2:])):
		return TLSSession{}, ErrLength
	}
	return s, nil
}

// TLSConnected is the payload of the Opened of a TLS connection.
type TLSConnected struct {
	Local, Peer Endpoint
	TLS         TLSSession
}

// AppendTLSConnected appends m as the payload of an Opened, without a frame
// header.
func AppendTLSConnected(b []byte, m TLSConnected) []byte {
	return appendTLSSession(AppendEndpoint(AppendEndpoint(b, m.Local), m.Peer), m.TLS)
}

// DecodeTLSConnected decodes the payload of an Opened.
func DecodeTLSConnected(p []byte) (TLSConnected, error) {
	if len(p) < 2*EndpointSize {
		return TLSConnected{}, malformed(KindOpened, ErrLength)
	}
	local, err := DecodeEndpoint(p[:EndpointSize])
	if err != nil {
		return TLSConnected{}, malformed(KindOpened, err)
	}
	peer, err := DecodeEndpoint(p[EndpointSize : 2*EndpointSize])
	if err != nil {
		return TLSConnected{}, malformed(KindOpened, err)
	}
	session, err := decodeTLSSession(p[2*EndpointSize:])
	if err != nil {
		return TLSConnected{}, malformed(KindOpened, err)
	}
	return TLSConnected{Local: local, Peer: peer, TLS: session}, nil
}

// IncomingTLSConnection is the IncomingConnection of a TLS listener.
type IncomingTLSConnection struct {
	IncomingConnection
	TLS TLSSession // set with status 0 only
}

// AppendIncomingTLSConnection appends m as a frame, the status alone if that is
// not 0.
func AppendIncomingTLSConnection(b []byte, request uint64, m IncomingTLSConnection) []byte {
	start := len(b)
	b = AppendIncomingConnection(b, request, m.IncomingConnection)
	if m.Status != 0 {
		return b
	}
	binary.LittleEndian.PutUint32(b[start:], uint32(incomingConnectionSize+tlsSessionSize+len(m.TLS.ALPN)))
	return appendTLSSession(b, m.TLS)
}

// DecodeIncomingTLSConnection decodes a payload.
func DecodeIncomingTLSConnection(p []byte) (IncomingTLSConnection, error) {
	first, session := p[:min(len(p), incomingConnectionSize)], p[min(len(p), incomingConnectionSize):]
	m, err := DecodeIncomingConnection(first)
	if err != nil {
		return IncomingTLSConnection{}, err
	}
	if m.Status == 0 && !m.Peer.Addr.IsValid() {
		return IncomingTLSConnection{}, malformed(KindIncomingConnection, ErrFamily)
	}
	if m.Status != 0 && len(session) == 0 {
		return IncomingTLSConnection{IncomingConnection: m}, nil
	}
	s, err := decodeTLSSession(session)
	switch {
	case err != nil:
		return IncomingTLSConnection{}, malformed(KindIncomingConnection, err)
	case m.Status != 0:
		s = TLSSession{}
	}
	return IncomingTLSConnection{m, s}, nil
}

// AppendALPN appends a name of 1 to MaxALPNName bytes to a list of ALPN names.
func AppendALPN(list []byte, name string) []byte {
	return append(append(list, byte(len(name))), name...)
}

// ALPNNames returns the names in a list that a Decode function has checked.
func ALPNNames(list []byte) (names []string) {
	for len(list) > 0 {
		n := 1 + int(list[0])
		names = append(names, string(list[1:n]))
		list = list[n:]
	}
	return names
}

func validALPN(list []byte) bool {
	for len(list) > 0 {
		n := 1 + int(list[0])
		if n == 1 || n > len(list) {
			return false
		}
		list = list[n:]
	}
	return true
}
