package message

import "unicode"

// ControlRequest is a request on the control pipe: [GetArgs], [Exit], [Open],
// [Mkdir], [Listen] or [Connect].
type ControlRequest interface {
	appendTo(b []byte, d Dialect) []byte
}

// Dialect is how a guest numbers its requests on the control pipe. Both number
// GetArgs, Exit and Open alike, so a guest shows its dialect only by what it
// asks for after them.
type Dialect uint8

const (
	// UnknownDialect is the dialect of a guest that hasn't shown it yet.
	UnknownDialect Dialect = iota
	// DialectA has 3 Mkdir, 4 Listen, 5 Connect, and the responses Ack and Err.
	DialectA
	// DialectB has 3 Listen, 4 Connect; of the responses it knows Args and
	// Pipe.
	DialectB
)

func (d Dialect) String() string {
	switch d {
	case DialectA:
		return "A"
	case DialectB:
		return "B"
	default:
		return "unknown"
	}
}

type (
	// GetArgs asks for the arguments; answered by Args.
	GetArgs struct{}

	// Exit ends the guest; answered by Ack.
	Exit struct{ Code int32 }

	// Open opens a file; answered by Pipe or Err.
	Open struct {
		Path string
		Mode Mode
	}

	// Mkdir makes a folder and its parents; answered by Ack or Err.
	Mkdir struct{ Path string }

	// Listen listens on a TCP port; answered by Pipe.
	Listen struct {
		IP   [4]byte
		Port uint16
	}

	// Connect connects to a host by name or address; answered by Pipe.
	Connect struct {
		Host string
		Port uint16
	}
)

// Mode says how a file is opened.
type Mode struct{ Read, Write, Create, Append, Truncate bool }

// The numbers in dialect A; those after controlMkdir are one less in B.
const (
	controlGetArgs = iota
	controlExit
	controlOpen
	controlMkdir
	controlListen
	controlConnect
)

// number returns d's number of a request, given its number in dialect A.
func (d Dialect) number(inA byte) byte {
	if d == DialectB {
		return inA - 1
	}
	return inA
}

func (GetArgs) appendTo(b []byte, _ Dialect) []byte { return append(b, controlGetArgs) }

func (m Exit) appendTo(b []byte, _ Dialect) []byte {
	return appendZigzag(append(b, controlExit), int64(m.Code))
}

func (m Open) appendTo(b []byte, _ Dialect) []byte {
	b = appendString(append(b, controlOpen), m.Path)
	for _, v := range [...]bool{m.Mode.Read, m.Mode.Write, m.Mode.Create, m.Mode.Append, m.Mode.Truncate} {
		b = appendBool(b, v)
	}
	return b
}

func (m Mkdir) appendTo(b []byte, _ Dialect) []byte {
	return appendString(append(b, controlMkdir), m.Path)
}

func (m Listen) appendTo(b []byte, d Dialect) []byte {
	return appendVarint(append(append(b, d.number(controlListen)), m.IP[:]...), uint64(m.Port))
}

func (m Connect) appendTo(b []byte, d Dialect) []byte {
	return appendVarint(appendString(append(b, d.number(controlConnect)), m.Host), uint64(m.Port))
}

// AppendControlRequest appends a request on the control pipe as a guest of this
// dialect sends it. In dialect B there is no Mkdir: it is encoded as in A.
func AppendControlRequest(b []byte, m ControlRequest, d Dialect) []byte { return m.appendTo(b, d) }

// DecodeControlRequest decodes a request on the control pipe. Its strings are
// copies. shown is the dialect that b belongs to, if it belongs to one only;
// otherwise, and with an error, it is known.
//
// Where the dialect isn't known, b is tried in both, strictly: an integer that
// is longer than it need be fits neither. A few requests can be read in both,
// such as a Listen in B at an address whose first byte is the length of the
// rest, which is a Mkdir in A. One of the two readings then has a string, a
// path or a host name. It is taken if the string is printable and not empty,
// since an address and a port seldom look so; else the other reading is. Such a
// request shows no dialect.
func DecodeControlRequest(b []byte, known Dialect) (m ControlRequest, shown Dialect, err error) {
	if known != UnknownDialect {
		m, err = decodeControlRequest(decoder{b: b}, known)
		return m, known, err
	}
	strict := decoder{b: b, strict: true}
	inA, errA := decodeControlRequest(strict, DialectA)
	inB, errB := decodeControlRequest(strict, DialectB)
	switch {
	case errA != nil && errB != nil:
		return nil, UnknownDialect, errA
	case errB != nil:
		return inA, DialectA, nil
	case errA != nil:
		return inB, DialectB, nil
	}
	if m, ok := inA.(Mkdir); ok && !isText(m.Path) {
		return inB, UnknownDialect, nil
	}
	if m, ok := inB.(Connect); ok && isText(m.Host) {
		return inB, UnknownDialect, nil
	}
	return inA, UnknownDialect, nil
}

