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

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/relay"
	"github.com/fix-project/arcavm/vmm"
	"github.com/fix-project/arcavm/vmm/image"
)

// machine is what run and demo have in common: a virtual machine's flags, and its run on a terminal.
type machine struct {
	streams  streams
	flags    *pflag.FlagSet
	cpus     int
	memory   size
	window   size
	level    choice
	format   choice
	timing   choice
	exitFile string
	limits   limitFlag
	policy   *network.Policy // nil: one without rules
	tls      relay.TLS
	sockets  vmm.Share
	onListen func(netip.AddrPort)
}

func newMachine(s streams) *machine {
	return &machine{
		streams: s,
		window:  vmm.DefaultWindow,
		level:   choice{value: "info", choices: logLevels},
		format:  choice{value: "text", choices: logFormats},
		timing:  choice{choices: timingFormats},
	}
}

func (m *machine) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	m.flags = f
	f.IntVar(&m.cpus, "cpus", 0, fmt.Sprintf("give the guest `N` virtual CPUs, 1 to %d (default 1, rpc images %d)", vmm.MaxCPUs, vmm.DefaultRPCCPUs))
	f.Var(&m.memory, "mem", "RAM, a multiple of 2M; it costs only what is in use (default 256M,\nrpc images 16G)")
	f.Var(&m.window, "window", "memory shared with the guest for its streams, a multiple of 2M;\nit costs only what is in use")
	f.Var(&m.level, "log-level", "least important log records to show")
	f.Var(&m.format, "log-format", "how log records, reports and errors are written to stderr")
	f.Var(&m.timing, "timing", "at the end, print the time of each boot step, and counts of exits,\nhypercalls, interrupts and bytes; =json: one line of JSON")
	f.Lookup("timing").NoOptDefVal = "text"
	f.StringVar(&m.exitFile, "exit-file", "", "at the end, write the cause and the exit code to `FILE`, as JSON")
	complete(cmd, "timing", timingFormats)
	complete(cmd, "log-level", logLevels)
	complete(cmd, "log-format", logFormats)
}

// complete offers a flag's values to the shell. The flag exists, so registering can't fail.
func complete(cmd *cobra.Command, flag string, values []string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
}

// spareProcessor has Go run goroutines beside the guest's virtual CPUs. Each of them has one of Go's processors while it is in the guest, and where
// that is the last one, everything else waits until the scheduler takes it away.
func spareProcessor(cpus int) {
	if os.Getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) <= cpus {
		runtime.GOMAXPROCS(cpus + 1)
	}
}

// config is what the flags say. It is complete and right, as far as can be told without KVM.
func (m *machine) config(img *image.Image, args []string, abi image.ABI) (vmm.Config, error) {
	if m.flags.Changed("cpus") && m.cpus == 0 {
		return vmm.Config{}, usageError("--cpus: 0 is not in 1 to %d", vmm.MaxCPUs)
	}
	if m.flags.Changed("mem") && m.memory == 0 {
		return vmm.Config{}, usageError("--mem: a guest needs some")
	}
	cfg := vmm.Config{
		Image: img, Args: args, CPUs: m.cpus, Memory: uint64(m.memory), Window: uint64(m.window), ABI: abi, TLS: m.tls,
	}
	m.limits.apply(&cfg)
	if err := cfg.Validate(); err != nil {
		return vmm.Config{}, err
	}
	return cfg.WithDefaults(), nil
}

// boot runs the image to its end. A guest's exit
// code other than 0 is a guestExit.
func (m *machine) boot(img *image.Image, args []string, abi image.ABI, share vmm.Share) (err error) {
	started := processStart()
	cfg, err := m.config(img, args, abi)
	if err != nil {
		return err
	}
	if err := prepareExitFile(m.exitFile); err != nil {
		return err
	}
	signals := catchSignals()
	defer signals.release()

	read := time.Now()
	logger := newLogger(m.streams, m.level.value, m.format.value)
	term := newTerminal(m.streams.in, logger)
	defer term.restore()
	cfg.Share, cfg.Sockets = share, m.sockets
	cfg.Console, cfg.Logger, cfg.OnListen = m.streams.out, logger, m.onListen
	cfg.Input, cfg.Output, cfg.OnStdio = m.streams.input(), m.streams.out, term.use
	if m.policy != nil {
		m.policy.OnPublish = func(p network.Publish, host netip.AddrPort) {
			if p.Host.Port() == 0 { // who asked for a port knows it
				m.published(p.Protocol, p.Guest, host)
			}
		}
		cfg.Network = m.policy
	}
	spareProcessor(cfg.CPUs)
	if err := checkGuestThreads(cfg.CPUs); err != nil {
		return err
	}
	vm, err := vmm.New(cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, vm.Close()) }()
	timing, err := startOf(started, read)
	if err != nil {
		return err
	}
	// A process that ends without waiting for the guest tells it, too.
	var once sync.Once
	tell := func() {
		once.Do(func() {
			timing.add(vm)
			m.writeTiming(timing)
		})
	}
	defer tell()

	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	asking := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if cfg.ABI.Older() {
		// Their kernels take the request as a hint to report, and go on or hang.
		asking = asking[:1]
	}
	signals.attend(asking, ending{
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
		cancel: m.streams.hurried(cancel),
		abandon: func(err error) {
			tell()
			m.output().abandon(term.restore)(err)
		},
	})
	code, err := vm.Run(ctx)
	if err != nil {
		return err
	}
	if code != 0 {
		return guestExit(code)
	}
	return nil
}

// output is where and how the machine's end is said.
func (m *machine) output() output {
	return output{streams: m.streams, json: m.json(), exitFile: m.exitFile, machine: true}
}

func (m *machine) json() bool { return m.format.value == "json" }

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
