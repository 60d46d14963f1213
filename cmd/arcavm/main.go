// Command arcavm boots Arca kernel images on KVM and does their networking and
// file work.
//
// This package is the command line only: flags, signals, the terminal, exit
// codes and what is printed. A machine as data is package spec, the virtual
// machine itself package vmm.
//
// Its words:
//
//   - description: a [spec.Spec], which flags and a --config file fill
//   - outcome: how a command ended, and with which exit code
//   - exit file: where --exit-file has the outcome written
//   - report: what a guest was doing when it died or was ended
//   - hint: a line for the user that is no log record
//   - inside, outside: the arcavm in an emulated machine, and the one that
//     started that machine
//   - watcher: a second process, which restores the terminal
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/bench"
	"github.com/fix-project/arcavm/emulated"
	"github.com/fix-project/arcavm/internal/printable"
	"github.com/fix-project/arcavm/internal/stdio"
)

// streams are the files that the command reads and writes.
type streams struct {
	in  *os.File  // the guest's standard input; nil: none
	out io.Writer // the guest's console, and what a command was asked to print
	// err is for logs, reports and errors; a write doesn't wait for the reader.
	// From execute on it makes text printable, and raw is what is below it.
	err, raw io.Writer
	// queue keeps what err's reader hasn't taken yet. It is nil in tests.
	queue *stdio.Queue
	// terminal says whether err is a terminal that shows colours.
	terminal bool
}

// input returns in as a reader: a nil interface, not a nil file, for none.
func (s streams) input() io.Reader {
	if s.in == nil {
		return nil
	}
	return s.in
}

// unreadPatience is how long arcavm waits at its end for a reader of standard
// error that takes nothing. For a terminal it waits without a bound: its user
// may have stopped it by Ctrl-S.
const unreadPatience = 10 * time.Second

func main() { os.Exit(process(func(w io.Writer) io.Writer { return w })) }

// process is all that this process does. It returns the exit code. Tests look
// at standard error by over, which wraps its writer.
func process(over func(io.Writer) io.Writer) int {
	emulated.Init()
	if len(os.Args) == 2 && os.Args[1] == watcherArgument {
		// An error has no reader: the process that started this one is gone.
		_ = watch(os.Stdin, os.NewFile(3, "terminal"))
		return 0
	}
	if err := checkThreads(); err != nil {
		return refuseToStart(err)
	}
	bench.Init()
	stderr := stdio.NewWriter(os.Stderr)
	queue := stdio.NewQueue(stderr)
	code := execute(os.Args[1:], streams{
		in: os.Stdin, out: stdio.NewWriter(os.Stdout),
		err: over(queue), queue: queue, terminal: isTerminal(os.Stderr),
	})
	patience := unreadPatience
	if isTerminal(os.Stderr) {
		patience = -1
	}
	queue.Close(patience)
	err := stderr.Err()
	if code == 0 && err != nil && !errors.Is(err, unix.EPIPE) && !errors.Is(err, stdio.ErrStalled) {
		return exitIO
	}
	return code
}

// protect makes what is written to standard error printable, so that foreign
// text, such as a guest's, steers no terminal.
func (s *streams) protect() { s.raw, s.err = s.err, printable.NewWriter(s.err) }

// execute runs one command line and returns the process's exit code.
func execute(args []string, s streams) int {
	s.protect()
	root := newRootCommand(s)
	root.SetArgs(args)
	if completes(args) {
		plainUsages(root)
	} else {
		root.SetOut(printable.NewWriter(s.out))
	}
	cmd, err := root.ExecuteC()
	return s.outputOf(cmd, args, err).finish(s.withUnwritten(cmd, err))
}

// withUnwritten returns why a command failed: err, or else the error of output
// that wasn't written.
func (s streams) withUnwritten(cmd *cobra.Command, err error) error {
	unwritten := s.unwritten()
	guest := cmd.Name() == "run" || cmd.Name() == "demo"
	switch {
	case unwritten == nil, guest && errors.Is(unwritten, unix.EPIPE):
		// It is no failure: a guest may outlive the reader of its console.
		return err
	case err != nil && !errors.Is(err, unwritten):
		return err
	}
	return &codeError{exitIO, fmt.Errorf("writing standard output: %w", cause(unwritten))}
}

// unwritten returns why some of the output wasn't written, nil if all was.
func (s streams) unwritten() error {
	if w, ok := s.out.(*stdio.Writer); ok {
		return w.Err()
	}
	return nil
}

// cause returns an error without its file's name, which the caller writes.
func cause(err error) error {
	if path := (*os.PathError)(nil); errors.As(err, &path) {
		return path.Err
	}
	return err
}

// hurry shortens the waits for readers once the process is asked to end:
// output, a guest's included, fails when its reader takes nothing, and log
// records are dropped.
func (s streams) hurry() {
	if w, ok := s.out.(*stdio.Writer); ok {
		w.Hurry(stopPatience / 2)
	}
	if s.queue != nil {
		s.queue.Hurry(stopPatience / 2)
	}
}

// abandon returns what ends the command where the goroutine that runs it waits
// for a call that doesn't return: it restores the terminal and says how the
// command ended. The process ends after it.
func (o output) abandon(restore func()) func(error) {
	return func(end error) {
		restore()
		o.finish(end)
		if o.queue != nil {
			o.queue.Close(stopPatience / 2)
		}
	}
}

// hurried returns a function that hurries and then cancels.
func (s streams) hurried(cancel context.CancelCauseFunc) context.CancelCauseFunc {
	return func(cause error) {
		s.hurry()
		cancel(cause)
	}
}

// completes reports whether the command line asks for completions. A shell
// reads them, and they have tabs, which aren't printable.
func completes(args []string) bool {
	if len(args) == 0 {
		return false
	}
	switch args[0] {
	case "completion", cobra.ShellCompRequestCmd, cobra.ShellCompNoDescRequestCmd:
		return true
	}
	return false
}

// plainUsages makes each flag's usage one line without quotes, for shells:
// cobra completes with the first line alone, quotes included.
func plainUsages(cmd *cobra.Command) {
	plain := func(f *pflag.Flag) {
		_, usage := pflag.UnquoteUsage(f)
		f.Usage = strings.Join(strings.Fields(usage), " ")
	}
	cmd.Flags().VisitAll(plain)
	cmd.PersistentFlags().VisitAll(plain)
	for _, c := range cmd.Commands() {
		plainUsages(c)
	}
}
