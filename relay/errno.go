package relay

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/pipes"
)

// ProtocolError marks an error as a breach of the protocol by the guest. A
// [Handler] that returns it ends the stream with EPROTO. Unlike an EPROTO of a
// socket, for instance, it is counted and logged as the guest's fault.
func ProtocolError(err error) error { return &breach{err} }

type breach struct{ err error }

func (b *breach) Error() string   { return fmt.Sprintf("%v: %v", unix.EPROTO, b.err) }
func (b *breach) Unwrap() []error { return []error{unix.EPROTO, b.err} }

// isBreach reports whether err, which has ended p, is the guest's fault: a
// ProtocolError, or a ring that the guest has broken.
func isBreach(p *pipes.Pipe, err error) bool {
	var b *breach
	return errors.As(err, &b) || errors.Is(err, unix.EPROTO) && p.Caused(err)
}
