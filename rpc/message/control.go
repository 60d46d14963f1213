package message

// ControlRequest is a request on the control pipe: [GetArgs], [Exit], [Open], [Mkdir], [Listen] or [Connect].
type ControlRequest interface{ appendTo(b []byte) []byte }

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

const (
	controlGetArgs = iota
	controlExit
	controlOpen
	controlMkdir
	controlListen
	controlConnect
)

func (GetArgs) appendTo(b []byte) []byte { return append(b, controlGetArgs) }

func (m Exit) appendTo(b []byte) []byte { return appendZigzag(append(b, controlExit), int64(m.Code)) }

func (m Open) appendTo(b []byte) []byte {
	b = appendString(append(b, controlOpen), m.Path)
	for _, v := range [...]bool{m.Mode.Read, m.Mode.Write, m.Mode.Create, m.Mode.Append, m.Mode.Truncate} {
		b = appendBool(b, v)
	}
	return b
}

func (m Mkdir) appendTo(b []byte) []byte { return appendString(append(b, controlMkdir), m.Path) }

func (m Listen) appendTo(b []byte) []byte {
	return appendVarint(append(append(b, controlListen), m.IP[:]...), uint64(m.Port))
}

func (m Connect) appendTo(b []byte) []byte {
	return appendVarint(appendString(append(b, controlConnect), m.Host), uint64(m.Port))
}

// AppendControlRequest appends a request on the control pipe.
func AppendControlRequest(b []byte, m ControlRequest) []byte { return m.appendTo(b) }

// DecodeControlRequest decodes a request on the control pipe. Its strings are copies.
func DecodeControlRequest(b []byte) (ControlRequest, error) {
	d := decoder{b: b}
	var m ControlRequest
	switch d.varint(32) {
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

// ControlResponse is a response on the control pipe: [Args], [Pipe], [Ack] or [Err].
type ControlResponse interface{ appendControl(b []byte) []byte }

type (
	// Args are the guest's arguments, the image's path first.
	Args []string

	// Pipe says where a new pipe's rings are, from the guest's point of view: offsets from the start of RAM, lengths in bytes.
	Pipe struct {
		RxOffset, RxLength, TxOffset, TxLength uint64
		// Doorbell numbers the pipe for a guest that rings the doorbell: 2 × Doorbell says that it has written, one more that it has read. 0: a guest of the
		// first version, whose message has no such field.
		Doorbell uint64
	}

	// Ack says that it is done.
	Ack struct{}

	// Err says that it could not be done.
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
	if m.Doorbell != 0 {
		b = appendVarint(appendVarint(b, 2*m.Doorbell), 2*m.Doorbell+1)
	}
	return b
}

func (d *decoder) pipe() Pipe {
	m := Pipe{RxOffset: d.varint(64), RxLength: d.varint(64), TxOffset: d.varint(64), TxLength: d.varint(64)}
	if len(d.b) > 0 {
		written, read := d.varint(64), d.varint(64)
		if m.Doorbell = written / 2; m.Doorbell == 0 || written%2 != 0 || read != written+1 {
			d.fail("no numbers of a doorbell")
		}
	}
	return m
}

// AppendControlResponse appends a response on the control pipe.
func AppendControlResponse(b []byte, m ControlResponse) []byte { return m.appendControl(b) }

// DecodeControlResponse decodes a response on the control pipe. Its strings are copies.
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
	// Each string takes a byte at least: a short message can't ask for much memory.
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
