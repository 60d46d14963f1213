package relay

import (
	"net/netip"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/wire"
)

func TestBacklog(t *testing.T) {
	t.Parallel()
	for _, want := range []uint32{1, 7, 100} {
		ln, err := listen(t.Context(), network.Host{}, wire.Listen{
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
			// This field is the backlog in the info of a listening socket.
			info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
			if err != nil || info.Sacked != want {
				t.Errorf("backlog %d, %v, want %d", info.Sacked, err, want)
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
}
