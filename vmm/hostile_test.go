package vmm_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/fix-project/arcavm/kvm"
	"github.com/fix-project/arcavm/network/outside"
	"github.com/fix-project/arcavm/relay"
	"github.com/fix-project/arcavm/share"
	"github.com/fix-project/arcavm/vmm"
	"github.com/fix-project/arcavm/vmm/vmmtest"
	"github.com/fix-project/arcavm/wire"
)

// A guest attacks the monitor from several CPUs, with every protocol and a
// folder to write, and hurts only itself: one of its streams, which behaves,
// carries its bytes to the end, and nothing is left of it all.
//
// A guest can break the control pipe once only, so each seed is a guest of its
// own. make hostile sets ARCAVM_HOSTILE_GUEST_OPERATIONS, of each attacking CPU
// and all guests together, and ARCAVM_HOSTILE_SEED for a long run.
func TestHostileGuest(t *testing.T) {
	const (
		guests = 8    // as many as there are ways to break the control pipe
		enough = 8000 // operations for some of everything
	)
	operations, seed := variable(t, "ARCAVM_HOSTILE_GUEST_OPERATIONS", enough), variable(t, "ARCAVM_HOSTILE_SEED", 1)
	opened, through, errors := make(map[uint16]uint64), make(map[string]uint64), uint64(0)
	needKVM(t)
	for i := range uint64(guests) {
		t.Run(fmt.Sprint("seed ", seed+i), func(t *testing.T) {
			s, counts := attack(t, seed+i, operations/guests)
			for protocol, n := range s.Relay.Opened {
				opened[protocol] += n
			}
			for _, c := range counts {
				through[c.Of] += c.N
			}
			errors += s.Relay.FileErrors
		})
	}
	t.Logf("opened %v, %d errors of files, outside: %v", opened, errors, through)
	if operations < enough {
		return
	}
	for protocol := range wire.ProtocolTLSListener + 1 {
		if opened[protocol] == 0 {
			t.Errorf("no stream of protocol %d was opened", protocol)
		}
	}
	for of, n := range through {
		if n == 0 {
			t.Errorf("%s: none", of)
		}
	}
	if errors == 0 {
		t.Error("no request about a file failed")
	}
}

// needKVM skips a test that says something about several guests, which skip
// themselves, where there can be none.
func needKVM(t *testing.T) {
	t.Helper()
	system, err := kvm.Open("")
	if err != nil {
		vmmtest.Unavailable(t, err)
	}
	if err := system.Close(); err != nil {
		t.Fatal(err)
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

// attack boots one guest. Nothing that it does reaches anything but itself and
// a World of its own.
func attack(t *testing.T, seed, operations uint64) (vmm.Stats, []outside.Count) {
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "f"), 0o700), os.WriteFile(filepath.Join(dir, "a"), content(seed, 100_000), 0o600)); err != nil {
		t.Fatal(err)
	}
	descriptors := openDescriptors(t)
	world := outside.New(t)
	folder, err := share.Open(dir, true)
	if err != nil {
		t.Fatal(err)
	}
	sockets, err := share.Open(world.Folder, true)
	if err != nil {
		t.Fatal(err)
	}
	g := vmmtest.Boot(t, vmm.Config{
		Image: vmmtest.Image(t, "hostile"), Args: []string{fmt.Sprint(seed), fmt.Sprint(operations), world.Echo.String(), world.TLS.String()},
		CPUs: 3, StreamLimit: 64, Share: folder, Sockets: sockets, Network: world.Network(t), OnListen: world.Call,
		Input: world.Input, Output: world.Output,
		TLS: relay.TLS{RootCAs: world.Authority.Pool, Certificates: []tls.Certificate{world.Authority.Issue(t, nil)}},
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
	if err := errors.Join(folder.Close(), sockets.Close()); err != nil {
		t.Error(err)
	}
	world.Close(t)
	if n := openDescriptors(t); n > descriptors {
		t.Errorf("%d descriptors, %d before", n, descriptors)
	}
	made := outside.Count{Of: "bytes in a file that the guest made"}
	if info, err := os.Stat(filepath.Join(dir, "b")); err == nil {
		made.N = uint64(info.Size())
	}
	return s, append(world.Counts(), made)
}
