package vmm

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/fix-project/arcavm/hypercall"
	"github.com/fix-project/arcavm/kvm"
	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/relay"
	"github.com/fix-project/arcavm/wire"
)

// controlRingSize is the size of each ring of the control pipe: room for over
// a thousand requests.
const controlRingSize = 64 << 10

// streamABI is the ABI of PROTOCOL.md.
type streamABI struct {
	vm         *VM
	layout     bootLayout
	interrupts *interrupts
	table      *pipes.Table
	control    *pipes.Pipe
	server     *relay.Server
}

// check refuses sockets where they can't be: a socket is named by its
// descriptor's path, for no path, link or rename may lead to another one.
func (a *streamABI) check() error {
	if a.vm.cfg.Sockets.None() {
		return nil
	}
	if _, err := os.Stat("/proc/self/fd"); err != nil {
		return &ConfigError{"sockets", "UNIX sockets need /proc, which isn't mounted here"}
	}
	return nil
}

func (a *streamABI) windowSize() uint64 { return a.vm.cfg.Window }

func (a *streamABI) load() (err error) {
	v := a.vm
	if a.layout, err = layOut(v.memory, v.features.GiBPages, v.cfg.CPUs, v.args()); err != nil {
		return err
	}
	if err := v.cfg.Image.Load(ramBase, v.memory.ram.mem[:a.layout.tables-ramBase]); err != nil {
		return err
	}
	return writeTables(v.memory, v.features.GiBPages, a.layout.tables)
}

func (a *streamABI) connect() (err error) {
	v := a.vm
	if err := v.vm.CreateLocalAPICs(); err != nil {
		return err
	}
	// What PROTOCOL.md doesn't name doesn't answer.
	if err := v.vm.DisableQuirks(kvm.QuirkLocalAPICHole | kvm.QuirkHypercall | kvm.QuirkMWAIT); err != nil {
		return err
	}
	if a.interrupts, err = newInterrupts(v.vm, v.cfg.CPUs); err != nil {
		return err
	}
	a.table, err = pipes.NewTable(v.memory.window.mem, pipes.Options{
		CPUs:        v.cfg.CPUs,
		StreamLimit: v.cfg.StreamLimit,
		RingLimit:   int64(v.cfg.RingLimit),
		Doorbell:    a.interrupts.raiseStream,
		Release:     v.memory.window.release,
		Logger:      v.cfg.Logger,

		WatchInterval: v.cfg.WatchInterval,
		// Nobody is owed anything before the guest runs, and has all of its CPUs.
		Halted: func(cpu int) bool { return v.cpus[cpu].vcpu.Halted() },
	})
	if err != nil {
		return &ConfigError{"window", err.Error()}
	}
	if a.control, err = a.table.New(controlRingSize, controlRingSize, 0); err != nil {
		return &ConfigError{"window", err.Error()}
	}
	mux := new(relay.Mux)
	mux.Handle(wire.ProtocolFileSystem, relay.FileSystem(v.cfg.Share))
	mux.Handle(wire.ProtocolTCPListener, relay.TCPListener())
	mux.Handle(wire.ProtocolTCPConnection, relay.TCPConnection())
	mux.Handle(wire.ProtocolUDP, relay.UDP())
	mux.Handle(wire.ProtocolResolver, relay.Resolver())
	mux.Handle(wire.ProtocolTLSConnection, relay.TLSConnection(v.cfg.TLS))
	mux.Handle(wire.ProtocolTLSListener, relay.TLSListener(v.cfg.TLS))
	mux.Handle(wire.ProtocolUnixListener, relay.UnixListener(v.cfg.Sockets))
	mux.Handle(wire.ProtocolUnixConnection, relay.UnixConnection(v.cfg.Sockets))
	mux.Handle(wire.ProtocolStdio, relay.Stdio(v.cfg.Input, v.cfg.Output, v.cfg.OnStdio))
	for protocol, h := range v.cfg.Handlers {
		mux.Handle(protocol, h)
	}
	a.server = relay.New(a.table, a.control, mux, relay.Options{
		Logger:   v.cfg.Logger,
		OnListen: v.cfg.OnListen,
		Network:  v.cfg.Network,
		Limits:   v.cfg.Limits,
	})
	return nil
}

func (a *streamABI) hostCalls() *hypercall.HostCalls { return nil }

func (a *streamABI) kvmClock() bool { return false }

func (a *streamABI) entry(i int) entryState {
	return entryState{
		tables:    a.layout.tables,
		regs:      kvm.Regs{RSP: a.layout.stackTop(i), RDI: a.layout.block, RSI: uint64(i)},
		noExecute: true,
		x2APIC:    true,
	}
}

// finish writes the boot block, which holds CPU 0's time.
func (a *streamABI) finish() error {
	v := a.vm
	hz, err := v.cpus[0].tscHz()
	if err != nil {
		return err
	}
	tsc, err := v.cpus[0].tsc()
	if err != nil {
		return err
	}
	free := alignUp(v.cfg.Image.End(), pageSize)
	return writeBlock(v.memory, a.layout.block, bootInfo{
		cpus:     v.cfg.CPUs,
		limit:    v.cfg.StreamLimit,
		freeBase: free,
		freeSize: a.layout.tables - free,
		control:  a.control.Descriptor(),
		pending:  a.table.PendingOffset(),
		stride:   a.table.PendingStride(),
		args:     v.args(),
		wall:     time.Now(),
		wallTSC:  tsc,
		tscHz:    hz,
		features: featureBits(v.features),
	})
}

func (a *streamABI) serve(ctx context.Context) error { return a.server.Serve(ctx) }

func (a *streamABI) notifyRead(id uint64) error { return a.table.NotifyRead(pipes.ID(id)) }

func (a *streamABI) notifyWrite(id uint64) error { return a.table.NotifyWrite(pipes.ID(id)) }

// stop fails to reach a guest whose local APIC isn't enabled yet: it drops the message.
func (a *streamABI) stop() (bool, error) {
	return a.vm.vm.SignalMSI(kvm.FixedMSI(0, stopVector))
}

// drain ends the guest's streams as the end of a process does.
func (a *streamABI) drain(ctx context.Context) {
	a.table.EndGuest()
	a.server.Drain(ctx)
}

func (a *streamABI) stats(s *Stats) {
	if a.table != nil {
		s.Pipes = a.table.Stats()
	}
	if a.server != nil {
		s.Relay = a.server.Stats()
	}
}

func (a *streamABI) free() error {
	var errs []error
	// The table first: from then on nobody touches the window or rings a doorbell.
	if a.table != nil {
		errs = append(errs, a.table.Close())
		a.table.Wait()
	}
	if a.interrupts != nil {
		errs = append(errs, a.interrupts.close())
	}
	return errors.Join(errs...)
}
