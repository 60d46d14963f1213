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

// hypercallABI is the oldest of Arca's ABIs, whose guests ask for sockets and
// files by hypercalls.
type hypercallABI struct {
	olderABI
	args  []uint64
	calls *rpc.Calls
}

func (a *hypercallABI) load() (err error) {
	v := a.vm
	if err := v.cfg.Image.Load(ramBase, v.memory.ram.mem); err != nil {
		return err
	}
	if a.calls, err = rpc.NewCalls(a.options(), a.args); err != nil {
		return &ConfigError{"memory", err.Error()}
	}
	a.olderABI.guest = a.calls
	return a.layOut()
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

func (a *hypercallABI) entry(i int) entryState {
	e := a.calls.Entry()
	return a.entryWith(i, kvm.Regs{RSI: e.Allocator, RDX: uint64(len(a.args)), RCX: e.ArgsAt})
}

func (a *hypercallABI) hostCalls() *hypercall.HostCalls {
	return &hypercall.HostCalls{
		First: hypercall.Number(rpc.TCPConnect), Last: hypercall.Number(rpc.FileSeek),
		Do:   func(n hypercall.Number, offset uint64) error { return a.calls.Do(rpc.Call(n), offset) },
		Name: func(n hypercall.Number) string { return rpc.Call(n).String() },
	}
}

func (a *hypercallABI) serve(ctx context.Context) error { return a.calls.Serve(ctx) }

// Guests of this ABI have no pipes.
func (a *hypercallABI) notifyRead(uint64) error { return unix.ENOSYS }

func (a *hypercallABI) notifyWrite(uint64) error { return unix.ENOSYS }

func (a *hypercallABI) stats(s *Stats) {
	if a.calls != nil {
		s.RPC = a.calls.Stats()
	}
}
