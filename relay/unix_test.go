package relay_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/pipes/pipestest"
	shared "github.com/fix-project/arcavm/share"
	"github.com/fix-project/arcavm/wire"
)

// socketFolder is a folder whose path is short enough for the test's sockets.
func socketFolder(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "unix")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func sockets(t testing.TB, dir string, writable bool) shared.Share {
	t.Helper()
	s, err := shared.Open(dir, writable)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// unixServer is a socket outside of the guest.
func unixServer(t testing.TB, at string) *net.UnixListener {
	t.Helper()
	l, err := net.Listen("unix", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	ln := l.(*net.UnixListener)
	if err := ln.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return ln
}

func unixAccepted(t testing.TB, l *net.UnixListener) *net.UnixConn {
	t.Helper()
	c, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	deadline(t, c)
	return c
}

func unixDialed(t testing.TB, to string) *net.UnixConn {
	t.Helper()
	c, err := net.DialTimeout("unix", to, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	deadline(t, c)
	return c.(*net.UnixConn)
}

func (m *machine) tryUnixConnect(to string) (*pipestest.GuestConn, error) {
	m.t.Helper()
	c := m.pipe()
	p, err := open(c, wire.ProtocolUnixConnection, wire.AppendUnixConnect(nil, wire.UnixConnect{Path: []byte(to)}))
	if err == nil && len(p) != 0 {
		err = fmt.Errorf("Opened has a payload of %d bytes", len(p))
	}
	return c, err
}

func (m *machine) unixConnect(to string) *pipestest.GuestConn {
	m.t.Helper()
	c, err := m.tryUnixConnect(to)
	if err != nil {
		m.t.Fatal(err)
	}
	return c
}

func (m *machine) tryUnixListen(on string) (*listening, error) {
	m.t.Helper()
	c := m.pipe()
	p, err := open(c, wire.ProtocolUnixListener, wire.AppendUnixListen(nil, wire.UnixListen{Backlog: 5, Path: []byte(on)}))
	if err == nil && len(p) != 0 {
		err = fmt.Errorf("Opened has a payload of %d bytes", len(p))
	}
	return &listening{GuestConn: c, m: m}, err
}

func (m *machine) unixListen(on string) *listening {
	m.t.Helper()
	l, err := m.tryUnixListen(on)
	if err != nil {
		m.t.Fatal(err)
	}
	return l
}

// unixConnected is a connection that the guest has opened: its end, and the
// peer's.
func unixConnected(t *testing.T) (m *machine, guest *pipestest.GuestConn, peer *net.UnixConn) {
	t.Helper()
	dir := socketFolder(t)
	l := unixServer(t, dir+"/s")
	m = start(t, setup{sockets: sockets(t, dir, false)})
	guest = m.unixConnect("s")
	return m, guest, unixAccepted(t, l)
}

// makeFiles makes nodes: a folder for a name with a slash at its end, a link
// for "from -> to", and otherwise a file.
func makeFiles(t *testing.T, dir string, names ...string) {
	t.Helper()
	for _, name := range names {
		var err error
		if from, to, ok := strings.Cut(name, " -> "); ok {
			err = os.Symlink(to, filepath.Join(dir, from))
		} else if strings.HasSuffix(name, "/") {
			err = os.MkdirAll(filepath.Join(dir, name), 0o755)
		} else {
			err = os.WriteFile(filepath.Join(dir, name), nil, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// deep is a path that is longer than a UNIX socket's address.
var deep = strings.Repeat("a-folder-with-a-long-name/", 8)

// unixExchange has both ends send, half-close and read, and ends the stream.
func unixExchange(t *testing.T, g *pipestest.GuestConn, peer *net.UnixConn) {
	t.Helper()
	const size = 300_000
	for _, way := range [][2]end{{g, peer}, {peer, g}} {
		sent := pattern(1, size)
		go func() {
			way[0].Write(sent)
			way[0].CloseWrite()
		}()
		wantAll(t, way[1], sent)
	}
	g.Close()
}

func TestUnixConnect(t *testing.T) {
	t.Parallel()
	dir := socketFolder(t)
	makeFiles(t, dir, "a/b/", deep, "folder -> a", "link -> a/b/s", "a/up -> ../top", "a/b/s2 -> ../up", "chain -> folder/up", "dots -> folder/../top", deep+"up -> "+strings.Repeat("../", 8)+"top")
	below, top := unixServer(t, dir+"/a/b/s"), unixServer(t, dir+"/top")
	m := start(t, setup{sockets: sockets(t, dir, false)})
	for path, l := range map[string]*net.UnixListener{
		"top": top, "/top": top, "//./top": top, "a/../top": top, "a/b/s": below, "/folder/b/s": below, "link": below, "a/up": top, "a/b/s2": top,
		"chain": top, "dots": top, deep + "up": top,
	} {
		g, err := m.tryUnixConnect(path)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		unixExchange(t, g, unixAccepted(t, l))
	}
	m.wantFree()
	if s := m.server.Stats(); s.ConnectsFailed != 0 || s.ToGuest != 12*300_000 || s.FromGuest != s.ToGuest {
		t.Errorf("%+v", s)
	}
}

// Several folders for sockets can be shared under names.
func TestUnixNamed(t *testing.T) {
	t.Parallel()
	first, second := socketFolder(t), socketFolder(t)
	l := unixServer(t, first+"/s")
	m := start(t, setup{sockets: shared.Share{Named: map[string]shared.Share{
		"in": sockets(t, first, false), "out": sockets(t, second, true),
	}}})
	unixExchange(t, m.unixConnect("in/s"), unixAccepted(t, l))
	m.unixListen("/out/s").Close()
	for path, want := range map[string]unix.Errno{"in/x": unix.EROFS, "x": unix.EROFS, "in": unix.EROFS, "out": unix.EADDRINUSE, "out/../in/x": unix.EACCES} {
		if _, err := m.tryUnixListen(path); !errors.Is(err, want) {
			t.Errorf("listening at %s: %v, want %v", path, err, want)
		}
	}
	if _, err := m.tryUnixConnect("s"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("got %v, want ENOENT", err)
	}
}

func TestUnixConnectFails(t *testing.T) {
	t.Parallel()
	outside := socketFolder(t)
	forbidden := unixServer(t, outside+"/s")
	dir := outside + "/shared"
	makeFiles(t, dir, "/", "folder/", "file", "loop -> loop", "out -> ../s", "far -> "+outside+"/s", "folder/out -> ../../s", "nothing -> folder/none", "up -> ..")
	if err := unix.Mkfifo(dir+"/fifo", 0o644); err != nil {
		t.Fatal(err)
	}
	stale := unixServer(t, dir+"/stale")
	stale.SetUnlinkOnClose(false)
	stale.Close()
	datagrams, err := net.ListenPacket("unixgram", dir+"/datagrams")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { datagrams.Close() })
	abstract := unixServer(t, fmt.Sprintf("@arcavm-test-%d", os.Getpid()))
	m := start(t, setup{sockets: sockets(t, dir, true)})
	paths := map[string]unix.Errno{
		"none": unix.ENOENT, "nothing": unix.ENOENT, "none/s": unix.ENOENT, "file/s": unix.ENOTDIR, "file/": unix.ENOTDIR,
		"file": unix.ECONNREFUSED, "folder": unix.ECONNREFUSED, "/": unix.ECONNREFUSED, "fifo": unix.ECONNREFUSED, "stale": unix.ECONNREFUSED,
		"datagrams": unix.EPROTOTYPE, "loop": unix.ELOOP,
		"../s": unix.EACCES, "folder/../../s": unix.EACCES, "out": unix.EACCES, "far": unix.EACCES, "folder/out": unix.EACCES, "up/s": unix.EACCES,
		outside + "/s": unix.ENOENT, abstract.Addr().String(): unix.ENOENT, "\x00" + abstract.Addr().String()[1:]: unix.EINVAL, "s\x00": unix.EINVAL,
		strings.Repeat("a", 256): unix.ENAMETOOLONG, strings.Repeat("a/", 2048): unix.ENAMETOOLONG,
	}
	for path, want := range paths {
		c, err := m.tryUnixConnect(path)
		if !errors.Is(err, want) {
			t.Errorf("%.40q: %v, want %v", path, err, want)
		}
		wantEOF(t, c)
		c.Close()
	}
	m.wantFree()
	if s := m.server.Stats(); s.ConnectsFailed != uint64(len(paths)) {
		t.Errorf("%+v", s)
	}
	wantNobody(t, forbidden)
	wantNobody(t, abstract)

	m = start(t, setup{})
	if _, err := m.tryUnixConnect("s"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("without a folder: %v, want ENOENT", err)
	}
	if _, err := m.tryUnixListen("s"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("without a folder: %v, want ENOENT", err)
	}
	for protocol, payload := range map[uint16][]byte{wire.ProtocolUnixConnection: nil, wire.ProtocolUnixListener: make([]byte, 8)} {
		if _, err := open(m.pipe(), protocol, payload); !errors.Is(err, unix.EPROTO) {
			t.Errorf("protocol %d without a path: %v, want EPROTO", protocol, err)
		}
	}
}

// A connect doesn't wait for a listener whose backlog is full.
func TestUnixBacklogFull(t *testing.T) {
	t.Parallel()
	dir := socketFolder(t)
	raw, err := unixServer(t, dir+"/s").SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { err = unix.Listen(int(fd), 0) }); err != nil {
		t.Fatal(err)
	}
	m := start(t, setup{sockets: sockets(t, dir, false)})
	for range 3 {
		if _, err = m.tryUnixConnect("s"); err != nil {
			break
		}
	}
	if !errors.Is(err, unix.EAGAIN) {
		t.Errorf("got %v, want EAGAIN", err)
	}
}

// wantNobody fails if a connection waits at l.
func wantNobody(t *testing.T, l *net.UnixListener) {
	t.Helper()
	l.SetDeadline(time.Now().Add(time.Millisecond))
	if c, err := l.Accept(); err == nil {
		c.Close()
		t.Errorf("%v was connected to", l.Addr())
	}
}

func TestUnixListen(t *testing.T) {
	t.Parallel()
	dir := socketFolder(t)
	makeFiles(t, dir, deep, "a/", "folder -> a")
	longest := strings.Repeat("n", 85)
	m := start(t, setup{sockets: sockets(t, dir, true)})
	for path, at := range map[string]string{"s": "s", "/s2": "s2", "folder/s": "a/s", "a/../s3": "s3", deep + "s": "", longest: ""} {
		l := m.unixListen(path)
		to := dir + "/" + at
		if at == "" {
			to = dir + "/reached"
			if err := os.Rename(filepath.Join(dir, path), to); err != nil {
				t.Fatal(err)
			}
		}
		var peers []*net.UnixConn
		for range 3 {
			peers = append(peers, unixDialed(t, to))
		}
		for request, peer := range peers {
			c := m.pipe()
			l.ask(uint64(request), c.ID())
			got, a := l.answer()
			if got != uint64(request) || a != (wire.IncomingConnection{Pipe: uint64(c.ID())}) {
				t.Fatalf("request %d got %+v", got, a)
			}
			unixExchange(t, c, peer)
		}
		l.Close()
		m.wantFree()
		if _, err := os.Lstat(to); at != "" && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s after its listener's end: %v", path, err)
		}
	}
	if s := m.server.Stats(); s.Accepted != 18 || s.Opened[wire.ProtocolUnixListener] != 6 {
		t.Errorf("%+v", s)
	}
}

// One stream of a guest reaches another of the same guest.
func TestUnixGuestToGuest(t *testing.T) {
	t.Parallel()
	m := start(t, setup{sockets: sockets(t, socketFolder(t), true)})
	l, server := m.unixListen("s"), m.pipe()
	l.ask(1, server.ID())
	client := m.unixConnect("s")
	if _, a := l.answer(); a.Status != 0 {
		t.Fatalf("%+v", a)
	}
	sent := pattern(1, 200_000)
	go func() {
		client.Write(sent)
		client.CloseWrite()
	}()
	wantAll(t, server, sent)
	server.Close()
	wantEOF(t, client)
	client.Close()
	l.Close()
	m.wantFree()
}

func TestUnixListenFails(t *testing.T) {
	t.Parallel()
	outside := socketFolder(t)
	dir := outside + "/shared"
	makeFiles(t, dir, "/", "folder/", "file", "dangling -> none", "out -> ../made", "up -> ..", "far -> "+outside)
	unixServer(t, dir+"/taken")
	m := start(t, setup{sockets: sockets(t, dir, true)})
	for path, want := range map[string]unix.Errno{
		"taken": unix.EADDRINUSE, "file": unix.EADDRINUSE, "folder": unix.EADDRINUSE, "dangling": unix.EADDRINUSE, "out": unix.EADDRINUSE,
		"/": unix.EADDRINUSE, "folder/.": unix.EADDRINUSE, "folder/..": unix.EADDRINUSE, "..": unix.EADDRINUSE,
		"none/s": unix.ENOENT, "folder/s/": unix.ENOENT, "file/s": unix.ENOTDIR,
		"../made": unix.EACCES, "up/made": unix.EACCES, "far/made": unix.EACCES,
		"s\x00": unix.EINVAL, "\x00s": unix.EINVAL, strings.Repeat("n", 86): unix.ENAMETOOLONG,
	} {
		c, err := m.tryUnixListen(path)
		if !errors.Is(err, want) {
			t.Errorf("%.40q: %v, want %v", path, err, want)
		}
		wantEOF(t, c)
		c.Close()
	}
	m.wantFree()
	for _, made := range []string{outside + "/made", dir + "/none"} {
		if _, err := os.Lstat(made); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", made, err)
		}
	}

	m = start(t, setup{sockets: sockets(t, dir, false)})
	for _, path := range []string{"s", "taken"} {
		if _, err := m.tryUnixListen(path); !errors.Is(err, unix.EROFS) {
			t.Errorf("%s where the guest may not write: %v, want EROFS", path, err)
		}
		said := m.records("listen failed")
		if got := said[len(said)-1]["err"]; !strings.Contains(got, "DIR:rw lets it listen") {
			t.Errorf("%s: %q says no remedy", path, got)
		}
	}
}

// The monitor's user is told what has a socket's name already, or keeps the
// guest from its server: with the host's path and a remedy.
func TestUnixDeserted(t *testing.T) {
	t.Parallel()
	dir := socketFolder(t)
	makeFiles(t, dir, "file", "folder/")
	unixServer(t, dir+"/taken")
	gone := unixServer(t, dir+"/folder/gone")
	gone.SetUnlinkOnClose(false)
	gone.Close()
	m := start(t, setup{sockets: sockets(t, dir, true)})
	for at, want := range map[string]string{
		"folder/gone": "the server of the socket " + dir + "/folder/gone is gone; remove that file",
		"taken":       "another server listens at " + dir + "/taken",
		"file":        dir + "/file is there already, and is no socket",
	} {
		_, err := m.tryUnixListen(at)
		wantErrno(t, "listen", err, unix.EADDRINUSE)
		said := m.records("listen failed")
		if got := said[len(said)-1]["err"]; !strings.Contains(got, want) {
			t.Errorf("%s: %q; want %q in it", at, got, want)
		}
	}
	_, err := m.tryUnixConnect("folder/gone")
	wantErrno(t, "connect", err, unix.ECONNREFUSED)
	if got := m.records("connect failed")[0]; got["level"] != "INFO" || !strings.Contains(got["err"], dir+"/folder/gone is gone") {
		t.Errorf("%v", got)
	}
	if err := os.Remove(dir + "/folder/gone"); err != nil {
		t.Fatal(err)
	}
	m.unixListen("folder/gone")
}

// A file that has replaced the socket's stays when the listener ends.
func TestUnixListenerReplaced(t *testing.T) {
	t.Parallel()
	dir := socketFolder(t)
	m := start(t, setup{sockets: sockets(t, dir, true)})
	l := m.unixListen("s")
	if err := os.Remove(dir + "/s"); err != nil {
		t.Fatal(err)
	}
	other := unixServer(t, dir+"/s")
	l.Close()
	m.wantFree()
	unixExchange(t, m.unixConnect("s"), unixAccepted(t, other))
	m.wantFree()
}

// The socket's file is also removed when the machine ends.
func TestUnixListenerOfStoppedMachine(t *testing.T) {
	t.Parallel()
	dir := socketFolder(t)
	m := start(t, setup{sockets: sockets(t, dir, true)})
	m.unixListen("s")
	m.stop()
	if _, err := os.Lstat(dir + "/s"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// A peer that closes before it has read everything loses nothing of its answer.
// Then the guest sees a reset.
func TestUnixPeerClosesUnread(t *testing.T) {
	t.Parallel()
	m, g, peer := unixConnected(t)
	if _, err := g.Write([]byte("a request that nobody reads")); err != nil {
		t.Fatal(err)
	}
	// When a byte has arrived, the request has.
	wantBytes(t, peer, []byte("a"))
	answer := pattern(1, 100_000) // more than the ring holds
	if _, err := peer.Write(answer); err != nil {
		t.Fatal(err)
	}
	peer.Close()
	wantBytes(t, g, answer)
	wantReadError(t, g, unix.ECONNRESET)
	g.Close()
	m.wantFree()
}

// A reset by the guest doesn't wait for such an answer to be read.
func TestUnixGuestResetsUnread(t *testing.T) {
	t.Parallel()
	m, g, peer := unixConnected(t)
	if _, err := g.Write([]byte("xx")); err != nil {
		t.Fatal(err)
	}
	wantBytes(t, peer, []byte("x"))
	if _, err := peer.Write([]byte("an answer")); err != nil {
		t.Fatal(err)
	}
	peer.Close()
	wantBytes(t, g, []byte("an"))
	g.Reset(unix.ECONNABORTED)
	m.wantFree()
}

// A UNIX socket has no reset. The peer sees an end, and an error if its bytes
// weren't read.
func TestUnixGuestResets(t *testing.T) {
	t.Parallel()
	t.Run("idle", func(t *testing.T) {
		t.Parallel()
		m, g, peer := unixConnected(t)
		g.Reset(unix.ECONNABORTED)
		wantEOF(t, peer)
		if _, err := peer.Write([]byte("x")); !errors.Is(err, unix.EPIPE) {
			t.Errorf("writing: %v, want EPIPE", err)
		}
		m.wantFree()
	})
	t.Run("unread bytes", func(t *testing.T) {
		t.Parallel()
		m, g, peer := unixConnected(t)
		stuff(t, peer)
		g.Reset(unix.ECONNABORTED)
		m.wantFree()
		if _, err := io.Copy(io.Discard, peer); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("reading: %v, want ECONNRESET", err)
		}
	})
}

// namedNetwork has no sockets, but reports what it is asked for.
type namedNetwork struct {
	network.Host
	conn  net.Conn
	asked chan string
}

func (n namedNetwork) DialContext(_ context.Context, network, address string) (net.Conn, error) {
	name, err := os.Readlink(address)
	n.asked <- network + " " + filepath.Base(name)
	return n.conn, err
}

// The address tells a network of an embedding program which socket is meant.
func TestUnixNetwork(t *testing.T) {
	t.Parallel()
	dir := socketFolder(t)
	unixServer(t, dir+"/s")
	inside, outside := socketPair(t)
	network := namedNetwork{conn: inside, asked: make(chan string, 1)}
	m := start(t, setup{sockets: sockets(t, dir, false), network: network})
	g := m.unixConnect("s")
	if got := <-network.asked; got != "unix s" {
		t.Errorf("the network was asked for %s", got)
	}
	unixExchange(t, g, outside)
	m.wantFree()
}

// While a folder and a link to the outside change places, no connection and no
// socket gets outside. Not parallel: it counts descriptors.
func TestUnixRace(t *testing.T) {
	outside := socketFolder(t)
	dir := outside + "/shared"
	makeFiles(t, outside, "target/")
	makeFiles(t, dir, "/", "real/", "link -> ../target", "lure -> ../target/s")
	forbidden := unixServer(t, outside+"/target/s")
	allowed := unixServer(t, dir+"/real/s")
	allowed.SetUnlinkOnClose(false) // the name may lead to the other by then
	t.Chdir(dir)
	m := start(t, setup{sockets: sockets(t, dir, true)})
	var others sync.WaitGroup
	others.Go(func() {
		for {
			c, err := allowed.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	})
	if err := os.Symlink("real/s", "name"); err != nil {
		t.Fatal(err)
	}
	fds := descriptors(t)
	stop := make(chan struct{})
	var swapping sync.WaitGroup
	swapping.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			unix.Renameat2(unix.AT_FDCWD, "real", unix.AT_FDCWD, "link", unix.RENAME_EXCHANGE)
			unix.Renameat2(unix.AT_FDCWD, "name", unix.AT_FDCWD, "lure", unix.RENAME_EXCHANGE)
		}
	})
	// How often each succeeded and failed. Without some of all four there was
	// no race.
	var connected, listened [2]int
	count := func(of *[2]int, err error) {
		if err == nil {
			of[1]++
		} else {
			of[0]++
		}
	}
	late := time.Now().Add(patience)
	for i := 0; i < 300 || min(connected[0], connected[1], listened[0], listened[1]) == 0; i++ {
		if time.Now().After(late) {
			t.Fatalf("connected %v, listened %v", connected, listened)
		}
		for _, path := range []string{"real/s", "name"} {
			c, err := m.tryUnixConnect(path)
			count(&connected, err)
			c.Close()
		}
		l, err := m.tryUnixListen(fmt.Sprint("real/", i))
		count(&listened, err)
		l.Close()
		m.wantFree()
	}
	close(stop)
	swapping.Wait()
	wantNobody(t, forbidden)
	allowed.Close()
	others.Wait()
	if entries, err := os.ReadDir(outside + "/target"); err != nil || len(entries) != 1 {
		t.Errorf("outside: %v, %v", entries, err)
	}
	settled(t, "descriptors", fds-1, func() int { return descriptors(t) })
}
