package kvm

import (
	"runtime"
	"testing"
	"time"
)

// A vCPU is halted while it sleeps in hlt: not before it runs, not while it is
// busy, and not after its thread has left.
func TestHalted(t *testing.T) {
	codeSpin := []byte{0xEB, 0xFE} // jmp .
	for name, c := range map[string]struct {
		code []byte
		want bool
	}{
		"halted": {codeHalt, true},
		"busy":   {codeSpin, false},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t)
			v := g.vcpu(t, 0, codeOutByte, c.code)
			if v.Halted() {
				t.Error("halted before it runs")
			}
			started, done := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(done)
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				v.BindThread()
				defer v.UnbindThread()
				run(t, v, ExitIO)
				close(started)
				_ = v.Run() // until Kick
			}()
			<-started
			if c.want {
				for late := time.Now().Add(time.Minute); !v.Halted(); runtime.Gosched() {
					if time.Now().After(late) {
						t.Fatal("not halted")
					}
				}
			} else {
				for range 1000 {
					if v.Halted() {
						t.Fatal("halted while it is busy")
					}
					runtime.Gosched()
				}
			}
			must(t, v.Kick())
			<-done
			if v.Halted() {
				t.Error("halted without a thread")
			}
		})
	}
}
