package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/emulated"
	"github.com/fix-project/arcavm/internal/lane"
)

// laneName is the lane's name in what this command prints.
const laneName = "emulated KVM"

// testFlags are flags of go test's, which each test binary gets as -test.NAME.
// Bare flags take no value.
var testFlags = []struct {
	name  string
	bare  bool
	usage string
}{
	{"run", false, "run the tests that match `REGEXP`"},
	{"skip", false, "leave out the tests that match `REGEXP`"},
	{"v", true, "print what all tests print"},
	{"short", true, "tell long tests to be short"},
	{"count", false, "run each test `N` times"},
	{"failfast", true, "end a package at its first failure"},
	{"parallel", false, "run `N` parallel tests at once (default 1)"},
	{"timeout", false, "end a package after `TIME` (default 10m)"},
	{"bench", false, "run the benchmarks that match `REGEXP`"},
	{"benchtime", false, "run each benchmark for `TIME`, or Nx times"},
	{"benchmem", true, "count what benchmarks allocate"},
	{"shuffle", false, "run the tests in another `ORDER`: on, off or a number"},
}

func testCommand() *cobra.Command {
	var options machineOptions
	var flags []string
	cmd := &cobra.Command{
		Use:   "test [flags] PACKAGES... [-- ARGS...]",
		Short: "Run the tests of Go packages, after a self-check of the emulator",
		Long: `Builds the test binary of each package, boots one emulated machine, and runs
them in it one after the other, as root, each in a folder that holds the
package's testdata. ARGS go to each test binary.

The exit code is 0 if all tests passed, 1 if not, 130 after Ctrl-C, 143 after
SIGTERM, 64 for a wrong command line, 69 and 70 for other trouble. A machine
that can't be emulated here is reported, counts as skipped, and the code is 0;
with ARCAVM_REQUIRE_KVM=1 it is a failure.`,
		Example: `  arcavm-emulated test ./...
  arcavm-emulated test -v -run TestBoot ./vmm
  arcavm-emulated test --file /data=./fixtures ./pkg -- -update=false`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 || cmd.ArgsLenAtDash() == 0 {
				return errors.New("PACKAGES are missing; see arcavm-emulated test --help")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			var rest []string
			if n := cmd.ArgsLenAtDash(); n >= 0 {
				args, rest = args[:n], args[n:]
			}
			run := &testRun{flags: append(testBinaryFlags(cmd), append(flags, rest...)...)}
			run.report = lane.New(os.Stdout, cmd.Flags().Changed("v") || cmd.Flags().Changed("bench"))
			run.report.Own = true
			ctx, stop := untilSignal()
			defer stop()
			err := run.all(ctx, args, options)
			if errors.Is(err, emulated.ErrUnavailable) && os.Getenv("ARCAVM_REQUIRE_KVM") == "" {
				fmt.Printf("lane %s: skipped: %v\n", laneName, err)
				if run.failed > 0 { // a package can't be built
					return exitCode(1)
				}
				return nil
			}
			return err
		},
	}
	options.add(cmd)
	for _, f := range testFlags {
		short := ""
		if len(f.name) == 1 {
			short = f.name
		}
		if f.bare {
			cmd.Flags().BoolP(f.name, short, false, f.usage)
		} else {
			cmd.Flags().StringP(f.name, short, "", f.usage)
		}
	}
	cmd.Flags().StringArrayVar(&flags, "flag", nil, "pass `FLAG` to each test binary, as -test.cpu=1")
	return cmd
}

// dashes gives go test's flags, which have one dash, the second one that pflag
// wants, and makes -args what it is elsewhere, "--".
func dashes(args []string) []string {
	args = slices.Clone(args)
	for i, a := range args {
		name, _, _ := strings.Cut(strings.TrimPrefix(a, "-"), "=")
		switch {
		case a == "--":
			return args
		case a == "-args" || a == "--args":
			args[i] = "--"
			return args
		case len(name) > 1 && strings.HasPrefix(a, "-") && !strings.HasPrefix(a, "--"):
			for _, f := range testFlags {
				if f.name == name {
					args[i] = "-" + a
				}
			}
		}
	}
	return args
}

