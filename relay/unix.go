package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/share"
	"github.com/fix-project/arcavm/wire"
)

// maxSocketName is how long a socket's name may be: with /proc/self/fd/1234567/
// before it, it fits into a sockaddr_un.
const maxSocketName = 85

const noSockets = "no folder with UNIX sockets is shared with the guest"

// UnixListener returns the handler of protocol 4: it makes a socket at a path
// below sockets, which must be writable, and listens there as [TCPListener]
// does. The socket's file is removed at the end.
func UnixListener(sockets share.Share) Handler {
	var warned sync.Once
	gates := share.NewGates(sockets)
	return HandlerFunc(func(ctx context.Context, s *Stream) error {
		m, err := wire.DecodeUnixListen(s.Payload)
		if err != nil {
			return ProtocolError(err)
		}
		ln, err := listenUnix(ctx, s, sockets, gates, m)
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

// UnixConnection returns the handler of protocol 5: it connects to the socket
// at a path below sockets, and relays.
func UnixConnection(sockets share.Share) Handler {
	var warned sync.Once
	gates := share.NewGates(sockets)
	return HandlerFunc(func(ctx context.Context, s *Stream) error {
		m, err := wire.DecodeUnixConnect(s.Payload)
		if err != nil {
			return ProtocolError(err)
		}
		conn, err := dialUnix(ctx, s, sockets, gates, string(m.Path))
		if err != nil {
			s.server.count.connectsFailed.Add(1)
			s.notShared(&warned, noSockets, err)
			s.failed("connect failed", err)
			return s.Opened(fileErrno(err), nil)
		}
		s.log(slog.LevelDebug, "connected", slog.String("path", string(m.Path)))
		if err := s.Opened(0, nil); err != nil {
			network.Abandon(conn)
			return err
		}
		relayConn(s, conn)
		return nil
	})
}

// dialUnix connects. The attempt ends when the guest takes no more answers, and
// after the time of every attempt, whatever the folder does: connect looks at
// the socket's file, too, and so may stall.
func dialUnix(ctx context.Context, s *Stream, sockets share.Share, gates share.Gates, to string) (network.Conn, error) {
	in, rest, err := place(sockets, to)
	if err != nil {
		return nil, err
	}
	if in.Root == nil {
		return nil, unix.ENOENT
	}
	ctx, cancel := s.attempt(ctx)
	defer cancel()
	conn, err := share.Do(ctx, gates.Of(in), func() (network.Conn, error) {
		f, err := openSocket(in, rest)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		conn, err := network.CheckConn(s.Network().DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d", f.Fd())))
		if errors.Is(err, unix.ECONNREFUSED) {
			err = fmt.Errorf("the server of the socket %s is gone: %w", hostPath(in, rest), unix.ECONNREFUSED)
		}
		return conn, err
	}, func(c network.Conn) { network.Abandon(c) })
	if err != nil {
		return nil, fmt.Errorf("connect to %q: %w", to, err)
	}
	return conn, nil
}

// attempt is the context of an attempt to connect or to listen. It ends after
// the time of an attempt, and when the guest takes no more answers.
func (s *Stream) attempt(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, s.server.patience)
	s.Pipe.OnWriteError(cancel)
	return ctx, cancel
}

// openSocket opens a socket's file, without connecting.
func openSocket(in share.Share, name string) (*os.File, error) {
	f, err := in.OpenPath(name, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && info.Mode().Type() != os.ModeSocket {
		err = fmt.Errorf("%q is not a socket: %w", name, unix.ECONNREFUSED)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// listenUnix binds by way of the open folder, and so stays in that folder,
// whatever is renamed or replaced meanwhile. A bind doesn't follow a link in
// the last name.
func listenUnix(ctx context.Context, s *Stream, sockets share.Share, gates share.Gates, m wire.UnixListen) (net.Listener, error) {
	at := string(m.Path)
	in, rest, err := writable(sockets, at)
	if errors.Is(err, unix.EROFS) {
		return nil, fmt.Errorf("listen at %q: the guest may only connect to sockets there; DIR:rw lets it listen: %w", at, err)
	}
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
	ctx, cancel := s.attempt(ctx)
	defer cancel()
	l := &unixListener{at: at, name: name, gate: gates.Of(in), disk: s.server.disk}
	_, err = share.Do(ctx, l.gate, func() (*unixListener, error) {
		return l, l.listen(ctx, s.Network(), in, parent, m.Backlog)
	}, (*unixListener).end)
	if err != nil {
		return nil, fmt.Errorf("listen at %q: %w", at, err)
	}
	return l, nil
}

// unixListener removes the socket's file when it closes.
type unixListener struct {
	net.Listener
	at     string // the guest's path
	folder *os.File
	name   string
	made   *unix.Stat_t // the socket's file; nil if there is none, as in a network in memory
	gate   *share.Gate
	disk   *share.Quota

	closing sync.Once
	closed  atomic.Bool // without the socket's file
}

// listen makes the socket.
func (l *unixListener) listen(ctx context.Context, from network.Network, in share.Share, parent string, backlog uint32) (err error) {
	if err := l.disk.TakeNode(); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			l.disk.GiveNode()
		}
	}()
	if l.folder, err = in.OpenPath("./"+parent, unix.O_DIRECTORY); err != nil {
		return err
	}
	l.Listener, err = listenOn(ctx, from, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", l.folder.Fd(), l.name), backlog)
	if err != nil {
		l.folder.Close()
		if errors.Is(err, unix.EADDRINUSE) {
			err = inUse(in, path.Join(parent, l.name))
		}
		return err
	}
	if u, ok := asSocket(l.Listener).(*net.UnixListener); ok {
		// Package net would remove the file by a descriptor's number, which
		// belongs to another file by then.
		u.SetUnlinkOnClose(false)
		l.made, _ = l.look()
	}
	return nil
}

// inUse tells the monitor's user what has the name already, and what to do
// about it. It is an EADDRINUSE.
func inUse(in share.Share, name string) error {
	at := hostPath(in, name)
	f, err := openSocket(in, name)
	if errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("%s is there already, and is no socket: %w", at, unix.EADDRINUSE)
	}
	if err != nil {
		return unix.EADDRINUSE
	}
	defer f.Close()
	if isDeserted(f) {
		return fmt.Errorf("the server of the socket %s is gone; remove that file, and the guest can listen there: %w", at, unix.EADDRINUSE)
	}
	return fmt.Errorf("another server listens at %s: %w", at, unix.EADDRINUSE)
}

// isDeserted reports whether nothing listens at a socket any more. It connects,
// without waiting.
func isDeserted(socket *os.File) bool {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return unix.Connect(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d", socket.Fd())}) == unix.ECONNREFUSED
}

// hostPath is the name of a file for the monitor's user.
func hostPath(in share.Share, name string) string { return filepath.Join(in.Root.Name(), name) }

// look returns the state of the node that has the socket's name.
func (l *unixListener) look() (*unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Fstatat(int(l.folder.Fd()), l.name, &st, unix.AT_SYMLINK_NOFOLLOW)
	return &st, err
}

// NetListener returns the listener that l wraps.
func (l *unixListener) NetListener() net.Listener { return l.Listener }

// Addr is the path as the guest gave it.
func (l *unixListener) Addr() net.Addr { return &net.UnixAddr{Name: l.at, Net: "unix"} }

// Close doesn't wait for a folder that stalls. Then the socket's file stays.
func (l *unixListener) Close() error {
	l.closing.Do(func() {
		if !l.gate.Finish(l.end) {
			l.closed.Store(true)
			_ = l.Listener.Close()
		}
	})
	return nil
}

// end removes the file first: no other file has its inode number as long as the
// socket is open.
func (l *unixListener) end() {
	st, err := l.look()
	if err == nil && l.made != nil && !l.closed.Load() && st.Dev == l.made.Dev && st.Ino == l.made.Ino {
		if unix.Unlinkat(int(l.folder.Fd()), l.name, 0) == nil {
			l.disk.GiveNode()
		}
	}
	if l.made == nil {
		l.disk.GiveNode()
	}
	_ = l.folder.Close()
	_ = l.Listener.Close()
}
