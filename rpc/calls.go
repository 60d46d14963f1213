package rpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/rpc/message"
)

// Call numbers a hypercall of dialect C.
type Call uint64

// The calls. Those about sockets name a record of 32 bytes, those about files
// one of 48 (record.go).
const (
	TCPConnect Call = iota + 5
	TCPListen
	TCPAccept
	TCPClose
	TCPSend
	TCPRecv
	FileOpen
	FileClose
	FileRead
	FileWrite
	FileSeek
)

var callNames = map[Call]string{
	TCPConnect: "TCP_CONNECT", TCPListen: "TCP_LISTEN", TCPAccept: "TCP_ACCEPT", TCPClose: "TCP_CLOSE", TCPSend: "TCP_SEND", TCPRecv: "TCP_RECV",
	FileOpen: "FILE_OPEN", FileClose: "FILE_CLOSE", FileRead: "FILE_READ", FileWrite: "FILE_WRITE", FileSeek: "FILE_SEEK",
}

// String is empty for a number that is no call.
func (n Call) String() string { return callNames[n] }

func (n Call) aboutFile() bool { return n >= FileOpen }

const (
	// shortWait is how long a virtual CPU waits for a call that is likely to be
	// done at once. A guest whose call isn't done when it goes on sleeps until
	// its next timer interrupt, a millisecond on average.
	shortWait = 200 * time.Microsecond
	// leastWaiting is how many calls may wait at once at least, whatever the
	// limit of streams. A guest has one for each of its threads.
	leastWaiting = 4096
	// callsEach is how many calls may wait for each thing that may be open: one
	// that sends, one that receives.
	callsEach = 2
)

// Calls serves the sockets and files of a guest of dialect C, which asks for
// them by hypercalls. Each names a record in RAM; it is done when the byte done
// in it is set.
//
// A virtual CPU's thread never waits for a peer: a call that would is answered
// later, by a goroutine. All methods may be called concurrently.
type Calls struct {
	*host
	ram  memory
	args uint64 // offset of the arguments, 0: none

	ctx     context.Context // ends what waits
	cancel  context.CancelFunc
	waiting atomic.Int64
	pending sync.WaitGroup // goroutines; add to it under mu

	mu      sync.Mutex
	stopped bool
	serving bool
	lastID  uint64
	objects map[uint64]object
}

// object is what an id names: a callStream, a callListener or a callFile.
type object interface {
	// abandon ends it and what waits for it.
	abandon()
}

// callStream is a connection. Sends don't mix, and neither do receives.
type callStream struct {
	*stream
	sending, receiving sync.Mutex
}

type callListener struct {
	ln     net.Listener // nil if listening has failed
	cancel context.CancelFunc
	wanted context.Context
}

func (l *callListener) abandon() {
	l.cancel()
	if l.ln != nil {
		_ = l.ln.Close()
	}
}

// callFile is an open file: its offset is for one call at a time.
type callFile struct {
	*file
	mu sync.Mutex
}

func (f *callFile) abandon() { f.close() }