func testBinaryFlags(cmd *cobra.Command) []string {
	flags := []string{"-test.paniconexit0", "-test.timeout=10m"}
	for _, f := range testFlags {
		// A report is made of what the tests print with -v.
		if set := cmd.Flags().Lookup(f.name); set.Changed && f.name != "v" {
			flags = append(flags, "-test."+f.name+"="+set.Value.String())
		}
	}
	return append(flags, "-test.v=test2json")
}

type testPackage struct{ path, dir, binary string }

// testRun runs the tests of packages and reports on them.
type testRun struct {
	flags    []string
	report   *lane.Report
	packages []testPackage // those in the machine
	failed   int           // packages
	ended    int           // programs, the self-check being the first
	events   *converter    // of the package that runs; nil: it has printed nothing yet
	trouble  error         // what went wrong in making the report
}

func (r *testRun) all(ctx context.Context, patterns []string, options machineOptions) error {
	packages, err := listPackages(ctx, patterns)
	if err != nil && ctx.Err() == nil { // as a package that can't be built
		fmt.Fprintln(os.Stderr, "arcavm-emulated:", err)
		return exitCode(1)
	}
	if err != nil {
		return r.broke(ctx, err)
	}
	work, err := os.MkdirTemp("", "arcavm-tests-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := r.build(ctx, work, packages); err != nil {
		return r.broke(ctx, err)
	}
	if len(r.packages) == 0 {
		return r.end(emulated.Result{})
	}
	cfg, err := r.config(options)
	if err != nil {
		return err
	}
	result, err := emulated.Run(ctx, cfg)
	if err != nil {
		r.unfinished()
		if r.ended > 0 || r.failed > 0 {
			fmt.Print(r.report.Summary(laneName))
		}
		return r.broke(ctx, err)
	}
	return r.end(result)
}

// unfinished reports on the package that ran when everything ended.
func (r *testRun) unfinished() {
	_ = r.events.close() // there is an error already
	if n := r.ended - 1; n >= 0 && n < len(r.packages) {
		name := r.packages[n].path
		r.report.EndPackage(name, fmt.Sprintf("FAIL\t%s\t(%s: not to its end)", name, laneName), false)
	}
}

// broke returns err, or the exit code of the signal that caused it.
func (r *testRun) broke(ctx context.Context, err error) error {
	var end signalError
	if !errors.As(context.Cause(ctx), &end) {
		return err
	}
	fmt.Fprintln(os.Stderr, "arcavm-emulated:", end)
	return exitCode(128 + int(end))
}

// signalError is the signal that ends everything.
type signalError unix.Signal

func (e signalError) Error() string { return fmt.Sprintf("ended by a signal: %v", unix.Signal(e)) }

// untilSignal returns a context that SIGINT and SIGTERM end.
func untilSignal() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM)
	go func() {
		select {
		case s := <-signals:
			if s, ok := s.(syscall.Signal); ok {
				cancel(signalError(s))
			}
		case <-ctx.Done():
		}
		signal.Stop(signals)
	}()
	return ctx, func() { cancel(nil) }
}

// build builds the test binaries of the packages that have tests.
func (r *testRun) build(ctx context.Context, work string, packages []testPackage) error {
	say("building the tests")
	for i, p := range packages {
		if p.dir == "" {
			r.report.EndPackage(p.path, "?   \t"+p.path+"\t[no test files]", true)
			continue
		}
		p.binary = filepath.Join(work, fmt.Sprintf("%d.test", i))
		if _, err := goTool(ctx, "test", "-c", "-ldflags=-w", "-o", p.binary, p.path); err != nil {
			if ctx.Err() != nil {
				return err
			}
			r.report.EndPackage(p.path, fmt.Sprintf("%v\nFAIL\t%s [build failed]", err, p.path), false)
			r.failed++
			continue
		}
		r.packages = append(r.packages, p)
	}
	return nil
}

