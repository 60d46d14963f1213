package relay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/pipes"
)

// ProtocolError marks an error as the guest's fault: a [Handler] that returns it ends a stream on which the guest broke the protocol. To
// the guest it is EPROTO; unlike an EPROTO from elsewhere, from a socket for instance, it is counted and logged as the guest's.
func ProtocolError(err error) error { return &breach{err} }

type breach struct{ err error }

func (b *breach) Error() string   { return fmt.Sprintf("%v: %v", unix.EPROTO, b.err) }
func (b *breach) Unwrap() []error { return []error{unix.EPROTO, b.err} }

// isBreach reports whether err, which ended p, is the guest's fault: a breach, or a ring that it broke.
func isBreach(p *pipes.Pipe, err error) bool {
	var b *breach
	return errors.As(err, &b) || errors.Is(err, unix.EPROTO) && p.Caused(err)
}

// errnoOf returns the Linux errno that tells the guest about err; 0 for nil. Failed name lookups come first, for
// their own cause is about the name server: ENOENT for a name that doesn't exist, ETIMEDOUT and EAGAIN for
// failures that may pass. What has no errno is EIO.
func errnoOf(err error) unix.Errno {
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