// NewCalls initialises the allocator in RAM, reserves what is in use, and puts
// the arguments there. Of the options Args, OnExit and Signal don't apply. The
// errors are those of [New].
func NewCalls(o Options, args []uint64) (*Calls, error) {
	h, err := newHost(o)
	if err != nil {
		return nil, err
	}
	c := &Calls{host: h, ram: h.o.RAM, objects: make(map[uint64]object)}
	if len(args) > 0 {
		if c.args, err = h.alloc.alloc(8 * uint64(len(args))); err != nil {
			return nil, fmt.Errorf("%d arguments: %w", len(args), err)
		}
		for i, a := range args {
			c.ram.word(c.args + 8*uint64(i)).Store(a)
		}
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c, nil
}

// CallsEntry is what the guest is given in its registers at its start. Offsets
// count from the start of RAM.
type CallsEntry struct {
	Allocator uint64 // RSI: offset of the allocator's raw data
	ArgsAt    uint64 // RCX: offset of the arguments, 0: none
}

// Entry returns what the guest is given at its start.
func (c *Calls) Entry() CallsEntry { return CallsEntry{Allocator: c.alloc.place, ArgsAt: c.args} }

// Serve waits until ctx is done. Then it closes what is open, and returns when
// no call waits any more: nothing touches RAM from then on. It may be called
// once.
func (c *Calls) Serve(ctx context.Context) error {
	c.mu.Lock()
	if c.serving {
		c.mu.Unlock()
		return errors.New("rpc: Serve called twice")
	}
	c.serving = true
	c.mu.Unlock()
	<-ctx.Done()
	c.alloc.hurry()
	c.mu.Lock()
	c.stopped = true
	open := c.objects
	c.objects = nil
	c.mu.Unlock()
	c.cancel()
	for _, o := range open {
		o.abandon()
	}
	c.pending.Wait()
	return nil
}

// Do begins a call whose record is at an offset of RAM. It waits no longer than
// some hundred microseconds. ENOSYS: there is no such call. EFAULT: the record
// doesn't lie in RAM, or not on a multiple of 8. ESHUTDOWN: Serve has ended.
// With an error, nothing is written to the record.
func (c *Calls) Do(n Call, offset uint64) error {
	if callNames[n] == "" {
		return unix.ENOSYS
	}
	if c.ctx.Err() != nil {
		return unix.ESHUTDOWN
	}
	r, ok := readRecord(c.ram, n, offset)
	if !ok {
		c.broken.Add(1)
		return unix.EFAULT
	}
	c.requests.Add(1)
	if !c.bufferLies(n, r) {
		c.refuse("guest has made a call whose buffer doesn't lie in RAM", "call", n, "offset", r.buf, "length", r.len)
		c.fail(n, r)
		return nil
	}
	switch n {
	case TCPConnect:
		return c.connect(r)
	case TCPListen:
		return c.soon(func() { c.listen(r) }, func() { c.fail(n, r) })
	case TCPAccept:
		return c.accept(r)
	case TCPClose:
		return c.end(func() { c.closeSocket(r) })
	case TCPSend:
		return c.send(r)
	case TCPRecv:
		return c.receive(r)
	case FileOpen:
		return c.soon(func() { c.openFile(r) }, func() { c.fail(n, r) })
	case FileClose:
		return c.end(func() { c.closeFile(r) })
	default:
		return c.soon(func() { c.useFile(n, r) }, func() { c.fail(n, r) })
	}
}

// bufferLies reports whether what a call moves lies in RAM.
func (c *Calls) bufferLies(n Call, r record) bool {
	switch n {
	case TCPSend, TCPRecv, FileOpen, FileRead, FileWrite:
		return r.len == 0 || c.ram.span(r.buf, r.len) != nil
	default:
		return true
	}
}

// refuse counts and says that the guest has made a call that means nothing.
func (c *Calls) refuse(msg string, args ...any) {
	c.broken.Add(1)
	c.warn(msg, args...)
}

// unknown is refuse for a call whose id names nothing of its kind. An id that
// was given once may be of what had no room, or that another thread has closed.
func (c *Calls) unknown(n Call, id uint64) {
	c.mu.Lock()
	gone := id != 0 && id <= c.lastID && c.objects[id] == nil
	c.mu.Unlock()
	if !gone {
		c.refuse("guest has made a call with an id that names nothing of its kind", "call", n, "id", id)
	}
}

// fail answers a call that can't be made, as of something that has ended:
// guests of this ABI know no errors.
func (c *Calls) fail(n Call, r record) {
	switch n {
	case TCPConnect, TCPListen, TCPAccept:
		r.answerID(c.ram, c.noID())
	case FileOpen:
		r.answerID(c.ram, 0)
	case TCPClose, FileClose:
		r.answer(c.ram)
	default:
		r.answerLen(c.ram, 0)
	}
}

// spawn has do called on a goroutine that Serve waits for.
func (c *Calls) spawn(do func()) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return unix.ESHUTDOWN
	}
	c.pending.Add(1)
	go func() {
		defer c.pending.Done()
		do()
	}()
	return nil
}

