package kvm

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// TestMain fails when goroutines, KVM's descriptors or its mappings are left.
func TestMain(m *testing.M) {
	code := m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if left := kvmResources(); left != 0 && code == 0 {
		fmt.Fprintf(os.Stderr, "%d of KVM's descriptors and mappings are left\n", left)
		code = 1
	}
	os.Exit(code)
}

// kvmResources counts this process's descriptors and mappings that are KVM's.
func kvmResources() (n int) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	for _, e := range entries {
		target, _ := os.Readlink("/proc/self/fd/" + e.Name())
		if strings.Contains(target, "kvm") {
			n++
		}
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		panic(err)
	}
	defer maps.Close()
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		if strings.Contains(lines.Text(), "kvm-vcpu") {
			n++
		}
	}
	return n
}

func TestCloseFrees(t *testing.T) {
	before := kvmResources()
	for range 3 {
		sys := openSystem(t)
		vm, err := sys.CreateVM()
		must(t, err)
		must(t, vm.CreateIRQChip())
		v, err := vm.CreateVCPU(0)
		must(t, err)
		// The device, the VM, the vCPU and its run area.
		if n := kvmResources() - before; n != 4 {
			t.Errorf("%d of KVM's descriptors and mappings, want 4", n)
		}
		for range 2 {
			must(t, sys.Close())
			must(t, vm.Close())
			must(t, v.Close())
		}
		if n := kvmResources() - before; n != 0 {
			t.Errorf("%d of KVM's descriptors and mappings are left", n)
		}

		v.SetImmediateExit(true)
		must(t, v.Kick())
		for name, err := range map[string]error{
			"System": check(sys.checkExtension(0)),
			"VM":     vm.CreateIRQChip(),
			"VCPU":   v.SetMPState(MPRunnable),
			"Run":    v.Run(),
		} {
			if !errors.Is(err, ErrClosed) {
				t.Errorf("%s after Close: %v", name, err)
			}
		}
	}
}

// Close ends a Run in flight, and what that uses is freed when it returns.
func TestCloseInFlight(t *testing.T) {
	g := newGuest(t)
	v := g.vcpu(t, 0, codeCount)
	before := kvmResources()
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		v.BindThread()
		defer v.UnbindThread()
		for {
			if err := v.Run(); !errors.Is(err, ErrInterrupted) {
				result <- err
				return
			}
		}
	}()
	for atomic.LoadUint64(g.counter()) == 0 {
		runtime.Gosched()
	}
	must(t, v.Close())
	if err := <-result; !errors.Is(err, ErrClosed) {
		t.Errorf("Run: %v", err)
	}
	if n := before - kvmResources(); n != 2 {
		t.Errorf("%d descriptors and mappings were freed, want 2", n)
	}
}

// Of many closers and callers at once, one frees, and no call works on what is
// freed.
func TestHandle(t *testing.T) {
	t.Parallel()
	for range 100 {
		var frees, inFlight atomic.Int32
		h := &handle{}
		h.free = func() error {
			frees.Add(1)
			if inFlight.Load() != 0 {
				t.Error("freed with a call in flight")
			}
			return unix.EIO
		}
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for h.acquire() == nil {
					inFlight.Add(1)
					runtime.Gosched()
					inFlight.Add(-1)
					h.release()
				}
			})
		}
		for range 2 {
			wg.Go(func() {
				if err := h.close(); err != nil && !errors.Is(err, unix.EIO) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := frees.Load(); n != 1 {
			t.Fatalf("freed %d times", n)
		}
	}
}

// 64 vCPUs, a thread each, and each knows its own id.
func TestManyVCPUs(t *testing.T) {
	g := newGuest(t)
	g.needX2APIC(t)
	n := min(64, g.features.MaxVCPUs)
	vcpus := make([]*VCPU, n)
	for i := range vcpus {
		vcpus[i] = g.vcpu(t, i, codeReadID, codeOutLong)
	}
	var wg sync.WaitGroup
	for i, v := range vcpus {
		wg.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			var err error
			for err = v.Run(); errors.Is(err, ErrInterrupted); err = v.Run() {
			}
			if err != nil || v.ExitReason() != ExitIO {
				t.Errorf("vCPU %d: %v, exit %v", i, err, v.ExitReason())
				return
			}
			if io := v.IO(); string(io.Data) != string([]byte{byte(i), 0, 0, 0}) {
				t.Errorf("vCPU %d says %v", i, io.Data)
			}
		})
	}
	wg.Wait()
}
