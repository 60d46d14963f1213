package relay_test

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/pipes/pipestest"
	"github.com/fix-project/arcavm/wire"
)

// wantLimit expects one record of a limit, with this stream.
func (m *machine) wantLimit(name string, stream pipes.ID) {
	m.t.Helper()
	found := m.records("guest has reached a limit")
	if len(found) != 1 || found[0]["limit"] != name || found[0]["stream"] != stream.String() {
		m.t.Errorf("records %v; want one of stream %v about %s", found, stream, name)
	}
}

func TestStreamLimit(t *testing.T) {
	t.Parallel()
	m := start(t, setup{streams: 3})
	first := m.pipe()
	m.pipe()
	for range 5 {
		if _, err := m.tryPipe(4096, 4096, 0); !errors.Is(err, unix.EMFILE) {
			t.Errorf("got %v, want EMFILE", err)
		}
	}
	first.Close()
	m.freePipe(first)
	m.pipe()
	if s := m.server.Stats(); s.Reached.Streams != 5 || s.PipesRefused != 5 {
		t.Errorf("%+v", s)
	}
	m.wantLimit("streams", m.control.ID())
}

// freePipe has the monitor close a pipe on which nothing was sent.
func (m *machine) freePipe(c *pipestest.GuestConn) {
	m.t.Helper()
	m.wait("the pipe isn't free", func() bool {
		_, err := m.guest.Table.Pipe(c.ID())
		return errors.Is(err, unix.ENOENT)
	})
}

