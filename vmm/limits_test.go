package vmm_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/vmm"
	"github.com/fix-project/arcavm/vmm/vmmtest"
)

// A guest that comes up against a limit gets the errno that PROTOCOL.md has for
// it, and is counted.
func TestLimits(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "data"), content(1, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	reached := func(f func(r network.Reached) uint64) func(s vmm.Stats) uint64 {
		return func(s vmm.Stats) uint64 { return f(s.Relay.Reached) }
	}
	for _, c := range []struct {
		name, program, args string
		config              vmm.Config
		want                unix.Errno
		count               func(s vmm.Stats) uint64
	}{
		{
			"streams", "files", "read data", vmm.Config{StreamLimit: 1}, unix.EMFILE,
			reached(func(r network.Reached) uint64 { return r.Streams }),
		},
		{
			"ring memory", "files", "read data", vmm.Config{RingLimit: 128<<10 + 4<<10}, unix.ENOMEM,
			reached(func(r network.Reached) uint64 { return r.RingMemory }),
		},
		{
			"files of a stream", "files", "burst data 100 copy", vmm.Config{Limits: network.Limits{StreamFiles: 1}}, unix.EMFILE,
			reached(func(r network.Reached) uint64 { return r.Files }),
		},
		{
			"files", "files", "burst data 100 copy", vmm.Config{Limits: network.Limits{Files: 1}}, unix.ENFILE,
			reached(func(r network.Reached) uint64 { return r.Files }),
		},
		{
			"operations", "files", "burst data 100 copy", vmm.Config{Limits: network.Limits{Operations: 10}}, unix.EAGAIN,
			reached(func(r network.Reached) uint64 { return r.Operations }),
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.config.Image, c.config.Args, c.config.Share = vmmtest.Image(t, c.program), strings.Fields(c.args), openShare(t, dir, false)
			g := vmmtest.Boot(t, c.config)
			if code, err := g.Wait(); code != 1 || err != nil || !strings.Contains(g.Log(), fmt.Sprintf(": error %d", c.want)) {
				t.Errorf("the guest ended with %d, %v; want 1 and error %d\n%s", code, err, c.want, g.Log())
			}
			if n := c.count(g.VM.Stats()); n == 0 {
				t.Error("it isn't counted")
			}
		})
	}
}

// The accept that is one too many fails; those that wait go on, and get their
// connections.
func TestAcceptLimit(t *testing.T) {
	t.Parallel()
	g := vmmtest.Boot(t, vmm.Config{
		Image: vmmtest.Image(t, "accept"), Args: []string{"127.0.0.1:0"}, Limits: network.Limits{Accepts: 2},
	})
	to := g.Addr().String()
	g.WaitLog(fmt.Sprintf("accept: error %d", unix.EAGAIN))
	for range 5 {
		if got, err := io.ReadAll(dial(t, to)); len(got) != 1 || err != nil {
			t.Errorf("the guest sent %d bytes, %v", len(got), err)
		}
	}
	if n := g.VM.Stats().Relay.Reached.Accepts; n == 0 {
		t.Error("it isn't counted")
	}
}

// Bytes of a connection that are too many for a second wait, and get there.
func TestByteLimit(t *testing.T) {
	t.Parallel()
	// 65,536 of them may go at once. Even a slow guest sends the others faster
	// than they may follow.
	const n = 100_000
	cfg := vmm.Config{Image: vmmtest.Image(t, "tcp"), Args: []string{"accept", "127.0.0.1:0", fmt.Sprint("fill=", n)}, Limits: network.Limits{Bytes: 1 << 14}}
	g := vmmtest.Boot(t, cfg)
	if got, err := io.ReadAll(dial(t, g.Addr().String())); err != nil || !bytes.Equal(got, filled(n)) {
		t.Errorf("the guest sent %d bytes, %v; want %d", len(got), err, n)
	}
	if code, err := g.Wait(); code != 0 || err != nil {
		t.Errorf("the guest ended with %d, %v", code, err)
	}
	if n := g.VM.Stats().Relay.Reached.Bytes; n == 0 {
		t.Error("it isn't counted")
	}
}

// Datagrams that are too many for a second don't go out, and the guest learns
// why.
func TestDatagramByteLimit(t *testing.T) {
	t.Parallel()
	g := vmmtest.Boot(t, vmm.Config{
		Image: vmmtest.Image(t, "udp"), Args: []string{"echo", "127.0.0.1:0"},
		// However slow the guest is, hardly more than the 65,536 bytes that may
		// go at once.
		Limits: network.Limits{Bytes: 1},
	})
	to := boundTo(t, g)
	if _, err := udpSocket(t, "127.0.0.1:0").WriteToUDPAddrPort(make([]byte, 60_000), to); err != nil {
		t.Fatal(err)
	}
	g.WaitLog(fmt.Sprintf("error %d", unix.ENOBUFS))
}
