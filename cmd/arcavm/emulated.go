package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/fix-project/arcavm/emulated"
	"github.com/fix-project/arcavm/vmm"
)

// emulationLimit is no limit in practice: servers run for as long as their user likes.
const emulationLimit = 365 * 24 * time.Hour

// emulationVariable is set for the command that runs in a machine of this
// one's.
const emulationVariable = "ARCAVM_RUN_EMULATED"

// lookPatience is how long the program inside the emulated machine has to say
// what its guest is doing and to end, once it has the last signal.
const lookPatience = 5 * time.Second

// outlived is a writer whose reader may go before the guest. One that fails is told of and not asked again.
type outlived struct {
	w    io.Writer
	lost func(error)
}

func (o *outlived) Write(p []byte) (int, error) {
	if _, err := o.w.Write(p); err != nil {
		o.w = io.Discard
		o.lost(err)
	}
	return len(p), nil
}

// runEmulated runs this same command in an emulated machine, with the image, the shared folders and the files for TLS copied into it. What else is wrong with
// the command line has been found out: inside it would be after the boot.
func runEmulated(flags *pflag.FlagSet, s streams, logger *slog.Logger, args, shares []string, network networkFlags, tls tlsFlags) error {
	started, read := processStart(), time.Now()
	self, err := ownFile()
	if err != nil {
		return err
	}
	value := func(flag string) string { return flags.Lookup(flag).Value.String() }
	m := machine{streams: s, format: choice{value: value("log-format")}, timing: choice{value: value("timing")}, exitFile: value("exit-file")}
	if err := prepareExitFile(m.exitFile); err != nil {
		return err
	}
	inside := "/image/" + filepath.Base(args[0])
	signals := catchSignals()
	defer signals.release()
	cfg := emulated.Config{
		Files:    []emulated.File{{Name: inside, Source: args[0]}},
		Outbound: true,
		Limit:    emulationLimit,
		Steps:    []emulated.Step{{Name: "process started", At: started}, {Name: commandRead, At: read}},
		Stdout:   &outlived{s.out, func(err error) { logger.Warn("the rest of the console's output is lost", "err", err) }},
	}
	records := &wholeLines{to: s.err}
	cfg.Stderr = records
	steps := m.emulationSteps(logger)
	defer steps.end()
	cfg.OnStep = steps.begin
	cfg.OnPublish = func(p emulated.Port) {
		asked := p
		asked.Host = netip.AddrPortFrom(p.Host.Addr(), 0)
		if slices.Contains(cfg.Publish, asked) { // who asked for a port knows it
			steps.beside(func() { m.published(p.Protocol(), p.Guest, p.Host) })
		}
	}
	// The default of older images is far more than they touch.
	if memory, ok := flags.Lookup("mem").Value.(*size); ok {
		cfg.Memory = uint64(*memory)
	}
	restore := func() {}
	told := &told{use: func(bool) {}}
	cfg.OnTold = told.hear
	// In the background a read of the terminal would stop this process, whether the guest wants the input or not.
	if s.in != nil && !isBackground(s.in) {
		cfg.Stdin = s.in
		term := newTerminal(s.in, logger)
		restore = term.restore
		defer restore()
		told.use = term.use
	}
	command := []string{"run"}
	for _, p := range network.publish {
		if !p.Host.Addr().Is4() {
			return usageError("--publish: with --emulated the address is an IPv4 one, which %v is not", p.Host.Addr())
		}
		cfg.Publish = append(cfg.Publish, emulated.Port{Host: p.Host, Guest: p.Guest, UDP: p.Protocol == "udp"})
		command = append(command, fmt.Sprintf("--publish=127.0.0.1:%d:%d/%s", p.Guest, p.Guest, p.Protocol))
	}
	flags.Visit(func(f *pflag.Flag) {
		switch f.Name {
		case "emulated", "exit-file", "publish", "share", "allow", "deny", "nat64", ownFlag, "tls-ca", "tls-cert", "tls-key":
		default:
			command = append(command, "--"+f.Name+"="+f.Value.String())
		}
	})
	for _, r := range network.rules {
		command = append(command, r.flag())
	}
	for _, p := range network.nat64 {
		command = append(command, "--nat64="+p.String())
	}
	// From inside, this machine is reached by that network, and at its own
	// addresses: QEMU connects as any of its programs does.
	command = append(command, "--"+ownFlag+"="+emulated.Network)
	own, err := localIPv4()
	if err != nil {
		return err
	}
	for _, p := range own {
		command = append(command, "--"+ownFlag+"="+p.String())
	}
	files, tlsInside := tls.inside()
	cfg.Files = append(cfg.Files, files...)
	command = append(command, tlsInside...)
	folders, err := parseShares("--share", shares)
	if err != nil {
		return err
	}
	for _, f := range folders {
		if info, err := os.Stat(f.dir); err != nil || !info.IsDir() {
			return &codeError{exitNoInput, fmt.Errorf("--share: %s is not a folder", f.dir)}
		}
		if f.writable {
			return usageError("--share: with --emulated the folder is copied in, and what the guest writes would be lost; leave out :rw")
		}
		if f.name == "" {
			cfg.Files = append(cfg.Files, emulated.File{Name: "/share", Source: f.dir})
			command = append(command, "--share=/share")
		} else {
			inside := "/shares/" + f.name
			cfg.Files = append(cfg.Files, emulated.File{Name: inside, Source: f.dir})
			command = append(command, "--share="+f.name+"="+inside)
		}
	}
	cfg.Programs = []emulated.Program{{Path: self, Env: []string{emulationVariable + "=1"}, Args: append(append(command, inside), args[1:]...)}}

	// The first two signals go to the program inside, which ends in time if it
	// can; then the machine is ended.
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	passed := make(chan os.Signal, 1)
	cfg.Signals = passed
	var booted atomic.Bool
	cfg.OnReady = func() {
		steps.end()
		booted.Store(true)
	}
	ended := make(chan struct{})
	signals.attend([]os.Signal{os.Interrupt, syscall.SIGTERM}, ending{
		stop: func(first os.Signal) {
			passed <- first
			s.hurry()
			if !booted.Load() { // the one inside says it later
				steps.beside(func() {
					m.hint("asking the guest to stop; press Ctrl-C again to end it at once")
				})
			}
		},
		look: func(last os.Signal) *vmm.Report {
			if !booted.Load() {
				return nil
			}
			tooLate := time.After(lookPatience)
			select {
			case passed <- last:
			case <-ended:
				return nil
			case <-tooLate:
				return nil
			}
			// The program inside prints it.
			select {
			case <-ended:
			case <-tooLate:
			}
			return nil
		},
		cancel:  s.hurried(cancel),
		abandon: m.output().abandon(restore),
	})
	result, err := emulated.Run(ctx, cfg)
	close(ended)
	records.end(!m.json())
	if len(told.outcome) == 0 && len(result.Steps) > len(cfg.Steps) { // the one inside didn't come to tell it
		var t timingJSON
		for _, s := range result.Steps {
			t.step(s.Name, s.At)
		}
		m.writeTiming(t)
	}
	if errors.Is(err, emulated.ErrUnavailable) || errors.Is(err, emulated.ErrProgram) {
		return &codeError{exitUnavailable, err}
	}
	if err != nil {
		return err
	}
	return exitError(result.Exits[0], told.outcome)
}