func TestRingMemoryLimit(t *testing.T) {
	t.Parallel()
	m := start(t, setup{ringLimit: 128<<10 + 24<<10})
	first, err := m.tryPipe(8<<10, 8<<10, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, sizes := range [][2]uint32{{8 << 10, 8 << 10}, {8 << 10, 4 << 10}, {4 << 10, 8 << 10}, {32 << 20, 4 << 10}} {
		if _, err := m.tryPipe(sizes[0], sizes[1], 0); !errors.Is(err, unix.ENOMEM) {
			t.Errorf("%v bytes more: %v, want ENOMEM", sizes, err)
		}
	}
	if _, err := m.tryPipe(4<<10, 4<<10, 0); err != nil {
		t.Errorf("what is left can't be had: %v", err)
	}
	first.Close()
	m.freePipe(first)
	if _, err := m.tryPipe(8<<10, 8<<10, 0); err != nil {
		t.Errorf("what was given back can't be had: %v", err)
	}
	if s := m.server.Stats(); s.Reached.RingMemory != 4 || s.PipesRefused != 4 {
		t.Errorf("%+v", s)
	}
	m.wantLimit("ring-memory", m.control.ID())
}

func TestFileLimits(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	m := start(t, setup{share: openShare(t, dir, false), limits: network.Limits{StreamFiles: 2, Files: 3}})
	a, b := m.fileGuest(4096), m.fileGuest(4096)
	h := a.mustOpen("file", wire.OpenRead)
	_, err := a.open("missing", wire.OpenRead)
	wantErrno(t, "a file that doesn't exist", err, unix.ENOENT)
	a.mustOpen("file", wire.OpenRead)
	_, err = a.open("file", wire.OpenRead)
	wantErrno(t, "the third on a stream", err, unix.EMFILE)
	_, err = a.readPath("file")
	wantErrno(t, "a file that is read at once", err, unix.EMFILE)

	b.mustOpen("file", wire.OpenRead)
	_, err = b.open("file", wire.OpenRead)
	wantErrno(t, "the fourth on all", err, unix.ENFILE)
	_, err = b.readPath("file")
	wantErrno(t, "a file that is read at once", err, unix.ENFILE)

	wantErrno(t, "close", a.close(h), nil)
	for range 10 {
		if data, err := b.readPath("file"); string(data) != "content" || err != nil {
			t.Errorf("%q, %v", data, err)
		}
	}
	b.mustOpen("file", wire.OpenRead)
	if s := m.server.Stats(); s.Reached.Files != 4 || s.FileErrors != 5 {
		t.Errorf("%+v", s)
	}
	m.wantLimit("files", a.ID())
}

func TestAcceptLimit(t *testing.T) {
	t.Parallel()
	m := start(t, setup{limits: network.Limits{Accepts: 2}})
	l, other := m.listen("127.0.0.1:0", 0), m.listen("127.0.0.1:0", 0)
	a, b, c := m.pipe(), m.pipe(), m.pipe()
	l.ask(1, a.ID())
	other.ask(2, b.ID())
	refused := func() {
		t.Helper()
		l.ask(3, c.ID())
		if request, answer := l.answer(); request != 3 || answer.Status != uint32(unix.EAGAIN) {
			t.Fatalf("request %d: %+v, want EAGAIN", request, answer)
		}
	}
	// A listener reads requests in their order. When it answers this one, it
	// has read the others.
	other.ask(9, m.control.ID())
	if request, answer := other.answer(); request != 9 || answer.Status != uint32(unix.EBUSY) {
		t.Errorf("request %d: %+v", request, answer)
	}
	refused()
	refused()

	// An accept that has its connection doesn't count.
	dialed(t, l.at)
	if request, answer := l.answer(); request != 1 || answer.Status != 0 {
		t.Errorf("request %d: %+v", request, answer)
	}
	l.ask(4, c.ID())
	// Nor does one that was withdrawn, nor do those of a listener that has
	// ended.
	b.Close()
	if request, answer := other.answer(); request != 2 || answer.Status != uint32(unix.ECANCELED) {
		t.Errorf("request %d: %+v", request, answer)
	}
	d := m.pipe()
	l.ask(5, d.ID())
	dialed(t, l.at)
	dialed(t, l.at)
	for range 2 {
		if request, answer := l.answer(); answer.Status != 0 {
			t.Errorf("request %d: %+v", request, answer)
		}
	}
	e := m.pipe()
	for request := range uint64(2) {
		l.ask(request, []pipes.ID{e.ID(), m.pipe().ID()}[request])
	}
	l.Close()
	m.until(func() bool {
		f := m.pipe()
		other.ask(7, f.ID())
		dialed(t, other.at)
		_, answer := other.answer()
		return answer.Status == 0
	}, func() {})
	m.wantLimit("accepts", l.ID())
}

// until repeats do, in which the monitor answers, until a condition holds.
func (m *machine) until(ok func() bool, do func()) {
	m.t.Helper()
	for late := time.Now().Add(patience); !ok(); do() {
		if time.Now().After(late) {
			m.t.Fatal("it doesn't come about")
		}
	}
}

// Too many operations of each kind are answered with an errno. The stream goes
// on when time has passed.
func TestOperationLimit(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, prepare := range map[string]func(t *testing.T, m *machine) (once func() error){
		"new stream": func(_ *testing.T, m *machine) func() error {
			return func() error {
				c, err := m.tryPipe(4096, 4096, 0)
				if err == nil {
					c.Close()
				}
				return err
			}
		},
		"open": func(t *testing.T, m *machine) func() error {
			return func() error {
				var c *pipestest.GuestConn
				m.until(func() bool { return c != nil }, func() { c, _ = m.tryPipe(4096, 4096, 0) })
				defer c.Close()
				_, err := open(c, wire.ProtocolFileSystem, nil)
				if err != nil {
					wantEOF(t, c)
				}
				return err
			}
		},
		"accept": func(_ *testing.T, m *machine) func() error {
			l := m.listen("127.0.0.1:0", 0)
			return func() error {
				l.ask(1, m.control.ID())
				if _, answer := l.answer(); answer.Status != uint32(unix.EBUSY) {
					return unix.Errno(answer.Status)
				}
				return nil
			}
		},
		"files": func(_ *testing.T, m *machine) func() error {
			g := m.fileGuest(4096)
			h := g.mustOpen("file", wire.OpenRead|wire.OpenWrite)
			requests := []func() error{
				func() error { _, err := g.readPath("file"); return err },
				func() error { _, err := g.read(h, 0, 4); return err },
				func() error { _, err := g.write(h, 0, make([]byte, 10000)); return err },
				func() error { _, err := g.stat(h); return err },
				func() error { _, err := g.page(".", "", 1000); return err },
				func() error { return g.mkdir("folder", wire.MkdirParents) },
				func() error { return g.truncate(h, 7) },
				func() error { return g.rename("file", "file") },
				func() error {
					h, err := g.open("file", wire.OpenRead)
					if err == nil {
						m.until(func() bool { return g.close(h) == nil }, func() {})
					}
					return err
				},
			}
			// One after the other.
			return func() error {
				var err error
				for i := 0; i < len(requests); {
					if e := requests[i](); e != nil {
						err = e
						if !errors.Is(err, unix.EAGAIN) {
							return err
						}
						continue
					}
					i++
				}
				return err
			}
		},
		"datagram": func(t *testing.T, m *machine) func() error {
			host, to := hostUDP(t, "127.0.0.1:0")
			u := m.udpBound(4096, "127.0.0.1:0")
			return func() error {
				for i := range uint64(100) {
					u.send(i+1, to, []byte("x"))
				}
				// The last ones weren't sent.
				h, p, err := receive(u)
				if err != nil {
					return err
				}
				e, err := wire.DecodeDatagramError(p)
				if err != nil || h.RequestID == 0 || e.To.AddrPort() != to {
					t.Errorf("%+v, %+v, %v", h, e, err)
				}
				wantReceived(t, host, []byte("x"))
				return unix.Errno(e.Status)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := start(t, setup{share: openShare(t, dir, true), limits: network.Limits{Operations: 20}})
			once := prepare(t, m)
			var err error
			m.until(func() bool { return err != nil }, func() { err = once() })
			want := unix.EAGAIN
			if name == "datagram" {
				want = unix.ENOBUFS
			}
			wantErrno(t, "too many", err, want)
			if m.server.Stats().Reached.Operations == 0 {
				t.Error("nothing was counted")
			}
			if name != "datagram" && name != "files" && name != "open" {
				m.until(func() bool { return once() == nil }, func() {})
			}
			found := m.records("guest has reached a limit")
			if len(found) == 0 || found[0]["limit"] != "operations" {
				t.Errorf("records %v", found)
			}
		})
	}
}

// With a limit of bytes a transfer takes its time, and every byte arrives.
func TestByteLimit(t *testing.T) {
	t.Parallel()
	const perSecond, total = 256 << 10, 320 << 10
	for name, transfer := range map[string]func(t *testing.T, m *machine, content []byte){
		"from the guest": func(t *testing.T, m *machine, content []byte) {
			g, peer := m.connected()
			go func() {
				g.Write(content)
				g.CloseWrite()
			}()
			wantAll(t, peer, content)
		},
		"to the guest": func(t *testing.T, m *machine, content []byte) {
			g, peer := m.connected()
			go func() {
				peer.Write(content)
				peer.CloseWrite()
			}()
			wantAll(t, g, content)
		},
		"a file": func(t *testing.T, m *machine, content []byte) {
			got, _, err := readFile(m.files(64<<10), "file", 0, wire.ToEnd)
			if err != nil || len(got) != len(content) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		},
		"into a file": func(t *testing.T, m *machine, content []byte) {
			g := m.fileGuest(64 << 10)
			h := g.mustOpen("new", wire.OpenWrite|wire.OpenCreate)
			for at := 0; at < len(content); at += 32 << 10 {
				if n, err := g.write(h, uint64(at), content[at:at+32<<10]); n != 32<<10 || err != nil {
					t.Fatal(n, err)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "file"), pattern(1, total), 0o600); err != nil {
				t.Fatal(err)
			}
			m := start(t, setup{share: openShare(t, dir, true), limits: network.Limits{Bytes: perSecond}})
			begun := time.Now()
			transfer(t, m, pattern(1, total))
			// A frame or a piece may be ahead of its time.
			if least := (total - perSecond - 33<<10) * time.Second / perSecond; time.Since(begun) < least {
				t.Errorf("took %v, less than %v", time.Since(begun), least)
			}
			m.until(func() bool { return m.server.Stats().Reached.Bytes > 0 }, func() {})
		})
	}
}