// later has do called as spawn does. If too many calls wait already, the guest
// doesn't wait for this one: fail is called instead, at once.
func (c *Calls) later(do, fail func()) error {
	if c.waiting.Add(1) > int64(max(leastWaiting, callsEach*c.o.Pipes)) {
		c.waiting.Add(-1)
		c.callsLimited.Add(1)
		c.warn("guest has reached a limit", "limit", "calls that wait")
		fail()
		return nil
	}
	err := c.spawn(func() {
		defer c.waiting.Add(-1)
		do()
	})
	if err != nil {
		c.waiting.Add(-1)
	}
	return err
}

// soon is later, and waits a little for the end.
func (c *Calls) soon(do, fail func()) error {
	done := make(chan struct{})
	err := c.later(func() { defer close(done); do() }, func() { defer close(done); fail() })
	waitFor(done, err)
	return err
}

// end is soon for what gives something back, whatever else waits: there are no
// more of these than there were things open.
func (c *Calls) end(do func()) error {
	done := make(chan struct{})
	err := c.spawn(func() { defer close(done); do() })
	waitFor(done, err)
	return err
}

// waitFor waits a little, unless done is never closed because of err.
func waitFor(done <-chan struct{}, err error) {
	if err != nil {
		return
	}
	timer := time.NewTimer(shortWait)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}

// noID returns an id that names nothing.
func (c *Calls) noID() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastID++
	return c.lastID
}

// add gives what begin returns an id, which nothing else ever had. false: there
// is no room for it, begin isn't called, and the id names nothing.
func (c *Calls) add(begin func() object) (id uint64, ok bool) {
	c.mu.Lock()
	c.lastID++
	id = c.lastID
	full := len(c.objects) >= c.o.Pipes
	if ok = !full && !c.stopped; ok {
		c.opened.Add(1)
		c.objects[id] = begin()
	}
	c.mu.Unlock()
	// Without the lock: a Logger may ask for Stats.
	if full {
		c.pipesLimited.Add(1)
		c.warn("guest has reached a limit", "limit", "streams")
	}
	return id, ok
}

// find returns what an id names, if it is of this kind.
func find[T object](c *Calls, id uint64) (T, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o, ok := c.objects[id].(T)
	return o, ok
}

// take is find, and the id names nothing any more.
func take[T object](c *Calls, id uint64) (T, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o, ok := c.objects[id].(T)
	if ok {
		delete(c.objects, id)
	}
	return o, ok
}

// connect answers at once; what the guest asks of the stream waits until it is
// connected. A connection that fails has ended for the guest, which knows no
// errors, and so has one that there is no room for.
func (c *Calls) connect(r record) error {
	address := netip.AddrPortFrom(netip.AddrFrom4(r.ip), r.port).String()
	id, _ := c.add(func() object {
		st := &callStream{stream: dialing(c.ctx, c.host, address)}
		st.done = c.ctx.Done()
		return st
	})
	r.answerID(c.ram, id)
	return nil
}

// listen listens before it answers. If it fails the guest gets a listener at
// which no client arrives.
func (c *Calls) listen(r record) {
	address := netip.AddrPortFrom(netip.AddrFrom4(r.ip), r.port)
	l := &callListener{}
	l.wanted, l.cancel = context.WithCancel(c.ctx)
	ln, bound, err := c.bind(c.ctx, address)
	if err != nil {
		c.warn("listen failed; nobody will arrive at this listener", "address", address, "err", err)
	}
	l.ln = ln
	id, ok := c.add(func() object { return l })
	if !ok {
		l.abandon()
	} else if err == nil {
		c.log.Debug("listening", "local", bound)
		if c.o.OnListen != nil {
			c.o.OnListen(bound)
		}
	}
	r.answerID(c.ram, id)
}

