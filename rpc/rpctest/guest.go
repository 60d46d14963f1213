package rpctest

import (
	"encoding/binary"
	"sync"

	"github.com/fix-project/arcavm/rpc/message"
)

// Entry is what a guest finds in its registers.
type Entry struct{ Allocator, RxOffset, RxLength, TxOffset, TxLength uint64 }

// Guest plays a kernel on RAM. Its pipes may be used by several goroutines at
// once, each by one at a time.
type Guest struct {
	RAM       []byte
	Allocator *Allocator
	Control   *Pipe

	// NotifyRead is called when the guest has written to a ring or dropped its
	// writer, NotifyWrite when it has read from a ring or dropped its reader.
	// With nil the guest doesn't notify.
	NotifyRead, NotifyWrite func()

	// Dialect is the one that the guest speaks. Unknown: A.
	Dialect message.Dialect

	mu sync.Mutex // the kernel's lock of the control pipe
}

// NewGuest starts a guest.
func NewGuest(ram []byte, e Entry) *Guest {
	g := &Guest{RAM: ram, Allocator: NewAllocator(ram, e.Allocator)}
	g.Control = g.attach(message.Pipe{RxOffset: e.RxOffset, RxLength: e.RxLength, TxOffset: e.TxOffset, TxLength: e.TxLength})
	return g
}

func (g *Guest) notifyRead() {
	if g.NotifyRead != nil {
		g.NotifyRead()
	}
}

func (g *Guest) notifyWrite() {
	if g.NotifyWrite != nil {
		g.NotifyWrite()
	}
}

// Pipe is the guest's end of a pipe.
type Pipe struct {
	guest  *Guest
	rx, tx ring
	buf    []byte
}

func (g *Guest) attach(m message.Pipe) *Pipe {
	assert(m.RxOffset%16 == 0 && m.TxOffset%16 == 0, "rings are aligned")
	p := &Pipe{guest: g, rx: ring{guest: g, off: m.RxOffset, len: m.RxLength}, tx: ring{guest: g, off: m.TxOffset, len: m.TxLength}}
	for _, r := range []*ring{&p.rx, &p.tx} {
		assert(word(g.RAM, r.off-16).Load() == 2 && word(g.RAM, r.off-8).Load() == 1, "a ring comes with two references")
	}
	return p
}

// Write puts bytes into the ring, waiting for room.
func (p *Pipe) Write(b []byte) {
	for len(b) > 0 {
		b = b[p.tx.write(b):]
	}
}

// Send sends a request without waiting for its response.
func (p *Pipe) Send(request ...[]byte) {
	n := 0
	for _, b := range request {
		n += len(b)
	}
	var length [8]byte
	binary.LittleEndian.PutUint64(length[:], uint64(n))
	p.Write(length[:])
	for _, b := range request {
		p.Write(b)
	}
}

// Receive waits for a response. It is valid until the next one.
func (p *Pipe) Receive() []byte {
	var length [8]byte
	p.readExact(length[:])
	n := binary.LittleEndian.Uint64(length[:])
	if uint64(cap(p.buf)) < n {
		p.buf = make([]byte, n)
	}
	p.buf = p.buf[:n]
	p.readExact(p.buf)
	return p.buf
}

func (p *Pipe) readExact(b []byte) {
	for len(b) > 0 {
		b = b[p.rx.read(b):]
	}
}

// Request sends a request and waits for the response.
func (p *Pipe) Request(request ...[]byte) []byte {
	p.Send(request...)
	return p.Receive()
}

// Responded reports whether a response, or part of it, has come.
func (p *Pipe) Responded() bool { return p.rx.readCursor() != p.rx.writeCursor() }

// Drop drops the guest's end, the reader first.
func (p *Pipe) Drop() {
	p.rx.drop(1)
	p.guest.notifyWrite()
	p.tx.drop(0)
	p.guest.notifyRead()
}

// RxOffset is the offset of the ring that the guest reads. A test that breaks a
// ring needs it.
func (p *Pipe) RxOffset() uint64 { return p.rx.off }

// TxOffset is the offset of the ring that the guest writes.
func (p *Pipe) TxOffset() uint64 { return p.tx.off }

// RxLength is the length of the ring that the guest reads.
func (p *Pipe) RxLength() uint64 { return p.rx.len }

// TxLength is the length of the ring that the guest writes.
func (p *Pipe) TxLength() uint64 { return p.tx.len }

// Store writes a word of RAM, as a guest may at any time.
func (g *Guest) Store(off, v uint64) { word(g.RAM, off).Store(v) }

// Load reads a word of RAM.
func (g *Guest) Load(off uint64) uint64 { return word(g.RAM, off).Load() }

// Ask sends a request on the control pipe and waits for the response.
func (g *Guest) Ask(m message.ControlRequest) message.ControlResponse {
	g.mu.Lock()
	defer g.mu.Unlock()
	response, err := message.DecodeControlResponse(g.Control.Request(message.AppendControlRequest(nil, m, g.Dialect)))
	assert(err == nil, "a response on the control pipe: %v", err)
	return response
}

// Args are the guest's arguments.
func (g *Guest) Args() []string {
	args, ok := g.Ask(message.GetArgs{}).(message.Args)
	assert(ok, "GetArgs is answered by Args")
	return args
}

