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

	"github.com/fix-project/arcavm/emulated"
	"github.com/fix-project/arcavm/spec"
	"github.com/fix-project/arcavm/vmm"
)

// emulationLimit ends an emulated machine. It is no limit in practice: a server
// runs for as long as its user likes.
const emulationLimit = 365 * 24 * time.Hour

// emulationVariable is in the environment of the arcavm inside.
const emulationVariable = "ARCAVM_RUN_EMULATED"

// lookPatience is how long the program inside has to say what its guest is
// doing and to end, once it has the last signal.
const lookPatience = 5 * time.Second

// outlived is a writer whose reader may go before the guest. After its first
// error, which it tells, what is written is lost.
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

// insideConfig is where the description of the machine is in an emulated one.
const insideConfig = "/vm.toml"

// emulate runs this same command in an emulated machine, with the image, the
// shared folders and the files for TLS copied into it. What else is wrong with
// the description has been found out: inside it would be after the boot.
func (m *machine) emulate(loaded *spec.Machine) error {
	started, read := processStart(), time.Now()
	if err := prepareExitFile(m.spec.Output.ExitFile); err != nil {
		return err
	}
	e := &emulation{machine: m, logger: m.logger(), restore: func() {}}
	e.records = &wholeLines{to: m.streams.err}
	e.told.use = func(bool) {}
	e.steps = m.emulationSteps(e.logger)
	defer e.steps.end()
	cfg, err := e.config(loaded)
	if err != nil {
		return err
	}
	cfg.Steps = []emulated.Step{{Name: "process started", At: started}, {Name: commandRead, At: read}}
	signals := catchSignals()
	defer signals.release()
	e.useInput(&cfg)
	defer e.restore()

	// The first two signals go to the program inside, which ends in time if it
	// can; then the machine is ended.
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	e.passed, e.ended = make(chan os.Signal, 1), make(chan struct{})
	cfg.Signals = e.passed
	signals.attend([]os.Signal{os.Interrupt, syscall.SIGTERM}, ending{
		stop: e.stop, look: e.look, cancel: m.streams.hurried(cancel),
		abandon: func(err error) { m.output().abandon(e.restore)(err) },
	})
	result, err := emulated.Run(ctx, cfg)
	close(e.ended)
	return e.outcome(cfg, result, err)
}

// emulation is the run of a machine in an emulated one.
type emulation struct {
	*machine
	logger  *slog.Logger
	steps   *progress
	records *wholeLines
	told    told
	restore func() // leaves the terminal's raw mode

	passed chan os.Signal // to the program inside
	booted atomic.Bool    // the program inside runs
	ended  chan struct{}
}

// config is the emulated machine.
func (e *emulation) config(loaded *spec.Machine) (emulated.Config, error) {
	cfg := emulated.Config{
		Outbound: true,
		Limit:    emulationLimit,
		Stdout: &outlived{e.streams.out, func(err error) {
			e.logger.Warn("the rest of the console's output is lost", "err", err)
		}},
		Stderr: e.records,
		OnStep: e.steps.begin,
		OnReady: func() {
			e.steps.end()
			e.booted.Store(true)
		},
		OnTold: e.told.hear,
		// The default of older images is far more than they touch.
		Memory: uint64(e.spec.Memory),
	}
	for i, p := range e.spec.Network.Publish {
		if !p.Host.Addr().Is4() {
			return cfg, usageError("%s: with --emulated the address is an IPv4 one, which %v is not", e.spec.Where("publish", i), p.Host.Addr())
		}
		cfg.Publish = append(cfg.Publish, emulated.Port{Host: p.Host, Guest: p.Guest, UDP: p.Protocol == "udp"})
	}
	cfg.OnPublish = func(p emulated.Port) {
		asked := p
		asked.Host = netip.AddrPortFrom(p.Host.Addr(), 0)
		if slices.Contains(cfg.Publish, asked) { // a port that the user chose is known
			e.steps.beside(func() { e.published(p.Protocol(), p.Guest, p.Host) })
		}
	}
	err := e.addProgram(&cfg, loaded)
	return cfg, err
}

