package vmm

import (
	"context"

	"github.com/fix-project/arcavm/hypercall"
	"github.com/fix-project/arcavm/kvm"
	"github.com/fix-project/arcavm/vmm/image"
)

// What differs between the guest ABIs comes in two parts, of which the first
// makes the second: a guest can't be served before its machine is complete.
//
//	New   features -> builder.needs -> memory of that size
//	               -> builder.build -> image, interrupts, CPUs -> runner
//	Run   runner.serve, runner.drain, runner.free

// builder makes a machine that guests of one ABI run in.
type builder interface {
	// needs says what a guest needs of a machine with these features, or
	// refuses it.
	needs(f kvm.Features) (needs, error)
	// build completes a machine that has its memory: it loads the image, makes
	// interrupt controllers and streams, and last the virtual CPUs. After an
	// error nothing that it made outlives it but what v.machine holds.
	build(v *VM) (runner, error)
}

// needs is what a guest needs of its machine.
type needs struct {
	window       uint64 // bytes of memory above RAM that it shares with the monitor; 0: none
	kvmClock     bool   // CPUID shows KVM's clock, and so KVM
	invariantTSC bool   // CPUID says so of the time stamp counter, whatever KVM knows
}

// runner serves a guest whose machine is complete. Its methods may be called
// concurrently, but for free, which is last.
type runner interface {
	// handle adds the hypercalls that the ABI itself does. They don't block.
	handle(h *hypercall.Handlers)
	// serve serves the guest's requests until ctx is done and leaves nothing
	// behind.
	serve(ctx context.Context) error
	// stop asks the guest to end. It reports whether the request arrived.
	stop() (bool, error)
	// drain waits until what a guest that has exited still had to say has gone
	// out, or ctx is done.
	drain(ctx context.Context)
	// stats fills in what the ABI counts.
	stats(s *Stats)
	// free gives back what build made, but for v.machine. No CPU runs any more
	// and serve has returned, or was never called.
	free() error
}

// newBuilder returns the builder for the ABI that cfg, which is valid, names.
func newBuilder(cfg *Config) builder {
	switch cfg.ABI {
	case image.ABIRPC:
		return rpcBuilder{}
	case image.ABIHypercall:
		return hypercallBuilder{}
	default:
		return streamBuilder{cfg}
	}
}
