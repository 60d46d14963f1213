package relay

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
)

func TestProtocolErrorIsEPROTO(t *testing.T) {
	t.Parallel()
	cause := errors.New("bad frame")
	err := ProtocolError(cause)
	if got := network.Errno(err); got != unix.EPROTO || !errors.Is(err, cause) {
		t.Errorf("%v is %v", err, got)
	}
}
