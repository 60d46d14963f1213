package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

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
		{errors.Join(errors.New("bad frame"), unix.EPROTO), unix.EPROTO},
		{errors.New("no errno at all"), unix.EIO},
	} {
		if got := Errno(c.err); got != c.want {
			t.Errorf("%v: got %v, want %v", c.err, got, c.want)
		}
	}
}