// accept answers when a client has come. A listener that isn't one is never
// done: the guest knows no other answer.
func (c *Calls) accept(r record) error {
	l, ok := find[*callListener](c, r.id)
	if !ok {
		c.unknown(TCPAccept, r.id)
		return nil
	}
	if l.ln == nil {
		return nil
	}
	do := func() {
		_ = c.host.accept(l.wanted, l.ln, func(conn *net.TCPConn) error {
			st := &callStream{stream: &stream{server: c.host, conn: conn, done: c.ctx.Done()}}
			id, ok := c.add(func() object { return st })
			if !ok {
				return fmt.Errorf("accepting a connection: %w", unix.EMFILE)
			}
			c.accepted.Add(1)
			r.answerID(c.ram, id)
			return nil
		})
	}
	fail := func() { c.fail(TCPAccept, r) }
	if mustWait(l.ln) {
		return c.later(do, fail)
	}
	return c.soon(do, fail)
}

// mustWait reports whether it is certain that no client is there yet.
func mustWait(ln net.Listener) bool {
	socket, ok := ln.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return false
	}
	none := false
	_ = raw.Control(func(fd uintptr) {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		none = n == 0 && err == nil
	})
	return none
}

// connected returns the connection of a stream that has one by now.
func (st *callStream) connected() *net.TCPConn {
	if st.dialed != nil {
		select {
		case <-st.dialed:
		default:
			return nil
		}
	}
	return st.conn
}

// send takes all that the guest sends, also if the peer is gone: guests of this
// ABI know no errors.
func (c *Calls) send(r record) error {
	b := c.ram.span(r.buf, r.len)
	st, ok := find[*callStream](c, r.id)
	if !ok {
		c.unknown(TCPSend, r.id)
	}
	if !ok || len(b) == 0 {
		r.answerLen(c.ram, r.len)
		return nil
	}
	n, locked := 0, false
	// What is limited may have to wait for its turn.
	if c.bytes == nil && st.sending.TryLock() {
		locked = true
		if st.connected() != nil {
			var err error
			if n, err = st.writeNow(b); err != nil || n == len(b) {
				st.sending.Unlock()
				c.sent(st, n, err)
				r.answerLen(c.ram, r.len)
				return nil
			}
		}
	}
	err := c.later(func() {
		if !locked {
			st.sending.Lock()
		}
		defer st.sending.Unlock()
		k, err := st.write(b[n:], nil)
		c.sent(st, n+k, err)
		r.answerLen(c.ram, r.len)
	}, func() {
		if locked {
			st.sending.Unlock()
		}
		// The peer must not take what comes next for what was to come now.
		c.drop(r.id)
		r.answerLen(c.ram, r.len)
	})
	if err != nil && locked {
		st.sending.Unlock()
	}
	return err
}

// drop ends a stream that can't go on. The id names nothing any more.
func (c *Calls) drop(id uint64) {
	if st, ok := take[*callStream](c, id); ok && c.spawn(st.abandon) != nil {
		st.abandon()
	}
}

func (c *Calls) sent(st *callStream, n int, err error) {
	c.fromGuest.Add(uint64(n))
	if err != nil && st.conn != nil {
		c.log.Debug("send failed", "peer", st.conn.RemoteAddr(), "err", err)
	}
}

