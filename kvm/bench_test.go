package kvm

import (
	"encoding/binary"
	"errors"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// BenchmarkHypercall is a guest's OUT, the registers read, a result put into
// RAX, and the way back into the guest.
func BenchmarkHypercall(b *testing.B) {
	b.Run("exit only", func(b *testing.B) {
		benchmarkCalls(b, false, func(*VCPU) {})
	})
	b.Run("sync regs", func(b *testing.B) {
		benchmarkCalls(b, true, func(v *VCPU) {
			v.SyncedRegs().RAX++
			v.SyncDirty()
		})
	})
	b.Run("ioctls", func(b *testing.B) {
		benchmarkCalls(b, false, func(v *VCPU) {
			regs, err := v.GetRegs()
			must(b, err)
			regs.RAX++
			must(b, v.SetRegs(regs))
		})
	})
}

func benchmarkCalls(b *testing.B, sync bool, handle func(*VCPU)) {
	onThread(b)
	g := newGuest(b)
	if sync && !g.features.SyncRegs {
		b.Skip("this KVM keeps no registers in the run page; Linux 4.17 and later do")
	}
	v := g.vcpu(b, 0, codeCallLoop)
	if sync {
		v.SyncOnExit()
	}
	run(b, v, ExitIO)
	b.ReportAllocs()
	for b.Loop() {
		handle(v)
		run(b, v, ExitIO)
	}
}

// BenchmarkInstruction is one of the cheapest instructions of a guest's kernel.
// Where KVM is software, it interprets them.
func BenchmarkInstruction(b *testing.B) {
	const perCall = 2000
	onThread(b)
	v := newGuest(b).vcpu(b, 0, codeCountLoop)
	run(b, v, ExitIO)
	for b.Loop() {
		run(b, v, ExitIO)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/perCall, "ns/instruction")
}

// BenchmarkInterrupt is an eventfd written, the guest's interrupt handler, and
// its OUT.
func BenchmarkInterrupt(b *testing.B) {
	b.Run("same thread", func(b *testing.B) {
		onThread(b)
		v, fd := interruptGuest(b)
		one := binary.NativeEndian.AppendUint64(nil, 1)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := unix.Write(fd, one); err != nil {
				b.Fatal(err)
			}
			run(b, v, ExitIO)
		}
	})
	// As a relay's goroutine wakes a guest that sleeps, the switches between
	// goroutines included.
	b.Run("another goroutine", func(b *testing.B) {
		v, fd := interruptGuest(b)
		exits, done := make(chan error), make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			v.BindThread()
			defer v.UnbindThread()
			for {
				err := v.Run()
				if errors.Is(err, ErrInterrupted) {
					if v.page.control.Load() == controlImmediateExit {
						return
					}
					continue
				}
				exits <- err
			}
		}()
		one := binary.NativeEndian.AppendUint64(nil, 1)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := unix.Write(fd, one); err != nil {
				b.Fatal(err)
			}
			must(b, <-exits)
		}
		must(b, v.Kick())
		<-done
	})
}

// interruptGuest is a guest that sleeps, with a handler that does OUT, and the
// eventfd that runs the handler.
func interruptGuest(b *testing.B) (*VCPU, int) {
	g := newGuest(b)
	g.needX2APIC(b)
	g.setHandler(codeEOI, codeOutByte, codeReturn)
	v := g.vcpu(b, 0, codeEnableAPI, codeOutByte, codeHaltLoop)
	must(b, g.vm.SetGSIRouting([]IRQRoute{{GSI: 1, MSI: FixedMSI(0, testVector)}}))
	fd := eventFD(b)
	must(b, g.vm.AssignIRQFD(fd, 1))
	// Before its local APIC is enabled, an interrupt is lost.
	run(b, v, ExitIO)
	return v, fd
}
