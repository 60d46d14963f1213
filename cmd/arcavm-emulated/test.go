package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/fix-project/arcavm/emulated"
	"github.com/fix-project/arcavm/internal/printable"
	"github.com/fix-project/arcavm/internal/stdio"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// selfCheck are the tests of package emulated that the lane begins with: if they
// fail, the emulator loses interrupts and later failures mean nothing.
const selfCheck = "^(TestHypercallsToInterrupts|TestHeartbeat)$"

func testCommand() *cobra.Command {
	var limit time.Duration
	var flags []string
	cmd := &cobra.Command{
		Use:   "test [flags] PACKAGES...",
		Short: "Run the tests of Go packages, after a self-check of the emulator",
		Long: `Builds the test binary of each package, boots one emulated machine, and runs
them in it one after the other, each in a folder that holds the package's
testdata. A machine that cannot be emulated here is reported and counts as
skipped; with ARCAVM_REQUIRE_KVM=1 it is a failure.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
			defer stop()
			err := runTests(ctx, args, flags, limit)
			if errors.Is(err, emulated.ErrUnavailable) && os.Getenv("ARCAVM_REQUIRE_KVM") != "1" {
				fmt.Println("lane emulated KVM: skipped:", err)
				return nil
			}
			return err
		},
	}
	cmd.Flags().DurationVar(&limit, "limit", emulated.DefaultLimit, "end everything after this time")
	cmd.Flags().StringArrayVar(&flags, "flag", nil, "pass a flag to each test binary, as -test.run=Name")
	return cmd
}

type testPackage struct{ path, dir, binary string }

func runTests(ctx context.Context, patterns, flags []string, limit time.Duration) error {
	packages, err := listPackages(ctx, patterns)
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "arcavm-tests-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)

	check := testPackage{path: "github.com/fix-project/arcavm/emulated"}
	if check.binary, err = buildTest(ctx, work, check.path); err != nil {
		return err
	}
	cfg := emulated.Config{Limit: limit, Stdout: stdio.NewWriter(os.Stdout), Stderr: stdio.NewWriter(os.Stderr)}
	cfg.Programs = append(cfg.Programs, testProgram(check, "-test.run="+selfCheck))
	cfg.Programs[0].Must = true
	for _, p := range packages {
		if p.binary, err = buildTest(ctx, work, p.path); err != nil {
			return err
		}
		cfg.Programs = append(cfg.Programs, testProgram(p, flags...))
		data := filepath.Join(p.dir, "testdata")
		if info, err := os.Stat(data); err == nil && info.IsDir() {
			cfg.Files = append(cfg.Files, emulated.File{Name: path.Join(folder(p), "testdata"), Source: data})
		}
	}
	names := append([]testPackage{check}, packages...)
	result, err := emulated.Run(ctx, cfg)
	return report(names, result, err)
}

// listPackages returns the packages that have tests.
func listPackages(ctx context.Context, patterns []string) ([]testPackage, error) {
	format := `{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{"\t"}}{{.Dir}}{{end}}`
	out, err := goTool(ctx, append([]string{"list", "-buildvcs=false", "-f", format}, patterns...)...)
	if err != nil {
		return nil, err
	}
	var packages []testPackage
	for line := range strings.Lines(out) {
		if name, dir, ok := strings.Cut(strings.TrimSpace(line), "\t"); ok {
			packages = append(packages, testPackage{path: name, dir: dir})
		}
	}
	return packages, nil
}

func buildTest(ctx context.Context, work, name string) (string, error) {
	binary := filepath.Join(work, strings.ReplaceAll(name, "/", "_")+".test")
	_, err := goTool(ctx, "test", "-c", "-ldflags=-w", "-o", binary, name)
	return binary, err
}

// goTool runs the go command, for static binaries.
func goTool(ctx context.Context, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return stdout.String(), nil
}

func folder(p testPackage) string { return path.Join("/src", p.path) }

func testProgram(p testPackage, flags ...string) emulated.Program {
	return emulated.Program{
		Path: p.binary,
		Name: path.Join(folder(p), path.Base(p.path)+".test"),
		Dir:  folder(p),
		Args: append([]string{"-test.paniconexit0", "-test.timeout=10m"}, flags...),
		// The machine has a KVM: a test that finds none has found a fault.
		Env: []string{"ARCAVM_REQUIRE_KVM=1"},
	}
}

// report prints a line per package as go test does.
func report(packages []testPackage, result emulated.Result, err error) error {
	failed := 0
	for i, exit := range result.Exits {
		status := "ok  "
		if exit.Code != 0 {
			status = "FAIL"
			failed++
		}
		fmt.Printf("%s\t%s\t%.3fs\t(emulated KVM)\n", status, packages[i].path, exit.Duration.Seconds())
	}
	if err != nil {
		return err
	}
	fmt.Printf("lane emulated KVM: kernel %s, boot %.1fs, total %.1fs\n", result.Kernel, result.Boot.Seconds(), result.Total.Seconds())
	if failed == 0 {
		return nil
	}
	fmt.Print(printable.String(result.Console))
	if result.Exits[0].Code != 0 {
		fmt.Println("lane emulated KVM: FAIL: the emulator's self-check failed, the other tests were not run")
	} else {
		fmt.Printf("lane emulated KVM: FAIL: %d of %d packages\n", failed, len(packages))
	}
	return exitCode(1)
}
