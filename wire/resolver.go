package wire

import (
	"bytes"
	"encoding/binary"
	"iter"
)

const (
	// MaxAddresses is the most endpoints in an Addresses.
	MaxAddresses = 64
	// MaxNameBytes is the most bytes of entries in a Names.
	MaxNameBytes = 4096

	resolveNamePrefixSize = 8
)

// ResolveName asks for the addresses of a host.
type ResolveName struct {
	Family uint8  // 4, 6, or 0 for both
	Name   []byte // 1 to MaxName bytes
}

// AppendResolveName appends m as a frame.
func AppendResolveName(b []byte, request uint64, m ResolveName) []byte {
	b = AppendHeader(b, Header{Length: uint32(resolveNamePrefixSize + len(m.Name)), Kind: KindResolveName, RequestID: request})
	return append(binary.LittleEndian.AppendUint64(b, uint64(m.Family)), m.Name...)
}

// DecodeResolveName decodes a payload. It doesn't judge the name beyond its
// length and NUL bytes.
func DecodeResolveName(p []byte) (ResolveName, error) {
	if len(p) <= resolveNamePrefixSize || len(p) > resolveNamePrefixSize+MaxName {
		return ResolveName{}, malformed(KindResolveName, ErrLength)
	}
	m := ResolveName{Family: p[0], Name: p[resolveNamePrefixSize:]}
	switch {
	case binary.LittleEndian.Uint64(p)>>8 != 0:
		return ResolveName{}, malformed(KindResolveName, ErrReserved)
	case m.Family != 0 && m.Family != 4 && m.Family != 6:
		return ResolveName{}, malformed(KindResolveName, ErrFamily)
	case bytes.IndexByte(m.Name, 0) >= 0:
		return ResolveName{}, malformed(KindResolveName, ErrName)
	}
	return m, nil
}

// ResolveAddress asks for the names of an address.
type ResolveAddress struct {
	Address Endpoint // IPv4 or IPv6, port 0
}

// AppendResolveAddress appends m as a frame.
func AppendResolveAddress(b []byte, request uint64, m ResolveAddress) []byte {
	b = AppendHeader(b, Header{Length: EndpointSize, Kind: KindResolveAddress, RequestID: request})
	return AppendEndpoint(b, m.Address)
}

// DecodeResolveAddress decodes a payload.
func DecodeResolveAddress(p []byte) (ResolveAddress, error) {
	e, err := decodeAddress(p)
	if err != nil {
		return ResolveAddress{}, malformed(KindResolveAddress, err)
	}
	return ResolveAddress{Address: e}, nil
}

// decodeAddress decodes an endpoint that stands for an address alone.
func decodeAddress(p []byte) (Endpoint, error) {
	e, err := DecodeEndpoint(p)
	switch {
	case err != nil:
		return Endpoint{}, err
	case !e.Addr.IsValid():
		return Endpoint{}, ErrFamily
	case e.Port != 0:
		return Endpoint{}, ErrReserved
	}
	return e, nil
}

// Addresses answers a ResolveName: with status 0 at least one endpoint, each an
// address with port 0, the first to be tried first. Endpoints holds them as
// they are on the wire; see AppendEndpoint and CutAddress.
type Addresses struct {
	Status    uint32
	Endpoints []byte // at most MaxAddresses times EndpointSize
}

// AppendAddresses appends m as a frame.
func AppendAddresses(b []byte, request uint64, m Addresses) []byte {
	return appendEntries(b, KindAddresses, request, m.Status, m.Endpoints)
}

// DecodeAddresses decodes a payload and checks its endpoints.
func DecodeAddresses(p []byte) (Addresses, error) {
	status, rest, err := decodeEntries(KindAddresses, p, MaxAddresses*EndpointSize)
	if err != nil {
		return Addresses{}, err
	}
	for left := rest; len(left) > 0; {
		if _, left, err = CutAddress(left); err != nil {
			return Addresses{}, err
		}
	}
	return Addresses{Status: status, Endpoints: rest}, nil
}

// CutAddress decodes the first of some endpoints, and returns those after it.
func CutAddress(endpoints []byte) (e Endpoint, rest []byte, err error) {
	if len(endpoints) < EndpointSize {
		return Endpoint{}, nil, malformed(KindAddresses, ErrLength)
	}
	if e, err = decodeAddress(endpoints[:EndpointSize]); err != nil {
		return Endpoint{}, nil, malformed(KindAddresses, err)
	}
	return e, endpoints[EndpointSize:], nil
}

// All returns the endpoints, of a message that DecodeAddresses has checked.
func (m Addresses) All() iter.Seq[Endpoint] { return entries(m.Endpoints, CutAddress) }

// Names answers a ResolveAddress: with status 0 at least one name. Entries
// holds them as they are on the wire; see AppendHostName and CutHostName.
type Names struct {
	Status  uint32
	Entries []byte // at most MaxNameBytes
}

// AppendNames appends m as a frame.
func AppendNames(b []byte, request uint64, m Names) []byte {
	return appendEntries(b, KindNames, request, m.Status, m.Entries)
}

// DecodeNames decodes a payload and checks its entries.
func DecodeNames(p []byte) (Names, error) {
	status, rest, err := decodeEntries(KindNames, p, MaxNameBytes)
	if err != nil {
		return Names{}, err
	}
	for left := rest; len(left) > 0; {
		if _, left, err = CutHostName(left); err != nil {
			return Names{}, err
		}
	}
	return Names{Status: status, Entries: rest}, nil
}

// All returns the names, of a message that DecodeNames has checked.
func (m Names) All() iter.Seq[[]byte] { return entries(m.Entries, CutHostName) }

// entries returns what cut takes from the beginning of a list, one by one.
func entries[E any](list []byte, cut func([]byte) (E, []byte, error)) iter.Seq[E] {
	return func(yield func(E) bool) {
		for rest := list; len(rest) > 0; {
			var e E
			var err error
			if e, rest, err = cut(rest); err != nil || !yield(e) {
				return
			}
		}
	}
}

// AppendHostName appends an entry of a Names: a name of 1 to MaxName bytes,
// none of them NUL.
func AppendHostName(b []byte, name string) []byte {
	return append(append(b, uint8(len(name))), name...)
}

// CutHostName decodes the first of the entries, and returns those after it.
func CutHostName(entries []byte) (name, rest []byte, err error) {
	if len(entries) == 0 || entries[0] == 0 || entries[0] > MaxName || len(entries) <= int(entries[0]) {
		return nil, nil, malformed(KindNames, ErrLength)
	}
	end := 1 + int(entries[0])
	if name = entries[1:end]; bytes.IndexByte(name, 0) >= 0 {
		return nil, nil, malformed(KindNames, ErrName)
	}
	return name, entries[end:], nil
}

func appendEntries(b []byte, k Kind, request uint64, status uint32, entries []byte) []byte {
	b = AppendHeader(b, Header{Length: uint32(statusSize + len(entries)), Kind: k, RequestID: request})
	return append(appendStatus(b, status), entries...)
}

// decodeEntries returns what follows the status: something, if that is 0.
func decodeEntries(k Kind, p []byte, most int) (status uint32, entries []byte, err error) {
	status, entries, err = decodeStatus(k, p)
	if err == nil && (len(entries) > most || status == 0 && len(entries) == 0) {
		err = malformed(k, ErrLength)
	}
	return status, entries, err
}
