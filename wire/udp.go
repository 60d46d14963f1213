package wire

import "encoding/binary"

const (
	// MaxDatagram is the most data in one SendDatagram or ReceivedDatagram frame, in bytes: no UDP datagram is larger.
	MaxDatagram = 65535
	// ReceivedDatagramPrefixSize is the size of a ReceivedDatagram payload without its data.
	ReceivedDatagramPrefixSize = EndpointSize + 8

	udpSocketSize     = 2 * EndpointSize
	datagramErrorSize = statusSize + EndpointSize
)

// UDPSocket is the payload of an Open for a UDP socket, and of its Opened.
type UDPSocket struct {
	Local Endpoint // in an Open: the zero Addr with a peer only, and port 0 leaves the port to the host
	Peer  Endpoint // the zero Endpoint: the socket is not connected
}

// AppendUDPSocket appends m as the payload of an Open or an Opened, without a frame header.
func AppendUDPSocket(b []byte, m UDPSocket) []byte {
	return AppendEndpoint(AppendEndpoint(b, m.Local), m.Peer)
}

// DecodeUDPSocket decodes the payload of an Open or an Opened.
func DecodeUDPSocket(p []byte) (UDPSocket, error) {
	if len(p) != udpSocketSize {
		return UDPSocket{}, malformed(KindOpen, ErrLength)
	}
	local, err := DecodeEndpoint(p[:EndpointSize])
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
	return UDPSocket{Local: local, Peer: peer}, nil
}

// SendDatagram sends a datagram.
type SendDatagram struct {
	To   Endpoint // the zero Endpoint: to the socket's peer
	Data []byte
}

// AppendSendDatagram appends m as a frame. The data must not be longer than MaxDatagram.
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

// DecodeDestination decodes the 24 bytes before a SendDatagram's data. It serves a reader that leaves the data where it is.
func DecodeDestination(p []byte) (Endpoint, error) {
	e, err := DecodeEndpoint(p)
	if err == nil && !e.Addr.IsValid() && e != (Endpoint{}) {
		err = ErrAddress
	}
	if err != nil {
		return Endpoint{}, malformed(KindSendDatagram, err)
	}
	return e, nil
}

// ReceivedDatagram is a datagram that has arrived.
type ReceivedDatagram struct {
	From    Endpoint
	Size    uint32 // of the datagram; Data is shorter if there was no room for all of it
	Dropped uint32 // datagrams that the socket has lost so far, modulo 2^32
	Data    []byte
}

// AppendReceivedDatagram appends m as a frame. The data must not be longer than Size, nor than MaxDatagram.
func AppendReceivedDatagram(b []byte, m ReceivedDatagram) []byte {
	return append(AppendReceivedDatagramPrefix(b, m, len(m.Data)), m.Data...)
}

// AppendReceivedDatagramPrefix appends a ReceivedDatagram frame up to its data, of which n bytes follow: HeaderSize plus
// ReceivedDatagramPrefixSize bytes. It serves a writer that puts the data in its place by itself.
func AppendReceivedDatagramPrefix(b []byte, m ReceivedDatagram, n int) []byte {
	b = AppendHeader(b, Header{Length: uint32(ReceivedDatagramPrefixSize + n), Kind: KindReceivedDatagram})
	b = AppendEndpoint(b, m.From)
	b = binary.LittleEndian.AppendUint32(b, m.Size)
	return binary.LittleEndian.AppendUint32(b, m.Dropped)
}

// DecodeReceivedDatagram decodes a payload.
func DecodeReceivedDatagram(p []byte) (ReceivedDatagram, error) {
	if len(p) < ReceivedDatagramPrefixSize || len(p) > ReceivedDatagramPrefixSize+MaxDatagram {
		return ReceivedDatagram{}, malformed(KindReceivedDatagram, ErrLength)
	}
	from, err := DecodeEndpoint(p[:EndpointSize])
	if err == nil && !from.Addr.IsValid() {
		err = ErrFamily
	}
	if err != nil {
		return ReceivedDatagram{}, malformed(KindReceivedDatagram, err)
	}
	m := ReceivedDatagram{
		From:    from,
		Size:    binary.LittleEndian.Uint32(p[EndpointSize:]),
		Dropped: binary.LittleEndian.Uint32(p[EndpointSize+4:]),
		Data:    p[ReceivedDatagramPrefixSize:],
	}
	if uint64(len(m.Data)) > uint64(m.Size) {
		return ReceivedDatagram{}, malformed(KindReceivedDatagram, ErrLength)
	}
	return m, nil
}

// DatagramError says that a datagram was not sent, or, with request id 0, that the network gave one back.
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