func (r *testRun) config(options machineOptions) (emulated.Config, error) {
	cfg, err := options.config()
	if err != nil {
		return cfg, err
	}
	self, err := os.Executable()
	if err != nil {
		return cfg, fmt.Errorf("find this program's own file: %w", err)
	}
	cfg.Stdout, cfg.Stderr, cfg.OnExit = r, r, r.exit
	// If it fails, later failures mean nothing.
	cfg.Programs = []emulated.Program{{Path: self, Must: true, Env: []string{selfCheckVariable + "=1"}}}
	for _, p := range r.packages {
		cfg.Programs = append(cfg.Programs, emulated.Program{
			Path: p.binary,
			Name: path.Join(folder(p), path.Base(p.path)+".test"),
			Dir:  folder(p),
			Args: r.flags,
			// The machine has a KVM: a test that finds none has found a fault.
			Env: append([]string{"ARCAVM_REQUIRE_KVM=1"}, options.env...),
		})
		data := filepath.Join(p.dir, "testdata")
		if info, err := os.Stat(data); err == nil && info.IsDir() {
			cfg.Files = append(cfg.Files, emulated.File{Name: path.Join(folder(p), "testdata"), Source: data})
		}
	}
	return cfg, nil
}

func folder(p testPackage) string { return path.Join("/src", p.path) }

// Write takes the output of the program that runs.
func (r *testRun) Write(b []byte) (int, error) {
	if r.ended == 0 {
		return os.Stderr.Write(b)
	}
	if r.events == nil {
		var err error
		if r.events, err = newConverter(r.packages[r.ended-1].path, r.report); err != nil {
			r.trouble = errors.Join(r.trouble, err)
			return os.Stdout.Write(b)
		}
	}
	return r.events.stdin.Write(b)
}

// exit ends a program's output with a line as go test prints it.
func (r *testRun) exit(program int, e emulated.Exit) {
	r.trouble = errors.Join(r.trouble, r.events.close())
	r.events = nil
	r.ended = program + 1
	status := "ok  "
	if e.Code != 0 {
		status = "FAIL"
		r.failed++
	}
	if program == 0 {
		return
	}
	why := ""
	if e.Signal != 0 {
		why = fmt.Sprintf(": %v", e.Signal)
	}
	name := r.packages[program-1].path
	r.report.EndPackage(name, fmt.Sprintf("%s\t%s\t%.3fs\t(%s%s)", status, name, e.Duration.Seconds(), laneName, why), e.Code == 0)
}

// end reports on a run to its end.
func (r *testRun) end(result emulated.Result) error {
	if r.ended == 1 {
		fmt.Printf("lane %s: FAIL: the emulator's self-check failed, the other tests were not run\n", laneName)
	} else {
		fmt.Print(r.report.Summary(laneName))
	}
	if result.Kernel != "" {
		fmt.Printf("lane %s: kernel %s, boot %.1fs, total %.1fs\n", laneName, result.Kernel, result.Boot.Seconds(), result.Total.Seconds())
	}
	if r.trouble != nil {
		return r.trouble
	}
	if r.failed > 0 {
		fmt.Fprint(os.Stderr, result.Console)
		return exitCode(1)
	}
	return nil
}

// converter is a go tool test2json that a report reads.
type converter struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	read  chan error
}

func newConverter(name string, report *lane.Report) (*converter, error) {
	c := &converter{cmd: exec.Command("go", "tool", "test2json", "-p", name), read: make(chan error, 1)}
	// A terminal's Ctrl-C is this process's: what was printed is to be
	// reported.
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.cmd.Stderr = os.Stderr
	var err error
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	events, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start go tool test2json: %w", err)
	}
	go func() { c.read <- report.Read(events) }()
	return c, nil
}

// close waits until the report has read all. A nil *converter has nothing.
func (c *converter) close() error {
	if c == nil {
		return nil
	}
	return errors.Join(c.stdin.Close(), <-c.read, c.cmd.Wait())
}

// listPackages returns the packages; those without tests have no dir.
func listPackages(ctx context.Context, patterns []string) ([]testPackage, error) {
	format := `{{.ImportPath}}{{"\t"}}{{if or .TestGoFiles .XTestGoFiles}}{{.Dir}}{{end}}`
	out, err := goTool(ctx, append([]string{"list", "-buildvcs=false", "-f", format, "--"}, patterns...)...)
	if err != nil {
		return nil, err
	}
	var packages []testPackage
	for line := range strings.Lines(out) {
		if name, dir, ok := strings.Cut(strings.TrimRight(line, "\n"), "\t"); ok {
			packages = append(packages, testPackage{path: name, dir: dir})
		}
	}
	return packages, nil
}

// goTool runs the go command, for static binaries unless the environment wants
// others.
func goTool(ctx context.Context, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append([]string{"CGO_ENABLED=0"}, os.Environ()...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", args[0], err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
