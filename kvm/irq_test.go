package kvm

import (
	"errors"
	"runtime"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/internal/eventfd"
)

const (
	testVector  = 0x41
	testHandler = guestCode - 0x1000
)

// eventFD makes an eventfd that doesn't block.
func eventFD(t testing.TB) int {
	t.Helper()
	fd, err := eventfd.New()
	must(t, err)
	t.Cleanup(func() { must(t, unix.Close(fd)) })
	return fd
}

// setHandler makes code what testVector runs.
func (g *guest) setHandler(code ...[]byte) {
	at := testHandler
	for _, c := range code {
		at += copy(g.mem[at:], c)
	}
	g.setGate(testVector, testHandler)
}

// needX2APIC skips a test whose guest code talks to its local APIC.
func (g *guest) needX2APIC(t testing.TB) {
	t.Helper()
	if !g.features.X2APIC {
		t.Skip("this KVM offers no x2APIC: use one with in-kernel interrupt controllers that does")
	}
}

func TestIRQFD(t *testing.T) {
	onThread(t)
	g := newGuest(t)
	g.needX2APIC(t)
	g.setHandler(codeEOI, codeIncrement, codeReturn)
	v := g.vcpu(t, 0, codeEnableAPI, codeOutByte, codeHalt, codeOutByte, codeHalt, codeOutByte)
	const gsi = 5
	must(t, g.vm.SetGSIRouting([]IRQRoute{{GSI: gsi, MSI: FixedMSI(0, testVector)}}))
	fd := eventFD(t)
	must(t, g.vm.AssignIRQFD(fd, gsi))
	if err := g.vm.AssignIRQFD(fd, gsi); !errors.Is(err, unix.EBUSY) {
		t.Errorf("assigned twice: %v", err)
	}

	run(t, v, ExitIO)
	eventfd.Signal(fd)
	if n := g.get64(guestData); n != 0 {
		t.Fatalf("%d interrupts while the guest doesn't run", n)
	}
	run(t, v, ExitIO)
	if n := g.get64(guestData); n != 1 {
		t.Errorf("%d interrupts, want 1", n)
	}
	delivered, err := g.vm.SignalMSI(FixedMSI(0, testVector))
	if err != nil || !delivered {
		t.Errorf("KVM_SIGNAL_MSI: %v, %v", delivered, err)
	}
	run(t, v, ExitIO)
	if n := g.get64(guestData); n != 2 {
		t.Errorf("%d interrupts, want 2", n)
	}
}

// An interrupt wakes a vCPU that sleeps in hlt.
func TestIRQFDWakes(t *testing.T) {
	g := newGuest(t)
	g.needX2APIC(t)
	g.setHandler(codeEOI, codeIncrement, codeReturn)
	v := g.vcpu(t, 0, codeEnableAPI, codeHalt, codeOutByte)
	const gsi = 24
	must(t, g.vm.SetGSIRouting([]IRQRoute{{GSI: gsi, MSI: FixedMSI(0, testVector)}}))
	fd := eventFD(t)
	must(t, g.vm.AssignIRQFD(fd, gsi))
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		v.BindThread()
		defer v.UnbindThread()
		for errors.Is(v.Run(), ErrInterrupted) {
		}
	}()
	awaitHalt(v)
	eventfd.Signal(fd)
	<-done
	if r, n := v.ExitReason(), g.get64(guestData); r != ExitIO || n != 1 {
		t.Errorf("exit %v after %d interrupts", r, n)
	}
}

// awaitHalt returns when the vCPU sleeps. The test's deadline ends a wait in
// vain.
func awaitHalt(v *VCPU) {
	for !v.Halted() {
		runtime.Gosched()
	}
}

func TestGSIRouting(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	must(t, g.vm.SetGSIRouting(nil))
	routes := make([]IRQRoute, 130)
	for i := range routes {
		routes[i] = IRQRoute{GSI: uint32(i), MSI: FixedMSI(uint8(i%64), testVector)}
	}
	must(t, g.vm.SetGSIRouting(routes))
	if err := g.vm.SetGSIRouting([]IRQRoute{{GSI: 1 << 20}}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a GSI that doesn't exist: %v", err)
	}
}

// Kick ends a Run of a guest that computes and of one that sleeps.
func TestKick(t *testing.T) {
	for _, test := range []struct {
		name string
		code []byte
		wait func(g *guest, v *VCPU)
	}{
		{"computing", codeCount, func(g *guest, _ *VCPU) {
			for before := atomic.LoadUint64(g.counter()); atomic.LoadUint64(g.counter()) == before; {
				runtime.Gosched()
			}
		}},
		{"halted", codeHaltLoop, func(_ *guest, v *VCPU) { awaitHalt(v) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := newGuest(t)
			v := g.vcpu(t, 0, test.code)
			result := make(chan error)
			again := make(chan struct{})
			go func() {
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				v.BindThread()
				defer v.UnbindThread()
				for range 2 {
					result <- runUntilKicked(v)
					<-again
					v.SetImmediateExit(false)
				}
			}()
			for range 2 {
				test.wait(g, v)
				must(t, v.Kick())
				if err := <-result; !errors.Is(err, ErrInterrupted) {
					t.Errorf("Run: %v", err)
				}
				again <- struct{}{}
			}
			// The thread is going or has gone.
			must(t, v.Kick())
		})
	}
}

var errNotKicked = errors.New("an exit")

// runUntilKicked goes round signals that aren't a kick.
func runUntilKicked(v *VCPU) error {
	for {
		err := v.Run()
		if err == nil {
			return errNotKicked
		}
		if !errors.Is(err, ErrInterrupted) || v.page.control.Load() == controlImmediateExit {
			return err
		}
	}
}
