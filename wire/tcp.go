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

// TCPOptions are what a guest may choose of a TCP connection's socket. The zero
// value stands for the defaults.
type TCPOptions struct {
	Flags TCPFlags
	// KeepAlive is how many seconds without traffic come before a probe, and
	// between probes: 1 to 32,767, KeepAliveOff, or 0 for 15.
	KeepAlive uint16
}

// TCPFlags are the flags of TCPOptions.
type TCPFlags uint16

// TCPDelay lets a small segment wait for what was sent before it (Nagle's
// algorithm): no TCP_NODELAY.
const TCPDelay TCPFlags = 1

// KeepAliveOff as TCPOptions' KeepAlive means no probes.
const KeepAliveOff = 0xFFFF

// MaxKeepAlive is the longest time between probes in seconds, Linux's limit.
const MaxKeepAlive = 32767

const tcpOptionsSize = 4

func appendTCPOptions(b []byte, o TCPOptions) []byte {
	return binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(b, uint16(o.Flags)), o.KeepAlive)
}

// decodeTCPOptions reads the first 4 bytes of p.
func decodeTCPOptions(p []byte) (TCPOptions, error) {
	o := TCPOptions{Flags: TCPFlags(binary.LittleEndian.Uint16(p)), KeepAlive: binary.LittleEndian.Uint16(p[2:])}
	if o.Flags&^TCPDelay != 0 || o.KeepAlive > MaxKeepAlive && o.KeepAlive != KeepAliveOff {
		return TCPOptions{}, malformed(KindOpen, ErrOptions)
	}
	return o, nil
}

// Listen is the payload of an Open for a TCP listener.
type Listen struct {
	Endpoint Endpoint   // IPv4 or IPv6; port 0: any
	Backlog  uint32     // 0: the host's default
	Options  TCPOptions // of each connection
}

// AppendListen appends m as the payload of an Open, without a frame header.
func AppendListen(b []byte, m Listen) []byte {
	b = binary.LittleEndian.AppendUint32(AppendEndpoint(b, m.Endpoint), m.Backlog)
	return appendTCPOptions(b, m.Options)
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
	o, err := decodeTCPOptions(p[EndpointSize+4:])
	if err != nil {
		return Listen{}, err
	}
	return Listen{Endpoint: e, Backlog: binary.LittleEndian.Uint32(p[EndpointSize:]), Options: o}, nil
}

// Connect is the payload of an Open for a TCP connection: to an address, or to
// a port (with the zero Addr) of a host that has a name.
type Connect struct {
	Endpoint Endpoint
	Options  *TCPOptions // nil: none are sent, which means the defaults
	Name     []byte      // empty, or 1 to MaxName bytes
}

// optionsFollow, in the endpoint's reserved byte, says that options stand
// between endpoint and name.
const optionsFollow = 1

// AppendConnect appends m as the payload of an Open, without a frame header.
// Name is empty exactly if the endpoint has an address, and must not be longer
// than MaxName.
func AppendConnect(b []byte, m Connect) []byte {
	start := len(b)
	b = AppendEndpoint(b, m.Endpoint)
	if m.Options != nil {
		b[start+1] = optionsFollow
		b = appendTCPOptions(b, *m.Options)
	}
	return append(b, m.Name...)
}

// DecodeConnect decodes the payload of an Open. It doesn't judge the name
// beyond its length and NUL bytes.
func DecodeConnect(p []byte) (Connect, error) {
	if len(p) < EndpointSize {
		return Connect{}, malformed(KindOpen, ErrLength)
	}
	m := Connect{Name: p[EndpointSize:]}
	raw := [EndpointSize]byte(p)
	if raw[1] == optionsFollow {
		if len(m.Name) < tcpOptionsSize {
			return Connect{}, malformed(KindOpen, ErrLength)
		}
		o, err := decodeTCPOptions(m.Name)
		if err != nil {
			return Connect{}, err
		}
		raw[1], m.Options, m.Name = 0, &o, m.Name[tcpOptionsSize:]
	}
	e, err := DecodeEndpoint(raw[:])
	if err != nil {
		return Connect{}, malformed(KindOpen, err)
	}
	m.Endpoint = e
	if e.Addr.IsValid() != (len(m.Name) == 0) || len(m.Name) > MaxName {
		return Connect{}, malformed(KindOpen, ErrLength)
	}
	if bytes.IndexByte(m.Name, 0) >= 0 {
		return Connect{}, malformed(KindOpen, ErrName)
	}
	return m, nil
}

// AcceptConnection asks a listener to relay its next connection on a pipe that
// the guest has made.
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

// IncomingConnection answers an AcceptConnection. Status is 0 or a Linux errno;
// the rest is set with status 0 only. Of a UNIX connection both endpoints are
// the zero Endpoint, of others neither is.
type IncomingConnection struct {
	Status uint32
	Pipe   uint64
	Peer   Endpoint
	Local  Endpoint
}

// AppendIncomingConnection appends m as a frame, the status alone if that is
// not 0.
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
