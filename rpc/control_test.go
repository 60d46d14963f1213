package rpc_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/rpc"
	"github.com/fix-project/arcavm/rpc/rpctest"
)

func TestArgsAndExit(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"k", "bob"}, {"k"}, {"k", "", "ä", strings.Repeat("x", 300_000)}, make([]string, 1024)} {
		m := newMachine(t, rpc.Options{Args: args})
		for range 3 {
			if diff := cmp.Diff(args, m.Args()); diff != "" {
				t.Error(diff)
			}
		}
		m.Exit(-300)
		if code := wait(t, m.exits, "an exit"); code != -300 {
			t.Errorf("exit code %d", code)
		}
		m.settled(t)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	if _, err := rpc.New(rpc.Options{RAM: rpctest.NewRAM(1 << 20), Args: []string{strings.Repeat("x", 4<<20)}}); !errors.Is(err, unix.ENOMEM) {
		t.Errorf("arguments larger than RAM: %v", err)
	}
	if _, err := rpc.New(rpc.Options{RAM: rpctest.NewRAM(4096)}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a page of RAM: %v", err)
	}
	if _, err := rpc.New(rpc.Options{RAM: rpctest.NewRAM(1 << 20), Reserved: []rpc.Range{{Size: 1 << 20}}}); !errors.Is(err, unix.ENOMEM) {
		t.Errorf("all of RAM reserved: %v", err)
	}
}

func TestAlloc(t *testing.T) {
	t.Parallel()
	s, err := rpc.New(rpc.Options{RAM: rpctest.NewRAM(16 << 20)})
	if err != nil {
		t.Fatal(err)
	}
	off, err := s.Alloc(2 << 20)
	if err != nil || off == 0 || off%(2<<20) != 0 {
		t.Errorf("2 MiB at %#x, %v", off, err)
	}
	if _, err := s.Alloc(16 << 20); !errors.Is(err, unix.ENOMEM) {
		t.Errorf("all of RAM: %v", err)
	}
}
