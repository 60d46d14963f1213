package network

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Errno returns the Linux errno by which a guest is told of err; 0 for nil. An
// error of a name look-up comes first, as its cause is about the name server:
// ENOENT for a name that doesn't exist, ETIMEDOUT and EAGAIN for failures that
// may pass. An error without an errno is EIO.
func Errno(err error) unix.Errno {
	var errno unix.Errno
	var lookup *net.DNSError
	var address *net.AddrError
	var timeout interface{ Timeout() bool }
	switch {
	case err == nil:
		return 0
	case errors.As(err, &lookup):
		switch {
		case lookup.IsNotFound:
			return unix.ENOENT
		case lookup.IsTimeout:
			return unix.ETIMEDOUT
		default:
			return unix.EAGAIN
		}
	case errors.As(err, &errno) && errno != 0:
		return errno
	case errors.As(err, &address):
		return unix.EADDRNOTAVAIL
	case errors.Is(err, context.Canceled):
		return unix.ECANCELED
	case errors.As(err, &timeout) && timeout.Timeout():
		return unix.ETIMEDOUT
	case errors.Is(err, fs.ErrNotExist):
		return unix.ENOENT
	case errors.Is(err, net.ErrClosed), errors.Is(err, os.ErrClosed):
		return unix.ECONNRESET
	default:
		return unix.EIO
	}
}
