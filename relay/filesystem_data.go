package relay

import (
	"context"
	"io"
	"math"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/share"
	"github.com/fix-project/arcavm/wire"
)

const fileDataPrefix = wire.HeaderSize + wire.FileDataPrefixSize

// readFile answers a ReadFileRequest with all that is asked for, up to the size
// that the file has at its start.
func (f *fileStream) readFile(r *fileRequest, m wire.ReadFileRequest) error {
	if err := f.holdFile(); err != nil {
		return f.sendFailure(r, m.Offset, err)
	}
	file, size, err := f.openToRead(string(m.Path))
	if err != nil {
		f.dropFile()
		return f.sendFailure(r, m.Offset, err)
	}
	// The file stops counting before the guest has the answer, with which it
	// may open another one at once.
	done := sync.OnceFunc(func() { _ = file.Close(f.dropFile) })
	defer done()
	length := uint64(0)
	if m.Offset < size {
		length = min(m.Length, size-m.Offset)
	}
	return f.send(r, file, m.Offset, length, done)
}

func (f *fileStream) openToRead(path string) (file *share.File, size uint64, err error) {
	o, err := f.openShared(path, wire.OpenRead)
	if err != nil {
		return nil, 0, err
	}
	info, err := o.Stat(f.ctx)
	if err != nil {
		_ = o.Close(nil)
		return nil, 0, err
	}
	return o, uint64(info.Size), nil
}

// read answers a ReadRequest.
func (f *fileStream) read(r *fileRequest, m wire.ReadRequest) error {
	o, err := f.lookup(m.Handle)
	if err != nil {
		return f.sendFailure(r, m.Offset, err)
	}
	return f.send(r, o, m.Offset, m.Length, func() {})
}

// send sends length bytes of a file, fewer if the file ends before. Other
// answers may go out between two frames. Where bytes are limited it waits after
// each frame, while other answers go on. done is called when the file has been
// read, before the guest has the last frame.
func (f *fileStream) send(r *fileRequest, file *share.File, offset, length uint64, done func()) error {
	for {
		n, more, err := f.sendData(r, file, offset, length, done)
		f.stream.spend(f.ctx.Done(), int(n))
		if err != nil || !more {
			return err
		}
		offset += n
		length -= n
	}
}

// sendData reads up to left bytes straight into the ring and sends them as one
// frame. It returns their number, and whether more frames follow: none do at
// the end of the file, or after an error.
func (f *fileStream) sendData(r *fileRequest, file *share.File, offset, left uint64, done func()) (n uint64, more bool, err error) {
	pipe := f.stream.Pipe
	// It waits for room for half a ring at least, so that a slow reader doesn't
	// get many small frames.
	half := uint64(pipe.Descriptor().IncomingSize / 2)
	a, b, err := pipe.ReserveWrite(int(fileDataPrefix + min(left, wire.MaxFileData, half-fileDataPrefix)))
	if err != nil {
		return 0, false, err
	}
	want := min(left, wire.MaxFileData, uint64(len(a)+len(b)-fileDataPrefix))
	x, y := part(a, b, fileDataPrefix, fileDataPrefix+int(want))
	got, failure := readAt(f.ctx, file, x, y, offset)
	n = uint64(got)

	var flags wire.Flags
	var status uint32
	if failure != nil && failure != io.EOF {
		n, status = 0, f.status(r, failure)
	} else if failure == nil && n < left {
		flags, more = wire.More, true
	}
	var prefix [fileDataPrefix]byte
	wire.AppendFileDataPrefix(prefix[:0], r.RequestID, flags, status, offset, int(n))
	x, y = part(a, b, 0, fileDataPrefix)
	copy(y, prefix[copy(x, prefix[:]):])
	if !more {
		done()
	}
	pipe.CommitWrite(fileDataPrefix + int(n))
	f.stream.toGuest.Add(n)
	return n, more, nil
}

func (f *fileStream) sendFailure(r *fileRequest, offset uint64, failure error) error {
	m := wire.FileData{Status: f.status(r, failure), Offset: offset}
	return f.stream.write(func(b []byte) []byte { return wire.AppendFileData(b, r.RequestID, 0, m) })
}

// readAt fills x, then y. io.EOF means that the file has ended before.
func readAt(ctx context.Context, f *share.File, x, y []byte, offset uint64) (int, error) {
	if len(x)+len(y) > 0 && offset > math.MaxInt64 {
		return 0, io.EOF
	}
	return f.Read(ctx, x, y, int64(offset))
}

// write does a WriteRequest while it reads it: data goes from the ring to the
// file, piece by piece. After a failure the rest of the data is dropped. Its
// error is the pipe's, or a ProtocolError.
func (f *fileStream) write(in *frames, r *fileRequest) error {
	prefix, err := in.payload(wire.WritePrefixSize)
	if err != nil {
		return err
	}
	m, err := wire.DecodeWriteRequest(prefix)
	if err != nil {
		return ProtocolError(err)
	}
	o, failure := f.lookup(m.Handle)
	if !f.stream.operation() {
		failure = unix.EAGAIN
	}
	pipe := f.stream.Pipe
	half := int(pipe.Descriptor().OutgoingSize / 2)
	for left := int(r.Length) - wire.WritePrefixSize; left > 0; {
		a, b, err := pipe.ReserveRead(min(left, half))
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return truncated(err)
		}
		a, b = part(a, b, 0, min(left, len(a)+len(b)))
		for _, piece := range [][]byte{a, b} {
			if failure != nil || len(piece) == 0 {
				continue
			}
			var n int
			f.stream.spend(f.ctx.Done(), len(piece))
			n, failure = f.writeAt(o, piece, m.Offset+r.written)
			r.written += uint64(n)
		}
		pipe.CommitRead(len(a) + len(b))
		left -= len(a) + len(b)
	}
	r.failure = failure
	f.stream.fromGuest.Add(r.written)
	return nil
}

func (f *fileStream) writeAt(o *share.File, b []byte, offset uint64) (int, error) {
	if offset > math.MaxInt64 && !o.Appends() {
		return 0, unix.EFBIG
	}
	return o.Write(f.ctx, b, int64(offset&math.MaxInt64))
}

// part returns the bytes from from to to of a and b, as if they were one.
func part(a, b []byte, from, to int) (x, y []byte) {
	cut := func(i int) (int, int) { return min(i, len(a)), max(i-len(a), 0) }
	af, bf := cut(from)
	at, bt := cut(to)
	return a[af:at], b[bf:bt]
}
