package vmmtest_test

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fix-project/arcavm/vmm"
	"github.com/fix-project/arcavm/vmm/vmmtest"
)

// fakeTest is a test that may fail. It has no deadline unless it is given one.
type fakeTest struct {
	testing.TB
	left time.Duration // until the deadline

	mu      sync.Mutex
	failed  bool
	skipped bool
	output  strings.Builder
	cleanup []func()
}

func (f *fakeTest) Helper()      {}
func (f *fakeTest) Name() string { return "fake" }

func (f *fakeTest) Deadline() (time.Time, bool) {
	return time.Now().Add(f.left), f.left != 0
}

func (f *fakeTest) say(failed bool, text string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failed = f.failed || failed
	f.output.WriteString(text + "\n")
}

func (f *fakeTest) Failed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.failed
}

func (f *fakeTest) Logf(format string, args ...any)   { f.say(false, fmt.Sprintf(format, args...)) }
func (f *fakeTest) Errorf(format string, args ...any) { f.say(true, fmt.Sprintf(format, args...)) }
func (f *fakeTest) Fatal(args ...any)                 { f.say(true, fmt.Sprint(args...)); runtime.Goexit() }

func (f *fakeTest) Fatalf(format string, args ...any) {
	f.Errorf(format, args...)
	runtime.Goexit()
}

func (f *fakeTest) Skipf(format string, args ...any) {
	f.Logf(format, args...)
	f.skipped = true
	runtime.Goexit()
}

func (f *fakeTest) Cleanup(do func()) { f.cleanup = append(f.cleanup, do) }

// do runs a test to its end.
func (f *fakeTest) do(test func(testing.TB)) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			for i := len(f.cleanup) - 1; i >= 0; i-- {
				f.cleanup[i]()
			}
		}()
		test(f)
	}()
	<-done
}

// boot boots a guest in a test whose outcome is looked at.
func boot(t testing.TB, cfg vmm.Config, name string, args ...string) *vmmtest.Guest {
	cfg.Image, cfg.Args = vmmtest.Image(t, name), args
	return vmmtest.Boot(t, cfg)
}

// ended waits for a guest's end without asking how it ended.
func ended(g *vmmtest.Guest) {
	for {
		if _, err := g.VM.Report(); err != nil {
			return
		}
		runtime.Gosched()
	}
}

func TestOutcome(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/dev/kvm"); err != nil {
		boot(t, vmm.Config{}, "hello") // skips, or fails
	}
	const crashed = "registers\n  rip "
	for _, c := range []struct {
		name string
		test func(testing.TB)
		want []string // in the output of a test that fails; none: it passes
		not  []string
	}{
		{"exit 0", func(t testing.TB) { ended(boot(t, vmm.Config{}, "hello")) }, nil, nil},
		{"ended with the test", func(t testing.TB) { boot(t, vmm.Config{}, "idle").WaitLog("idle") }, nil, nil},
		{"cancelled", func(t testing.TB) { boot(t, vmm.Config{}, "idle").Cancel() }, nil, nil},
		{"closed", func(t testing.TB) { boot(t, vmm.Config{}, "idle").VM.Close() }, nil, nil},
		{"crash", func(t testing.TB) { ended(boot(t, vmm.Config{}, "crash", "ud2")) },
			[]string{"the guest died on CPU 0: panic: invalid opcode", "AllowDeath", crashed, "ud2+0x", "last log records\n  INFO  crash: crashing by: ud2"}, nil},
		{"exit code", func(t testing.TB) { ended(boot(t, vmm.Config{}, "hello", "bob", "--exit", "7")) },
			[]string{"the guest exited with code 7", "hello, bob"}, nil},
		{"Wait has asked", func(t testing.TB) { boot(t, vmm.Config{}, "crash", "ud2").Wait() }, nil, nil},
		{"Wait has asked for the code", func(t testing.TB) { boot(t, vmm.Config{}, "hello", "--exit", "7").Wait() }, nil, nil},
		{"allowed", func(t testing.TB) {
			g := boot(t, vmm.Config{}, "crash", "ud2")
			g.AllowDeath()
			ended(g)
		}, nil, nil},
		{"another failure, the crash was asked for", func(t testing.TB) {
			boot(t, vmm.Config{}, "crash", "wild").Wait()
			t.Errorf("the test's own failure")
		}, []string{"the test's own failure", crashed, "wild+0x", "crashing by: wild"}, []string{"AllowDeath"}},
		{"another failure, own Logger", func(t testing.TB) {
			boot(t, vmm.Config{Logger: slog.New(slog.DiscardHandler)}, "crash", "wild").Wait()
			t.Errorf("the test's own failure")
		}, []string{crashed, "guest's log:\ntime=", "crashing by: wild"}, nil},
		{"another failure, the guest runs", func(t testing.TB) {
			boot(t, vmm.Config{CPUs: 2}, "idle").WaitLog("idle")
			t.Errorf("the test's own failure")
		}, []string{"until the test ended it\nCPU 0: ", "backtrace", "last log records", "idle with 0 streams"}, nil},
		{"unknown image", func(t testing.TB) { boot(t, vmm.Config{}, "helo") },
			[]string{`there is no test image "helo"; there are accept, cat,`, "hello, "}, nil},
		{"Addr of a guest that dies", func(t testing.TB) { boot(t, vmm.Config{}, "crash", "port").Addr() },
			[]string{"the guest didn't listen; the guest has ended: the guest died on CPU 0: write to I/O port", crashed}, nil},
		{"Addr, time", func(t testing.TB) { boot(t, vmm.Config{}, "idle").Within(300 * time.Millisecond).Addr() },
			[]string{"the guest didn't listen within 300ms\nCPU 0: ", "backtrace"}, nil},
		{"Wait, time", func(t testing.TB) {
			boot(t, vmm.Config{CPUs: 3}, "idle").Within(300 * time.Millisecond).Wait()
		}, []string{"the guest didn't end within 300ms\nCPU", "backtrace"}, nil},
		{"WaitLog, time", func(t testing.TB) {
			boot(t, vmm.Config{}, "idle").Within(300 * time.Millisecond).WaitLog("never")
		}, []string{`the guest didn't say "never" on its log within 300ms` + "\nCPU 0: ", "backtrace"}, nil},
		{"WaitConsole, time", func(t testing.TB) {
			boot(t, vmm.Config{}, "idle").Within(300 * time.Millisecond).WaitConsole("never")
		}, []string{`the guest didn't say "never" on its console within 300ms` + "\nCPU 0: ", "backtrace"}, nil},
		{"WaitLog of a guest that ends", func(t testing.TB) { boot(t, vmm.Config{}, "hello").WaitLog("never") },
			[]string{`the guest didn't say "never" on its log; the guest has ended: code 0`}, nil},
		{"WaitLog beside a Logger", func(t testing.TB) {
			var own strings.Builder
			g := boot(t, vmm.Config{Logger: slog.New(slog.NewTextHandler(&own, nil))}, "hello", "bob")
			g.WaitLog("hello, bob")
			g.Wait()
			if !strings.Contains(own.String(), "hello, bob") || strings.Contains(own.String(), "DEBUG") {
				t.Errorf("the test's Logger has %q", own.String())
			}
		}, nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := &fakeTest{TB: t}
			f.do(c.test)
			said := f.output.String()
			if f.skipped {
				t.Skip(strings.TrimSpace(said))
			}
			if f.Failed() != (c.want != nil) {
				t.Errorf("the test failed: %v", f.Failed())
			}
			for _, w := range c.want {
				if !strings.Contains(said, w) {
					t.Errorf("%q is missing", w)
				}
			}
			for _, n := range append(c.not, "goroutine ") {
				if strings.Contains(said, n) {
					t.Errorf("%q is there", n)
				}
			}
			if n := strings.Count(said, "backtrace\n   0  "); n > 3 {
				t.Errorf("the report is there %d times", n)
			}
			if t.Failed() {
				t.Log(said)
			}
		})
	}
}

