package message

// HeadSize is how many bytes of a request on a file, listener or stream pipe a
// decoder needs: all but the bytes of a Write or Send. A shorter request is
// needed whole.
const HeadSize = 20

// FileOp is what a [FileRequest] asks for.
type FileOp uint8

// The requests on a file pipe, and what answers them: Bytes, Length, Offset,
// Ack.
const (
	FileRead FileOp = iota
	FileWrite
	FileSeek
	FileClose
)

// Whence is what a seek's offset counts from.
type Whence uint8

// The start takes an unsigned offset, the others a signed one.
const (
	SeekStart Whence = iota
	SeekCurrent
	SeekEnd
)

// FileRequest is a request on a file pipe, without the bytes of a Write.
type FileRequest struct {
	Op     FileOp
	Length uint64 // Read: bytes wanted; Write: bytes that follow
	Whence Whence // Seek
	Offset int64  // Seek; from the start the bits are those of a u64
}

// StreamOp is what a [StreamRequest] asks for.
type StreamOp uint8

// The requests on a stream pipe, and what answers them: Length, Bytes, Ack.
const (
	StreamSend StreamOp = iota
	StreamReceive
	StreamClose
)

// StreamRequest is a request on a stream pipe, without the bytes of a Send.
type StreamRequest struct {
	Op     StreamOp
	Length uint64 // Send: bytes that follow; Receive: bytes wanted
}

// ListenerOp is a request on a listener pipe.
type ListenerOp uint8

// The requests on a listener pipe, and what answers them: Pipe, Ack.
const (
	ListenerAccept ListenerOp = iota
	ListenerClose
)

// AppendFileRequest appends a request on a file pipe, without the bytes of a
// Write.
func AppendFileRequest(b []byte, m FileRequest) []byte {
	b = append(b, byte(m.Op))
	switch m.Op {
	case FileRead, FileWrite:
		b = appendVarint(b, m.Length)
	case FileSeek:
		b = append(b, byte(m.Whence))
		if m.Whence == SeekStart {
			b = appendVarint(b, uint64(m.Offset))
		} else {
			b = appendZigzag(b, m.Offset)
		}
	}
	return b
}

// DecodeFileRequest decodes a request of size bytes from its first [HeadSize],
// or all if there are fewer. It returns how many bytes come before those of a
// Write, which are the rest.
func DecodeFileRequest(head []byte, size uint64) (m FileRequest, n int, err error) {
	d := decoder{b: head}
	payload := uint64(0)
	switch op := d.varint(32); op {
	case uint64(FileRead):
		m = FileRequest{Op: FileRead, Length: d.varint(64)}
	case uint64(FileWrite):
		payload = d.varint(64)
		m = FileRequest{Op: FileWrite, Length: payload}
	case uint64(FileSeek):
		m.Op = FileSeek
		switch whence := d.varint(32); whence {
		case uint64(SeekStart):
			m.Offset = int64(d.varint(64))
		case uint64(SeekCurrent), uint64(SeekEnd):
			m.Whence, m.Offset = Whence(whence), d.zigzag(64)
		default:
			d.fail("unknown whence")
		}
	case uint64(FileClose):
		m.Op = FileClose
	default:
		d.fail("unknown request")
	}
	n, err = d.head(len(head), payload, size)
	return m, n, err
}

// AppendStreamRequest appends a request on a stream pipe, without the bytes of
// a Send.
func AppendStreamRequest(b []byte, m StreamRequest) []byte {
	b = append(b, byte(m.Op))
	if m.Op != StreamClose {
		b = appendVarint(b, m.Length)
	}
	return b
}

// DecodeStreamRequest decodes a request of size bytes from its first
// [HeadSize], or all if there are fewer. It returns how many bytes come before
// those of a Send, which are the rest.
func DecodeStreamRequest(head []byte, size uint64) (m StreamRequest, n int, err error) {
	d := decoder{b: head}
	payload := uint64(0)
	switch op := d.varint(32); op {
	case uint64(StreamSend):
		payload = d.varint(64)
		m = StreamRequest{StreamSend, payload}
	case uint64(StreamReceive):
		m = StreamRequest{StreamReceive, d.varint(64)}
	case uint64(StreamClose):
		m.Op = StreamClose
	default:
		d.fail("unknown request")
	}
	n, err = d.head(len(head), payload, size)
	return m, n, err
}

