package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/emulated"
	"github.com/fix-project/arcavm/vmm"
)

// The causes of an outcome.
const (
	causeGuest   = "guest"   // it ended itself
	causeCrash   = "crash"   // the guest died
	causeSignal  = "signal"  // a signal to the monitor ended both
	causeUsage   = "usage"   // the command line is wrong
	causeMonitor = "monitor" // the monitor couldn't go on, or begin
)

// outcome is how a command ended. --exit-file and the last line of --log-format
// json have it in this form (docs/output.md).
type outcome struct {
	Cause    string `json:"cause"`
	Code     int    `json:"code"` // the process's
	Signal   string `json:"signal,omitempty"`
	Sentence string `json:"sentence"` // one line, printable
}

// guestExit is a guest's own exit code.
type guestExit int

func (e guestExit) Error() string { return fmt.Sprintf("the guest ended with exit code %d", int(e)) }

// reportedExit is the end of a command in an emulated machine, which has
// printed the end on standard error itself.
type reportedExit struct{ outcome }

func (e reportedExit) Error() string { return e.Sentence }

// outcomeOf returns the outcome of a command that returned err, which may be
// nil.
func outcomeOf(err error) outcome {
	var (
		inside reportedExit
		crash  *vmm.CrashError
		guest  guestExit
		signal *signalError
	)
	switch {
	case err == nil:
		return outcome{Cause: causeGuest, Sentence: guest.Error()}
	case errors.As(err, &inside):
		return inside.outcome
	case errors.As(err, &crash):
		return outcome{Cause: causeCrash, Code: exitSoftware, Sentence: oneLine(crash.Error())}
	case errors.As(err, &guest):
		return outcome{Cause: causeGuest, Code: int(guest), Sentence: guest.Error()}
	case errors.As(err, &signal):
		return outcome{Cause: causeSignal, Code: exitSignal + int(signal.signal), Signal: unix.SignalName(signal.signal), Sentence: signal.Error()}
	}
	code, text := explain(err)
	e := outcome{Cause: causeMonitor, Code: code, Sentence: oneLine(text)}
	if code == exitUsage {
		e.Cause = causeUsage
	}
	return e
}

// output is where and in which form a command says how it ended.
type output struct {
	streams
	json     bool   // one record a line
	exitFile string // "": none
	machine  bool   // the command runs one
}

// outputOf returns the output of a command that ended with err. If that is a
// wrong command line, parsing stopped there, and scan looks at the rest.
func (s streams) outputOf(cmd *cobra.Command, args []string, err error) output {
	o := output{streams: s}
	f := cmd.Flags()
	if help := f.Lookup("help"); help != nil && help.Changed {
		return o
	}
	if file := f.Lookup("exit-file"); file != nil {
		o.machine = true
		o.exitFile, o.json = file.Value.String(), f.Lookup("log-format").Value.String() == "json"
	}
	if printed := f.Lookup("print-config"); printed != nil && printed.Changed {
		o.machine, o.json = false, o.json && err != nil
	}
	if coded := (*codeError)(nil); errors.As(err, &coded) && coded.code == exitUsage {
		o.scan(args, f)
	}
	return o
}

// scan looks for --exit-file and --log-format in the words that are surely
// arcavm's: those up to the image, or up to one that may be the value of an
// unknown flag. In later words it looks for the format alone: to take a guest's
// word for it does no harm.
func (o *output) scan(args []string, flags *pflag.FlagSet) {
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		args = args[1:] // the command
	}
	for len(args) > 0 && args[0] != "--" && strings.HasPrefix(args[0], "-") {
		name, value, given := strings.Cut(strings.TrimLeft(args[0], "-"), "=")
		args = args[1:]
		f := flags.Lookup(name)
		if f == nil {
			continue
		}
		if !given && f.NoOptDefVal == "" && len(args) > 0 {
			value, args = args[0], args[1:]
		}
		switch name {
		case "exit-file":
			o.exitFile = value
		case "log-format":
			o.json = strings.EqualFold(value, "json")
		}
	}
	if i := slices.Index(args, "--log-format"); i >= 0 && i+1 < len(args) && args[i+1] == "json" {
		o.json = true
	}
	o.json = o.json || slices.Contains(args, "--log-format=json")
}

// finish says how the command ended, and returns the process's exit code.
func (o output) finish(err error) int {
	e := outcomeOf(err)
	if o.machine {
		failed := o.keep(e)
		switch {
		case failed == nil, errors.As(err, new(exitFileError)):
		case err == nil:
			err = failed
			e = outcomeOf(err)
		default:
			o.sayFailed(failed)
		}
	}
	o.say(e, err)
	return e.Code
}

// keep writes the outcome to the exit file and, in an emulated machine, tells
// it to the arcavm outside.
func (o output) keep(e outcome) error {
	data, err := json.Marshal(e)
	if err != nil {
		return err
	}
	data = append(data, '\n')
	for piece := range slices.Chunk(data, emulated.MaxTold) {
		// If that fails, the arcavm outside goes by the exit code.
		_ = emulated.Tell(piece)
	}
	if o.exitFile == "" {
		return nil
	}
	return writeExitFile(o.exitFile, data)
}

