package vmm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fix-project/arcavm/hypercall"
	"github.com/fix-project/arcavm/internal/limit"
	"github.com/fix-project/arcavm/kvm"
	"github.com/fix-project/arcavm/vmm/image"
)

// ErrClosed is returned by operations on a VM that has been closed or has run.
var ErrClosed = errors.New("vmm: the VM is closed")

// VM is one virtual machine. [New] builds it, [VM.Run] runs it once and frees
// it. All methods may be called concurrently.
type VM struct {
	cfg      Config
	guest    abi
	features kvm.Features
	system   *kvm.System
	vm       *kvm.VM
	memory   *memory
	calls    *hypercall.Table
	clock    *hostClock
	log      guestLog
	refused  *limit.Log // hypercalls
	console  console
	cpus     []*cpu
	timing   timing

	// ending is set once, before the CPUs are kicked; each CPU looks at it
	// before it enters the guest.
	ending  atomic.Bool
	endOnce sync.Once
	ended   chan struct{}
	outcome outcome

	done     chan struct{} // closed when freed
	stopOnce sync.Once

	// inspecting is held while a report is made, and before anything that it
	// looks at is freed. It comes before mu.
	inspecting sync.Mutex

	// mu orders Run, Stop, Stats and Close against the freeing of what they use.
	mu      sync.Mutex
	started bool
	freed   bool
	last    Stats // as it was when the VM was freed
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

// New builds a VM and loads its image; nothing of the guest runs yet. The
// caller must call [VM.Run] or [VM.Close]. Errors are *ConfigError for a bad
// value in cfg, *image.LoadError for an image that doesn't fit,
// *kvm.UnavailableError and *MissingError for a machine that can't run it, or wrap an errno.
func New(cfg Config) (_ *VM, err error) {
	v := &VM{ended: make(chan struct{}), done: make(chan struct{})}
	v.timing.start = time.Now()
	if v.clock, err = newHostClock(readHostClock); err != nil {
		return nil, err
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	v.cfg = cfg.WithDefaults()
	if v.guest, err = newABI(v); err != nil {
		return nil, err
	}
	v.log.logger, v.log.first = v.cfg.Logger, func() { v.timing.mark("first log record of the guest") }
	v.log.bytes = limit.NewRate(v.cfg.LogLimit, logBurst)
	v.refused = limit.NewLog(time.Second, 10)
	v.console.logger, v.console.w = v.cfg.Logger, v.cfg.Console
	defer func() {
		if err != nil {
			err = errors.Join(err, v.Close())
		}
	}()
	if err := v.openKVM(); err != nil {
		return nil, err
	}
	if err := v.buildMemory(); err != nil {
		return nil, err
	}
	if err := v.buildInterrupts(); err != nil {
		return nil, err
	}
	if err := v.buildCPUs(); err != nil {
		return nil, err
	}
	return v, nil
}

func (v *VM) openKVM() (err error) {
	if v.system, err = kvm.Open(v.cfg.Device); err != nil {
		return err
	}
	if v.features, err = v.system.Features(); err != nil {
		return err
	}
	if err := v.guest.check(); err != nil {
		return err
	}
	if n := v.features.MaxVCPUs; v.cfg.CPUs > n {
		return &ConfigError{"cpus", fmt.Sprintf("%d are more than the %d that this machine's KVM allows", v.cfg.CPUs, n)}
	}
	if v.vm, err = v.system.CreateVM(); err != nil {
		return err
	}
	v.timing.mark("KVM opened, VM created")
	return nil
}

func (v *VM) buildMemory() (err error) {
	if v.memory, err = newMemory(v.cfg.Memory, v.guest.windowSize()); err != nil {
		return err
	}
	if end, limit := v.memory.end(), uint64(1)<<v.features.PhysBits; end > limit {
		return &ConfigError{"memory", fmt.Sprintf("%s and a window of %s end above the %s that this processor can address",
			size(v.cfg.Memory), size(v.guest.windowSize()), size(limit))}
	}
	for slot, r := range v.memory.regions() {
		if err := v.vm.SetUserMemoryRegion(uint32(slot), 0, r.base, r.mem); err != nil {
			return err
		}
	}
	v.timing.mark("memory mapped")
	if err := v.guest.load(); err != nil {
		return err
	}
	v.timing.mark("image loaded")
	return nil
}

// buildInterrupts comes after buildMemory: a change of memory slots waits for
// all readers of KVM's interrupt routes, which takes milliseconds once there are any.
func (v *VM) buildInterrupts() error {
	// Intel processors without unrestricted guest mode want three pages and
	// one page of address space for real mode, which no guest of ours enters.
	// They must not overlap a memory slot; nothing else lies below 4 GiB.
	if err := v.vm.SetTSSAddr(0xFFFB_D000); err != nil {
		return err
	}
	if err := v.vm.DisablePMU(); err != nil {
		return err
	}
	if err := v.guest.connect(); err != nil {
		return err
	}
	v.calls = v.newCalls()
	v.timing.mark("interrupts and streams ready")
	return nil
}

func (v *VM) buildCPUs() error {
	supported, err := v.system.SupportedCPUID()
	if err != nil {
		return err
	}
	cpuid := guestCPUID(supported, v.guest.kvmClock())
	for i := range v.cfg.CPUs {
		c, err := newCPU(v, i, cpuid)
		if err != nil {
			return err
		}
		v.cpus = append(v.cpus, c)
	}
	if err := v.guest.finish(); err != nil {
		return err
	}
	v.timing.mark("virtual CPUs ready")
	return nil
}

// ABI returns what the guest is served by, never [image.ABIAuto].
func (v *VM) ABI() image.ABI { return v.cfg.ABI }

func (v *VM) args() []string {
	return append([]string{v.cfg.Image.Name}, v.cfg.Args...)
}

// Run starts the guest and waits for its end. It returns the guest's exit code
// (0 to 255), or an error: a *CrashError if the guest died, a *HangError if
// ctx's deadline came first, the context's cause if ctx was cancelled, or what
// went wrong on the host. When it returns, everything that the VM used is
// freed. Run can be called once.
func (v *VM) Run(ctx context.Context) (int, error) {
	v.mu.Lock()
	if v.started {
		v.mu.Unlock()
		return 0, ErrClosed
	}
	v.started = true
	v.mu.Unlock()

	unhook := context.AfterFunc(ctx, func() { v.end(outcome{err: v.timeIsUp(ctx)}) })
	defer unhook()

	serveCtx, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	var serving, running sync.WaitGroup
	serving.Go(func() {
		if err := v.guest.serve(serveCtx); err != nil && serveCtx.Err() == nil {
			v.end(outcome{err: fmt.Errorf("serving streams: %w", err)})
		}
	})
	for _, c := range v.cpus {
		c.running.Store(true)
		running.Go(c.run)
	}
	v.timing.mark("virtual CPUs started")

	<-v.ended
	v.await(&running)
	if crash := (*CrashError)(nil); errors.As(v.outcome.err, &crash) {
		crash.Others = without(v.lasts(), crash.CPU)
	}
	if hang := (*HangError)(nil); errors.As(v.outcome.err, &hang) {
		hang.CPUs = v.lasts()
	}
	if v.outcome.err == nil {
		lingerCtx, cancel := context.WithTimeout(ctx, lingerTime)
		v.guest.drain(lingerCtx)
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

// lingerTime bounds how long what the guest wrote before its EXIT may take to go out.
const lingerTime = 5 * time.Second

// end records how the run ended, once, and makes every CPU leave the guest.
// Any goroutine may call it, a CPU's own too.
func (v *VM) end(o outcome) {
	v.endOnce.Do(func() {
		v.outcome = o
		v.ending.Store(true)
		for _, c := range v.cpus {
			// A CPU that can't be kicked is one that doesn't run.
			_ = c.vcpu.Kick()
		}
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
				case <-v.done:
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
	if v.freed {
		return true, nil
	}
	return v.guest.stop()
}

// Close ends the VM if it runs, waits for [VM.Run] to let go of it, and frees
// it. It may be called at any time and more than once, but not by what the VM itself calls and waits for:
// a function, a handler or a writer of its [Config].
func (v *VM) Close() error {
	v.end(outcome{err: ErrClosed})
	v.mu.Lock()
	running := v.started
	v.started = true // a later Run finds the VM closed
	v.mu.Unlock()
	if running {
		<-v.done // Run frees, or an earlier Close
		return nil
	}
	return v.free()
}

// free gives everything back. No CPU and no stream may be running.
func (v *VM) free() error {
	v.mu.Lock()
	if v.freed {
		v.mu.Unlock()
		return nil
	}
	v.freed = true
	v.last = v.stats()
	v.mu.Unlock()
	// A report that is being made ends first; the next one sees freed.
	v.inspecting.Lock()
	v.inspecting.Unlock() //nolint:staticcheck // waits only
	// From here on nobody else looks at what is freed. What logs meanwhile may be a Logger that asks for the counters.
	defer close(v.done)
	errs := []error{v.guest.free()}
	for _, c := range v.cpus {
		errs = append(errs, c.vcpu.Close())
	}
	if v.vm != nil {
		errs = append(errs, v.vm.Close())
	}
	if v.memory != nil {
		errs = append(errs, v.memory.close())
	}
	if v.system != nil {
		errs = append(errs, v.system.Close())
	}
	return errors.Join(errs...)
}
