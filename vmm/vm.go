package vmm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/fix-project/arcavm/internal/limit"
	"github.com/fix-project/arcavm/vmm/image"
)

// ErrClosed is returned by operations on a VM that has been closed or has run.
var ErrClosed = errors.New("vmm: the VM is closed")

// VM is one virtual machine. [New] builds it, [VM.Run] runs it once and frees
// it. All methods may be called concurrently.
type VM struct {
	machine  // what it is made of: build.go
	life     // how far it is
	counters // what it has done: stats.go

	runner  runner // nil if New failed
	clock   *hostClock
	log     guestLog
	refused *limit.Log // hypercalls
	console console

	// inspecting is held while a report is made, and before anything that it
	// looks at is freed. It comes before life.mu.
	inspecting sync.Mutex
}

// life is how far a VM is. Each state is entered once, from any above it:
//
//	state    entered by                    Run        Stop     Stats, Report
//	built    New                           starts     tries    answer
//	running  Run: started                  ErrClosed  tries    answer
//	ending   end: exit, crash, Close, ctx  ErrClosed  tries    answer
//	freed    free: freeing, then freed     ErrClosed  nothing  final, or error
//
// A pause isn't one of these states: see gate.
type life struct {
	gate    *gate // where the CPUs wait, and see that the VM ends
	endOnce sync.Once
	ended   chan struct{} // closed when outcome is set
	outcome outcome

	freed    chan struct{} // closed when everything is freed
	stopOnce sync.Once

	// mu orders Run, Stop, Stats and Close against the freeing of what they
	// use.
	mu      sync.Mutex
	started bool
	freeing bool // the machine and the runner are being freed, or are no more
}

func newLife() life {
	return life{gate: newGate(), ended: make(chan struct{}), freed: make(chan struct{})}
}

// outcome is how a run ended: an exit code, or an error.
type outcome struct {
	code int
	err  error
}

// reported tells whether the outcome's error shows what every CPU was doing.
// The field err doesn't change once the VM is ending.
func (o *outcome) reported() bool {
	var crash *CrashError
	var hang *HangError
	return errors.As(o.err, &crash) || errors.As(o.err, &hang)
}

// String says how the run ended. A CrashError may be without its backtrace yet,
// so only its reason is looked at.
func (o *outcome) String() string {
	var crash *CrashError
	switch {
	case errors.As(o.err, &crash):
		return crash.Reason
	case o.err != nil:
		return o.err.Error()
	}
	return fmt.Sprintf("code %d", o.code)
}

// timeIsUp is the error of a run whose context has ended.
func (v *VM) timeIsUp(ctx context.Context) error {
	if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return context.Cause(ctx)
	}
	return &HangError{Report: Report{Log: v.log.tail()}, cause: context.Cause(ctx)}
}

// ABI returns what the guest is served by, never [image.ABIAuto].
func (v *VM) ABI() image.ABI { return v.cfg.ABI }

// Run starts the guest and waits for its end. It returns the guest's exit code
// (0 to 255), or an error: a *CrashError if the guest died, a *HangError if
// ctx's deadline came first, the context's cause if ctx was cancelled, or what
// went wrong on the host. When it returns, everything that the VM used is
// freed. Run can be called once.
func (v *VM) Run(ctx context.Context) (int, error) {
	if !v.begin() {
		return 0, ErrClosed
	}
	unhook := context.AfterFunc(ctx, func() { v.end(outcome{err: v.timeIsUp(ctx)}) })
	defer unhook()

	serveCtx, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	var serving, running sync.WaitGroup
	serving.Go(func() {
		if err := v.runner.serve(serveCtx); err != nil && serveCtx.Err() == nil {
			v.end(outcome{err: fmt.Errorf("serving streams: %w", err)})
		}
	})
	for _, c := range v.cpus {
		v.gate.arrive(c)
		running.Go(c.run)
	}
	v.timing.mark("virtual CPUs started")

	<-v.ended
	v.await(&running)
	v.completeReport()
	if v.outcome.err == nil {
		lingerCtx, cancel := context.WithTimeout(ctx, lingerTime)
		v.runner.drain(lingerCtx)
		cancel()
	}
	stopServing()
	serving.Wait()
	err := v.free()
	if v.outcome.err != nil {
		return 0, v.outcome.err
	}
	return v.outcome.code, err
}

// begin reports whether Run is called for the first time, of a VM that isn't
// closed.
func (v *VM) begin() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	first := !v.started
	v.started = true
	return first
}

// completeReport adds what the CPUs were doing to an error that shows it. All
// CPUs have left the guest.
func (v *VM) completeReport() {
	if crash := (*CrashError)(nil); errors.As(v.outcome.err, &crash) {
		crash.Others = without(v.lasts(), crash.CPU)
	}
	if hang := (*HangError)(nil); errors.As(v.outcome.err, &hang) {
		hang.CPUs = v.lasts()
	}
}

// lingerTime bounds how long what the guest wrote before its EXIT may take to
// go out.
const lingerTime = 5 * time.Second

// end records how the run ended, once, and makes every CPU leave the guest.
// Any goroutine may call it, a CPU's own too.
func (v *VM) end(o outcome) {
	v.endOnce.Do(func() {
		v.outcome = o
		v.gate.end()
		v.kick()
		close(v.ended)
	})
}

// Stop asks the guest by an interrupt to end in good order. It doesn't wait,
// and a guest may ignore it. After the end it does nothing.
func (v *VM) Stop() {
	if v.raiseStop() {
		return
	}
	v.stopOnce.Do(func() {
		go func() {
			// A local APIC that the guest hasn't enabled yet drops the message.
			retry := time.NewTicker(stopRetry)
			defer retry.Stop()
			for {
				select {
				case <-retry.C:
					if v.raiseStop() {
						return
					}
				case <-v.freed:
					return
				}
			}
		}()
	})
}

// stopRetry is how often Stop tries to reach a guest that is still starting.
const stopRetry = 10 * time.Millisecond

// raiseStop reports whether nothing is left to do for Stop.
func (v *VM) raiseStop() bool {
	delivered, err := v.tryStop()
	if err != nil {
		v.cfg.Logger.Error("asking the guest to stop", "err", err)
	}
	return delivered || err != nil
}

// tryStop reports whether the guest was reached, or is no more.
func (v *VM) tryStop() (bool, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.freeing {
		return true, nil
	}
	return v.runner.stop()
}

// Close ends the VM if it runs, waits for [VM.Run] to let go of it, and frees
// it. It may be called at any time and more than once, but not by what the VM
// itself calls and waits for: a function, a handler or a writer of its
// [Config].
func (v *VM) Close() error {
	v.end(outcome{err: ErrClosed})
	if v.begin() { // a later Run finds the VM closed
		return v.free()
	}
	<-v.freed // Run frees, or an earlier Close
	return nil
}

// free gives everything back. No CPU and no stream may be running.
func (v *VM) free() error {
	v.mu.Lock()
	if v.freeing {
		v.mu.Unlock()
		return nil
	}
	v.freeing = true
	v.final = v.count()
	v.mu.Unlock()
	// A report that is being made ends first; the next one sees freed.
	v.inspecting.Lock()
	v.inspecting.Unlock() //nolint:staticcheck // waits only
	// From here on only this goroutine looks at what is freed. It logs without
	// mu: a Logger may ask for the counters.
	defer close(v.freed)
	var err error
	if v.runner != nil {
		err = v.runner.free()
	}
	return errors.Join(err, v.machine.close())
}