func (o output) sayFailed(err error) {
	if o.json {
		o.recorder().Error(oneLine(err.Error()))
		return
	}
	fmt.Fprintf(o.err, "arcavm: %s\n", oneLine(err.Error()))
}

// say prints how the command ended, unless the arcavm inside has printed that.
func (o output) say(e outcome, err error) {
	var (
		inside reportedExit
		crash  *vmm.CrashError
		signal *signalError
		text   bytes.Buffer
	)
	switch {
	case errors.As(err, &inside):
	case o.json:
		o.record(e, err)
	case errors.As(err, &crash):
		text.WriteString("arcavm: ")
		_ = crash.WriteReport(&text)
	case errors.As(err, &signal) && signal.guest != nil:
		text.WriteString("arcavm: what the guest was doing\n\n")
		_ = signal.guest.WriteReport(&text)
	case e.Cause == causeUsage, e.Cause == causeMonitor:
		fmt.Fprintf(&text, "arcavm: %s\n", e.Sentence)
	}
	if text.Len() > 0 {
		_, _ = o.err.Write(text.Bytes())
	}
}

// record is say for --log-format json.
func (o output) record(e outcome, err error) {
	var (
		crash  *vmm.CrashError
		signal *signalError
	)
	log := o.recorder()
	switch {
	case errors.As(err, &crash):
		log.Error("the guest died", slog.Any("crash", newCrashRecord(crash)))
	case errors.As(err, &signal) && signal.guest != nil:
		log.Warn("what the guest was doing", slog.Any("guest", newGuestRecord(signal.guest)))
	}
	level := slog.LevelError
	if e.Cause == causeGuest || e.Cause == causeSignal {
		level = slog.LevelInfo
	}
	log.Log(context.Background(), level, e.Sentence, slog.Any("exit", e))
}

// recorder returns a logger of JSON that --log-level doesn't silence.
func (s streams) recorder() *slog.Logger { return slog.New(slog.NewJSONHandler(s.err, nil)) }

// prepareExitFile finds out whether the exit file can be written, before a
// guest runs, and removes an older one: while there is no file, the guest runs.
func prepareExitFile(path string) error {
	if path == "" {
		return nil
	}
	target, direct, err := exitTarget(path)
	if err != nil {
		return exitFileError{err}
	}
	if direct != nil {
		direct.Close()
		return nil
	}
	f, err := createBeside(target)
	if err != nil {
		return exitFileError{err}
	}
	err = errors.Join(f.Close(), os.Remove(f.Name()))
	if removed := os.Remove(target); !errors.Is(removed, fs.ErrNotExist) {
		err = errors.Join(err, removed)
	}
	if err != nil {
		return exitFileError{err}
	}
	return nil
}

// exitTemporary is the pattern for the names of files that are renamed to the
// exit file when they are complete.
const exitTemporary = ".arcavm-exit-*"

// createBeside makes a temporary file in the folder of target. Errors name
// target.
func createBeside(target string) (*os.File, error) {
	f, err := os.CreateTemp(filepath.Dir(target), exitTemporary)
	if failed := (*fs.PathError)(nil); errors.As(err, &failed) {
		failed.Op, failed.Path = "create", target
	}
	return f, err
}

// writeExitFile writes the exit file in one step: a reader finds all of data or
// no file. Something else than a regular file, such as a pipe, is written to.
func writeExitFile(path string, data []byte) error {
	target, f, err := exitTarget(path)
	if err != nil {
		return exitFileError{err}
	}
	direct := f != nil
	if !direct {
		if f, err = createBeside(target); err != nil {
			return exitFileError{err}
		}
		err = f.Chmod(0o644)
	}
	_, writeErr := f.Write(data)
	err = errors.Join(err, writeErr, f.Close())
	if err == nil && !direct {
		err = os.Rename(f.Name(), target)
	}
	if err != nil {
		if !direct {
			os.Remove(f.Name())
		}
		return exitFileError{err}
	}
	return nil
}

// exitTarget follows the links of an exit file. One that can't be replaced
// comes back open in direct, for writes that don't wait for a reader: what
// isn't a regular file, and the file that is this process's own output.
func exitTarget(path string) (target string, direct *os.File, err error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return path, nil, nil
	}
	if err != nil {
		return "", nil, err
	}
	if info.Mode().IsRegular() && !isStream(info) {
		target, err = filepath.EvalSymlinks(path)
		return target, nil, err
	}
	direct, err = os.OpenFile(path, os.O_WRONLY|os.O_APPEND|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", nil, err
	}
	// A file without deadlines is one whose writes don't wait.
	_ = direct.SetWriteDeadline(time.Now().Add(stopPatience))
	return path, direct, nil
}

func isStream(info fs.FileInfo) bool {
	return slices.ContainsFunc([]*os.File{os.Stdout, os.Stderr}, func(f *os.File) bool {
		own, err := f.Stat()
		return err == nil && os.SameFile(own, info)
	})
}

// exitFileError says that the exit file can't be written.
type exitFileError struct{ err error }

func (e exitFileError) Error() string { return "--exit-file: " + e.err.Error() }

func (e exitFileError) Unwrap() error { return e.err }
