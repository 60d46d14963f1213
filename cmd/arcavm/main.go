// Command arcavm boots Arca kernel images on KVM and does their networking and file reading.
//
// This package is the command line only: flags, files, signals, exit codes and what is printed. The virtual machine is
// package vmm.
package main

import (
	"io"
	"os"

	"github.com/fix-project/arcavm/bench"
	"github.com/fix-project/arcavm/emulated"
)

// streams are where the command reads and writes.
type streams struct {
	in  *os.File  // the guest's standard input; nil: none
	out io.Writer // the guest's console, and what a command was asked to print
	err io.Writer // logs, reports, errors
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

func main() { os.Exit(process(os.Stderr)) }

// process is all that this process does, with stderr in place of its standard error.
func process(stderr io.Writer) int {
	emulated.Init()
	if len(os.Args) == 2 && os.Args[1] == watcherArgument {
		// Nobody hears of an error: whoever would is gone.
		_ = watch(os.Stdin, os.NewFile(3, "terminal"))
		return 0
	}
	bench.Init()
	return execute(os.Args[1:], streams{in: os.Stdin, out: os.Stdout, err: stderr, terminal: isTerminal(os.Stderr)})
}

// execute runs one command line and returns the process's exit code.
func execute(args []string, s streams) int {
	root := newRootCommand(s)
	root.SetArgs(args)
	return report(s.err, root.Execute())
}