// A stream that waits for its bytes can be ended at once, and delays no stream
// that moves none.
func TestByteLimitWaits(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(t *testing.T, g *pipestest.GuestConn, peer *net.TCPConn){
		"guest resets": func(t *testing.T, g *pipestest.GuestConn, peer *net.TCPConn) {
			g.Reset(unix.ECANCELED)
			wantReadError(t, peer, unix.ECONNRESET)
		},
		"guest takes no more": func(_ *testing.T, g *pipestest.GuestConn, peer *net.TCPConn) {
			peer.Close()
			g.Close()
		},
		"peer resets": func(t *testing.T, g *pipestest.GuestConn, peer *net.TCPConn) {
			peer.SetLinger(0)
			peer.Close()
			g.Reset(unix.ECANCELED)
		},
		"server stops": nil,
	} {
		for _, toGuest := range []bool{false, true} {
			t.Run(name+map[bool]string{false: ", from the guest", true: ", to the guest"}[toGuest], func(t *testing.T) {
				t.Parallel()
				m := start(t, setup{limits: network.Limits{Bytes: 1}})
				g, peer := m.connected()
				// A second's worth is 64 KiB at least. All further bytes take
				// ages.
				var from, to net.Conn = g, peer
				if toGuest {
					from, to = peer, g
				}
				sent := make(chan struct{})
				go func() {
					from.Write(make([]byte, 128<<10))
					close(sent)
				}()
				if _, err := io.ReadFull(to, make([]byte, 60<<10)); err != nil {
					t.Fatal(err)
				}
				_, other := m.connected()
				m.udpBound(4096, "127.0.0.1:0")
				if end == nil {
					m.stop()
					wantReadError(t, other, unix.ECONNRESET)
					peer.Close()
					<-sent
					return
				}
				end(t, g, peer)
				<-sent
				m.wait("the stream isn't free", func() bool { return m.server.Stats().Streams == 2 })
			})
		}
	}
}

