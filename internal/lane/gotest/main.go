// Command gotest runs go test with its arguments and reports what was skipped.
//
//	gotest NAME [go test's flags and packages]
package main

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/internal/lane"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: gotest NAME [go test's flags and packages]")
		os.Exit(2)
	}
	passed, err := run(os.Args[1], os.Args[2:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "gotest:", err)
	}
	if err != nil || !passed {
		os.Exit(1)
	}
}

// run reports whether all tests passed.
func run(name string, args []string) (bool, error) {
	// A terminal's Ctrl-C reaches go test, too, which ends; then this command
	// does. It isn't ignored: go test would inherit that.
	signal.Notify(make(chan os.Signal, 1), unix.SIGINT)
	report := lane.New(os.Stdout, slices.Contains(args, "-v"))
	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	cmd.Stderr = os.Stderr
	events, err := cmd.StdoutPipe()
	if err != nil {
		return false, err
	}
	if err := cmd.Start(); err != nil {
		return false, fmt.Errorf("start go test: %w", err)
	}
	err = report.Read(events)
	ended := cmd.Wait()
	fmt.Print(report.Summary(name))
	return ended == nil, err
}
