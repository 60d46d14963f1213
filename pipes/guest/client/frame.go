package client

import (
	"fmt"
	"io"
	"syscall"

	"github.com/fix-project/arcavm/pipes/guest"
	"github.com/fix-project/arcavm/wire"
)

// ReadFrame reads one frame of any size from a pipe, and returns its header and
// its payload. It waits for all of it; after an error in the middle, of a
// deadline for instance, the rest of the frame is still to come.
func ReadFrame(r io.Reader) (wire.Header, []byte, error) {
	b := make([]byte, wire.HeaderSize)
	if _, err := io.ReadFull(r, b); err != nil {
		return wire.Header{}, nil, err
	}
	h, err := wire.DecodeHeader(b)
	if err != nil {
		return h, nil, err
	}
	p := make([]byte, h.Length)
	_, err = io.ReadFull(r, p)
	return h, p, err
}

// peekFrame waits for a frame that the incoming ring has room for as a whole.
// It returns the header and the payload, which wraps where the ring does: ring
// memory, for which CommitRead must follow, as after ReserveRead. After an
// error nothing has been taken, and nothing is reserved.
func peekFrame(p *guest.Conn) (h wire.Header, a, b []byte, err error) {
	if a, b, err = p.ReserveRead(wire.HeaderSize); err != nil {
		return h, nil, nil, err
	}
	var header [wire.HeaderSize]byte
	n := copy(header[:], a)
	copy(header[n:], b)
	p.CommitRead(0)
	if h, err = wire.DecodeHeader(header[:]); err != nil {
		return h, nil, nil, err
	}
	size := wire.HeaderSize + int(h.Length)
	if a, b, err = p.ReserveRead(size); err != nil {
		return h, nil, nil, err
	}
	if n := len(a); n < size {
		b = b[:size-n]
	} else {
		a, b = a[:size], nil
	}
	if n := len(a); n < wire.HeaderSize {
		return h, b[wire.HeaderSize-n:], nil, nil
	}
	return h, a[wire.HeaderSize:], b, nil
}

// takeFrame takes a frame as a whole or, after an error, not at all. It appends
// the payload to buf.
func takeFrame(p *guest.Conn, buf []byte) (wire.Header, []byte, error) {
	h, a, b, err := peekFrame(p)
	if err != nil {
		return h, nil, err
	}
	buf = append(append(buf, a...), b...)
	p.CommitRead(wire.HeaderSize + int(h.Length))
	return h, buf, nil
}

// putFrame writes a frame that the outgoing ring has room for, as a whole or,
// after an error, not at all.
func putFrame(p *guest.Conn, frame []byte) error {
	a, b, err := p.ReserveWrite(len(frame))
	if err != nil {
		return err
	}
	n := copy(a, frame)
	copy(b, frame[n:])
	p.CommitWrite(len(frame))
	return nil
}

// unexpected is the error of a frame that doesn't belong where it came.
func unexpected(h wire.Header) error {
	return fmt.Errorf("%w: %v that answers request %d", syscall.EPROTO, h.Kind, h.RequestID)
}