func TestDatagramByteLimit(t *testing.T) {
	t.Parallel()
	m := start(t, setup{limits: network.Limits{Bytes: 1}})
	host, to := hostUDP(t, "127.0.0.1:0")
	u := m.udpBound(256<<10, "127.0.0.1:0")
	data := pattern(1, 60000)
	u.send(1, to, data)
	wantReceived(t, host, data)
	u.send(2, to, data)
	u.wantError(2, unix.ENOBUFS, to)
	if s := m.server.Stats(); s.Reached.Bytes != 1 || s.DatagramsFailed != 1 {
		t.Errorf("%+v", s)
	}
	m.wantLimit("bytes", u.ID())
	// The datagrams that arrive wait. The socket ends nevertheless.
	sendTo(t, host, u.local, data)
	u.wantDatagram(to, data)
	sendTo(t, host, u.local, data)
	u.Close()
	m.wantFree()
}

// A folder that was read for one page isn't read again for the next ones.
func TestListingIsReadOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var want []string
	for i := range 2000 {
		name := string(pattern(i, 3)[0]%26+'a') + time.Duration(i).String()
		want = append(want, name)
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(want)
	m := start(t, setup{share: openShare(t, dir, true)})
	watch, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(watch)
	if _, err := unix.InotifyAddWatch(watch, dir, unix.IN_OPEN|unix.IN_CLOSE_NOWRITE|unix.IN_ONLYDIR); err != nil {
		t.Fatal(err)
	}
	g := m.fileGuest(4096)
	got, err := g.list(".", 257)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%d names, %v; want %d", len(got), err, len(want))
	}
	opens := 0
	for buf := make([]byte, 4096); ; {
		n, err := unix.Read(watch, buf)
		if err == unix.EAGAIN {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		// The events have no names here, and the kernel merges two equal ones
		// in a row. So the close after each open is watched, too.
		opens += n / unix.SizeofInotifyEvent / 2
	}
	if opens == 0 || opens > 3 {
		t.Errorf("the folder was opened %d times", opens)
	}

	// Two listings at once on a stream, and one that stops in the middle, work.
	first, _ := g.page(".", "", 1000)
	second, _ := g.page("/", "", 1000)
	if !slices.Equal(first, second) {
		t.Error("two listings differ")
	}
	if err := os.Remove(filepath.Join(dir, want[0])); err != nil {
		t.Fatal(err)
	}
	again, _ := g.page(".", "", 1000)
	if again[0] != want[1] {
		t.Errorf("a listing begins with what was kept of another: %s", again[0])
	}
	g.Close()
	m.wantFree()
	for range 40 {
		left := m.fileGuest(4096)
		if names, err := left.list(".", 30000); err != nil || len(names) != len(want)-1 {
			t.Errorf("%d names, %v", len(names), err)
		}
		_, err := left.page(".", "", 1000)
		wantErrno(t, "page", err, nil)
	}
}

