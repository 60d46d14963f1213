package wire

import (
	"bytes"
	"encoding/binary"
)

const (
	listenSize             = EndpointSize + 8
	acceptConnectionSize   = 8
	incomingConnectionSize = statusSize + 8 + 2*EndpointSize
)

// Listen is the payload of an Open for a TCP listener.
type Listen struct {
	Endpoint Endpoint // IPv4 or IPv6; port 0: any
	Backlog  uint32   // 0: the host's default
}

// AppendListen appends m as the payload of an Open, without a frame header.
func AppendListen(b []byte, m Listen) []byte {
	return binary.LittleEndian.AppendUint64(AppendEndpoint(b, m.Endpoint), uint64(m.Backlog))
}

// DecodeListen decodes the payload of an Open.
func DecodeListen(p []byte) (Listen, error) {
	if len(p) != listenSize {
		return Listen{}, malformed(KindOpen, ErrLength)
	}
	e, err := DecodeEndpoint(p[:EndpointSize])
	if err != nil {
		return Listen{}, malformed(KindOpen, err)
	}
	if !e.Addr.IsValid() {
		return Listen{}, malformed(KindOpen, ErrFamily)
	}
	if binary.LittleEndian.Uint32(p[EndpointSize+4:]) != 0 {
		return Listen{}, malformed(KindOpen, ErrReserved)
	}
	return Listen{Endpoint: e, Backlog: binary.LittleEndian.Uint32(p[EndpointSize:])}, nil
}

// Connect is the payload of an Open for a TCP connection: to an address, or to a port (with the zero Addr) of a
// host that has a name.
type Connect struct {
	Endpoint Endpoint
	Name     []byte // empty, or 1 to MaxName bytes
}

// AppendConnect appends m as the payload of an Open, without a frame header. Name is empty exactly if the endpoint has an
// address, and must not be longer than MaxName.
func AppendConnect(b []byte, m Connect) []byte {
	return append(AppendEndpoint(b, m.Endpoint), m.Name...)
}

// DecodeConnect decodes the payload of an Open. It doesn't judge the name beyond its length and NUL bytes.
func DecodeConnect(p []byte) (Connect, error) {
	if len(p) < EndpointSize {
		return Connect{}, malformed(KindOpen, ErrLength)
	}
	e, err := DecodeEndpoint(p[:EndpointSize])
	if err != nil {
		return Connect{}, malformed(KindOpen, err)
	}
	name := p[EndpointSize:]
	if e.Addr.IsValid() != (len(name) == 0) || len(name) > MaxName {
		return Connect{}, malformed(KindOpen, ErrLength)
	}
	if bytes.IndexByte(name, 0) >= 0 {
		return Connect{}, malformed(KindOpen, ErrName)
	}
	return Connect{Endpoint: e, Name: name}, nil
}

// AcceptConnection asks a listener to relay its next connection on a pipe that the guest has made.
type AcceptConnection struct {
	Pipe uint64
}

// AppendAcceptConnection appends m as a frame.
func AppendAcceptConnection(b []byte, request uint64, m AcceptConnection) []byte {
	b = AppendHeader(b, Header{Length: acceptConnectionSize, Kind: KindAcceptConnection, RequestID: request})
	return binary.LittleEndian.AppendUint64(b, m.Pipe)
}

// DecodeAcceptConnection decodes a payload.
func DecodeAcceptConnection(p []byte) (AcceptConnection, error) {
	if len(p) != acceptConnectionSize {
		return AcceptConnection{}, malformed(KindAcceptConnection, ErrLength)
	}
	return AcceptConnection{Pipe: binary.LittleEndian.Uint64(p)}, nil
}

// IncomingConnection answers an AcceptConnection. Status is 0 or a Linux errno; the rest is set with status 0 only. Of a UNIX connection both endpoints are
// the zero Endpoint, of others neither is.
type IncomingConnection struct {
	Status uint32
	Pipe   uint64
	Peer   Endpoint
	Local  Endpoint
}

// AppendIncomingConnection appends m as a frame, the status alone if that is not 0.
func AppendIncomingConnection(b []byte, request uint64, m IncomingConnection) []byte {
	h := Header{Length: incomingConnectionSize, Kind: KindIncomingConnection, RequestID: request}
	if m.Status != 0 {
		h.Length = statusSize
		return appendStatus(AppendHeader(b, h), m.Status)
	}
	b = appendStatus(AppendHeader(b, h), 0)
	b = binary.LittleEndian.AppendUint64(b, m.Pipe)
	return AppendEndpoint(AppendEndpoint(b, m.Peer), m.Local)
}

// DecodeIncomingConnection decodes a payload.
func DecodeIncomingConnection(p []byte) (IncomingConnection, error) {
	status, rest, err := decodeStatus(KindIncomingConnection, p)
	switch {
	case err != nil:
		return IncomingConnection{}, err
	case status != 0 && (len(p) == statusSize || len(p) == incomingConnectionSize):
		return IncomingConnection{Status: status}, nil
	case len(p) != incomingConnectionSize:
		return IncomingConnection{}, malformed(KindIncomingConnection, ErrLength)
	}
	m := IncomingConnection{Pipe: binary.LittleEndian.Uint64(rest)}
	if m.Peer, err = DecodeEndpoint(rest[8 : 8+EndpointSize]); err == nil {
		m.Local, err = DecodeEndpoint(rest[8+EndpointSize:])
	}
	none := Endpoint{}
	if err == nil && (m.Peer != none || m.Local != none) && !(m.Peer.Addr.IsValid() && m.Local.Addr.IsValid()) {
		err = ErrFamily
	}
	if err != nil {
		return IncomingConnection{}, malformed(KindIncomingConnection, err)
	}
	return m, nil
}
