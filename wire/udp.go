package wire

import "encoding/binary"

const (
	// MaxDatagram is the most data in one SendDatagram or ReceivedDatagram
	// frame, in bytes: no UDP datagram is larger.
	MaxDatagram = 65535
	// ReceivedDatagramPrefixSize is the size of a ReceivedDatagram payload
	// without its data.
	ReceivedDatagramPrefixSize = EndpointSize + 8
	// ReceivedDatagramAtPrefixSize is the same of ReceivedDatagramAt.
	ReceivedDatagramAtPrefixSize = ReceivedDatagramPrefixSize + EndpointSize
	// SendDatagramFromPrefixSize is the size of a SendDatagramFrom payload
	// without its data.
	SendDatagramFromPrefixSize = 2 * EndpointSize

	udpSocketSize     = 2 * EndpointSize
	datagramErrorSize = statusSize + EndpointSize
)

// UDPSocket is the payload of an Open for a UDP socket, and of its Opened.
type UDPSocket struct {
	// Local is, in an Open, the zero Addr only with a peer; port 0 leaves the
	// port to the host.
	Local Endpoint
	Peer  Endpoint // the zero Endpoint: the socket is not connected
	// Addressed, in an Open, asks for ReceivedDatagramAt instead of
	// ReceivedDatagram. An Opened has it never.
	Addressed bool
}

// addressed, in the local endpoint's reserved byte, is UDPSocket.Addressed.
const addressed = 1

// AppendUDPSocket appends m as the payload of an Open or an Opened, without a
// frame header.
func AppendUDPSocket(b []byte, m UDPSocket) []byte {
	start := len(b)
	b = AppendEndpoint(AppendEndpoint(b, m.Local), m.Peer)
	if m.Addressed {
		b[start+1] = addressed
	}
	return b
}

// DecodeUDPSocket decodes the payload of an Open or an Opened.
func DecodeUDPSocket(p []byte) (UDPSocket, error) {
	if len(p) != udpSocketSize {
		return UDPSocket{}, malformed(KindOpen, ErrLength)
	}
	raw := [EndpointSize]byte(p)
	asks := raw[1] == addressed
	if asks {
		raw[1] = 0
	}
	local, err := DecodeEndpoint(raw[:])
	if err != nil {
		return UDPSocket{}, malformed(KindOpen, err)
	}
	peer, err := DecodeEndpoint(p[EndpointSize:])
	switch {
	case err != nil:
	case !local.Addr.IsValid() && !peer.Addr.IsValid():
		err = ErrFamily
	case !local.Addr.IsValid() && local != Endpoint{}, !peer.Addr.IsValid() && peer != Endpoint{}:
		err = ErrAddress
	}
	if err != nil {
		return UDPSocket{}, malformed(KindOpen, err)
	}
	return UDPSocket{Local: local, Peer: peer, Addressed: asks}, nil
}

// SendDatagram sends a datagram.
type SendDatagram struct {
	To   Endpoint // the zero Endpoint: to the socket's peer
	Data []byte
}

// AppendSendDatagram appends m as a frame. The data must not be longer than
// MaxDatagram.
func AppendSendDatagram(b []byte, request uint64, m SendDatagram) []byte {
	b = AppendHeader(b, Header{Length: uint32(EndpointSize + len(m.Data)), Kind: KindSendDatagram, RequestID: request})
	return append(AppendEndpoint(b, m.To), m.Data...)
}

// DecodeSendDatagram decodes a payload.
func DecodeSendDatagram(p []byte) (SendDatagram, error) {
	if len(p) < EndpointSize || len(p) > EndpointSize+MaxDatagram {
		return SendDatagram{}, malformed(KindSendDatagram, ErrLength)
	}
	to, err := DecodeDestination(p[:EndpointSize])
	if err != nil {
		return SendDatagram{}, err
	}
	return SendDatagram{To: to, Data: p[EndpointSize:]}, nil
}

// DecodeDestination decodes the 24 bytes before a SendDatagram's data. It
// serves a reader that leaves the data where it is.
func DecodeDestination(p []byte) (Endpoint, error) {
	return decodeOptionalEndpoint(KindSendDatagram, p)
}

