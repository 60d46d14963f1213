package rpc

import (
	"context"
	"io"
	"sync"

	"github.com/fix-project/arcavm/rpc/message"
	"github.com/fix-project/arcavm/share"
)

const (
	// readBlock is the largest block of a ring for what is read of a file: a
	// response of 1 MiB fits. writeBlock is that of a ring for what is written:
	// it is passed on while it comes.
	readBlock  = 2 << 20
	writeBlock = 1 << 20
	// growBlock is the least for a file that may grow, or that has no size.
	growBlock = 256 << 10
)

// file is an open file on a pipe of its own.
type file struct {
	f      *share.File
	path   string
	server *host
	ctx    context.Context // ends when the server stops

	closing sync.Once
}

// contents is what requests about a file are about: a file, or an absent one.
type contents interface {
	source
	sink
	// seek returns the new offset.
	seek(m message.FileRequest) uint64
	// close may be called more than once.
	close()
}

// serveFile returns a function that serves the pipe of a file until its Close.
func serveFile(f contents) func(context.Context, *pipe) error {
	return func(ctx context.Context, p *pipe) error {
		defer closeWith(ctx, f.close)()
		return serveRequests(p, message.DecodeFileRequest, func(m message.FileRequest) (last bool, err error) {
			switch m.Op {
			case message.FileRead:
				p.respondBytes(message.AppendFileBytes, m.Length, f)
			case message.FileWrite:
				done, _, err := p.payload(m.Length, f)
				if err != nil {
					return false, err
				}
				p.respond(message.AppendFileLength(p.buf[:0], done))
			case message.FileSeek:
				p.respond(message.AppendFileOffset(p.buf[:0], f.seek(m)))
			case message.FileClose:
				f.close()
				p.respond(message.AppendFileAck(p.buf[:0]))
				return true, nil
			}
			return false, nil
		})
	}
}

// read fills both parts as far as the file goes. An error looks like the end of
// the file to the guest, which expects none.
func (f *file) read(a, b []byte) int {
	n, err := f.readNow(a, b)
	if err != nil && err != io.EOF && f.ctx.Err() == nil {
		f.server.warn("read failed; to the guest the file ends", "path", f.path, "err", err)
	}
	f.server.spend(f.ctx.Done(), n)
	return n
}

func (f *file) readNow(a, b []byte) (int, error) {
	if f.f.Regular() {
		return f.f.Read(f.ctx, a, b, share.Current)
	}
	// It might wait for more.
	return f.f.File().Read(a)
}

// write writes both parts. After an error, which goes to the log, fewer bytes
// are written.
func (f *file) write(a, b []byte) (int, error) {
	n, err := f.writeNow(a, b)
	if err != nil {
		f.server.overQuota(err)
		f.server.warn("write failed; the guest is told a shorter length", "path", f.path, "err", err)
	}
	return n, err
}

func (f *file) writeNow(a, b []byte) (n int, err error) {
	f.server.spend(f.ctx.Done(), len(a)+len(b))
	for _, part := range [][]byte{a, b} {
		if err != nil || len(part) == 0 {
			continue
		}
		var k int
		if f.f.Regular() {
			k, err = f.f.Write(f.ctx, part, share.Current)
		} else {
			k, err = f.f.File().Write(part)
		}
		n += k
	}
	return n, err
}

// seek returns the new offset; that of before, if the guest has asked for one
// that can't be.
func (f *file) seek(m message.FileRequest) uint64 {
	whence := [...]int{message.SeekStart: io.SeekStart, message.SeekCurrent: io.SeekCurrent, message.SeekEnd: io.SeekEnd}[m.Whence]
	offset, err := f.f.Seek(f.ctx, m.Offset, whence)
	if err == nil {
		return uint64(offset)
	}
	f.server.warn("seek failed; the offset stays", "path", f.path, "offset", m.Offset, "err", err)
	if offset, err = f.f.Seek(f.ctx, 0, io.SeekCurrent); err != nil {
		return 0
	}
	return uint64(offset)
}

// close closes the file, once: its place among the open ones is free
// afterwards.
func (f *file) close() {
	f.closing.Do(func() { _ = f.f.Close(f.server.dropFile) })
}
