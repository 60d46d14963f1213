package relay

import (
	"errors"
	"fmt"

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
