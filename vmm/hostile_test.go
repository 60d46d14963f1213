package vmm_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"github.com/fix-project/arcavm/relay"
	"github.com/fix-project/arcavm/share"
	"github.com/fix-project/arcavm/vmm"
	"github.com/fix-project/arcavm/vmm/vmmtest"
	"github.com/fix-project/arcavm/wire"
)

// A guest that attacks the monitor from several CPUs, with every protocol and a folder to write, hurts nobody but itself: one of its streams, which behaves, carries
// its bytes to the end, and nothing is left of it all. It can break the control pipe once only, so each seed is a guest of its own. make hostile sets
// ARCAVM_HOSTILE_GUEST_OPERATIONS, of each attacking CPU and all guests together, and ARCAVM_HOSTILE_SEED for a long run.
func TestHostileGuest(t *testing.T) {
	const guests = 8 // as many as there are ways to break the control pipe
	operations, seed := variable(t, "ARCAVM_HOSTILE_GUEST_OPERATIONS", 4000), variable(t, "ARCAVM_HOSTILE_SEED", 1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	opened, errors := make(map[uint16]uint64), uint64(0)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				// Not as themselves: Go would keep pipes to splice them.
				io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
			})
		}
	})
	for i := range uint64(guests) {
		t.Run(fmt.Sprint("seed ", seed+i), func(t *testing.T) {
			s := attack(t, l.Addr(), seed+i, operations/guests)
			for protocol, n := range s.Relay.Opened {
				opened[protocol] += n
			}
			errors += s.Relay.FileErrors
		})
	}
	l.Close()
	serving.Wait()
	t.Logf("opened %v, %d errors of files", opened, errors)
	for _, protocol := range []uint16{wire.ProtocolFileSystem, wire.ProtocolTCPListener, wire.ProtocolTCPConnection, wire.ProtocolUDP} {
		if opened[protocol] == 0 {
			t.Errorf("no stream of protocol %d was opened", protocol)
		}
	}
	if errors == 0 {
		t.Error("no request about a file failed")
	}
}

func variable(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// attack boots one guest. Nothing of it reaches anything but the server at peer, and itself.
func attack(t *testing.T, peer net.Addr, seed, operations uint64) vmm.Stats {
	var rules []relay.Rule
	for _, text := range []string{"out:" + peer.String(), "in:127.0.0.1", "*"} {
		r, err := relay.ParseRule(text != "*", text)
		if err != nil {
			t.Fatal(err)
		}
		rules = append(rules, r)
	}
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "f"), 0o700), os.WriteFile(filepath.Join(dir, "a"), content(seed, 100_000), 0o600)); err != nil {
		t.Fatal(err)
	}
	descriptors := openDescriptors(t)
	folder, err := share.Open(dir, true)
	if err != nil {
		t.Fatal(err)
	}
	g := vmmtest.Boot(t, vmm.Config{
		Image: vmmtest.Image(t, "hostile"), Args: []string{fmt.Sprint(seed), fmt.Sprint(operations), peer.String()},
		CPUs: 3, StreamLimit: 64, Share: folder, Network: relay.NewPolicy(relay.Host{}, rules, nil),
	})
	g.AllowLostWakeups()
	if code, err := g.Wait(); code != 0 || err != nil {
		t.Errorf("the guest ended with %d, %v", code, err)
	}
	s := g.VM.Stats()
	t.Logf("%d operations on each of two CPUs: %d pipes, %d broken rings, %d protocol errors, %d file errors, opened %v, hypercalls %v",
		operations, s.Pipes.Opened, s.Pipes.Broken, s.Relay.ProtocolErrors, s.Relay.FileErrors, s.Relay.Opened, s.Hypercalls)
	if s.Pipes.Broken == 0 || s.Relay.ProtocolErrors == 0 {
		t.Error("this was no attack")
	}
	if s.Pipes.Open != 0 || s.Pipes.RingBytes != 0 {
		t.Errorf("%+v is left", s.Pipes)
	}
	if err := folder.Close(); err != nil {
		t.Error(err)
	}
	if n := openDescriptors(t); n > descriptors {
		t.Errorf("%d descriptors, %d before", n, descriptors)
	}
	return s
}
