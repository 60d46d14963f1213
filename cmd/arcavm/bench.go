package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/bench"
)

// benchFlags are the flags of bench.
type benchFlags struct {
	jsonFile, htmlFile, older, only string
	rounds                          int
	quick, list, verbose            bool
}

func newBenchCommand() *cobra.Command {
	var b benchFlags
	cmd := &cobra.Command{
		Use:   "bench [flags]",
		Short: "Measure streams beside plain sockets",
		Long: `Measure what a guest's streams cost beside plain sockets on this machine, each
in turn with its neighbour, and print one screen: the figure that matters for
each question, its ratio to plain sockets, its target, and whether this run met
it. -v prints every figure. Run it on a machine that does nothing else: a busy
one gets no verdict.

Half of it needs no KVM: a guest in Go stands in. What this machine lacks is
listed and left out: KVM, slirp4netns (apt-get install slirp4netns), root for
counting all system calls. The report says which targets were met; the exit code
doesn't. It is 70 if something failed, such as by a lost wake-up; the rest is in
the report all the same. All traffic stays on this machine.

Ctrl-C ends it with a report of what was measured until then; the second one
ends it at once.`,
		Example: `  arcavm bench
  arcavm bench --quick
  arcavm bench --list
  arcavm bench --run boot
  arcavm bench --run 'bulk.*1 stream,' --rounds 9
  arcavm bench --html bench.html --json bench.json
  arcavm bench --compare bench.json`,
		DisableFlagsInUseLine: true,
		Args:                  exactly(),
		RunE:                  func(cmd *cobra.Command, _ []string) error { return b.run(cmd) },
	}
	f := cmd.Flags()
	f.StringVar(&b.jsonFile, "json", "", "write the report as JSON to `FILE`, for --compare")
	f.StringVar(&b.htmlFile, "html", "", "write the report as a page with plots to `FILE`")
	f.StringVar(&b.older, "compare", "", "print what changed beyond the noise since `FILE`'s report")
	f.StringVar(&b.only, "run", "", "measure what has this name, or else what matches `REGEXP`")
	f.BoolVar(&b.list, "list", false, "print the names of what can be measured, and no more")
	f.IntVar(&b.rounds, "rounds", 0, "measure everything `N` times (default 5, or 3 with --quick)")
	f.BoolVar(&b.quick, "quick", false, "measure less, in less than a minute")
	f.BoolVarP(&b.verbose, "verbose", "v", false, "print every figure, and with --compare every change")
	return cmd
}

func (b *benchFlags) run(cmd *cobra.Command) (err error) {
	if b.list {
		_, err := fmt.Fprintln(cmd.OutOrStdout(), strings.Join(bench.Names(b.quick), "\n"))
		return err
	}
	o, err := b.options(cmd)
	if err != nil {
		return err
	}
	var old *bench.Report
	if b.older != "" {
		if old, err = readReport(b.older); err != nil {
			return err
		}
	}
	// A file that can't be written should be known before minutes of measuring.
	jsonFile, err := createOutput("--json", b.jsonFile)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, jsonFile.close()) }()
	htmlFile, err := createOutput("--html", b.htmlFile)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, htmlFile.close()) }()

	ctx, stop := untilSignal(cmd.Context())
	defer stop()
	report, interrupted := bench.Run(ctx, o)
	if errors.Is(interrupted, bench.ErrNoMatch) {
		return usageError("--run: %w", interrupted)
	}
	if report == nil || interrupted != nil && len(report.Figures) == 0 {
		return interrupted
	}
	err = errors.Join(
		b.print(cmd.OutOrStdout(), old, report),
		jsonFile.write(report.WriteJSON),
		htmlFile.write(report.WriteHTML),
		failures(report),
	)
	var signal *codeError
	if err != nil && errors.As(interrupted, &signal) {
		return &codeError{signal.code, err}
	}
	return errors.Join(interrupted, err)
}

