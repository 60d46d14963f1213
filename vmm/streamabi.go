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

// streamBuilder makes machines of the ABI of PROTOCOL.md.
type streamBuilder struct {
	cfg *Config
}

// needs refuses sockets where they can't be: a socket is named by its
// descriptor's path, for no path, link or rename may lead to another one.
func (b streamBuilder) needs(kvm.Features) (needs, error) {
	if !b.cfg.Sockets.None() {
		if _, err := os.Stat("/proc/self/fd"); err != nil {
			return needs{}, &ConfigError{"sockets", "UNIX sockets need /proc, which isn't mounted here"}
		}
	}
	return needs{window: b.cfg.Window}, nil
}

func (b streamBuilder) build(v *VM) (_ runner, err error) {
	layout, err := layOut(v.memory, v.features.GiBPages, v.cfg.CPUs, v.args())
	if err != nil {
		return nil, err
	}
	if err := v.loadImage(layout.tables); err != nil {
		return nil, err
	}
	if err := writeTables(v.memory, v.features.GiBPages, layout.tables); err != nil {
		return nil, err
	}
	v.timing.mark("image loaded")

	r := &streamRunner{kvm: v.kvm}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.free())
		}
	}()
	if err := r.connect(v); err != nil {
		return nil, err
	}
	v.timing.mark("interrupts and streams ready")

	err = v.makeCPUs(func(i int) entryState {
		return entryState{
			tables:    layout.tables,
			regs:      kvm.Regs{RSP: layout.stackTop(i), RDI: layout.block, RSI: uint64(i)},
			noExecute: true,
			x2APIC:    true,
		}
	})
	if err != nil {
		return nil, err
	}
	if err := r.writeBlock(v, layout); err != nil {
		return nil, err
	}
	v.timing.mark("virtual CPUs ready")
	return r, nil
}

// streamRunner serves a guest of the ABI of PROTOCOL.md.
type streamRunner struct {
	kvm        *kvm.VM
	interrupts *interrupts
	table      *pipes.Table
	control    *pipes.Pipe
	server     *relay.Server
}

// connect makes the interrupt controllers, and ties interrupts and streams
// together.
func (r *streamRunner) connect(v *VM) (err error) {
	if err := v.kvm.CreateLocalAPICs(); err != nil {
		return err
	}
	// What PROTOCOL.md doesn't name doesn't answer.
	if err := v.kvm.DisableQuirks(kvm.QuirkLocalAPICHole | kvm.QuirkHypercall | kvm.QuirkMWAIT); err != nil {
		return err
	}
	if r.interrupts, err = newInterrupts(v.kvm, v.cfg.CPUs); err != nil {
		return err
	}
	r.table, err = pipes.NewTable(v.memory.window.mem, pipes.Options{
		CPUs:        v.cfg.CPUs,
		StreamLimit: v.cfg.StreamLimit,
		RingLimit:   int64(v.cfg.RingLimit),
		Doorbell:    r.interrupts.raiseStream,
		Release:     v.memory.window.release,
		Logger:      v.cfg.Logger,

		WatchInterval: v.cfg.WatchInterval,
		// The table doesn't ask before the guest runs, and has all of its CPUs.
		Halted: v.idle,
	})
	if err != nil {
		return &ConfigError{"window", err.Error()}
	}
	if r.control, err = r.table.New(controlRingSize, controlRingSize, 0); err != nil {
		return &ConfigError{"window", err.Error()}
	}
	r.server = relay.New(r.table, r.control, protocols(&v.cfg), relay.Options{
		Logger:   v.cfg.Logger,
		OnListen: v.cfg.OnListen,
		Network:  v.cfg.Network,
		Limits:   v.cfg.Limits,
	})
	return nil
}

// protocols returns what a guest's streams can be.
func protocols(cfg *Config) *relay.Mux {
	mux := new(relay.Mux)
	mux.Handle(wire.ProtocolFileSystem, relay.FileSystem(cfg.Share))
	mux.Handle(wire.ProtocolTCPListener, relay.TCPListener())
	mux.Handle(wire.ProtocolTCPConnection, relay.TCPConnection())
	mux.Handle(wire.ProtocolUDP, relay.UDP())
	mux.Handle(wire.ProtocolResolver, relay.Resolver())
	mux.Handle(wire.ProtocolTLSConnection, relay.TLSConnection(cfg.TLS))
	mux.Handle(wire.ProtocolTLSListener, relay.TLSListener(cfg.TLS))
	mux.Handle(wire.ProtocolUnixListener, relay.UnixListener(cfg.Sockets))
	mux.Handle(wire.ProtocolUnixConnection, relay.UnixConnection(cfg.Sockets))
	mux.Handle(wire.ProtocolStdio, relay.Stdio(cfg.Input, cfg.Output, cfg.OnStdio))
	for protocol, h := range cfg.Handlers {
		mux.Handle(protocol, h)
	}
	return mux
}

// writeBlock writes the boot block. It has CPU 0's time in it, so the CPUs come
// first.
func (r *streamRunner) writeBlock(v *VM, l bootLayout) error {
	hz, err := v.cpus[0].tscHz()
	if err != nil {
		return err
	}
	tsc, err := v.cpus[0].tsc()
	if err != nil {
		return err
	}
	free := alignUp(v.cfg.Image.End(), pageSize)
	return writeBlock(v.memory, l.block, bootInfo{
		cpus:     v.cfg.CPUs,
		limit:    v.cfg.StreamLimit,
		freeBase: free,
		freeSize: l.tables - free,
		control:  r.control.Descriptor(),
		pending:  r.table.PendingOffset(),
		stride:   r.table.PendingStride(),
		args:     v.args(),
		wall:     time.Now(),
		wallTSC:  tsc,
		tscHz:    hz,
		features: featureBits(v.features),
	})
}

func (r *streamRunner) handle(h *hypercall.Handlers) {
	h.NotifyRead = func(id uint64) error { return r.table.NotifyRead(pipes.ID(id)) }
	h.NotifyWrite = func(id uint64) error { return r.table.NotifyWrite(pipes.ID(id)) }
}

func (r *streamRunner) serve(ctx context.Context) error { return r.server.Serve(ctx) }

// stop fails to reach a guest whose local APIC isn't enabled yet: the message
// is dropped.
func (r *streamRunner) stop() (bool, error) {
	return r.kvm.SignalMSI(kvm.FixedMSI(0, stopVector))
}

// drain ends the guest's streams as the end of a process does.
func (r *streamRunner) drain(ctx context.Context) {
	r.table.EndGuest()
	r.server.Drain(ctx)
}

func (r *streamRunner) stats(s *Stats) {
	s.Pipes = r.table.Stats()
	s.Relay = r.server.Stats()
}

func (r *streamRunner) free() error {
	var errs []error
	// The table first: from then on nothing touches the window or rings a
	// doorbell.
	if r.table != nil {
		errs = append(errs, r.table.Close())
		r.table.Wait()
	}
	if r.interrupts != nil {
		errs = append(errs, r.interrupts.close())
	}
	return errors.Join(errs...)
}
