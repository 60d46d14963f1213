package vmm

import (
	"context"

	"github.com/fix-project/arcavm/hypercall"
	"github.com/fix-project/arcavm/kvm"
	"github.com/fix-project/arcavm/vmm/image"
)

// abi is what differs between the guest ABIs: what lies in memory at the
// start, with which registers a CPU enters, and who serves the guest. It is
// chosen once, by the image. Its methods are called in the order given here;
// those from serve to stop concurrently.
type abi interface {
	// check refuses a machine that lacks what the guest needs.
	check() error
	// windowSize is how much memory above RAM guest and monitor share; it may be 0.
	windowSize() uint64
	// load puts the image and what belongs to it into mapped memory.
	load() error
	// connect makes the interrupt controllers, and ties interrupts and streams
	// together. The CPUs don't exist yet.
	connect() error
	// hostCalls are hypercalls that only this ABI has; nil: none.
	hostCalls() *hypercall.HostCalls
	// kvmClock reports whether CPUID shows KVM's clock, and so KVM.
	kvmClock() bool
	// entry is the state in which CPU i starts.
	entry(i int) entryState
	// finish writes what can only be known when all CPUs are there.
	finish() error

	// serve serves the guest's requests until ctx is done and leaves nothing behind.
	serve(ctx context.Context) error
	// notifyRead and notifyWrite are the hypercalls. They don't block.
	notifyRead(id uint64) error
	notifyWrite(id uint64) error
	// stop asks the guest to end. It reports whether the request arrived.
	stop() (bool, error)

	// drain lets what a guest that has exited still had to say go out, until ctx is done.
	drain(ctx context.Context)
	// stats fills in what the ABI counts. It may be called at any time before free.
	stats(s *Stats)
	// free gives back what load and connect made, however far they came. No CPU
	// runs any more and serve has returned.
	free() error
}

// entryState is what a CPU starts with, beside the image's entry address.
type entryState struct {
	tables      uint64 // physical address of the PML4
	regs        kvm.Regs
	noExecute   bool // pages can be not executable
	globalPages bool // page table entries can be global
	x2APIC      bool // the local APIC is in x2APIC mode already
	extended    bool // XSAVE may be used, where there is one, for all that AVX needs
	tscKHz      int  // of the time stamp counter, if the guest takes it for granted; else 0
}

// newABI returns the ABI that the configuration of v asks for.
func newABI(v *VM) (abi, error) {
	older := olderABI{vm: v, signal: -1, quit: -1}
	switch v.cfg.ABI {
	case image.ABIRPC:
		return &rpcABI{olderABI: older}, nil
	case image.ABIHypercall:
		args, err := parseNumbers(v.cfg.Args)
		return &hypercallABI{olderABI: older, args: args}, err
	default:
		return &streamABI{vm: v}, nil
	}
}
