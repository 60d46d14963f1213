package wire

import (
	"encoding/binary"
	"net/netip"
	"strconv"
)

// EndpointSize is the size of an encoded Endpoint in bytes.
const EndpointSize = 24

// Endpoint is an address, a port and, for IPv6, an interface index (0: none).
// Addr has no zone. The zero Addr stands for family 0, which not every message
// may carry.
type Endpoint struct {
	Addr  netip.Addr
	Port  uint16
	Scope uint32
}

// AddrPort returns e with its scope as a numeric zone.
func (e Endpoint) AddrPort() netip.AddrPort {
	addr := e.Addr
	if e.Scope != 0 {
		addr = addr.WithZone(strconv.FormatUint(uint64(e.Scope), 10))
	}
	return netip.AddrPortFrom(addr, e.Port)
}

// AppendEndpoint appends the 24 bytes of e, without a frame header.
func AppendEndpoint(b []byte, e Endpoint) []byte {
	var raw [EndpointSize]byte
	binary.LittleEndian.PutUint16(raw[2:], e.Port)
	switch {
	case e.Addr.Is4():
		raw[0] = 4
		a := e.Addr.As4()
		copy(raw[8:], a[:])
	case e.Addr.Is6():
		raw[0] = 6
		binary.LittleEndian.PutUint32(raw[4:], e.Scope)
		a := e.Addr.As16()
		copy(raw[8:], a[:])
	}
	return append(b, raw[:]...)
}

// DecodeEndpoint decodes 24 bytes. Family 0 gives the zero Addr.
func DecodeEndpoint(p []byte) (Endpoint, error) {
	if len(p) != EndpointSize {
		return Endpoint{}, ErrLength
	}
	if p[1] != 0 {
		return Endpoint{}, ErrReserved
	}
	e := Endpoint{Port: binary.LittleEndian.Uint16(p[2:])}
	scope := binary.LittleEndian.Uint32(p[4:])
	addr := [16]byte(p[8:])
	used := 0
	switch p[0] {
	case 0:
	case 4:
		used = 4
		e.Addr = netip.AddrFrom4([4]byte(addr[:]))
	case 6:
		e.Scope = scope
		e.Addr = netip.AddrFrom16(addr)
		return e, nil
	default:
		return Endpoint{}, ErrFamily
	}
	clear(addr[:used])
	if scope != 0 || addr != [16]byte{} {
		return Endpoint{}, ErrAddress
	}
	return e, nil
}
