package relay_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/internal/stalled"
	"github.com/fix-project/arcavm/network"
	shared "github.com/fix-project/arcavm/share"
	"github.com/fix-project/arcavm/wire"
)

func threads(t testing.TB) int {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	return len(tasks)
}

// untilWaiting waits until n requests wait for a folder.
func untilWaiting(t testing.TB, folder *stalled.Folder, n int) {
	t.Helper()
	late := time.After(patience)
	for folder.Waiting() < n {
		select {
		case <-folder.Arrived():
		case <-late:
			t.Fatalf("%d calls wait for the folder, want %d", folder.Waiting(), n)
		}
	}
}

// Ten thousand connects and listens in a folder of sockets that stalls take as
// many threads as may wait for it. Other streams go on, and the end of the
// machine doesn't wait. Not parallel: it counts threads.
func TestStalledSockets(t *testing.T) {
	const attempts = 10_000
	folder := stalled.New(t)
	dir := socketFolder(t)
	l := unixServer(t, dir+"/s")
	s := sockets(t, folder.Dir, true)
	s.Named = map[string]shared.Share{"other": sockets(t, dir, false)}
	m := start(t, setup{sockets: s, streams: attempts + 100, window: 256 << 20, quiet: true})
	before := threads(t)
	for i := range attempts {
		protocol := wire.ProtocolUnixConnection
		payload := wire.AppendUnixConnect(nil, wire.UnixConnect{Path: fmt.Append(nil, "s", i)})
		if i%2 == 1 {
			// The folder is looked up, where the socket would be made.
			protocol = wire.ProtocolUnixListener
			payload = wire.AppendUnixListen(nil, wire.UnixListen{Path: fmt.Append(nil, "s", i, "/s")})
		}
		c, err := m.tryPipe(4096, 4096, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(wire.AppendOpen(nil, 1, wire.Open{Protocol: protocol, Payload: payload})); err != nil {
			t.Fatal(err)
		}
	}
	untilWaiting(t, folder, 2*shared.MaxCalls)
	unixExchange(t, m.unixConnect("other/s"), unixAccepted(t, l))
	m.connected()
	if n := threads(t) - before; n > 2*shared.MaxCalls+50 {
		t.Errorf("%d more threads", n)
	}
	if n := folder.Waiting(); n > 2*shared.MaxCalls {
		t.Errorf("%d calls wait for the folder", n)
	}
	m.stop() // panics if that takes long
	folder.End()
}

// A guest that resets a stream whose folder stalls has its pipe back soon,
// whatever was at work on the stream.
func TestStalledFiles(t *testing.T) {
	t.Parallel()
	for what, request := range map[string]func(handle uint64, name []byte) []byte{
		"stat": func(h uint64, name []byte) []byte {
			return wire.AppendStatRequest(nil, 9, wire.StatRequest{Path: name})
		},
		"open": func(h uint64, name []byte) []byte {
			return wire.AppendOpenFileRequest(nil, 9, wire.OpenFileRequest{Flags: wire.OpenRead, Path: name})
		},
		"read file": func(h uint64, name []byte) []byte {
			return wire.AppendReadFileRequest(nil, 9, wire.ReadFileRequest{Path: name, Length: wire.ToEnd})
		},
		"list": func(h uint64, name []byte) []byte {
			return wire.AppendListRequest(nil, 9, wire.ListRequest{Limit: 4096, Path: name})
		},
		"remove": func(h uint64, name []byte) []byte {
			return wire.AppendRemoveRequest(nil, 9, wire.RemoveRequest{Path: name})
		},
		"read": func(h uint64, _ []byte) []byte {
			return wire.AppendReadRequest(nil, 9, wire.ReadRequest{Handle: h, Length: 100})
		},
		"write": func(h uint64, _ []byte) []byte {
			return wire.AppendWriteRequest(nil, 9, wire.WriteRequest{Handle: h, Data: []byte("data")})
		},
	} {
		for how, leave := range map[string]func(g *fileGuest){
			"reset": func(g *fileGuest) { g.Reset(unix.ECANCELED) },
			"close": func(g *fileGuest) { g.Close() },
		} {
			t.Run(what+", "+how, func(t *testing.T) {
				t.Parallel()
				folder := stalled.New(t)
				m := start(t, setup{share: openShare(t, folder.Dir, true)})
				g := m.fileGuest(4096)
				h := g.mustOpen(stalled.File, wire.OpenRead|wire.OpenWrite)
				if _, err := g.Write(request(h, []byte("name"))); err != nil {
					t.Fatal(err)
				}
				untilWaiting(t, folder, 1)
				leave(g)
				m.wantFree()
				// Another request is at work when the machine ends.
				g = m.fileGuest(4096)
				if _, err := g.Write(wire.AppendStatRequest(nil, 9, wire.StatRequest{Path: []byte("other")})); err != nil {
					t.Fatal(err)
				}
				m.stop() // panics if that takes long
				folder.End()
			})
		}
	}
}

// A guest gets EDQUOT when it has used up its part of the disk. It can go on
// when it has removed something.
func TestDiskLimit(t *testing.T) {
	t.Parallel()
	const limit = 1 << 20
	dir := t.TempDir()
	m := start(t, setup{share: openShare(t, dir, true), sockets: sockets(t, dir, true), limits: network.Limits{Disk: limit}})
	a, b := m.fileGuest(4096), m.fileGuest(4096)
	const appending = wire.OpenWrite | wire.OpenAppend | wire.OpenCreate
	handles := []uint64{a.mustOpen("f0", appending), b.mustOpen("f1", appending)}
	if _, err := b.write(handles[1], 0, make([]byte, 30_000)); err != nil {
		t.Fatal(err)
	}
	for i, g := range []*fileGuest{a, b} {
		h := handles[i]
		var err error
		for err == nil {
			_, err = g.write(h, 0, make([]byte, 30_000))
		}
		wantErrno(t, "write", err, unix.EDQUOT)
		wantErrno(t, "a hole", g.truncate(h, 1<<50), unix.EDQUOT)
	}
	for _, path := range []string{"1", "2", "3", "4", "5", "6", "7", "8"} {
		_ = a.mkdir(path, 0)
	}
	wantErrno(t, "a folder", a.mkdir("many/more/folders", wire.MkdirParents), unix.EDQUOT)
	_, err := a.open("another", wire.OpenWrite|wire.OpenCreate)
	wantErrno(t, "a file", err, unix.EDQUOT)
	_, err = m.tryUnixListen("s")
	wantErrno(t, "a socket", err, unix.EDQUOT)
	var size int64
	err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if path == dir {
			return err
		}
		size += 4096
		if info, ierr := d.Info(); ierr == nil && !d.IsDir() {
			size += info.Size()
		}
		return err
	})
	if err != nil || size > limit {
		t.Errorf("there are %d bytes, %v", size, err)
	}
	if s := m.server.Stats(); s.Reached.Disk < 7 {
		t.Errorf("%+v", s.Reached)
	}
	m.wantLimit("disk", a.ID())
	wantErrno(t, "close", b.close(handles[1]), nil)
	wantErrno(t, "remove", a.remove("f1"), nil)
	wantErrno(t, "after that", a.mkdir("another", 0), nil)
}

// A socket, and its folder, are found by as many links as Linux follows.
func TestUnixLinks(t *testing.T) {
	t.Parallel()
	dir := socketFolder(t)
	l := unixServer(t, dir+"/s")
	for n := range 40 {
		makeFiles(t, dir, fmt.Sprintf("link%d -> %s", n+1, strings.Replace(fmt.Sprint("link", n), "link0", "s", 1)))
	}
	makeFiles(t, dir, "link41 -> link40")
	m := start(t, setup{sockets: sockets(t, dir, false)})
	unixExchange(t, m.unixConnect("link40"), unixAccepted(t, l))
	if _, err := m.tryUnixConnect("link41"); !errors.Is(err, unix.ELOOP) {
		t.Errorf("41 links: %v, want ELOOP", err)
	}
}