// AppendListenerRequest appends a request on a listener pipe.
func AppendListenerRequest(b []byte, op ListenerOp) []byte { return append(b, byte(op)) }

// DecodeListenerRequest decodes a request of size bytes from its first
// [HeadSize], or all if there are fewer. It returns how many bytes it took.
func DecodeListenerRequest(head []byte, size uint64) (op ListenerOp, n int, err error) {
	d := decoder{b: head}
	v := d.varint(32)
	if v > uint64(ListenerClose) {
		d.fail("unknown request")
	}
	n, err = d.head(len(head), 0, size)
	return ListenerOp(v), n, err
}

// head checks that the bytes taken of a head, which had so many, and the
// payload after them make a message of size bytes. It returns how many were
// taken.
func (d *decoder) head(had int, payload, size uint64) (int, error) {
	taken := had - len(d.b)
	if d.err == nil && size-uint64(taken) != payload {
		d.fail("wrong length")
	}
	return taken, d.err
}

// The responses on file, listener and stream pipes by variant: file and stream
// number them differently.
const (
	fileBytes = iota
	fileLength
	fileOffset
	fileAck
)

const (
	listenerPipe = iota
	listenerAck
)

const (
	streamLength = iota
	streamBytes
	streamAck
)

// AppendFileBytes appends the response to a Read up to its bytes, of which
// there are n.
func AppendFileBytes(b []byte, n uint64) []byte { return appendVarint(append(b, fileBytes), n) }

// AppendFileLength appends the response to a Write.
func AppendFileLength(b []byte, n uint64) []byte { return appendVarint(append(b, fileLength), n) }

// AppendFileOffset appends the response to a Seek.
func AppendFileOffset(b []byte, offset uint64) []byte {
	return appendVarint(append(b, fileOffset), offset)
}

// AppendFileAck appends the response to a Close.
func AppendFileAck(b []byte) []byte { return append(b, fileAck) }

// AppendListenerPipe appends the response to an Accept.
func AppendListenerPipe(b []byte, m Pipe) []byte { return m.append(append(b, listenerPipe)) }

// AppendListenerAck appends the response to a Close.
func AppendListenerAck(b []byte) []byte { return append(b, listenerAck) }

// AppendStreamLength appends the response to a Send.
func AppendStreamLength(b []byte, n uint64) []byte { return appendVarint(append(b, streamLength), n) }

// AppendStreamBytes appends the response to a Receive up to its bytes, of which
// there are n.
func AppendStreamBytes(b []byte, n uint64) []byte { return appendVarint(append(b, streamBytes), n) }

// AppendStreamAck appends the response to a Close.
func AppendStreamAck(b []byte) []byte { return append(b, streamAck) }

// DecodeFileResponse decodes the response to a request on a file pipe. Bytes
// alias the input; n is their number, or the length or offset.
func DecodeFileResponse(b []byte, to FileOp) (data []byte, n uint64, err error) {
	d := decoder{b: b}
	variant := d.varint(32)
	switch {
	case variant != uint64(to):
		// The four requests are answered by the four responses, in order.
		d.fail("another response than the one expected")
	case variant == fileBytes:
		data = d.bytes()
		n = uint64(len(data))
	case variant != fileAck:
		n = d.varint(64)
	}
	return data, n, d.end()
}

// DecodeStreamResponse decodes the response to a request on a stream pipe.
// Bytes alias the input; n is their number, or the length.
func DecodeStreamResponse(b []byte, to StreamOp) (data []byte, n uint64, err error) {
	d := decoder{b: b}
	variant := d.varint(32)
	switch {
	case variant != uint64(to):
		// The three requests are answered by the three responses, in order.
		d.fail("another response than the one expected")
	case variant == streamBytes:
		data = d.bytes()
		n = uint64(len(data))
	case variant == streamLength:
		n = d.varint(64)
	}
	return data, n, d.end()
}

// DecodeListenerResponse decodes the response to a request on a listener pipe.
func DecodeListenerResponse(b []byte, to ListenerOp) (m Pipe, err error) {
	d := decoder{b: b}
	variant := d.varint(32)
	switch {
	case variant != uint64(to):
		d.fail("another response than the one expected")
	case variant == listenerPipe:
		m = d.pipe()
	}
	return m, d.end()
}