// receive answers as soon as there is something, with no more than is there. 0
// is the end.
func (c *Calls) receive(r record) error {
	b := c.ram.span(r.buf, r.len)
	st, ok := find[*callStream](c, r.id)
	if !ok {
		c.unknown(TCPRecv, r.id)
	}
	if !ok || len(b) == 0 {
		r.answerLen(c.ram, 0)
		return nil
	}
	locked := false
	if c.bytes == nil && st.receiving.TryLock() {
		locked = true
		if st.connected() != nil {
			if n, ok := st.readNow(b); ok {
				st.receiving.Unlock()
				c.received(r, n)
				return nil
			}
		}
	}
	err := c.later(func() {
		if !locked {
			st.receiving.Lock()
		}
		defer st.receiving.Unlock()
		c.received(r, st.read(b, nil))
	}, func() {
		if locked {
			st.receiving.Unlock()
		}
		c.fail(TCPRecv, r)
	})
	if err != nil && locked {
		st.receiving.Unlock()
	}
	return err
}

func (c *Calls) received(r record, n int) {
	c.toGuest.Add(uint64(n))
	r.answerLen(c.ram, uint64(n))
}

// closeSocket ends a connection in good order, or a listener.
func (c *Calls) closeSocket(r record) {
	if st, ok := take[*callStream](c, r.id); ok {
		st.close()
	} else if l, ok := take[*callListener](c, r.id); ok {
		l.abandon()
	} else {
		c.unknown(TCPClose, r.id)
	}
	r.answer(c.ram)
}

// openFile answers with id 0 if the file can't be opened.
func (c *Calls) openFile(r record) {
	// One byte more than a path may have is as bad as all of it.
	path := string(c.ram.span(r.buf, min(r.len, maxPath+1)))
	r.answerID(c.ram, c.openPath(path, r.mode))
}

func (c *Calls) openPath(path string, mode message.Mode) uint64 {
	f, err := c.openShared(path, mode)
	if err != nil {
		c.noteRefused("open", path, err)
		return 0
	}
	id, ok := c.add(func() object { return &callFile{file: f} })
	if !ok {
		f.close()
		return 0
	}
	c.log.Debug("file opened", "path", cut(path))
	return id
}

// openShared opens a file that has a place of its own among those that may be
// open, which its close gives back.
func (c *Calls) openShared(path string, mode message.Mode) (*file, error) {
	if err := c.holdFile(); err != nil {
		return nil, err
	}
	t, err := c.findShared(c.ctx, path, mode)
	var f *file
	if err == nil {
		f, err = c.openTarget(c.ctx, t)
	}
	if err != nil {
		c.dropFile()
		return nil, err
	}
	return f, nil
}

func (c *Calls) closeFile(r record) {
	if f, ok := take[*callFile](c, r.id); ok {
		f.close()
	} else {
		c.unknown(FileClose, r.id)
	}
	r.answer(c.ram)
}

// useFile reads, writes or seeks. Of a file that isn't open nothing can be read
// or written.
func (c *Calls) useFile(n Call, r record) {
	f, ok := find[*callFile](c, r.id)
	if !ok {
		c.unknown(n, r.id)
		r.answerLen(c.ram, 0)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch n {
	case FileRead:
		c.received(r, f.read(c.ram.span(r.buf, r.len), nil))
	case FileWrite:
		done, _ := f.write(c.ram.span(r.buf, r.len), nil)
		c.fromGuest.Add(uint64(done))
		r.answerLen(c.ram, uint64(done))
	case FileSeek:
		m, ok := seekRequest(r)
		if !ok {
			c.refuse("guest has asked for a seek from nowhere; the offset stays", "path", f.path, "whence", r.whence)
		}
		r.answerLen(c.ram, f.seek(m))
	}
}

// seekRequest is a record's seek as dialect A asks for it. false: it counts
// from nowhere, and the request is one that leaves the offset as it is.
func seekRequest(r record) (m message.FileRequest, ok bool) {
	m = message.FileRequest{Op: message.FileSeek, Offset: r.offset}
	switch r.whence {
	case 0:
		m.Whence = message.SeekStart
	case 1:
		m.Whence = message.SeekCurrent
	case -1:
		m.Whence = message.SeekEnd
	default:
		return message.FileRequest{Op: message.FileSeek, Whence: message.SeekCurrent}, false
	}
	return m, true
}
