package rpc

import (
	"context"

	"github.com/fix-project/arcavm/rpc/message"
)

// absent stands for a file that couldn't be opened, for a guest that can't be
// told so: nothing can be read of it, and what is written goes nowhere.
type absent struct{}

func (absent) read(_, _ []byte) int { return 0 }

func (absent) write(a, b []byte) (int, error) { return len(a) + len(b), nil }

// serveAbsent serves the pipe of a file that isn't there until its Close.
func serveAbsent(_ context.Context, p *pipe) error {
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
			p.respondBytes(message.AppendFileBytes, m.Length, absent{})
		case message.FileWrite:
			// All of it, since guests try again until all is written.
			done, _, err := p.payload(m.Length, absent{})
			if err != nil {
				return err
			}
			p.respond(message.AppendFileLength(p.buf[:0], done))
		case message.FileSeek:
			p.respond(message.AppendFileOffset(p.buf[:0], 0))
		case message.FileClose:
			p.respond(message.AppendFileAck(p.buf[:0]))
			return nil
		}
	}
}