// Exit asks to exit. A guest of dialect B knows no answer to it.
func (g *Guest) Exit(code int32) {
	if g.Dialect == message.DialectB {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.Control.Send(message.AppendControlRequest(nil, message.Exit{Code: code}, g.Dialect))
		return
	}
	_, ok := g.Ask(message.Exit{Code: code}).(message.Ack)
	assert(ok, "Exit is answered by Ack")
}

// Mkdir makes a folder. The kind of error is only valid if ok is false.
func (g *Guest) Mkdir(path string) (kind message.ErrKind, ok bool) {
	switch m := g.Ask(message.Mkdir{Path: path}).(type) {
	case message.Ack:
		return 0, true
	case message.Err:
		return m.Kind, false
	default:
		panic("guest: Mkdir is answered by Ack or Err")
	}
}

// File is an open file.
type File struct{ *Pipe }

// Open opens a file. The kind of error is only valid if the file is nil.
func (g *Guest) Open(path string, mode message.Mode) (*File, message.ErrKind) {
	switch m := g.Ask(message.Open{Path: path, Mode: mode}).(type) {
	case message.Pipe:
		return &File{g.attach(m)}, 0
	case message.Err:
		return nil, m.Kind
	default:
		panic("guest: Open is answered by Pipe or Err")
	}
}

func (f *File) request(m message.FileRequest, data []byte) ([]byte, uint64) {
	var head [message.HeadSize]byte
	b, n, err := message.DecodeFileResponse(f.Request(message.AppendFileRequest(head[:0], m), data), m.Op)
	assert(err == nil, "a response on a file pipe: %v", err)
	return b, n
}

// Read reads up to len(b) bytes.
func (f *File) Read(b []byte) int {
	data, _ := f.request(message.FileRequest{Op: message.FileRead, Length: uint64(len(b))}, nil)
	assert(len(data) <= len(b), "no more than asked for")
	return copy(b, data)
}

// Write writes b and returns how much of it the monitor says it wrote.
func (f *File) Write(b []byte) int {
	_, n := f.request(message.FileRequest{Op: message.FileWrite, Length: uint64(len(b))}, b)
	return int(n)
}

// Seek returns the new offset.
func (f *File) Seek(whence message.Whence, offset int64) uint64 {
	_, n := f.request(message.FileRequest{Op: message.FileSeek, Whence: whence, Offset: offset}, nil)
	return n
}

// Close closes the file and drops the pipe.
func (f *File) Close() {
	f.request(message.FileRequest{Op: message.FileClose}, nil)
	f.Drop()
}

// Listener is a listening socket.
type Listener struct{ *Pipe }

// Listen listens.
func (g *Guest) Listen(ip [4]byte, port uint16) *Listener {
	m, ok := g.Ask(message.Listen{IP: ip, Port: port}).(message.Pipe)
	assert(ok, "Listen is answered by Pipe")
	return &Listener{g.attach(m)}
}

// Accept waits for a connection.
func (l *Listener) Accept() *Stream {
	m, err := message.DecodeListenerResponse(l.Request(message.AppendListenerRequest(nil, message.ListenerAccept)), message.ListenerAccept)
	assert(err == nil, "Accept is answered by Pipe: %v", err)
	return &Stream{l.guest.attach(m)}
}

// Close closes the listener and drops the pipe.
func (l *Listener) Close() {
	_, err := message.DecodeListenerResponse(l.Request(message.AppendListenerRequest(nil, message.ListenerClose)), message.ListenerClose)
	assert(err == nil, "Close is answered by Ack: %v", err)
	l.Drop()
}

// Stream is a connection.
type Stream struct{ *Pipe }

// Connect connects to a host.
func (g *Guest) Connect(host string, port uint16) *Stream {
	m, ok := g.Ask(message.Connect{Host: host, Port: port}).(message.Pipe)
	assert(ok, "Connect is answered by Pipe")
	return &Stream{g.attach(m)}
}

func (s *Stream) request(m message.StreamRequest, data []byte) ([]byte, uint64) {
	var head [message.HeadSize]byte
	b, n, err := message.DecodeStreamResponse(s.Request(message.AppendStreamRequest(head[:0], m), data), m.Op)
	assert(err == nil, "a response on a stream pipe: %v", err)
	return b, n
}

// Write sends b and returns how much of it the monitor says it sent.
func (s *Stream) Write(b []byte) int {
	_, n := s.request(message.StreamRequest{Op: message.StreamSend, Length: uint64(len(b))}, b)
	return int(n)
}

// Read receives up to len(b) bytes; 0 is the end. The kernel's recv says len(b)
// in any case.
func (s *Stream) Read(b []byte) int {
	data, _ := s.request(message.StreamRequest{Op: message.StreamReceive, Length: uint64(len(b))}, nil)
	assert(len(data) <= len(b), "no more than asked for")
	return copy(b, data)
}

// Ask sends a Receive without waiting for its response.
func (s *Stream) Ask(n int) {
	s.Send(message.AppendStreamRequest(nil, message.StreamRequest{Op: message.StreamReceive, Length: uint64(n)}))
}

// Close closes the connection and drops the pipe.
func (s *Stream) Close() {
	s.request(message.StreamRequest{Op: message.StreamClose}, nil)
	s.Drop()
}

// Load32 reads a word of RAM that the monitor may store to at the same time.
func Load32(ram []byte, off uint64) uint32 { return word32(ram, off).Load() }

// Store64 writes a word of RAM that the monitor may look at at the same time.
func Store64(ram []byte, off, v uint64) { word(ram, off).Store(v) }