// decodeOptionalEndpoint takes the zero Endpoint, too.
func decodeOptionalEndpoint(k Kind, p []byte) (Endpoint, error) {
	e, err := DecodeEndpoint(p)
	if err == nil && !e.Addr.IsValid() && e != (Endpoint{}) {
		err = ErrAddress
	}
	if err != nil {
		return Endpoint{}, malformed(k, err)
	}
	return e, nil
}

// SendDatagramFrom sends a datagram from one of the socket's local addresses.
type SendDatagramFrom struct {
	SendDatagram
	From Endpoint // the zero Endpoint: as SendDatagram; port 0: the socket's
}

// AppendSendDatagramFrom appends m as a frame. The data must not be longer than
// MaxDatagram.
func AppendSendDatagramFrom(b []byte, request uint64, m SendDatagramFrom) []byte {
	b = AppendHeader(b, Header{Length: uint32(SendDatagramFromPrefixSize + len(m.Data)), Kind: KindSendDatagramFrom, RequestID: request})
	return append(AppendEndpoint(AppendEndpoint(b, m.To), m.From), m.Data...)
}

// DecodeSendDatagramFrom decodes a payload.
func DecodeSendDatagramFrom(p []byte) (SendDatagramFrom, error) {
	if len(p) < SendDatagramFromPrefixSize || len(p) > SendDatagramFromPrefixSize+MaxDatagram {
		return SendDatagramFrom{}, malformed(KindSendDatagramFrom, ErrLength)
	}
	to, from, err := DecodeDestinationAndSource(p[:SendDatagramFromPrefixSize])
	if err != nil {
		return SendDatagramFrom{}, err
	}
	return SendDatagramFrom{SendDatagram{To: to, Data: p[SendDatagramFromPrefixSize:]}, from}, nil
}

// DecodeDestinationAndSource decodes the 48 bytes before a SendDatagramFrom's
// data, as DecodeDestination does for SendDatagram.
func DecodeDestinationAndSource(p []byte) (to, from Endpoint, err error) {
	if len(p) != SendDatagramFromPrefixSize {
		return to, from, malformed(KindSendDatagramFrom, ErrLength)
	}
	if to, err = decodeOptionalEndpoint(KindSendDatagramFrom, p[:EndpointSize]); err == nil {
		from, err = decodeOptionalEndpoint(KindSendDatagramFrom, p[EndpointSize:])
	}
	return to, from, err
}

// ReceivedDatagram is a datagram that has arrived.
type ReceivedDatagram struct {
	From    Endpoint
	Size    uint32 // of the datagram; Data is shorter if there was no room for all of it
	Dropped uint32 // datagrams that the socket has lost so far, modulo 2^32
	Data    []byte
}

// AppendReceivedDatagram appends m as a frame. The data must not be longer than
// Size, nor than MaxDatagram.
func AppendReceivedDatagram(b []byte, m ReceivedDatagram) []byte {
	return append(AppendReceivedDatagramPrefix(b, m, len(m.Data)), m.Data...)
}

// AppendReceivedDatagramPrefix appends a ReceivedDatagram frame up to its data,
// of which n bytes follow: HeaderSize plus ReceivedDatagramPrefixSize bytes. It
// serves a writer that puts the data in its place by itself.
func AppendReceivedDatagramPrefix(b []byte, m ReceivedDatagram, n int) []byte {
	b = AppendHeader(b, Header{Length: uint32(ReceivedDatagramPrefixSize + n), Kind: KindReceivedDatagram})
	b = AppendEndpoint(b, m.From)
	b = binary.LittleEndian.AppendUint32(b, m.Size)
	return binary.LittleEndian.AppendUint32(b, m.Dropped)
}

// DecodeReceivedDatagram decodes a payload.
func DecodeReceivedDatagram(p []byte) (ReceivedDatagram, error) {
	return decodeReceived(KindReceivedDatagram, ReceivedDatagramPrefixSize, p)
}