// The calls that wait for a disk are bounded, whatever the number of streams
// and requests, as each takes a thread.
func TestBlockedFileCalls(t *testing.T) {
	t.Parallel()
	const streams, most = 12, 256
	dir := t.TempDir()
	path := filepath.Join(dir, "slow")
	if err := os.WriteFile(path, pattern(1, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	m := start(t, setup{share: openShare(t, dir, false)})
	disk, err := unix.FanotifyInit(unix.FAN_CLASS_CONTENT|unix.FAN_CLOEXEC|unix.FAN_UNLIMITED_QUEUE, unix.O_RDONLY|unix.O_LARGEFILE)
	if err != nil {
		t.Skipf("no file can be made slow: %v; it takes root, or CAP_SYS_ADMIN", err)
	}
	var closed bool
	defer func() {
		if !closed {
			unix.Close(disk)
		}
	}()
	if err := unix.FanotifyMark(disk, unix.FAN_MARK_ADD, unix.FAN_OPEN_PERM, unix.AT_FDCWD, path); err != nil {
		t.Skipf("no file can be made slow: %v; it takes a kernel with FANOTIFY_ACCESS_PERMISSIONS", err)
	}
	guests := make([]*fileGuest, streams)
	for i := range guests {
		guests[i] = m.fileGuest(64 << 10)
	}
	const each = 32
	for _, g := range guests {
		for r := range uint64(each) {
			if _, err := g.Write(wire.AppendOpenFileRequest(nil, r, wire.OpenFileRequest{Flags: wire.OpenRead, Path: []byte("slow")})); err != nil {
				t.Fatal(err)
			}
		}
	}
	waiting := 0
	buf := make([]byte, 24*64)
	// Too many calls would show within the last wait.
	for timeout := int(patience.Milliseconds()); ; {
		p := []unix.PollFd{{Fd: int32(disk), Events: unix.POLLIN}}
		n, err := unix.Poll(p, timeout)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
		if n, err = unix.Read(disk, buf); err != nil {
			t.Fatal(err)
		}
		for event := buf[:n]; len(event) > 0; event = event[24:] {
			waiting++
			unix.Close(int(int32(uint32(event[16]) | uint32(event[17])<<8 | uint32(event[18])<<16 | uint32(event[19])<<24)))
		}
		if waiting >= most {
			timeout = 200
		}
	}
	if waiting != most {
		t.Errorf("%d calls wait for the disk at once, want %d", waiting, most)
	}
	// Everything else goes on.
	m.connected()
	unix.Close(disk)
	closed = true
	for _, g := range guests {
		for range each {
			if h, p, err := receive(g); err != nil || h.Kind != wire.KindFileDone || p[0] != 0 {
				t.Fatal(h, p, err)
			}
		}
	}
}