// options checks the flags.
func (b *benchFlags) options(cmd *cobra.Command) (bench.Options, error) {
	o := bench.Options{Quick: b.quick, Rounds: b.rounds, Version: version(), Only: b.only}
	if cmd.Flags().Changed("rounds") && (b.rounds < 1 || b.rounds > 1000) {
		return o, usageError("--rounds: %d is not 1 to 1000", b.rounds)
	}
	var err error
	if _, err := regexp.Compile(b.only); err != nil {
		return o, usageError("--run: %w", err)
	}
	if o.Arcavm, err = ownFile(); err != nil {
		return o, err
	}
	o.Progress = func(item string) { fmt.Fprintf(cmd.ErrOrStderr(), "measuring %s\n", item) }
	return o, nil
}

func readReport(path string) (*bench.Report, error) {
	r, err := bench.ReadJSON(path)
	if errors.Is(err, bench.ErrNoReport) {
		return nil, &codeError{exitData, fmt.Errorf("--compare: %w", err)}
	}
	if err != nil {
		return nil, inputError(fmt.Errorf("--compare: %w", err))
	}
	return r, nil
}

// untilSignal returns a context whose cause is, after SIGINT or SIGTERM, a
// [*signalError]. The second one ends the process.
func untilSignal(parent context.Context) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(parent)
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, unix.SIGINT, unix.SIGTERM)
	go func() {
		defer signal.Stop(caught)
		select {
		case <-ctx.Done():
		case s := <-caught:
			end := &signalError{signal: unix.SIGINT}
			if s == unix.SIGTERM {
				end.signal = unix.SIGTERM
			}
			cancel(end)
		}
	}()
	return ctx, func() { cancel(nil) }
}

// print writes a screen of the report and one of what changed since the older
// report, unless that is nil; with --verbose all of both.
func (b *benchFlags) print(w io.Writer, older, report *bench.Report) error {
	write, compare := report.WriteSummary, bench.WriteChanges
	if b.verbose {
		write, compare = report.WriteText, bench.WriteComparison
	}
	if err := write(w); err != nil {
		return err
	}
	if older == nil {
		return nil
	}
	return compare(w, older, report)
}

func failures(report *bench.Report) error {
	n := len(report.Failed)
	if n == 0 {
		return nil
	}
	first := report.Failed[0]
	return fmt.Errorf("%d of the measurements failed, the first: %s: %s", n, first.Name, first.Reason)
}

// outputFile is a file that is opened long before it is written to. Its methods
// do nothing if it is nil.
type outputFile struct {
	flag    string
	file    *os.File
	created bool // the file is new and not written yet
}

// createOutput opens a file, if it has a name. Its content stays until write.
func createOutput(flag, path string) (*outputFile, error) {
	if path == "" {
		return nil, nil
	}
	o := &outputFile{flag: flag, created: true}
	var err error
	o.file, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if errors.Is(err, fs.ErrExist) {
		o.created = false
		o.file, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o666)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	return o, nil
}

// write replaces the file's content.
func (o *outputFile) write(content func(io.Writer) error) error {
	if o == nil {
		return nil
	}
	err := o.empty()
	if err == nil {
		err = content(o.file)
	}
	if err != nil {
		return o.unwritten(err)
	}
	o.created = false
	return nil
}

// empty truncates the file, if it is a regular one: pipes and terminals can't
// be.
func (o *outputFile) empty() error {
	info, err := o.file.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return err
	}
	return o.file.Truncate(0)
}

// close removes the file if it is new and has no report.
func (o *outputFile) close() error {
	if o == nil {
		return nil
	}
	err := o.file.Close()
	if o.created {
		err = errors.Join(err, os.Remove(o.file.Name()))
	}
	if err != nil {
		return o.unwritten(err)
	}
	return nil
}

func (o *outputFile) unwritten(err error) error {
	return &codeError{exitIO, fmt.Errorf("%s: %w", o.flag, err)}
}
