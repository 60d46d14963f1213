// Command arcavm boots Arca kernel images on KVM and does their networking and file reading.
//
// This package is the command line only: flags, files, signals, exit codes and what is printed. The virtual machine is
// package vmm.
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

// streams are where the command reads and writes.
type streams struct {
	in  *os.File  // the guest's standard input; nil: none
	out io.Writer // the guest's console, and what a command was asked to print
	// err is for logs, reports, errors; it doesn't wait for its reader. execute
	// makes them printable; raw is err as it was before.
	err, raw io.Writer
	// queue is below err; nil: there is none.
	queue *stdio.Queue
	// terminal says whether err is a terminal that shows colours.
	terminal bool
}

// input is in as a reader, nil if there is none.
func (s streams) input() io.Reader {
	if s.in == nil {
		return nil
	}
	return s.in
}

// unreadPatience is how long, at the end, arcavm waits for a reader of its
// standard error that takes nothing. A terminal is waited for.
const unreadPatience = 10 * time.Second

func main() { os.Exit(process(func(w io.Writer) io.Writer { return w })) }

// process is all that this process does. What is written to standard error
// goes through what over returns.
func process(over func(io.Writer) io.Writer) int {
	emulated.Init()
	if len(os.Args) == 2 && os.Args[1] == watcherArgument {
		// Nothing hears of an error: what would is gone.
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

// protect has foreign text on standard error steer no terminal.
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

// withUnwritten is why a command failed, if not for err then for output that
// wasn't written.
func (s streams) withUnwritten(cmd *cobra.Command, err error) error {
	unwritten := s.unwritten()
	guest := cmd.Name() == "run" || cmd.Name() == "demo"
	switch {
	case unwritten == nil, guest && errors.Is(unwritten, unix.EPIPE):
		// A guest may outlive the reader of its console.
		return err
	case err != nil && !errors.Is(err, unwritten):
		return err
	}
	return &codeError{exitIO, fmt.Errorf("writing standard output: %w", cause(unwritten))}
}

// unwritten is why some of the output wasn't written, nil if all was.
func (s streams) unwritten() error {
	if w, ok := s.out.(*stdio.Writer); ok {
		return w.Err()
	}
	return nil
}

// cause leaves out the file's name, which the caller says.
func cause(err error) error {
	if path := (*os.PathError)(nil); errors.As(err, &path) {
		return path.Err
	}
	return err
}

// hurry is for a process that is asked to end: output, a guest's included,
// fails once its reader takes nothing, and log records are dropped.
func (s streams) hurry() {
	if w, ok := s.out.(*stdio.Writer); ok {
		w.Hurry(stopPatience / 2)
	}
	if s.queue != nil {
		s.queue.Hurry(stopPatience / 2)
	}
}

// abandon is for a process that ends without its caller, which waits for what
// doesn't come back: it restores the terminal and says what there is to say.
func (o output) abandon(restore func()) func(error) {
	return func(end error) {
		restore()
		o.finish(end)
		if o.queue != nil {
			o.queue.Close(stopPatience / 2)
		}
	}
}

// hurried hurries and then cancels.
func (s streams) hurried(cancel context.CancelCauseFunc) context.CancelCauseFunc {
	return func(cause error) {
		s.hurry()
		cancel(cause)
	}
}

// completes reports whether the output is for a shell, with tabs in it.
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

// plainUsages has a shell show a flag's usage whole and as text: cobra shows
// its first line, with the quotes that the help takes off.
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
