// Command arcavm boots Arca kernel images on KVM and does their networking and file reading.
//
// This package is the command line only: flags, files, signals, exit codes and what is printed. The virtual machine is
// package vmm.
package main

import (
	"io"
	"os"

	"github.com/fix-project/arcavm/emulated"
)

// streams are where the command reads and writes.
type streams struct {
	out io.Writer // the guest's console, and what a command was asked to print
	err io.Writer // logs, reports, errors
	// terminal says whether err is a terminal that shows colours.
	terminal bool
}

func main() {
	emulated.Init()
	os.Exit(execute(os.Args[1:], streams{out: os.Stdout, err: os.Stderr, terminal: isTerminal(os.Stderr)}))
}

// execute runs one command line and returns the process's exit code.
func execute(args []string, s streams) int {
	root := newRootCommand(s)
	root.SetArgs(args)
	return report(s.err, root.Execute())
}
