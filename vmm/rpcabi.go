package vmm

import (
	"context"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/hypercall"
	"github.com/fix-project/arcavm/kvm"
	"github.com/fix-project/arcavm/rpc"
)

// rpcABI is Arca's older request/response ABI, whose guests ask by messages.
type rpcABI struct {
	olderABI
	server *rpc.Server
}

func (a *rpcABI) load() (err error) {
	v := a.vm
	if err := v.cfg.Image.Load(ramBase, v.memory.ram.mem); err != nil {
		return err
	}
	o := a.options()
	o.Args, o.Signal = v.args(), a.raise
	o.OnExit = func(code int32) { v.end(outcome{code: int(code & 0xFF)}) }
	if a.server, err = rpc.New(o); err != nil {
		return &ConfigError{"memory", err.Error()}
	}
	a.olderABI.guest = a.server
	return a.layOut()
}

func (a *rpcABI) raise() { _, _ = unix.Write(a.signal, eventfdOne) }

func (a *rpcABI) entry(i int) entryState {
	e := a.server.Entry()
	return a.entryWith(i, kvm.Regs{RSI: e.Allocator, RDX: e.RxOffset, RCX: e.RxLength, R8: e.TxOffset, R9: e.TxLength})
}

func (a *rpcABI) hostCalls() *hypercall.HostCalls { return nil }

func (a *rpcABI) serve(ctx context.Context) error { return a.server.Serve(ctx) }

func (a *rpcABI) notifyRead(id uint64) error { return a.server.NotifyRead(id) }

func (a *rpcABI) notifyWrite(id uint64) error { return a.server.NotifyWrite(id) }

func (a *rpcABI) stats(s *Stats) {
	if a.server != nil {
		s.RPC = a.server.Stats()
	}
}
