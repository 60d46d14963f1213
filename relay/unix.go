package relay

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/share"
	"github.com/fix-project/arcavm/wire"
)

const (
	// maxSocketName is the longest name that a guest may give to a socket: with /proc/self/fd/1234567/ before it, it still fits into a sockaddr_un.
	maxSocketName = 85
	// maxLinks is how many links one after the other the last part of a path may be, as in Linux.
	maxLinks = 40
)

const noSockets = "no folder with UNIX sockets is shared with the guest"

// UnixListener returns the handler of protocol 4: it makes a socket at a path below sockets, which has to be writable, and listens there as
// [TCPListener] does. The socket's file goes when the listener does.
func UnixListener(sockets share.Share) Handler {
	var warned sync.Once
	return HandlerFunc(func(ctx context.Context, s *Stream) error {
		m, err := wire.DecodeUnixListen(s.Payload)
		if err != nil {
			return ProtocolError(err)
		}
		ln, err := listenUnix(ctx, s.Network(), sockets, m)
		if err != nil {
			if s.notShared(&warned, noSockets, err) {
				s.server.count.bindsFailed.Add(1)
			} else {
				s.bindFailed("listen failed", err)
			}
			return s.Opened(fileErrno(err), nil)
		}
		return serveListener(ctx, s, ln, nil, wire.ProtocolUnixConnection)
	})
}

// UnixConnection returns the handler of protocol 5: it connects to the socket at a path below sockets, and relays.
func UnixConnection(sockets share.Share) Handler {
	var warned sync.Once
	return HandlerFunc(func(ctx context.Context, s *Stream) error {
		m, err := wire.DecodeUnixConnect(s.Payload)
		if err != nil {
			return ProtocolError(err)
		}
		conn, err := dialUnix(ctx, s, sockets, string(m.Path))
		if err != nil {
			s.server.count.connectsFailed.Add(1)
			s.notShared(&warned, noSockets, err)
			s.failed("connect failed", err)
			return s.Opened(fileErrno(err), nil)
		}
		s.log(slog.LevelDebug, "connected", slog.String("path", string(m.Path)))
		if err := s.Opened(0, nil); err != nil {
			abandon(conn)
			return err
		}
		relayConn(s, conn)
		return nil
	})
}

func dialUnix(ctx context.Context, s *Stream, sockets share.Share, to string) (Conn, error) {
	in, rest, err := place(sockets, to)
	if err != nil {
		return nil, err
	}
	if in.Root == nil {
		return nil, unix.ENOENT
	}
	f, err := openSocket(in.Root, rest)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	conn, err := dialOn(ctx, s, "unix", fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return nil, fmt.Errorf("connect to %q: %w", to, err)
	}
	return conn, nil
}

// openSocket opens a socket's file, which doesn't connect yet. With O_PATH a [os.Root] opens a link itself where that is the last part of the path: so
// it is followed here, each time from the Root on.
func openSocket(root *os.Root, name string) (*os.File, error) {
	for range maxLinks {
		f, err := root.OpenFile(name, unix.O_PATH, 0)
		if err != nil {
			return nil, err
		}
		info, err := f.Stat()
		if err == nil && info.Mode().Type() == os.ModeSocket {
			return f, nil
		}
		f.Close()
		switch {
		case err != nil:
			return nil, err
		case info.Mode().Type() != os.ModeSymlink:
			return nil, fmt.Errorf("%q is not a socket: %w", name, unix.ECONNREFUSED)
		}
		target, err := root.Readlink(name)
		if err != nil {
			return nil, err
		}
		if !path.IsAbs(target) { // else the Root refuses it
			folder, _ := path.Split(name)
			target = folder + target
		}
		name = target
	}
	return nil, unix.ELOOP
}

// listenUnix binds by way of an open folder, and so stays in that one whatever is renamed or replaced meanwhile. A bind doesn't follow a link in its
// last part.
func listenUnix(ctx context.Context, from Network, sockets share.Share, m wire.UnixListen) (_ net.Listener, err error) {
	at := string(m.Path)
	root, rest, err := writable(sockets, at)
	if err != nil {
		return nil, err
	}
	parent, name := path.Split(rest)
	switch {
	case name == "":
		return nil, unix.ENOENT
	case name == "." || name == "..":
		return nil, unix.EADDRINUSE
	case len(name) > maxSocketName:
		return nil, unix.ENAMETOOLONG
	}
	folder, err := root.OpenRoot("./" + parent)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			folder.Close()
		}
	}()
	f, err := folder.OpenFile(".", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	ln, err := listenOn(ctx, from, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", f.Fd(), name), m.Backlog)
	if err != nil {
		return nil, fmt.Errorf("listen at %q: %w", at, err)
	}
	l := &unixListener{Listener: ln, at: at, folder: folder, name: name}
	if u, ok := asSocket(ln).(*net.UnixListener); ok {
		// By then the descriptor's number belongs to another file.
		u.SetUnlinkOnClose(false)
		l.made, _ = folder.Lstat(name)
	}
	return l, nil
}

// unixListener removes the socket's file when it closes.
type unixListener struct {
	net.Listener
	at     string // the guest's path
	folder *os.Root
	name   string
	made   os.FileInfo // the socket's file; nil if there is none, as in a network in memory
}

// NetListener is the listener below.
func (l *unixListener) NetListener() net.Listener { return l.Listener }

// Addr is the guest's path.
func (l *unixListener) Addr() net.Addr { return &net.UnixAddr{Name: l.at, Net: "unix"} }

// Close removes first: as long as the socket is open nobody else's file has its inode.
func (l *unixListener) Close() error {
	if info, err := l.folder.Lstat(l.name); err == nil && l.made != nil && os.SameFile(info, l.made) {
		_ = l.folder.Remove(l.name)
	}
	_ = l.folder.Close()
	return l.Listener.Close()
}