// emulationSteps tells what is done until the emulated machine is ready, unless
// --log-level wants less than that.
func (m *machine) emulationSteps(logger *slog.Logger) *progress {
	var terminal io.Writer
	shown := logger.Enabled(context.Background(), slog.LevelInfo)
	if shown && m.streams.terminal && m.format.value != "json" {
		terminal = m.streams.raw
	}
	return newProgress(terminal, func(text string) {
		switch {
		case !shown:
		case m.format.value == "json":
			logger.Info(text)
		default:
			fmt.Fprintf(m.streams.err, "arcavm: %s\n", text)
		}
	})
}

// exitError is how the command inside ended, which may have told the outcome.
func exitError(exit emulated.Exit, said []byte) error {
	if exit.Signal == syscall.SIGKILL {
		return &codeError{exit.Code, errors.New("the emulated machine killed the guest, most likely because it ran out of memory; --mem with a larger size makes it larger")}
	}
	var e reportedExit
	if json.Unmarshal(said, &e.outcome) == nil && e.Code == exit.Code {
		return e
	}
	if exit.Code != 0 {
		return &codeError{exit.Code, fmt.Errorf("arcavm ended in the emulated machine with exit code %d", exit.Code)}
	}
	return nil
}

// told is what the arcavm in the emulated machine tells by package emulated:
// that its stdio stream is open or closed, a byte each, and its outcome, which is
// JSON and the last.
type told struct {
	use     func(open bool)
	outcome []byte
}

func (t *told) hear(news []byte) {
	for i, b := range news {
		if b == '{' || len(t.outcome) > 0 {
			t.outcome = append(t.outcome, news[i:]...)
			return
		}
		t.use(b == stdioOpened)
	}
}

// wholeLines passes on whole lines, so that none of another writer's comes in
// between.
type wholeLines struct {
	to   io.Writer
	rest []byte
}

// maxLine bounds what wholeLines keeps.
const maxLine = 1 << 20

func (w *wholeLines) Write(p []byte) (int, error) {
	w.rest = append(w.rest, p...)
	end := bytes.LastIndexByte(w.rest, '\n') + 1
	if end == 0 && len(w.rest) < maxLine {
		return len(p), nil
	}
	if end == 0 {
		end = len(w.rest)
	}
	// A guest outlives the reader of its log.
	_, _ = w.to.Write(w.rest[:end])
	w.rest = append(w.rest[:0], w.rest[end:]...)
	return len(p), nil
}

// end passes on a line that was cut off, or drops it.
func (w *wholeLines) end(keep bool) {
	if keep && len(w.rest) > 0 {
		_, _ = w.to.Write(append(w.rest, '\n'))
	}
	w.rest = nil
}
