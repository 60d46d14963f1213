package vmm

import (
	"context"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/hypercall"
	"github.com/fix-project/arcavm/kvm"
	"github.com/fix-project/arcavm/rpc"
)

// hypercallBuilder makes machines of the oldest of Arca's ABIs: its guests ask
// for sockets and files by hypercalls.
type hypercallBuilder struct{}

func (hypercallBuilder) needs(f kvm.Features) (needs, error) { return olderNeeds(f) }

func (hypercallBuilder) build(v *VM) (_ runner, err error) {
	args, err := parseNumbers(v.cfg.Args)
	if err != nil {
		return nil, err
	}
	if err := v.loadImage(v.memory.ram.end()); err != nil {
		return nil, err
	}
	r := &hypercallRunner{olderRunner: olderRunner{signal: -1, quit: -1}}
	if r.calls, err = rpc.NewCalls(olderOptions(v), args); err != nil {
		return nil, &ConfigError{"memory", err.Error()}
	}
	e := r.calls.Entry()
	regs := kvm.Regs{RSI: e.Allocator, RDX: uint64(len(args)), RCX: e.ArgsAt}
	if err := r.build(v, r.calls, regs); err != nil {
		return nil, err
	}
	return r, nil
}

// parseNumbers reads the arguments of a guest that takes nothing but numbers.
func parseNumbers(args []string) ([]uint64, error) {
	var numbers []uint64
	for _, arg := range args {
		n, err := strconv.ParseUint(arg, 0, 64)
		if err != nil {
			return nil, &ConfigError{"arguments", fmt.Sprintf("%.100q is not a number of 64 bits, and images of the hypercall ABI take no others", arg)}
		}
		numbers = append(numbers, n)
	}
	return numbers, nil
}

// hypercallRunner serves a guest of the oldest ABI.
type hypercallRunner struct {
	olderRunner
	calls *rpc.Calls
}

// handle leaves notifications without a meaning: guests of this ABI have no
// pipes.
func (r *hypercallRunner) handle(h *hypercall.Handlers) {
	h.NotifyRead = func(uint64) error { return unix.ENOSYS }
	h.NotifyWrite = h.NotifyRead
	h.HostCalls = &hypercall.HostCalls{
		First: hypercall.Number(rpc.TCPConnect), Last: hypercall.Number(rpc.FileSeek),
		Do:   func(n hypercall.Number, offset uint64) error { return r.calls.Do(rpc.Call(n), offset) },
		Name: func(n hypercall.Number) string { return rpc.Call(n).String() },
	}
}

func (r *hypercallRunner) serve(ctx context.Context) error { return r.calls.Serve(ctx) }

func (r *hypercallRunner) stats(s *Stats) { s.RPC = r.calls.Stats() }
