package main

import (
	"context"
	"errors"
	"os"
	"syscall"
	"testing"

	"github.com/fix-project/arcavm/vmm"
)

// The first signal asks the guest to stop, if it is one of those that do.
func TestAttend(t *testing.T) {
	t.Parallel()
	both, interrupt := []os.Signal{os.Interrupt, syscall.SIGTERM}, []os.Signal{os.Interrupt}
	for name, c := range map[string]struct {
		asking []os.Signal
		sent   []os.Signal
		asked  bool
		code   int // 0: not ended
		looked bool
	}{
		"Ctrl-C":                     {both, []os.Signal{os.Interrupt}, true, 0, false},
		"SIGTERM":                    {both, []os.Signal{syscall.SIGTERM}, true, 0, false},
		"Ctrl-C twice":               {both, []os.Signal{os.Interrupt, os.Interrupt}, true, 130, true},
		"SIGTERM after Ctrl-C":       {both, []os.Signal{os.Interrupt, syscall.SIGTERM}, true, 143, true},
		"Ctrl-C alone":               {interrupt, []os.Signal{os.Interrupt}, true, 0, false},
		"SIGQUIT":                    {both, []os.Signal{syscall.SIGQUIT}, false, 131, true},
		"SIGQUIT after Ctrl-C":       {both, []os.Signal{os.Interrupt, syscall.SIGQUIT}, true, 131, true},
		"hang-up after Ctrl-C":       {both, []os.Signal{os.Interrupt, syscall.SIGHUP}, true, 129, false},
		"SIGTERM that asks for none": {interrupt, []os.Signal{syscall.SIGTERM}, false, 143, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &signals{caught: make(chan os.Signal), done: make(chan struct{})}
			ctx, cancel := context.WithCancelCause(t.Context())
			asked := make(chan struct{}, 1)
			s.attend(c.asking, ending{
				stop:    func(os.Signal) { asked <- struct{}{} },
				look:    func(os.Signal) *vmm.Report { return new(vmm.Report) },
				cancel:  cancel,
				abandon: func(error) { t.Error("the process would have ended by itself") },
			})
			for i, sig := range c.sent {
				s.caught <- sig
				if i == 0 && c.asked {
					<-asked
				}
			}
			if c.code != 0 {
				<-ctx.Done()
			}
			s.release()
			var end *signalError
			if errors.As(context.Cause(ctx), &end); c.code != 0 && (end == nil || exitSignal+int(end.signal) != c.code) || c.code == 0 && end != nil {
				t.Errorf("the VM's end is %v, want code %d", context.Cause(ctx), c.code)
			}
			if looked := end != nil && end.guest != nil; looked != c.looked {
				t.Errorf("the guest was looked at: %v", !c.looked)
			}
			if len(asked) > 0 {
				t.Error("the guest was asked to stop")
			}
		})
	}
}
