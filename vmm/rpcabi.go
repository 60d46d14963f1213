package vmm

import (
	"context"

	"github.com/fix-project/arcavm/hypercall"
	"github.com/fix-project/arcavm/internal/eventfd"
	"github.com/fix-project/arcavm/kvm"
	"github.com/fix-project/arcavm/rpc"
)

// rpcBuilder makes machines of Arca's older request/response ABI, whose guests
// ask by messages.
type rpcBuilder struct{}

func (rpcBuilder) needs(f kvm.Features) (needs, error) { return olderNeeds(f) }

func (rpcBuilder) build(v *VM) (_ runner, err error) {
	if err := v.loadImage(v.memory.ram.end()); err != nil {
		return nil, err
	}
	r := &rpcRunner{olderRunner: olderRunner{signal: -1, quit: -1}}
	o := olderOptions(v)
	o.Args, o.Signal = v.args(), r.raise
	o.OnExit = func(code int32) { v.end(outcome{code: int(code & 0xFF)}) }
	if r.server, err = rpc.New(o); err != nil {
		return nil, &ConfigError{"memory", err.Error()}
	}
	e := r.server.Entry()
	regs := kvm.Regs{RSI: e.Allocator, RDX: e.RxOffset, RCX: e.RxLength, R8: e.TxOffset, R9: e.TxLength}
	if err := r.build(v, r.server, regs); err != nil {
		return nil, err
	}
	return r, nil
}

// rpcRunner serves a guest of the request/response ABI.
type rpcRunner struct {
	olderRunner
	server *rpc.Server
}

// raise tells the guest that there is an answer.
func (r *rpcRunner) raise() { eventfd.Signal(r.signal) }

func (r *rpcRunner) handle(h *hypercall.Handlers) {
	h.NotifyRead, h.NotifyWrite = r.server.NotifyRead, r.server.NotifyWrite
}

func (r *rpcRunner) serve(ctx context.Context) error { return r.server.Serve(ctx) }

func (r *rpcRunner) stats(s *Stats) { s.RPC = r.server.Stats() }
