package hypercall

import (
	"encoding/binary"
	"log/slog"
	"strconv"

	"golang.org/x/sys/unix"
)

// Sizes of the records in bytes.
const (
	logRecordSize    = 96
	symbolRecordSize = 48
	panicRecordSize  = 24
	frameSize        = 168
)

// Texts from the guest are cut at these lengths in bytes.
const (
	maxName    = 256      // target, file and module path
	maxMessage = 16 << 10 // messages of LOG and PANIC
)

// Level is the level of a log record, 1 to 5.
type Level uint8

// The levels.
const (
	LevelError Level = 1 + iota
	LevelWarn
	LevelInfo
	LevelDebug
	LevelTrace
)

// SlogTrace is the level that trace records have in a [slog.Logger].
const SlogTrace = slog.LevelDebug - 4

func (l Level) String() string {
	switch l {
	case LevelError:
		return "ERROR"
	case LevelWarn:
		return "WARN"
	case LevelInfo:
		return "INFO"
	case LevelDebug:
		return "DEBUG"
	case LevelTrace:
		return "TRACE"
	}
	return "level " + strconv.Itoa(int(l))
}

// Slog returns the corresponding level of package slog.
func (l Level) Slog() slog.Level {
	switch l {
	case LevelError:
		return slog.LevelError
	case LevelWarn:
		return slog.LevelWarn
	case LevelInfo:
		return slog.LevelInfo
	case LevelDebug:
		return slog.LevelDebug
	}
	return SlogTrace
}

// LogRecord is a decoded log record. Its texts are printable UTF-8: see
// [Printable].
type LogRecord struct {
	Level   Level
	Target  string
	File    string // "" if the guest gave none
	Line    uint32 // 0 if the guest gave none
	Module  string // "" if the guest gave none
	Message string
}

// symbolRecord is the guest's half of a symbol record.
type symbolRecord struct {
	Address  uint64 // to resolve, virtual
	Buffer   uint64 // for the name, physical
	Capacity uint64 // of the buffer in bytes
}

// PanicRecord is a decoded panic record.
type PanicRecord struct {
	Message string // printable, lines kept
	Frame   *Frame // nil if the guest gave none
}

// Frame says where a guest panicked. The order of the fields is the record's.
type Frame struct {
	RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP uint64
	R8, R9, R10, R11, R12, R13, R14, R15   uint64
	RIP, RFLAGS, Vector, ErrorCode, CR2    uint64
}

// decodeLog reads the log record at addr. Errors are EFAULT and EINVAL.
func decodeLog(m Memory, addr uint64) (LogRecord, error) {
	var raw [logRecordSize]byte
	if err := copyOut(m, raw[:], addr); err != nil {
		return LogRecord{}, err
	}
	r := LogRecord{Level: Level(raw[0])}
	if r.Level < LevelError || r.Level > LevelTrace {
		return LogRecord{}, unix.EINVAL
	}
	var err error
	if r.Target, err = text(m, raw[8:], maxName); err != nil {
		return LogRecord{}, err
	}
	if r.File, err = optionalText(m, raw[24:]); err != nil {
		return LogRecord{}, err
	}
	switch binary.LittleEndian.Uint32(raw[48:]) {
	case 0:
	case 1:
		r.Line = binary.LittleEndian.Uint32(raw[52:])
	default:
		return LogRecord{}, unix.EINVAL
	}
	if r.Module, err = optionalText(m, raw[56:]); err != nil {
		return LogRecord{}, err
	}
	r.Message, err = text(m, raw[80:], maxMessage)
	return r, err
}

// decodeSymbol reads the symbol record at addr. Errors are EFAULT and EINVAL.
func decodeSymbol(m Memory, addr uint64) (symbolRecord, error) {
	var raw [symbolRecordSize]byte
	if err := copyOut(m, raw[:], addr); err != nil {
		return symbolRecord{}, err
	}
	r := symbolRecord{
		Address:  binary.LittleEndian.Uint64(raw[0:]),
		Buffer:   binary.LittleEndian.Uint64(raw[24:]),
		Capacity: binary.LittleEndian.Uint64(raw[32:]),
	}
	_, err := bytes(m, r.Buffer, r.Capacity)
	return r, err
}

// writeSymbol answers the record r at addr with a symbol that starts at start:
// the name, cut at the buffer's capacity, then the record's fields. Errors are
// EFAULT and EINVAL.
func writeSymbol(m Memory, addr uint64, r symbolRecord, name string, start uint64) error {
	buffer, err := bytes(m, r.Buffer, r.Capacity)
	if err != nil {
		return err
	}
	record, err := bytes(m, addr, symbolRecordSize)
	if err != nil {
		return err
	}
	copy(buffer, name)
	binary.LittleEndian.PutUint64(record[0:], start)
	binary.LittleEndian.PutUint64(record[8:], r.Address-start)
	record[16] = 1
	binary.LittleEndian.PutUint64(record[40:], uint64(len(name)))
	return nil
}

// writeNoSymbol answers the record at addr: nothing found. Errors are EFAULT.
func writeNoSymbol(m Memory, addr uint64) error {
	record, err := bytes(m, addr, symbolRecordSize)
	if err != nil {
		return err
	}
	record[16] = 0
	return nil
}

// decodePanic reads the panic record at addr. A guest that panics may be in any
// state, so what can be read is returned along with the first error, EFAULT or
// EINVAL.
func decodePanic(m Memory, addr uint64) (PanicRecord, error) {
	var raw [panicRecordSize]byte
	if err := copyOut(m, raw[:], addr); err != nil {
		return PanicRecord{}, err
	}
	message, err := rawText(m, raw[:], maxMessage)
	r := PanicRecord{Message: printableLines(message)}
	at := binary.LittleEndian.Uint64(raw[16:])
	if at == 0 {
		return r, err
	}
	var frame [frameSize]byte
	if frameErr := copyOut(m, frame[:], at); frameErr != nil {
		if err == nil {
			err = frameErr
		}
		return r, err
	}
	r.Frame = new(Frame)
	if _, decodeErr := binary.Decode(frame[:], binary.LittleEndian, r.Frame); decodeErr != nil {
		return r, unix.EINVAL
	}
	return r, err
}

// copyOut fills p with guest memory from addr on.
func copyOut(m Memory, p []byte, addr uint64) error {
	b, err := bytes(m, addr, uint64(len(p)))
	if err != nil {
		return err
	}
	copy(p, b)
	return nil
}

// rawText copies the text whose { address, length } is at the start of record,
// cut at limit bytes. The whole of it must lie in memory.
func rawText(m Memory, record []byte, limit int) (string, error) {
	b, err := bytes(m, binary.LittleEndian.Uint64(record), binary.LittleEndian.Uint64(record[8:]))
	if err != nil {
		return "", err
	}
	if len(b) > limit {
		return cutRune(string(b[:limit])), nil
	}
	return string(b), nil
}

func text(m Memory, record []byte, limit int) (string, error) {
	s, err := rawText(m, record, limit)
	return Printable(s), err
}

// optionalText is text behind a tag of 8 bytes: 0 none, 1 some.
func optionalText(m Memory, record []byte) (string, error) {
	switch binary.LittleEndian.Uint64(record) {
	case 0:
		return "", nil
	case 1:
		return text(m, record[8:], maxName)
	}
	return "", unix.EINVAL
}