// decodeReceived decodes what ReceivedDatagram and ReceivedDatagramAt have in
// common.
func decodeReceived(k Kind, prefix int, p []byte) (ReceivedDatagram, error) {
	if len(p) < prefix || len(p) > prefix+MaxDatagram {
		return ReceivedDatagram{}, malformed(k, ErrLength)
	}
	from, err := DecodeEndpoint(p[:EndpointSize])
	if err == nil && !from.Addr.IsValid() {
		err = ErrFamily
	}
	if err != nil {
		return ReceivedDatagram{}, malformed(k, err)
	}
	m := ReceivedDatagram{
		From:    from,
		Size:    binary.LittleEndian.Uint32(p[EndpointSize:]),
		Dropped: binary.LittleEndian.Uint32(p[EndpointSize+4:]),
		Data:    p[prefix:],
	}
	if uint64(len(m.Data)) > uint64(m.Size) {
		return ReceivedDatagram{}, malformed(k, ErrLength)
	}
	return m, nil
}

// ReceivedDatagramAt is a datagram that has arrived, and the local address that
// it came to.
type ReceivedDatagramAt struct {
	ReceivedDatagram
	Local Endpoint // where an answer comes from; an unspecified address: not known
}

// AppendReceivedDatagramAt appends m as a frame, as AppendReceivedDatagram
// does.
func AppendReceivedDatagramAt(b []byte, m ReceivedDatagramAt) []byte {
	return append(AppendReceivedDatagramAtPrefix(b, m, len(m.Data)), m.Data...)
}

// AppendReceivedDatagramAtPrefix appends a frame up to its data, as
// AppendReceivedDatagramPrefix does: HeaderSize plus
// ReceivedDatagramAtPrefixSize bytes.
func AppendReceivedDatagramAtPrefix(b []byte, m ReceivedDatagramAt, n int) []byte {
	start := len(b)
	b = AppendReceivedDatagramPrefix(b, m.ReceivedDatagram, n)
	h := Header{Length: uint32(ReceivedDatagramAtPrefixSize + n), Kind: KindReceivedDatagramAt}
	AppendHeader(b[start:start], h)
	return AppendEndpoint(b, m.Local)
}

// DecodeReceivedDatagramAt decodes a payload.
func DecodeReceivedDatagramAt(p []byte) (ReceivedDatagramAt, error) {
	m, err := decodeReceived(KindReceivedDatagramAt, ReceivedDatagramAtPrefixSize, p)
	if err != nil {
		return ReceivedDatagramAt{}, err
	}
	local, err := DecodeEndpoint(p[ReceivedDatagramPrefixSize:ReceivedDatagramAtPrefixSize])
	if err == nil && !local.Addr.IsValid() {
		err = ErrFamily
	}
	if err != nil {
		return ReceivedDatagramAt{}, malformed(KindReceivedDatagramAt, err)
	}
	return ReceivedDatagramAt{m, local}, nil
}

// DatagramError says that a datagram was not sent, or, with request id 0, that
// the network gave one back.
type DatagramError struct {
	Status uint32
	To     Endpoint // where the datagram was to go; the zero Endpoint where that isn't known
}

// AppendDatagramError appends m as a frame.
func AppendDatagramError(b []byte, request uint64, m DatagramError) []byte {
	b = AppendHeader(b, Header{Length: datagramErrorSize, Kind: KindDatagramError, RequestID: request})
	return AppendEndpoint(appendStatus(b, m.Status), m.To)
}

// DecodeDatagramError decodes a payload.
func DecodeDatagramError(p []byte) (DatagramError, error) {
	if len(p) != datagramErrorSize {
		return DatagramError{}, malformed(KindDatagramError, ErrLength)
	}
	status, rest, err := decodeStatus(KindDatagramError, p)
	if err != nil {
		return DatagramError{}, err
	}
	to, err := DecodeEndpoint(rest)
	if err == nil && !to.Addr.IsValid() && to != (Endpoint{}) {
		err = ErrAddress
	}
	if err != nil {
		return DatagramError{}, malformed(KindDatagramError, err)
	}
	return DatagramError{Status: status, To: to}, nil
}
