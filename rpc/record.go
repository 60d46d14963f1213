package rpc

import (
	"encoding/binary"

	"github.com/fix-project/arcavm/rpc/message"
)

// Layout of the record that a call about a socket names, in bytes.
//
//	0  id      8  buf     16  len     24  ip, 4 bytes
//	28 port, 2 bytes      30  done, 1 byte
const (
	socketID   = 0
	socketBuf  = 8
	socketLen  = 16
	socketIP   = 24
	socketPort = 28
	socketDone = 30
	socketSize = 32
)

// Layout of the record that a call about a file names, in bytes.
//
//	0  buf     8  offset, signed      16  whence, signed
//	24 len     32 id
//	40 read    41 write   42 create   43 append   44 truncate   45 done
const (
	fileBuf    = 0
	fileOffset = 8
	fileWhence = 16
	fileLen    = 24
	fileID     = 32
	fileMode   = 40
	fileDone   = 45
	fileSize   = 48
)

// record is a copy of what a guest asks for, made once: the guest may change
// its memory meanwhile.
type record struct {
	id, buf, len   uint64
	ip             [4]byte
	port           uint16
	offset, whence int64
	mode           message.Mode

	// at is where the answer goes, with the offsets of its fields there. None
	// of them can be changed by the guest.
	at, idAt, lenAt, doneAt uint64
}

// readRecord copies the record of call n at off. false: it doesn't lie in RAM,
// or not as a compiler would put it.
func readRecord(ram memory, n Call, off uint64) (record, bool) {
	size := uint64(socketSize)
	if n.aboutFile() {
		size = fileSize
	}
	if off%8 != 0 || ram.span(off, size) == nil {
		return record{}, false
	}
	b := make([]byte, 0, fileSize)
	for i := uint64(0); i < size; i += 8 {
		b = binary.LittleEndian.AppendUint64(b, ram.word(off+i).Load())
	}
	word := func(at int) uint64 { return binary.LittleEndian.Uint64(b[at:]) }
	if !n.aboutFile() {
		return record{
			id: word(socketID), buf: word(socketBuf), len: word(socketLen),
			ip:   [4]byte(b[socketIP:]),
			port: binary.LittleEndian.Uint16(b[socketPort:]),
			at:   off, idAt: socketID, lenAt: socketLen, doneAt: socketDone,
		}, true
	}
	return record{
		id: word(fileID), buf: word(fileBuf), len: word(fileLen),
		offset: int64(word(fileOffset)), whence: int64(word(fileWhence)),
		mode: message.Mode{
			Read: b[fileMode] != 0, Write: b[fileMode+1] != 0, Create: b[fileMode+2] != 0,
			Append: b[fileMode+3] != 0, Truncate: b[fileMode+4] != 0,
		},
		at: off, idAt: fileID, lenAt: fileLen, doneAt: fileDone,
	}, true
}

// answerID, answerLen and answer write what a call gives, and then that it is
// done: from then on the record is the guest's again, and perhaps no more.
func (r *record) answerID(ram memory, id uint64) {
	ram.word(r.at + r.idAt).Store(id)
	r.answer(ram)
}

func (r *record) answerLen(ram memory, n uint64) {
	ram.word(r.at + r.lenAt).Store(n)
	r.answer(ram)
}

// answer sets done, after what was stored before it. The word around it keeps
// what the guest has there.
func (r *record) answer(ram memory) {
	word, bit := r.doneAt&^3, 8*(r.doneAt&3)
	ram.word32(r.at + word).Or(1 << bit)
}