// A little before the test's deadline, what waits gives up and says what the
// guest was doing.
func TestDeadline(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]func(testing.TB){
		"Addr":    func(t testing.TB) { boot(t, vmm.Config{}, "idle").Addr() },
		"Wait":    func(t testing.TB) { boot(t, vmm.Config{}, "idle").Wait() },
		"WaitLog": func(t testing.TB) { boot(t, vmm.Config{}, "idle").WaitLog("never") },
		// The peer hears of the guest's end before its VM has come to it.
		"a peer": func(t testing.TB) {
			c, err := net.Dial("tcp", boot(t, vmm.Config{}, "sink", "127.0.0.1:0").Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_, err = io.ReadAll(c)
			t.Fatalf("the test's own failure: %v", err)
		},
		"Within, later": func(t testing.TB) { boot(t, vmm.Config{}, "idle").Within(time.Hour).WaitConsole("never") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := &fakeTest{TB: t, left: 2 * time.Second}
			start := time.Now()
			f.do(test)
			if f.skipped {
				t.Skip(strings.TrimSpace(f.output.String()))
			}
			said := f.output.String()
			if !f.Failed() || !strings.Contains(said, "CPU 0: ") || !strings.Contains(said, "backtrace") {
				t.Errorf("failed: %v, and said\n%s", f.Failed(), said)
			}
			if took := time.Since(start); took > 30*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// What the guest wrote to its console steers no terminal from a test's output.
func TestForeignText(t *testing.T) {
	t.Parallel()
	boot(t, vmm.Config{}, "hello").Wait() // skips, where it has to
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := root.WriteFile("file", []byte("red: \x1b[31m\u009b31m\u202e\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := &fakeTest{TB: t}
	f.do(func(t testing.TB) {
		boot(t, vmm.Config{Share: vmm.Share{Root: root}}, "cat", "file").Wait()
		t.Errorf("the test's own failure")
	})
	if got := f.output.String(); !strings.Contains(got, `red: \u001b[31m\u009b31m\u202e`+"\n") || strings.ContainsAny(got, "\x1b\u009b\u202e") {
		t.Errorf("%q", got)
	}
}

// helperVariable makes a test of this binary one that is to fail.
const helperVariable = "VMMTEST_HELPER"

// TestHelper is what TestFailure runs.
func TestHelper(t *testing.T) {
	if os.Getenv(helperVariable) == "" {
		t.Skip("it is for TestFailure")
	}
	ended(vmmtest.Boot(t, vmm.Config{Image: vmmtest.Image(t, "crash"), Args: []string{"ud2"}, Console: io.Discard}))
}

// go test itself fails, and shows the guest's report, if the guest dies after
// all that the test looks at.
func TestFailure(t *testing.T) {
	t.Parallel()
	boot(t, vmm.Config{}, "hello").Wait() // skips, where it has to
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestHelper$", "-test.v")
	cmd.Env = append(os.Environ(), helperVariable+"=1")
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Errorf("the test passed:\n%s", out)
	}
	for _, want := range []string{"--- FAIL: TestHelper", "the guest died on CPU 0: panic: invalid opcode", "backtrace", "crashing by: ud2"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
}
