package vmm_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fix-project/arcavm/share"
	"github.com/fix-project/arcavm/vmm"
	"github.com/fix-project/arcavm/vmm/vmmtest"
)

func text(t *testing.T, r interface{ WriteReport(io.Writer) error }) string {
	t.Helper()
	var b strings.Builder
	if err := r.WriteReport(&b); err != nil {
		t.Fatal(err)
	}
	t.Log(b.String())
	return b.String()
}

// A guest that is asked what it does goes on.
func TestReport(t *testing.T) {
	t.Parallel()
	g := vmmtest.Boot(t, vmm.Config{Image: vmmtest.Image(t, "idle"), CPUs: vmm.MaxCPUs})
	g.WaitLog("idle")
	for range 3 {
		r, err := g.VM.Report()
		if err != nil {
			t.Fatal(err)
		}
		said := text(t, r)
		if len(r.CPUs) != vmm.MaxCPUs {
			t.Fatalf("%d CPUs", len(r.CPUs))
		}
		for i, c := range r.CPUs {
			if c.CPU != i || c.Registers == nil || len(c.Backtrace) == 0 || c.Activity > vmm.Halted {
				t.Errorf("CPU %d is %+v", i, c)
			}
		}
		if lines := strings.Count(said, "\n"); lines > 200 {
			t.Errorf("%d lines", lines)
		}
		if !strings.Contains(said, "idle with 0 streams") {
			t.Error("the last log records are missing")
		}
	}
	g.VM.Stop()
	if code, err := g.Wait(); code != 0 || err != nil {
		t.Errorf("the guest ended with %d, %v", code, err)
	}
	if _, err := g.VM.Report(); !errors.Is(err, vmm.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
}

// A VM that doesn't run yet can be asked, too.
func TestReportBeforeTheStart(t *testing.T) {
	t.Parallel()
	vm, err := vmm.New(vmm.Config{Image: vmmtest.Image(t, "idle"), CPUs: 2})
	if err != nil {
		vmmtest.Unavailable(t, err)
	}
	defer vm.Close()
	r, err := vm.Report()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range r.CPUs {
		if c.Activity != vmm.Stopped || len(c.Backtrace) != 1 || c.Backtrace[0].Symbol != "_start" {
			t.Errorf("CPU %d is %+v", c.CPU, c)
		}
	}
}

// When the time is up, Run says what the guest was doing; when it is cancelled,
// it doesn't.
func TestDeadline(t *testing.T) {
	t.Parallel()
	vm, err := vmm.New(vmm.Config{Image: vmmtest.Image(t, "idle"), CPUs: 2})
	if err != nil {
		vmmtest.Unavailable(t, err)
	}
	late := errors.New("too late")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 200*time.Millisecond, late)
	defer cancel()
	_, err = vm.Run(ctx)
	var hang *vmm.HangError
	if !errors.As(err, &hang) || !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, late) {
		t.Fatalf("the run ended with %v", err)
	}
	said := text(t, hang)
	if len(hang.CPUs) != 2 || hang.CPUs[0].Registers == nil || len(hang.CPUs[1].Backtrace) == 0 {
		t.Errorf("the CPUs were %+v", hang.CPUs)
	}
	if !strings.Contains(said, "guest ended: too late\n") || !strings.Contains(err.Error(), "too late; CPU 0 was ") {
		t.Errorf("the error is %q", err)
	}
}

// A CPU that the monitor doesn't come back from is shown with its registers,
// and the report doesn't wait for it.
func TestReportWhileStuck(t *testing.T) {
	t.Parallel()
	stuck, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	g := vmmtest.Boot(t, vmm.Config{
		Image: vmmtest.Image(t, "hello"), Args: []string{"bob"}, CPUs: 2,
		Logger: slog.New(slog.NewTextHandler(writerFunc(func(p []byte) (int, error) {
			once.Do(func() {
				close(stuck)
				<-release
			})
			return len(p), nil
		}), nil)),
	})
	<-stuck
	start := time.Now()
	r, err := g.VM.Report()
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	close(release)
	if err != nil {
		t.Fatal(err)
	}
	said := text(t, r)
	if c := r.CPUs[0]; c.Activity != vmm.InMonitor || c.Registers == nil || !strings.Contains(said, "log_record+") {
		t.Errorf("CPU 0 is %+v", c)
	}
	if c := r.CPUs[1]; c.Activity == vmm.InMonitor || c.Registers == nil {
		t.Errorf("CPU 1 is %+v", c)
	}
	if code, err := g.Wait(); code != 0 || err != nil {
		t.Errorf("the guest ended with %d, %v", code, err)
	}
}

// A run that is over, but is held up by what its embedder doesn't return from,
// says so: VM.Run can't.
func TestHeldUp(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	folder, err := share.Open(dir, false)
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	release, records := make(chan struct{}), make(chan string, 100)
	vm, err := vmm.New(vmm.Config{
		Image: vmmtest.Image(t, "cat"), Args: []string{"file"}, Share: folder,
		Console: writerFunc(func(p []byte) (int, error) {
			<-release
			return len(p), nil
		}),
		Logger: slog.New(slog.NewTextHandler(writerFunc(func(p []byte) (int, error) {
			records <- string(p)
			return len(p), nil
		}), nil)),
	})
	if err != nil {
		vmmtest.Unavailable(t, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := vm.Run(ctx)
		done <- err
	}()
	for said := ""; !strings.Contains(said, "holds up a virtual CPU"); {
		select {
		case said = <-records:
			t.Log(said)
		case err := <-done:
			t.Fatalf("the run ended with %v", err)
		}
		if strings.Contains(said, "holds up") && !strings.Contains(said, "at=console_write+0x") {
			t.Errorf("it says %q", said)
		}
	}
	close(release)
	if err := <-done; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the run ended with %v", err)
	}
}

// Guests of the older ABI can be asked, too.
func TestReportRPC(t *testing.T) {
	t.Parallel()
	g := rpcBoot(t, vmm.Config{CPUs: 2}, "rpc-httpd", "127.0.0.1", "0")
	g.WaitLog("serving on")
	r, err := g.VM.Report()
	if err != nil {
		t.Fatal(err)
	}
	text(t, r)
	if len(r.CPUs) != 2 || r.CPUs[0].Registers == nil || len(r.CPUs[0].Backtrace) < 2 || r.CPUs[0].Backtrace[1].Symbol == "" {
		t.Errorf("the CPUs are %+v", r.CPUs)
	}
}
