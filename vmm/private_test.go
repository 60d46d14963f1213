package vmm_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/relay"
	"github.com/fix-project/arcavm/vmm"
	"github.com/fix-project/arcavm/vmm/vmmtest"
	"github.com/fix-project/arcavm/wire"
)

// A protocol that the embedding program adds: the guest's payload reaches the
// handler, bytes go both ways, and so do ends and errnos.
func TestPrivateProtocol(t *testing.T) {
	t.Parallel()
	handlers := map[uint16]relay.Handler{
		// Gives back the payload, and then what it gets.
		wire.ProtocolPrivate: relay.HandlerFunc(func(_ context.Context, s *relay.Stream) error {
			if err := s.Opened(0, append(s.Payload, ": "...)); err != nil {
				return err
			}
			n, err := io.Copy(s.Pipe, s.Pipe)
			s.Count(int(n), int(n))
			return err
		}),
		0xFFFF: relay.HandlerFunc(func(_ context.Context, s *relay.Stream) error { return s.Opened(unix.EKEYEXPIRED, nil) }),
		0x9000: relay.HandlerFunc(func(_ context.Context, s *relay.Stream) error {
			return errors.Join(s.Opened(0, nil), unix.ESTALE)
		}),
	}
	long := strings.Repeat("long ", 4000)
	for _, c := range []struct {
		name    string
		args    []string
		console string
		log     string
	}{
		{name: "bytes both ways", args: []string{"32768", "payload", "some ", "text"}, console: "payload: some text"},
		{name: "no payload", args: []string{"32768", "", long}, console: ": " + long},
		{name: "refused", args: []string{"65535", "", ""}, log: fmt.Sprintf("open: error %d", unix.EKEYEXPIRED)},
		// The reset may overtake the Opened.
		{name: "failed", args: []string{"36864", ""}, log: fmt.Sprintf("error %d", unix.ESTALE)},
		{name: "nobody's", args: []string{"32769", ""}, log: fmt.Sprintf("open: error %d", unix.EPROTONOSUPPORT)},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			g := vmmtest.Boot(t, vmm.Config{Image: vmmtest.Image(t, "private"), Args: c.args, Handlers: handlers})
			want := 0
			if c.log != "" {
				want = 1
			}
			if code, err := g.Wait(); code != want || err != nil || g.Console() != c.console {
				t.Errorf("the guest ended with %d, %v, and printed %q; want %d and %q", code, err, g.Console(), want, c.console)
			}
			if !strings.Contains(g.Log(), c.log) {
				t.Errorf("the log doesn't say %q:\n%s", c.log, g.Log())
			}
			sent := uint64(len(strings.Join(c.args[2:], "")))
			if s := g.VM.Stats().Relay; c.console != "" && (s.FromGuest != sent || s.ToGuest != sent) {
				t.Errorf("counted %d and %d bytes, want %d", s.FromGuest, s.ToGuest, sent)
			}
		})
	}
}
