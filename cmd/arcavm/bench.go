package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/bench"
)

func newBenchCommand() *cobra.Command {
	var jsonFile, htmlFile, older, only string
	var rounds int
	var quick bool
	cmd := &cobra.Command{
		Use:   "bench [flags]",
		Short: "Measure streams beside plain sockets",
		Long: `Measure what a guest's streams cost beside plain sockets on this machine, each in turn
with its neighbour, and print a report. Run it on a machine that does nothing else.

Half of it needs no KVM: a guest in Go stands in. What this machine lacks is listed
and left out: KVM, slirp4netns (apt-get install slirp4netns), root for counting all
system calls. The report says which targets were met; the exit code doesn't. It is
70 if something failed, such as by a lost wake-up; the rest is in the report all the
same. All traffic stays on this machine.`,
		Example: `  arcavm bench
  arcavm bench --quick
  arcavm bench --run 'bulk.*1 stream,' --rounds 9
  arcavm bench --html bench.html --json bench.json
  arcavm bench --compare bench.json`,
		DisableFlagsInUseLine: true,
		Args:                  exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o := bench.Options{Quick: quick, Rounds: rounds, Version: version()}
			if rounds < 0 || rounds > 1000 {
				return usageError("--rounds: %d is not 1 to 1000", rounds)
			}
			if only != "" {
				var err error
				if o.Only, err = regexp.Compile(only); err != nil {
					return usageError("--run: %v", err)
				}
			}
			var old *bench.Report
			if older != "" {
				var err error
				if old, err = bench.ReadJSON(older); err != nil {
					return inputError(err)
				}
			}
			var err error
			if o.Arcavm, err = os.Executable(); err != nil {
				return fmt.Errorf("finding this program's file: %w", err)
			}
			o.Progress = func(item string) { fmt.Fprintf(cmd.ErrOrStderr(), "measuring %s\n", item) }
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, unix.SIGTERM)
			defer stop()
			report, err := bench.Run(ctx, o)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if err := report.WriteText(out); err != nil {
				return err
			}
			if old != nil {
				if err := bench.WriteComparison(out, old, report); err != nil {
					return err
				}
			}
			if err := writeReport(jsonFile, report.WriteJSON); err != nil {
				return err
			}
			if err := writeReport(htmlFile, report.WriteHTML); err != nil {
				return err
			}
			if n := len(report.Failed); n > 0 {
				return fmt.Errorf("%d of the measurements failed, the first: %s: %s", n, report.Failed[0].Name, report.Failed[0].Reason)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&jsonFile, "json", "", "write the report as JSON to `FILE`, for --compare")
	f.StringVar(&htmlFile, "html", "", "write the report as a page with plots to `FILE`")
	f.StringVar(&older, "compare", "", "print what changed since the report in `FILE`, against the noise")
	f.StringVar(&only, "run", "", "measure only what has a name that matches `REGEXP`")
	f.IntVar(&rounds, "rounds", 0, "measure everything `N` times (default 5, or 3 with --quick)")
	f.BoolVar(&quick, "quick", false, "measure less, in less than a minute")
	return cmd
}

// writeReport writes a file, if it has a name.
func writeReport(path string, write func(io.Writer) error) error {
	if path == "" {
		return nil
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := write(f); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
