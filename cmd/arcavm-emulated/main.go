// Command arcavm-emulated runs Linux programs, or the tests of Go packages, on
// emulated hardware that has KVM (see package emulated).
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/fix-project/arcavm/emulated"
	"github.com/fix-project/arcavm/internal/exitcode"
	"github.com/fix-project/arcavm/network"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// exitCode is an error that has been reported already.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

func main() {
	emulated.Init()
	if emulated.Inside() && os.Getenv(selfCheckVariable) != "" {
		if err := selfCheck(); err != nil {
			fmt.Fprintln(os.Stderr, "the emulator's self-check:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(execute(os.Args[1:]))
}

// execute runs the command and returns its exit code.
func execute(args []string) int {
	ran := false
	root := &cobra.Command{
		Use:           "arcavm-emulated",
		Short:         "Run Linux programs, or Go tests, on emulated hardware that has KVM",
		SilenceUsage:  true,
		SilenceErrors: true,
		// An error before this is about the command line.
		PersistentPreRun: func(*cobra.Command, []string) { ran = true },
		RunE: func(*cobra.Command, []string) error {
			return usageError{errors.New("no command given; commands are run and test; try: arcavm-emulated --help")}
		},
	}
	root.AddCommand(runCommand(), testCommand())
	if len(args) > 0 && args[0] == "test" {
		args = dashes(args)
	}
	root.SetArgs(args)
	err := root.Execute()
	var code exitCode
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	}
	fmt.Fprintln(os.Stderr, "arcavm-emulated:", err)
	var usage usageError
	switch {
	case !ran, errors.As(err, &usage):
		return exitcode.Usage
	case errors.Is(err, emulated.ErrUnavailable):
		return exitcode.Unavailable
	case errors.Is(err, emulated.ErrProgram) && errors.Is(err, fs.ErrNotExist):
		return exitcode.NoInput
	case errors.Is(err, emulated.ErrProgram):
		return exitcode.Data
	}
	return exitcode.Software
}

// usageError is about a flag's value.
type usageError struct{ error }

// say tells the user what takes a while.
func say(step string) { fmt.Fprintln(os.Stderr, "arcavm-emulated:", step) }

// machineOptions are the flags that both commands have.
type machineOptions struct {
	files, env []string
	limit      time.Duration
	outbound   bool
}

func (o *machineOptions) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringArrayVar(&o.files, "file", nil, "pass in a file or folder, as `NAME=SOURCE`")
	flags.StringArrayVar(&o.env, "env", nil, "set an environment variable, as `NAME=VALUE`")
	flags.BoolVar(&o.outbound, "outbound", false, "let the programs connect out through the host")
	flags.DurationVar(&o.limit, "limit", emulated.DefaultLimit, "end everything after `TIME`")
}

// config is all of a configuration but the programs.
func (o *machineOptions) config() (emulated.Config, error) {
	cfg := emulated.Config{Outbound: o.outbound, Limit: o.limit, OnStep: say}
	for _, f := range o.files {
		name, source, ok := strings.Cut(f, "=")
		if !ok || name == "" || source == "" {
			return cfg, usageError{fmt.Errorf("--file %s: not of the form NAME=SOURCE", f)}
		}
		cfg.Files = append(cfg.Files, emulated.File{Name: name, Source: source})
	}
	for _, e := range o.env {
		if name, _, ok := strings.Cut(e, "="); !ok || name == "" {
			return cfg, usageError{fmt.Errorf("--env %s: not of the form NAME=VALUE", e)}
		}
	}
	return cfg, nil
}

func runCommand() *cobra.Command {
	var options machineOptions
	var ports []string
	var timing bool
	cmd := &cobra.Command{
		Use:   "run [flags] PROGRAM [ARGS...]",
		Short: "Run a program; its exit code becomes this command's",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("PROGRAM is missing; see arcavm-emulated run --help")
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			cfg, err := options.config()
			if err != nil {
				return err
			}
			cfg.Programs = []emulated.Program{{Path: args[0], Args: args[1:], Env: options.env}}
			cfg.Stdout, cfg.Stderr = os.Stdout, os.Stderr
			cfg.OnPublish = func(p emulated.Port) { say(fmt.Sprintf("port %d is at %v", p.Guest, p.Host)) }
			for _, p := range ports {
				port, err := parsePort(p)
				if err != nil {
					return usageError{fmt.Errorf("--publish %w", err)}
				}
				cfg.Publish = append(cfg.Publish, port)
			}
			// The first Ctrl-C is the program's to handle; the second ends the
			// machine.
			ctx, cancel := context.WithCancelCause(context.Background())
			defer cancel(nil)
			signals := make(chan os.Signal, 2)
			cfg.Signals = passSignals(signals, cancel)
			signal.Notify(signals, unix.SIGINT, unix.SIGTERM)

			start := time.Now()
			result, err := emulated.Run(ctx, cfg)
			if timing {
				sayTiming(start, result)
			}
			if err != nil {
				return err
			}
			if code := result.Exits[0].Code; code != 0 {
				fmt.Fprint(os.Stderr, result.Console)
				return exitCode(code)
			}
			return nil
		},
	}
	options.add(cmd)
	flags := cmd.Flags()
	flags.SetInterspersed(false)
	flags.StringArrayVar(&ports, "publish", nil, "make a port reachable on the host, as `[ADDRESS:]HOSTPORT:PORT[/udp]`;\n0 is a free one; the address is 127.0.0.1 unless given")
	flags.BoolVar(&timing, "timing", false, "say how long it took")
	return cmd
}

// parsePort reads a port to publish.
func parsePort(text string) (emulated.Port, error) {
	p, err := network.ParsePublish(text)
	if err != nil {
		return emulated.Port{}, err
	}
	return emulated.Port{Host: p.Host, Guest: p.Guest, UDP: p.Protocol == "udp"}, nil
}

// sayTiming says how long a machine took, however it ended.
func sayTiming(start time.Time, r emulated.Result) {
	for _, s := range r.Steps {
		say(fmt.Sprintf("%9.3f ms  %s", float64(s.At.Sub(start).Microseconds())/1000, s.Name))
	}
	say(fmt.Sprintf("kernel %s, boot %v, total %v", r.Kernel, r.Boot.Round(time.Millisecond), r.Total.Round(time.Millisecond)))
}

// passSignals passes the first signal on. At the second it cancels, with the
// exit code of a process that this signal ends.
func passSignals(from <-chan os.Signal, cancel context.CancelCauseFunc) <-chan os.Signal {
	to := make(chan os.Signal, 1)
	go func() {
		to <- <-from
		code := exitCode(128)
		if last, ok := (<-from).(unix.Signal); ok {
			code += exitCode(last)
		}
		cancel(code)
	}()
	return to
}
