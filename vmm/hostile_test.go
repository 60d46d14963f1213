package vmm_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"

	"github.com/fix-project/arcavm/vmm"
	"github.com/fix-project/arcavm/vmm/vmmtest"
)

// A guest that attacks the monitor from several CPUs hurts nobody but itself: one of its streams, which behaves, carries its bytes to the end, and nothing
// is left of it all. make hostile sets ARCAVM_HOSTILE_GUEST_OPERATIONS, for each attacking CPU, and ARCAVM_HOSTILE_SEED for a long run.
func TestHostileGuest(t *testing.T) {
	operations, seed := os.Getenv("ARCAVM_HOSTILE_GUEST_OPERATIONS"), os.Getenv("ARCAVM_HOSTILE_SEED")
	if operations == "" {
		operations = "2000"
	}
	if seed == "" {
		seed = "1"
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
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
	descriptors := openDescriptors(t)
	g := vmmtest.Boot(t, vmm.Config{
		Image: vmmtest.Image(t, "hostile"), Args: []string{seed, operations, fmt.Sprint(l.Addr())}, CPUs: 3, StreamLimit: 64,
	})
	g.AllowLostWakeups()
	if code, err := g.Wait(); code != 0 || err != nil {
		t.Errorf("the guest ended with %d, %v", code, err)
	}
	s := g.VM.Stats()
	t.Logf("%s operations on each of two CPUs, seed %s: %d pipes, %d broken rings, hypercalls %v", operations, seed,
		s.Pipes.Opened, s.Pipes.Broken, s.Hypercalls)
	if s.Pipes.Broken == 0 {
		t.Error("this was no attack")
	}
	if s.Pipes.Open != 0 || s.Pipes.RingBytes != 0 {
		t.Errorf("%+v is left", s.Pipes)
	}
	l.Close()
	serving.Wait()
	if n := openDescriptors(t); n > descriptors {
		t.Errorf("%d descriptors, %d before", n, descriptors)
	}
}
