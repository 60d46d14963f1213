package relay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/wire"
)

func TestBacklog(t *testing.T) {
	t.Parallel()
	for _, want := range []uint32{1, 7, 100} {
		ln, err := listen(t.Context(), Host{}, wire.Listen{
			Endpoint: wire.Endpoint{Addr: netip.MustParseAddr("127.0.0.1")}, Backlog: want,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		raw, err := ln.(syscall.Conn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if err := raw.Control(func(fd uintptr) {
			// A listening socket's info has its backlog in this field.
			info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
			if err != nil || info.Sacked != want {
				t.Errorf("backlog %d, %v, want %d", info.Sacked, err, want)
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestErrno(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		want unix.Errno
	}{
		{nil, 0},
		{fmt.Errorf("wrapped: %w", &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", unix.ECONNREFUSED)}), unix.ECONNREFUSED},
		{&fs.PathError{Op: "openat", Path: "x", Err: unix.ENOTDIR}, unix.ENOTDIR},
		{&net.OpError{Op: "dial", Err: &net.DNSError{IsNotFound: true}}, unix.ENOENT},
		{&net.DNSError{IsTimeout: true, IsTemporary: true}, unix.ETIMEDOUT},
		{&net.DNSError{IsTemporary: true}, unix.EAGAIN},
		{&net.DNSError{UnwrapErr: unix.ECONNREFUSED}, unix.EAGAIN},
		{context.Canceled, unix.ECANCELED},
		{context.DeadlineExceeded, unix.ETIMEDOUT},
		{os.ErrDeadlineExceeded, unix.ETIMEDOUT},
		{&net.AddrError{Err: "no suitable address"}, unix.EADDRNOTAVAIL},
		{net.ErrClosed, unix.ECONNRESET},
		{fs.ErrNotExist, unix.ENOENT},
		{ProtocolError(errors.New("bad frame")), unix.EPROTO},
		{errors.New("no errno at all"), unix.EIO},
	} {
		if got := errnoOf(c.err); got != c.want {
			t.Errorf("%v: got %v, want %v", c.err, got, c.want)
		}
	}
}
