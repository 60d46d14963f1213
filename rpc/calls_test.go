package rpc_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/internal/stalled"
	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/rpc"
	"github.com/fix-project/arcavm/rpc/rpctest"
)

// caller plays a kernel that asks by hypercalls.
type caller struct {
	t       testing.TB
	ram     []byte
	calls   *rpc.Calls
	listens chan netip.AddrPort
	stop    func()
}

func newCaller(t testing.TB, o rpc.Options, args ...uint64) *caller {
	t.Helper()
	c := &caller{t: t, ram: rpctest.NewRAM(16 << 20), listens: make(chan netip.AddrPort, 16)}
	o.RAM = c.ram
	o.OnListen = func(a netip.AddrPort) { c.listens <- a }
	var err error
	if c.calls, err = rpc.NewCalls(o, args); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.calls.Serve(ctx) }()
	c.stop = sync.OnceFunc(func() {
		cancel()
		if err := wait(t, done, "Serve to return"); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(c.stop)
	return c
}

// Where records and buffers lie in the tests: nothing else uses this RAM.
const (
	recordsAt = 4 << 20
	buffersAt = 8 << 20
)

// record is a record in RAM, as the guest sees it.
type callRecord struct {
	c    *caller
	at   uint64
	file bool
}

func (r callRecord) put(off, v uint64) { binary.LittleEndian.PutUint64(r.c.ram[r.at+off:], v) }

func (r callRecord) get(off uint64) uint64 { return binary.LittleEndian.Uint64(r.c.ram[r.at+off:]) }

func (r callRecord) done() bool {
	at := r.at + 28
	if r.file {
		at = r.at + 44
	}
	// done is the third or second byte of an aligned word.
	w := rpctest.Load32(r.c.ram, at)
	if r.file {
		return byte(w>>8) != 0
	}
	return byte(w>>16) != 0
}

// socket is a record of a call about a socket, the n-th in RAM.
func (c *caller) socket(n int, id, buf, size uint64, a netip.AddrPort) callRecord {
	r := callRecord{c: c, at: recordsAt + 64*uint64(n)}
	clear(c.ram[r.at : r.at+32])
	r.put(0, id)
	r.put(8, buf)
	r.put(16, size)
	if a.IsValid() {
		ip := a.Addr().As4()
		copy(c.ram[r.at+24:], ip[:])
		binary.LittleEndian.PutUint16(c.ram[r.at+28:], a.Port())
	}
	return r
}

// fileRecord is a record of a call about a file.
func (c *caller) fileRecord(n int, id, buf, size uint64, offset, whence int64, flags ...byte) callRecord {
	r := callRecord{c: c, at: recordsAt + 64*uint64(n), file: true}
	clear(c.ram[r.at : r.at+48])
	r.put(0, buf)
	r.put(8, uint64(offset))
	r.put(16, uint64(whence))
	r.put(24, size)
	r.put(32, id)
	copy(c.ram[r.at+40:], flags)
	return r
}

// begin makes a call; the guest goes on.
func (c *caller) begin(n rpc.Call, r callRecord) {
	c.t.Helper()
	if err := c.calls.Do(n, r.at); err != nil {
		c.t.Fatalf("%v: %v", n, err)
	}
}

func (c *caller) until(what string, f func() bool) {
	c.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(deadline); !f(); <-tick.C {
		if time.Now().After(end) {
			c.t.Fatal("waited in vain for ", what)
		}
	}
}

// do makes a call and waits until it is done.
func (c *caller) do(n rpc.Call, r callRecord) callRecord {
	c.t.Helper()
	c.begin(n, r)
	c.until(n.String(), r.done)
	return r
}

func (c *caller) listen(a netip.AddrPort) (id uint64, bound netip.AddrPort) {
	c.t.Helper()
	id = c.do(rpc.TCPListen, c.socket(0, 0, 0, 0, a)).get(0)
	return id, wait(c.t, c.listens, "a listener")
}

func (c *caller) sendText(id uint64, text string) uint64 {
	c.t.Helper()
	copy(c.ram[buffersAt:], text)
	return c.do(rpc.TCPSend, c.socket(1, id, buffersAt, uint64(len(text)), netip.AddrPort{})).get(16)
}

func (c *caller) receive(id uint64) string {
	c.t.Helper()
	n := c.do(rpc.TCPRecv, c.socket(2, id, buffersAt, 4096, netip.AddrPort{})).get(16)
	return string(c.ram[buffersAt : buffersAt+n])
}

func (c *caller) close(id uint64) { c.do(rpc.TCPClose, c.socket(3, id, 0, 0, netip.AddrPort{})) }

var anyPort = netip.MustParseAddrPort("127.0.0.1:0")

func TestCallsArguments(t *testing.T) {
	t.Parallel()
	c := newCaller(t, rpc.Options{}, 7, 1<<63)
	e := c.calls.Entry()
	for i, want := range []uint64{7, 1 << 63} {
		if got := binary.LittleEndian.Uint64(c.ram[e.ArgsAt+8*uint64(i):]); got != want {
			t.Errorf("argument %d is %d", i, got)
		}
	}
	if none := newCaller(t, rpc.Options{}).calls.Entry(); none.ArgsAt != 0 || none.Allocator == 0 {
		t.Errorf("without arguments: %+v", none)
	}
}

func TestCallsSockets(t *testing.T) {
	t.Parallel()
	c := newCaller(t, rpc.Options{})
	listener, bound := c.listen(anyPort)
	accept := c.socket(4, listener, 0, 0, netip.AddrPort{})
	c.begin(rpc.TCPAccept, accept)
	if accept.done() {
		t.Error("a client that hasn't come")
	}
	conn := dial(t, bound)
	c.until("the client", accept.done)
	id := accept.get(0)

	// Waits for the peer, while others go on.
	recv := c.socket(5, id, buffersAt+8192, 100, netip.AddrPort{})
	c.begin(rpc.TCPRecv, recv)
	if recv.done() {
		t.Error("bytes that haven't come")
	}
	if n := c.sendText(id, "from the guest"); n != 14 {
		t.Errorf("sent %d", n)
	}
	b := make([]byte, 14)
	if _, err := io.ReadFull(conn, b); err != nil || string(b) != "from the guest" {
		t.Errorf("the peer got %q, %v", b, err)
	}
	if _, err := conn.Write([]byte("from the peer")); err != nil {
		t.Fatal(err)
	}
	c.until("bytes", recv.done)
	if got := string(c.ram[buffersAt+8192 : buffersAt+8192+recv.get(16)]); got != "from the peer" {
		t.Errorf("received %q", got)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got := c.receive(id); got != "" {
		t.Errorf("after the end: %q", got)
	}
	c.close(id)
	if rest, err := io.ReadAll(conn); len(rest) != 0 || err != nil {
		t.Errorf("after the Close: %q, %v", rest, err)
	}

	// An id that is gone names nothing, and never anything else.
	if got := c.receive(id); got != "" {
		t.Errorf("of a closed stream: %q", got)
	}
	if n := c.sendText(id, "lost"); n != 4 {
		t.Errorf("a closed stream takes %d", n)
	}
	other := c.do(rpc.TCPConnect, c.socket(0, 0, 0, 0, bound)).get(0)
	if other == id || other == listener || other == 0 {
		t.Errorf("id %d again", other)
	}
	c.close(other)
	c.close(listener)
	if s := c.calls.Stats(); s.Pipes != 0 || s.Accepted != 1 || s.FromGuest != 14 || s.ToGuest != 13 {
		t.Errorf("%+v", s)
	}
}

// What doesn't fit into the socket goes on by itself; sends of two CPUs on one
// stream don't mix.
func TestCallsLargeSends(t *testing.T) {
	t.Parallel()
	c := newCaller(t, rpc.Options{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	id := c.do(rpc.TCPConnect, c.socket(0, 0, 0, 0, netip.MustParseAddrPort(ln.Addr().String()))).get(0)
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const size = 3 << 20
	for i := range 2 {
		at := buffersAt + i*size
		for j := range size {
			c.ram[at+j] = byte('a' + i)
		}
		c.begin(rpc.TCPSend, c.socket(10+i, id, uint64(at), size, netip.AddrPort{}))
	}
	got := make([]byte, 2*size)
	if _, err := io.ReadFull(conn, got); err != nil {
		t.Fatal(err)
	}
	first := got[0]
	if n := bytes.Count(got[:size], []byte{first}); n != size {
		t.Errorf("of the first %d bytes %d are of one send", size, n)
	}
	c.close(id)
}

// Guests of this ABI know no errors: what can't be is a stream that has ended,
// a listener at which no client arrives.
func TestCallsThatFail(t *testing.T) {
	t.Parallel()
	c := newCaller(t, rpc.Options{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	taken := netip.MustParseAddrPort(ln.Addr().String())
	listener := c.do(rpc.TCPListen, c.socket(0, 0, 0, 0, taken)).get(0)
	accept := c.socket(9, listener, 0, 0, netip.AddrPort{})
	c.begin(rpc.TCPAccept, accept)
	ln.Close()
	id := c.do(rpc.TCPConnect, c.socket(0, 0, 0, 0, taken)).get(0)
	if got := c.receive(id); got != "" {
		t.Errorf("of a refused connection: %q", got)
	}
	if n := c.sendText(id, "lost"); n != 4 {
		t.Errorf("a refused connection takes %d", n)
	}
	c.close(id)
	if accept.done() {
		t.Error("a client at a listener that isn't one")
	}
	if s := c.calls.Stats(); s.ConnectsFailed != 1 {
		t.Errorf("%d connects failed", s.ConnectsFailed)
	}
}

func TestCallsFiles(t *testing.T) {
	t.Parallel()
	dir, share := shared(t, true)
	c := newCaller(t, rpc.Options{Share: share, Limits: network.Limits{Files: 1}})
	open := func(path string, flags ...byte) uint64 {
		copy(c.ram[buffersAt:], path)
		return c.do(rpc.FileOpen, c.fileRecord(0, 0, buffersAt, uint64(len(path)), 0, 0, flags...)).get(32)
	}
	if id := open("missing", 1); id != 0 {
		t.Errorf("a file that isn't there: id %d", id)
	}
	if id := open("../x", 1); id != 0 {
		t.Errorf("a path that leads outside: id %d", id)
	}
	id := open("f", 1, 1, 1)
	if id == 0 {
		t.Fatal("no file")
	}
	if id := open(strings.Repeat("x", 5000), 1); id != 0 {
		t.Errorf("a path that is too long: id %d", id)
	}
	if n := c.calls.Stats().FilesRefused; n != 3 {
		t.Errorf("%d files were refused", n)
	}
	if second := open("g", 1, 1, 1); second != 0 {
		t.Error("a file beyond the limit")
	}
	copy(c.ram[buffersAt:], "abcdef")
	if n := c.do(rpc.FileWrite, c.fileRecord(0, id, buffersAt, 6, 0, 0)).get(24); n != 6 {
		t.Errorf("wrote %d", n)
	}
	for _, seek := range []struct {
		offset, whence int64
		want           uint64
	}{{2, 0, 2}, {1, 1, 3}, {-1, -1, 5}, {-9, 1, 5}, {0, 7, 5}, {0, -2, 5}} {
		if at := c.do(rpc.FileSeek, c.fileRecord(0, id, 0, 0, seek.offset, seek.whence)).get(24); at != seek.want {
			t.Errorf("seek %d from %d: %d, want %d", seek.offset, seek.whence, at, seek.want)
		}
	}
	if n := c.do(rpc.FileRead, c.fileRecord(0, id, buffersAt, 100, 0, 0)).get(24); n != 1 || c.ram[buffersAt] != 'f' {
		t.Errorf("read %q", c.ram[buffersAt:buffersAt+n])
	}
	// A socket's calls don't know a file's id, nor the other way round.
	if got := c.receive(id); got != "" {
		t.Errorf("a file received %q", got)
	}
	c.close(id)
	c.do(rpc.FileClose, c.fileRecord(0, id, 0, 0, 0, 0))
	if n := c.do(rpc.FileRead, c.fileRecord(0, id, buffersAt, 100, 0, 0)).get(24); n != 0 {
		t.Errorf("a closed file gave %d bytes", n)
	}
	if id = open("g", 1, 1, 1); id == 0 {
		t.Error("the closed file keeps its place")
	}
	if b, err := os.ReadFile(filepath.Join(dir, "f")); string(b) != "abcdef" || err != nil {
		t.Errorf("the file has %q, %v", b, err)
	}
}

func TestCallsLimit(t *testing.T) {
	t.Parallel()
	c := newCaller(t, rpc.Options{Pipes: 2})
	listener, bound := c.listen(anyPort)
	dial(t, bound)
	c.do(rpc.TCPAccept, c.socket(1, listener, 0, 0, netip.AddrPort{}))
	// One too many has ended already, and its peer is told.
	id := c.do(rpc.TCPConnect, c.socket(0, 0, 0, 0, bound)).get(0)
	if got := c.receive(id); got != "" {
		t.Errorf("received %q", got)
	}
	if s := c.calls.Stats(); s.PipesLimited != 1 || s.Pipes != 2 {
		t.Errorf("%+v", s)
	}
}

// What waits ends with the server, and nothing is touched afterwards.
func TestCallsStop(t *testing.T) {
	t.Parallel()
	c := newCaller(t, rpc.Options{})
	listener, bound := c.listen(anyPort)
	dial(t, bound)
	id := c.do(rpc.TCPAccept, c.socket(0, listener, 0, 0, netip.AddrPort{})).get(0)
	for i := range 50 {
		c.begin(rpc.TCPAccept, c.socket(1+i, listener, 0, 0, netip.AddrPort{}))
		c.begin(rpc.TCPRecv, c.socket(100+i, id, buffersAt, 100, netip.AddrPort{}))
	}
	c.stop()
	for n := rpc.TCPConnect; n <= rpc.FileSeek; n++ {
		r := c.fileRecord(0, id, buffersAt, 1, 0, 0, 1)
		if err := c.calls.Do(n, r.at); !errors.Is(err, unix.ESHUTDOWN) || r.done() {
			t.Errorf("%v after the end: %v", n, err)
		}
	}
}

// A call beyond those that may wait is answered as of something that has ended,
// so that no thread of the guest waits for ever; what has waited goes on, and
// everything can be closed.
func TestCallsWaitingLimit(t *testing.T) {
	t.Parallel()
	const limit = 4096
	c := newCaller(t, rpc.Options{Pipes: 10})
	listener, bound := c.listen(anyPort)
	conn := dial(t, bound)
	id := c.do(rpc.TCPAccept, c.socket(0, listener, 0, 0, netip.AddrPort{})).get(0)
	for i := range limit {
		c.begin(rpc.TCPRecv, c.socket(1+i, id, buffersAt, 1, netip.AddrPort{}))
	}
	const next = limit + 1
	if n := c.do(rpc.TCPRecv, c.socket(next, id, buffersAt, 1, netip.AddrPort{})).get(16); n != 0 {
		t.Errorf("received %d", n)
	}
	none := c.do(rpc.TCPAccept, c.socket(next, listener, 0, 0, netip.AddrPort{})).get(0)
	if n := c.do(rpc.TCPRecv, c.socket(next, none, buffersAt, 1, netip.AddrPort{})).get(16); n != 0 || none == 0 {
		t.Errorf("received %d of stream %d, which isn't one", n, none)
	}
	if id := c.do(rpc.FileOpen, c.fileRecord(next, 0, buffersAt, 1, 0, 0, 1)).get(32); id != 0 {
		t.Errorf("file %d", id)
	}
	if s := c.calls.Stats(); s.CallsLimited != 3 {
		t.Errorf("%d calls were one too many", s.CallsLimited)
	}
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	c.until("one that waited", func() bool {
		for i := range limit {
			if r := (callRecord{c: c, at: recordsAt + 64*uint64(1+i)}); r.done() {
				return r.get(16) == 1
			}
		}
		return false
	})
	c.close(id)
	for i := range limit {
		c.until("the others", callRecord{c: c, at: recordsAt + 64*uint64(1+i)}.done)
	}
}

// A send that can't wait ends its stream: what would come next must not look
// like the rest of it.
func TestCallsSendBeyondLimit(t *testing.T) {
	t.Parallel()
	c := newCaller(t, rpc.Options{Pipes: 10})
	listener, bound := c.listen(anyPort)
	conn := dial(t, bound)
	id := c.do(rpc.TCPAccept, c.socket(0, listener, 0, 0, netip.AddrPort{})).get(0)
	for i := range 4096 {
		c.begin(rpc.TCPAccept, c.socket(1+i, listener, 0, 0, netip.AddrPort{}))
	}
	const size = 6 << 20
	if n := c.do(rpc.TCPSend, c.socket(5000, id, buffersAt, size, netip.AddrPort{})).get(16); n != size {
		t.Errorf("the stream took %d", n)
	}
	if n := c.sendText(id, "more"); n != 4 {
		t.Errorf("the stream that has ended took %d", n)
	}
	got, _ := io.Copy(io.Discard, conn)
	if got >= size {
		t.Errorf("the peer got %d", got)
	}
}

// Many threads accept at one listener: each client goes to one of them.
func TestCallsManyAccepts(t *testing.T) {
	t.Parallel()
	const clients = 50
	c := newCaller(t, rpc.Options{})
	listener, bound := c.listen(anyPort)
	var accepts []callRecord
	for i := range clients {
		r := c.socket(i, listener, 0, 0, netip.AddrPort{})
		c.begin(rpc.TCPAccept, r)
		accepts = append(accepts, r)
	}
	for range clients {
		dial(t, bound)
	}
	seen := map[uint64]bool{}
	for _, r := range accepts {
		c.until("a client", r.done)
		seen[r.get(0)] = true
	}
	if s := c.calls.Stats(); len(seen) != clients || s.Accepted != clients {
		t.Errorf("%d ids for %d clients", len(seen), s.Accepted)
	}
}

// countedDials counts attempts to connect.
type countedDials struct {
	network.Host
	n *atomic.Int64
}

func (n countedDials) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	n.n.Add(1)
	return n.Host.DialContext(ctx, network, address)
}

// A guest that asks for more connections than it may have reaches no peer.
func TestCallsConnectFlood(t *testing.T) {
	t.Parallel()
	var dials atomic.Int64
	c := newCaller(t, rpc.Options{Pipes: 2, Network: countedDials{n: &dials}})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	to := netip.MustParseAddrPort(ln.Addr().String())
	seen := map[uint64]bool{}
	for range 1000 {
		seen[c.do(rpc.TCPConnect, c.socket(0, 0, 0, 0, to)).get(0)] = true
	}
	c.stop()
	if s := c.calls.Stats(); dials.Load() > 2 || s.PipesLimited != 998 || len(seen) != 1000 || seen[0] {
		t.Errorf("%d attempts, %d limited, %d ids", dials.Load(), s.PipesLimited, len(seen))
	}
}

// asking is a handler of records that asks for the counters each time.
type asking struct {
	slog.Handler
	calls *rpc.Calls
}

func (a *asking) Enabled(context.Context, slog.Level) bool { return true }

func (a *asking) WithAttrs([]slog.Attr) slog.Handler { return a }

func (a *asking) Handle(context.Context, slog.Record) error {
	a.calls.Stats()
	return nil
}

// Nothing is logged under a lock that a program's own logger may need.
func TestCallsLogger(t *testing.T) {
	t.Parallel()
	handler := &asking{}
	o := rpc.Options{RAM: rpctest.NewRAM(16 << 20), Pipes: 1, Logger: slog.New(handler), Network: loopbackOnly{}}
	calls, err := rpc.NewCalls(o, nil)
	if err != nil {
		t.Fatal(err)
	}
	handler.calls = calls
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := rpc.TCPConnect; n <= rpc.FileSeek; n++ {
			for range 3 {
				if err := calls.Do(n, recordsAt); err != nil {
					t.Errorf("%v: %v", n, err)
				}
			}
		}
	}()
	wait(t, done, "the calls")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := calls.Serve(ctx); err != nil {
		t.Error(err)
	}
}

// A folder that stops answering keeps neither a virtual CPU nor the end.
func TestCallsStalledFolder(t *testing.T) {
	t.Parallel()
	folder := stalled.New(t)
	root, err := os.OpenRoot(folder.Dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	c := newCaller(t, rpc.Options{Share: rpc.Share{Root: root, Writable: true}})
	copy(c.ram[buffersAt:], stalled.File)
	id := c.do(rpc.FileOpen, c.fileRecord(0, 0, buffersAt, uint64(len(stalled.File)), 0, 0, 1, 1)).get(32)
	if id == 0 {
		t.Fatal("no file")
	}
	reads := []callRecord{c.fileRecord(1, id, buffersAt, 10, 0, 0), c.fileRecord(2, id, buffersAt, 10, 0, 0)}
	for _, r := range reads {
		c.begin(rpc.FileRead, r)
	}
	wait(t, folder.Arrived(), "the folder to be asked")
	c.do(rpc.FileClose, c.fileRecord(3, id, 0, 0, 0, 0))
	listener, _ := c.listen(anyPort)
	c.close(listener)
	for _, r := range reads {
		if r.done() {
			t.Error("a read that can't be")
		}
	}
	c.stop() // fails if that takes long
	folder.End()
}

func TestCallsRefused(t *testing.T) {
	t.Parallel()
	c := newCaller(t, rpc.Options{})
	end := uint64(len(c.ram))
	for _, r := range []struct {
		n    rpc.Call
		at   uint64
		want error
	}{
		{4, recordsAt, unix.ENOSYS}, {16, recordsAt, unix.ENOSYS},
		{rpc.TCPRecv, end, unix.EFAULT}, {rpc.TCPRecv, end - 24, unix.EFAULT}, {rpc.FileRead, end - 32, unix.EFAULT},
		{rpc.TCPRecv, ^uint64(7), unix.EFAULT}, {rpc.TCPRecv, recordsAt + 1, unix.EFAULT}, {rpc.TCPRecv, end - 32, nil},
	} {
		if err := c.calls.Do(r.n, r.at); !errors.Is(err, r.want) {
			t.Errorf("%d at %#x: %v, want %v", r.n, r.at, err, r.want)
		}
	}
	// A buffer beyond RAM moves nothing.
	listener, bound := c.listen(anyPort)
	conn := dial(t, bound)
	id := c.do(rpc.TCPAccept, c.socket(0, listener, 0, 0, netip.AddrPort{})).get(0)
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	before := c.calls.Stats().Broken
	for _, b := range [][2]uint64{{end - 8, 9}, {end, 1}, {^uint64(0), 2}, {8, ^uint64(0)}} {
		for _, n := range []rpc.Call{rpc.TCPRecv, rpc.TCPSend} {
			if got := c.do(n, c.socket(1, id, b[0], b[1], netip.AddrPort{})).get(16); got != 0 {
				t.Errorf("%v of %d bytes at %#x: %d", n, b[1], b[0], got)
			}
		}
	}
	if got := c.calls.Stats().Broken - before; got != 8 {
		t.Errorf("%d of 8 calls are counted", got)
	}
	if got := c.receive(id); got != "x" {
		t.Errorf("received %q", got)
	}

	// Ids that were never given, or are of another kind.
	before = c.calls.Stats().Broken
	for _, id := range []uint64{0, id + 1, ^uint64(0)} {
		if got := c.receive(id); got != "" {
			t.Errorf("received %q of %d", got, id)
		}
		c.close(id)
	}
	if got := c.receive(listener); got != "" {
		t.Errorf("a listener received %q", got)
	}
	for _, n := range []rpc.Call{rpc.FileRead, rpc.FileWrite, rpc.FileSeek, rpc.FileClose} {
		if r := c.do(n, c.fileRecord(1, id, buffersAt, 8, 0, 0)); n != rpc.FileClose && r.get(24) != 0 {
			t.Errorf("%v of a stream: %d", n, r.get(24))
		}
	}
	if got := c.calls.Stats().Broken - before; got != 11 {
		t.Errorf("%d of 11 calls are counted", got)
	}
	// One that was closed is no fault.
	c.close(id)
	c.close(id)
	if got := c.calls.Stats().Broken - before; got != 11 {
		t.Errorf("%d calls are counted, one of an id that is closed", got)
	}
}

// Several CPUs make calls with what they find, in records that they share.
func TestCallsHostile(t *testing.T) {
	t.Parallel()
	if raceEnabled {
		t.Skip("the race detector takes what a guest may do for a fault of the monitor's")
	}
	_, share := shared(t, true)
	c := newCaller(t, rpc.Options{Share: share, Pipes: 20, Limits: network.Limits{Files: 5}, Network: loopbackOnly{}})
	var cpus sync.WaitGroup
	for cpu := range uint64(4) {
		cpus.Go(func() {
			random := rand.New(rand.NewPCG(cpu, 1))
			for range 3000 {
				at := recordsAt + 8*random.Uint64N(16)
				rpctest.Store64(c.ram, at, random.Uint64N(40))
				rpctest.Store64(c.ram, at+8, recordsAt+random.Uint64N(64))
				rpctest.Store64(c.ram, at+16, random.Uint64N(100))
				_ = c.calls.Do(rpc.Call(4+random.Uint64N(13)), at)
			}
		})
	}
	cpus.Wait()
	c.stop()
	if s := c.calls.Stats(); s.Requests == 0 || s.Pipes != 0 {
		t.Errorf("%d calls, %d things are open", s.Requests, s.Pipes)
	}
}

// loopbackOnly refuses to connect to other machines than this.
type loopbackOnly struct{ network.Host }

func (n loopbackOnly) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if a, err := netip.ParseAddrPort(address); err != nil || !a.Addr().IsLoopback() {
		return nil, unix.ENETUNREACH
	}
	return n.Host.DialContext(ctx, network, address)
}

func (n loopbackOnly) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	if a, err := netip.ParseAddrPort(address); err != nil || !a.Addr().IsLoopback() {
		return nil, unix.EADDRNOTAVAIL
	}
	return n.Host.Listen(ctx, network, address)
}