// isText reports whether s could be a path or a host's name.
func isText(s string) bool {
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return s != ""
}

func decodeControlRequest(d decoder, dialect Dialect) (ControlRequest, error) {
	var m ControlRequest
	number := d.varint(32)
	if dialect == DialectB && number >= controlMkdir {
		number++
	}
	switch number {
	case controlGetArgs:
		m = GetArgs{}
	case controlExit:
		m = Exit{int32(d.zigzag(32))}
	case controlOpen:
		m = Open{d.string(), Mode{d.bool(), d.bool(), d.bool(), d.bool(), d.bool()}}
	case controlMkdir:
		m = Mkdir{d.string()}
	case controlListen:
		m = Listen{[4]byte{d.byte(), d.byte(), d.byte(), d.byte()}, uint16(d.varint(16))}
	case controlConnect:
		m = Connect{d.string(), uint16(d.varint(16))}
	default:
		d.fail("unknown request")
	}
	if err := d.end(); err != nil {
		return nil, err
	}
	return m, nil
}

// ControlResponse is a response on the control pipe: [Args], [Pipe], [Ack] or
// [Err].
type ControlResponse interface{ appendControl(b []byte) []byte }

type (
	// Args are the guest's arguments, the image's path first.
	Args []string

	// Pipe says where a new pipe's rings are, from the guest's point of view:
	// offsets from the start of RAM, lengths in bytes.
	Pipe struct {
		RxOffset, RxLength, TxOffset, TxLength uint64
	}

	// Ack says that what was asked for is done.
	Ack struct{}

	// Err says that what was asked for could not be done.
	Err struct{ Kind ErrKind }
)

// ErrKind is why an Open or a Mkdir failed.
type ErrKind uint32

// The kinds.
const (
	NotFound ErrKind = iota
	PermissionDenied
	AlreadyExists
	InvalidInput
	InvalidData
	Unsupported
	OutOfMemory
	Interrupted
	Other
)

const (
	controlArgs = iota
	controlPipe
	controlAck
	controlErr
)

func (m Args) appendControl(b []byte) []byte {
	b = appendVarint(append(b, controlArgs), uint64(len(m)))
	for _, s := range m {
		b = appendString(b, s)
	}
	return b
}

func (m Pipe) appendControl(b []byte) []byte { return m.append(append(b, controlPipe)) }

func (Ack) appendControl(b []byte) []byte { return append(b, controlAck) }

func (m Err) appendControl(b []byte) []byte {
	return appendVarint(append(b, controlErr), uint64(m.Kind))
}

func (m Pipe) append(b []byte) []byte {
	for _, v := range [...]uint64{m.RxOffset, m.RxLength, m.TxOffset, m.TxLength} {
		b = appendVarint(b, v)
	}
	return b
}

func (d *decoder) pipe() Pipe {
	return Pipe{RxOffset: d.varint(64), RxLength: d.varint(64), TxOffset: d.varint(64), TxLength: d.varint(64)}
}

// AppendControlResponse appends a response on the control pipe.
func AppendControlResponse(b []byte, m ControlResponse) []byte { return m.appendControl(b) }

// DecodeControlResponse decodes a response on the control pipe. Its strings are
// copies.
func DecodeControlResponse(b []byte) (ControlResponse, error) {
	d := decoder{b: b}
	var m ControlResponse
	switch d.varint(32) {
	case controlArgs:
		m = d.args()
	case controlPipe:
		m = d.pipe()
	case controlAck:
		m = Ack{}
	case controlErr:
		kind := ErrKind(d.varint(32))
		if kind > Other {
			d.fail("unknown kind of error")
		}
		m = Err{kind}
	default:
		d.fail("unknown response")
	}
	if err := d.end(); err != nil {
		return nil, err
	}
	return m, nil
}

func (d *decoder) args() Args {
	n := d.varint(64)
	// Each string takes a byte at least: a short message can't ask for much
	// memory.
	if n > uint64(len(d.b)) {
		d.fail("too short")
		return nil
	}
	args := make(Args, n)
	for i := range args {
		args[i] = d.string()
	}
	return args
}
