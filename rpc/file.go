package rpc

import (
	"context"
	"io"
	"os"

	"github.com/fix-project/arcavm/rpc/message"
)

const (
	// readBlock is the largest block of a ring for what is read of a file: a response of 1 MiB fits. writeBlock is that of a ring for what is written:
	// it is passed on while it comes.
	readBlock  = 2 << 20
	writeBlock = 1 << 20
	// growBlock is the least for a file that may grow, or that has no size.
	growBlock = 256 << 10
)

// file is an open file on a pipe of its own.
type file struct {
	f       *os.File
	path    string
	regular bool

	server *Server
	done   <-chan struct{} // closed when the server stops
}

func (f *file) serve(ctx context.Context, p *pipe) error {
	f.server, f.done = p.server, ctx.Done()
	defer f.server.dropFile()
	defer closeWith(ctx, f.close)()
	for {
		head, size, err := p.head()
		if err != nil {
			return err
		}
		m, n, err := message.DecodeFileRequest(head, size)
		if err != nil {
			return err
		}
		p.requests.move(uint64(n))
		switch m.Op {
		case message.FileRead:
			p.respondBytes(message.AppendFileBytes, m.Length, f)
		case message.FileWrite:
			done, serr, err := p.payload(m.Length, f)
			if err != nil {
				return err
			}
			if serr != nil {
				p.server.warn("write failed; the guest is told a shorter length", "path", f.path, "error", serr)
			}
			p.respond(message.AppendFileLength(p.buf[:0], done))
		case message.FileSeek:
			p.respond(message.AppendFileOffset(p.buf[:0], f.seek(p.server, m)))
		case message.FileClose:
			f.close()
			p.respond(message.AppendFileAck(p.buf[:0]))
			return nil
		}
	}
}

// read fills both parts as far as the file goes. An error looks like the end of the file to the guest, which expects none.
func (f *file) read(a, b []byte) int {
	n := f.readNow(a, b)
	f.server.spend(f.done, n)
	return n
}

func (f *file) readNow(a, b []byte) int {
	defer f.enter()()
	n, err := f.f.Read(a)
	// What is no regular file might wait for more.
	if err == nil && f.regular && n == len(a) && len(b) > 0 {
		var k int
		k, err = f.f.Read(b)
		n += k
	}
	if err != nil && err != io.EOF {
		f.server.warn("read failed; to the guest the file ends", "path", f.path, "error", err)
	}
	return n
}

func (f *file) write(a, b []byte) (int, error) {
	f.server.spend(f.done, len(a)+len(b))
	defer f.enter()()
	n, err := f.f.Write(a)
	if err == nil && len(b) > 0 {
		var k int
		k, err = f.f.Write(b)
		n += k
	}
	return n, err
}

// seek returns the new offset; that of before, if the guest has asked for one that can't be.
func (f *file) seek(s *Server, m message.FileRequest) uint64 {
	whence := [...]int{message.SeekStart: io.SeekStart, message.SeekCurrent: io.SeekCurrent, message.SeekEnd: io.SeekEnd}[m.Whence]
	offset, err := f.f.Seek(m.Offset, whence)
	if err == nil {
		return uint64(offset)
	}
	s.warn("seek failed; the offset stays", "path", f.path, "offset", m.Offset, "error", err)
	if offset, err = f.f.Seek(0, io.SeekCurrent); err != nil {
		return 0
	}
	return uint64(offset)
}

// enter waits until a system call may begin, and returns what ends it. What is no regular file doesn't keep a thread.
func (f *file) enter() (leave func()) {
	if !f.regular {
		return func() {}
	}
	f.server.calls <- struct{}{}
	return func() { <-f.server.calls }
}

func (f *file) close() { _ = f.f.Close() }
