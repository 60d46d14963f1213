package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/spec"
	"github.com/fix-project/arcavm/vmm"
)

// machine runs a virtual machine that is described as data, on this process's
// streams and signals.
type machine struct {
	streams  streams
	spec     *spec.Spec
	onListen func(netip.AddrPort) // nil: nothing
}

func newMachine(s streams, description *spec.Spec) *machine {
	return &machine{streams: s, spec: description}
}

// spareProcessor leaves Go a processor for its other goroutines. A virtual CPU
// in the guest occupies one of Go's processors; if that were the last one,
// everything else would wait until the scheduler takes it away.
func spareProcessor(cpus int) {
	if os.Getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) <= cpus {
		runtime.GOMAXPROCS(cpus + 1)
	}
}

// boot runs the machine to its end. A guest's exit code other than 0 is a
// guestExit.
func (m *machine) boot(loaded *spec.Machine) (err error) {
	started := processStart()
	if err := prepareExitFile(m.spec.Output.ExitFile); err != nil {
		return err
	}
	signals := catchSignals()
	defer signals.release()

	read := time.Now()
	logger := m.logger()
	term := newTerminal(m.streams.in, logger)
	defer term.restore()
	m.connect(loaded, logger, term)
	cfg := loaded.Config.WithDefaults()
	spareProcessor(cfg.CPUs)
	if err := checkGuestThreads(cfg.CPUs); err != nil {
		return err
	}
	vm, err := vmm.New(cfg)
	if err != nil {
		return loaded.Explain(err)
	}
	defer func() { err = errors.Join(err, vm.Close()) }()
	timing, err := startOf(started, read)
	if err != nil {
		return err
	}
	// A process that ends without waiting for the guest tells it, too.
	tell := sync.OnceFunc(func() {
		timing.add(vm)
		m.writeTiming(timing)
	})
	defer tell()

	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	signals.attend(asking(vm), m.ending(vm, cancel, func(err error) {
		tell()
		m.output().abandon(term.restore)(err)
	}))
	code, err := vm.Run(ctx)
	if err == nil && code != 0 {
		err = guestExit(code)
	}
	return err
}

// connect has the guest use this process's streams, and tells the user of its
// ports.
func (m *machine) connect(loaded *spec.Machine, logger *slog.Logger, term *terminal) {
	cfg := &loaded.Config
	cfg.Console, cfg.Logger, cfg.OnListen = m.streams.out, logger, m.onListen
	cfg.Input, cfg.Output, cfg.OnStdio = m.streams.input(), m.streams.out, term.use
	loaded.Policy.OnPublish = func(p network.Publish, host netip.AddrPort) {
		if p.Host.Port() == 0 { // a port that the user chose is known
			m.published(p.Protocol, p.Guest, host)
		}
	}
}

// asking are the signals by which the guest can be asked to stop.
func asking(vm *vmm.VM) []os.Signal {
	if vm.ABI().Older() {
		// These kernels take a request to stop as one to report, and go on or
		// hang. A SIGTERM from a program has to end them.
		return []os.Signal{os.Interrupt}
	}
	return []os.Signal{os.Interrupt, syscall.SIGTERM}
}

// ending is what signals do to a machine of this process.
func (m *machine) ending(vm *vmm.VM, cancel context.CancelCauseFunc, abandon func(error)) ending {
	return ending{
		stop: func(os.Signal) {
			vm.Stop()
			m.streams.hurry()
			m.hint("asking the guest to stop; press Ctrl-C again to end it at once")
		},
		look: func(os.Signal) *vmm.Report {
			// An error is that the guest has ended.
			r, _ := vm.Report()
			return r
		},
		cancel:  m.streams.hurried(cancel),
		abandon: abandon,
	}
}

func (m *machine) logger() *slog.Logger {
	return newLogger(m.streams, m.spec.Output.LogLevel, m.spec.Output.LogFormat)
}

// output is where and how the machine's end is said.
func (m *machine) output() output {
	return output{streams: m.streams, json: m.json(), exitFile: m.spec.Output.ExitFile, machine: true}
}

func (m *machine) json() bool { return m.spec.Output.LogFormat == "json" }

// hint tells the user something: as a line for people, or as a record where
// programs read.
func (m *machine) hint(text string, attrs ...slog.Attr) {
	if m.json() {
		m.streams.recorder().LogAttrs(context.Background(), slog.LevelInfo, text, attrs...)
		return
	}
	fmt.Fprintf(m.streams.err, "arcavm: %s\n", text)
}

// published says where a port of the guest can be reached.
func (m *machine) published(protocol string, port uint16, host netip.AddrPort) {
	m.hint(fmt.Sprintf("%s port %d of the guest is at %v", strings.ToUpper(protocol), port, host),
		slog.Group("published", slog.String("protocol", protocol), slog.Int("port", int(port)), slog.String("address", host.String())))
}