// addProgram has the emulated machine run this program, with the description of
// the machine in a file. The image's name and the arguments are words: they may
// be bytes that no text file holds.
func (e *emulation) addProgram(cfg *emulated.Config, loaded *spec.Machine) error {
	self, err := ownFile()
	if err != nil {
		return err
	}
	inside, files, err := inside(loaded)
	if err != nil {
		return err
	}
	description, err := inside.TOML()
	if err != nil {
		return err
	}
	img := emulated.File{Name: "/image/" + filepath.Base(e.spec.Image), Source: e.spec.Image}
	cfg.Files = append([]emulated.File{img, {Name: insideConfig, Data: description}}, files...)
	words := append([]string{"run", "--config", insideConfig, img.Name}, e.spec.Args...)
	cfg.Programs = []emulated.Program{{Path: self, Env: []string{emulationVariable + "=1"}, Args: words}}
	return nil
}

// useInput has the guest read the terminal or another input, unless this
// process is in the background: a read of the terminal would stop it, whether
// the guest wants the input or not.
func (e *emulation) useInput(cfg *emulated.Config) {
	in := e.streams.in
	if in == nil || isBackground(in) {
		return
	}
	cfg.Stdin = in
	term := newTerminal(in, e.logger)
	e.restore, e.told.use = term.restore, term.use
}

// stop passes the first signal on.
func (e *emulation) stop(first os.Signal) {
	e.passed <- first
	e.streams.hurry()
	if !e.booted.Load() { // the program inside says it later
		e.steps.beside(func() {
			e.hint("asking the guest to stop; press Ctrl-C again to end it at once")
		})
	}
}

// look passes the last signal on, and waits for the program inside to print
// what the guest is doing.
func (e *emulation) look(last os.Signal) *vmm.Report {
	if !e.booted.Load() {
		return nil
	}
	tooLate := time.After(lookPatience)
	select {
	case e.passed <- last:
	case <-e.ended:
		return nil
	case <-tooLate:
		return nil
	}
	select {
	case <-e.ended:
	case <-tooLate:
	}
	return nil
}

// outcome is how the machine ended.
func (e *emulation) outcome(cfg emulated.Config, result emulated.Result, err error) error {
	e.records.end(!e.json())
	// Without an outcome the program inside has told no timing either.
	if len(e.told.outcome) == 0 && len(result.Steps) > len(cfg.Steps) {
		var t timingJSON
		for _, s := range result.Steps {
			t.step(s.Name, s.At)
		}
		e.writeTiming(t)
	}
	if errors.Is(err, emulated.ErrUnavailable) || errors.Is(err, emulated.ErrProgram) {
		return &codeError{exitUnavailable, err}
	}
	if err != nil {
		return err
	}
	return exitError(result.Exits[0], e.told.outcome)
}

// emulationSteps returns a progress until the emulated machine is ready, which
// shows nothing where --log-level leaves out what is less than a warning.
func (m *machine) emulationSteps(logger *slog.Logger) *progress {
	var terminal io.Writer
	shown := logger.Enabled(context.Background(), slog.LevelInfo)
	if shown && m.streams.terminal && !m.json() {
		terminal = m.streams.raw
	}
	return newProgress(terminal, func(text string) {
		switch {
		case !shown:
		case m.json():
			logger.Info(text)
		default:
			fmt.Fprintf(m.streams.err, "arcavm: %s\n", text)
		}
	})
}

// exitError returns how the command inside ended. It may have told its outcome.
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

// told is what the arcavm inside tells by package emulated: that its stdio
// stream is open or closed, a byte each, and at last its outcome, in JSON.
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

// wholeLines passes on whole lines, so that no line of another writer's comes
// between the pieces of one.
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
	// An error isn't the guest's: it outlives the reader of its log.
	_, _ = w.to.Write(w.rest[:end])
	w.rest = append(w.rest[:0], w.rest[end:]...)
	return len(p), nil
}

// end passes on a line that was cut off if keep is set, or drops it.
func (w *wholeLines) end(keep bool) {
	if keep && len(w.rest) > 0 {
		_, _ = w.to.Write(append(w.rest, '\n'))
	}
	w.rest = nil
}
