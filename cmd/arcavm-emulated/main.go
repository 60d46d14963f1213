// Command arcavm-emulated runs static Linux programs, or the tests of Go
// packages, on emulated hardware that has KVM (see package emulated).
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/fix-project/arcavm/emulated"
	"github.com/fix-project/arcavm/internal/printable"
	"github.com/fix-project/arcavm/internal/stdio"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// Exit codes of <sysexits.h>.
const (
	exitUsage       = 64
	exitUnavailable = 69
	exitSoftware    = 70
	exitIO          = 74
)

// exitCode is an error that has been reported already.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// stderr is for what this command itself says, whose names and kernel messages
// must not steer a terminal.
var stderr = printable.NewWriter(os.Stderr)

func main() {
	emulated.Init()
	root := &cobra.Command{
		Use:           "arcavm-emulated",
		Short:         "Run Linux programs on emulated hardware that has KVM",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(runCommand(), testCommand())
	out := stdio.NewWriter(os.Stdout)
	root.SetOut(out)
	err := root.Execute()
	var code exitCode
	switch {
	case err == nil && out.Err() != nil:
		fmt.Fprintln(os.Stderr, "arcavm-emulated: writing standard output:", out.Err())
		os.Exit(exitIO)
	case err == nil:
	case errors.As(err, &code):
		os.Exit(int(code))
	case errors.Is(err, emulated.ErrUnavailable):
		fmt.Fprintln(stderr, "arcavm-emulated:", err)
		os.Exit(exitUnavailable)
	default:
		fmt.Fprintln(stderr, "arcavm-emulated:", err)
		os.Exit(exitSoftware)
	}
}

func runCommand() *cobra.Command {
	var files, ports, env []string
	var limit time.Duration
	var outbound, timing bool
	cmd := &cobra.Command{
		Use:   "run [flags] PROGRAM [ARGS...]",
		Short: "Run a static program; its exit code becomes this command's",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			cfg := emulated.Config{
				Programs: []emulated.Program{{Path: args[0], Args: args[1:], Env: env}},
				Outbound: outbound, Limit: limit,
				Stdout: stdio.NewWriter(os.Stdout), Stderr: stdio.NewWriter(os.Stderr),
				OnPublish: func(p emulated.Port) {
					fmt.Fprintf(stderr, "port %d is at %v\n", p.Guest, p.Host)
				},
			}
			for _, f := range files {
				name, source, ok := strings.Cut(f, "=")
				if !ok {
					return fmt.Errorf("--file %s: not of the form NAME=SOURCE", f)
				}
				cfg.Files = append(cfg.Files, emulated.File{Name: name, Source: source})
			}
			for _, p := range ports {
				port, err := emulated.ParsePort(p)
				if err != nil {
					return fmt.Errorf("--publish %w", err)
				}
				cfg.Publish = append(cfg.Publish, port)
			}
			// The program gets Ctrl-C, and decides; the second one ends it all.
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			signals := make(chan os.Signal, 1)
			cfg.Signals = passSignals(signals, cancel)
			signal.Notify(signals, unix.SIGINT, unix.SIGTERM)

			result, err := emulated.Run(ctx, cfg)
			if errors.Is(err, context.Canceled) {
				return exitCode(128 + int(unix.SIGINT))
			}
			if err != nil {
				return err
			}
			if timing {
				fmt.Fprintf(stderr, "kernel %s, boot %v, total %v\n", result.Kernel, result.Boot.Round(time.Millisecond), result.Total.Round(time.Millisecond))
			}
			if code := result.Exits[0].Code; code != 0 {
				fmt.Fprint(stderr, result.Console)
				return exitCode(code)
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.SetInterspersed(false)
	flags.StringArrayVar(&files, "file", nil, "pass in a file or folder, as NAME=SOURCE")
	flags.StringArrayVar(&ports, "publish", nil, "make a port reachable on the host, as [ADDRESS:]HOSTPORT:PORT[/tcp|/udp] (default address 127.0.0.1; HOSTPORT 0: any free one)")
	flags.StringArrayVar(&env, "env", nil, "set an environment variable, as NAME=VALUE")
	flags.BoolVar(&outbound, "outbound", false, "let the program connect out through the host")
	flags.DurationVar(&limit, "limit", emulated.DefaultLimit, "end everything after this time")
	flags.BoolVar(&timing, "timing", false, "say how long it took")
	return cmd
}

// passSignals hands the first signal on, and cancels at the second.
func passSignals(from <-chan os.Signal, cancel context.CancelFunc) <-chan os.Signal {
	to := make(chan os.Signal, 1)
	go func() {
		to <- <-from
		<-from
		cancel()
	}()
	return to
}
