package wire

import "encoding/binary"

const (
	newStreamRequestSize = 16
	descriptorSize       = 40
	dataStreamInfoSize   = statusSize + descriptorSize
	openPrefixSize       = 8
)

// NewStreamRequest asks for a new pipe. Whether its sizes and its CPU are
// possible is the answerer's to judge.
type NewStreamRequest struct {
	OutgoingSize uint32
	IncomingSize uint32
	HomeCPU      uint32
}

// AppendNewStreamRequest appends m as a frame.
func AppendNewStreamRequest(b []byte, request uint64, m NewStreamRequest) []byte {
	b = AppendHeader(b, Header{Length: newStreamRequestSize, Kind: KindNewStreamRequest, RequestID: request})
	b = binary.LittleEndian.AppendUint32(b, m.OutgoingSize)
	b = binary.LittleEndian.AppendUint32(b, m.IncomingSize)
	return binary.LittleEndian.AppendUint64(b, uint64(m.HomeCPU))
}

// DecodeNewStreamRequest decodes a payload.
func DecodeNewStreamRequest(p []byte) (NewStreamRequest, error) {
	if len(p) != newStreamRequestSize {
		return NewStreamRequest{}, malformed(KindNewStreamRequest, ErrLength)
	}
	if binary.LittleEndian.Uint32(p[12:]) != 0 {
		return NewStreamRequest{}, malformed(KindNewStreamRequest, ErrReserved)
	}
	return NewStreamRequest{
		OutgoingSize: binary.LittleEndian.Uint32(p[0:]),
		IncomingSize: binary.LittleEndian.Uint32(p[4:]),
		HomeCPU:      binary.LittleEndian.Uint32(p[8:]),
	}, nil
}

// Descriptor says where a pipe lies in the shared window (PROTOCOL.md section
// 7). Header, Outgoing and Incoming are offsets into the window.
type Descriptor struct {
	ID           uint64
	Header       uint64
	Outgoing     uint64
	Incoming     uint64
	OutgoingSize uint32
	IncomingSize uint32
}

func appendDescriptor(b []byte, d Descriptor) []byte {
	b = binary.LittleEndian.AppendUint64(b, d.ID)
	b = binary.LittleEndian.AppendUint64(b, d.Header)
	b = binary.LittleEndian.AppendUint64(b, d.Outgoing)
	b = binary.LittleEndian.AppendUint64(b, d.Incoming)
	b = binary.LittleEndian.AppendUint32(b, d.OutgoingSize)
	return binary.LittleEndian.AppendUint32(b, d.IncomingSize)
}

func decodeDescriptor(p []byte) Descriptor {
	return Descriptor{
		ID:           binary.LittleEndian.Uint64(p[0:]),
		Header:       binary.LittleEndian.Uint64(p[8:]),
		Outgoing:     binary.LittleEndian.Uint64(p[16:]),
		Incoming:     binary.LittleEndian.Uint64(p[24:]),
		OutgoingSize: binary.LittleEndian.Uint32(p[32:]),
		IncomingSize: binary.LittleEndian.Uint32(p[36:]),
	}
}

// DataStreamInfo answers a NewStreamRequest. Status is 0 or a Linux errno; Pipe
// is set with status 0 only.
type DataStreamInfo struct {
	Status uint32
	Pipe   Descriptor
}

// AppendDataStreamInfo appends m as a frame, without the descriptor if the
// status is not 0.
func AppendDataStreamInfo(b []byte, request uint64, m DataStreamInfo) []byte {
	h := Header{Length: dataStreamInfoSize, Kind: KindDataStreamInfo, RequestID: request}
	if m.Status != 0 {
		h.Length = statusSize
		return appendStatus(AppendHeader(b, h), m.Status)
	}
	return appendDescriptor(appendStatus(AppendHeader(b, h), 0), m.Pipe)
}

// DecodeDataStreamInfo decodes a payload.
func DecodeDataStreamInfo(p []byte) (DataStreamInfo, error) {
	status, rest, err := decodeStatus(KindDataStreamInfo, p)
	switch {
	case err != nil:
		return DataStreamInfo{}, err
	case status != 0 && (len(rest) == 0 || len(rest) == descriptorSize):
		return DataStreamInfo{Status: status}, nil
	case len(rest) != descriptorSize:
		return DataStreamInfo{}, malformed(KindDataStreamInfo, ErrLength)
	}
	return DataStreamInfo{Pipe: decodeDescriptor(rest)}, nil
}

// Open is the first frame on a data pipe. Payload is the protocol's own.
type Open struct {
	Protocol uint16
	Payload  []byte
}

// AppendOpen appends m as a frame. The payload must not be longer than
// MaxProtocolPayload.
func AppendOpen(b []byte, request uint64, m Open) []byte {
	b = AppendHeader(b, Header{Length: uint32(openPrefixSize + len(m.Payload)), Kind: KindOpen, RequestID: request})
	b = binary.LittleEndian.AppendUint64(b, uint64(m.Protocol))
	return append(b, m.Payload...)
}

// DecodeOpen decodes a payload. The protocol's own payload is left to the
// protocol.
func DecodeOpen(p []byte) (Open, error) {
	if len(p) < openPrefixSize || len(p) > openPrefixSize+MaxProtocolPayload {
		return Open{}, malformed(KindOpen, ErrLength)
	}
	if binary.LittleEndian.Uint64(p)>>16 != 0 {
		return Open{}, malformed(KindOpen, ErrReserved)
	}
	return Open{Protocol: binary.LittleEndian.Uint16(p), Payload: p[openPrefixSize:]}, nil
}

// Opened answers an Open. Status is 0 or a Linux errno. Payload is the
// protocol's own.
type Opened struct {
	Status  uint32
	Payload []byte
}

// AppendOpened appends m as a frame. The payload must not be longer than
// MaxProtocolPayload.
func AppendOpened(b []byte, request uint64, m Opened) []byte {
	b = AppendHeader(b, Header{Length: uint32(statusSize + len(m.Payload)), Kind: KindOpened, RequestID: request})
	return append(appendStatus(b, m.Status), m.Payload...)
}

// DecodeOpened decodes a payload. The protocol's own payload is left to the
// protocol.
func DecodeOpened(p []byte) (Opened, error) {
	if len(p) > statusSize+MaxProtocolPayload {
		return Opened{}, malformed(KindOpened, ErrLength)
	}
	status, rest, err := decodeStatus(KindOpened, p)
	if err != nil {
		return Opened{}, err
	}
	return Opened{Status: status, Payload: rest}, nil
}
