package vmm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/hypercall"
	"github.com/fix-project/arcavm/kvm"
	"github.com/fix-project/arcavm/testdata/images"
	"github.com/fix-project/arcavm/vmm/image"
)

// newImageVM makes a VM of a test image, whose inside the test may change
// before it runs.
func newImageVM(t *testing.T, name string, cfg Config) *VM {
	t.Helper()
	var err error
	if cfg.Image, err = image.ParseBytes(images.Bytes(name), name); err != nil {
		t.Fatal(err)
	}
	v, err := New(cfg)
	if missing := (*kvm.UnavailableError)(nil); errors.As(err, &missing) && os.Getenv("ARCAVM_REQUIRE_KVM") != "1" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	return v
}

// clockGuest is a guest that says what time it is when it is asked.
type clockGuest struct {
	t     *testing.T
	ask   *io.PipeWriter
	lines *bufio.Scanner
}

func runClock(t *testing.T, read func(id int32) (int64, error)) *clockGuest {
	t.Helper()
	input, ask := io.Pipe()
	log, logged := io.Pipe()
	v := newImageVM(t, "clock", Config{
		Args:   []string{},
		Input:  input,
		Output: io.Discard,
		Logger: slog.New(slog.NewTextHandler(logged, nil)),
	})
	clock, err := newHostClock(read)
	if err != nil {
		t.Fatal(err)
	}
	v.clock = clock
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	done := make(chan error)
	go func() {
		code, err := v.Run(ctx)
		if code != 0 {
			err = fmt.Errorf("the guest ended with %d", code)
		}
		logged.Close()
		done <- err
	}()
	t.Cleanup(func() {
		ask.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
		cancel()
	})
	return &clockGuest{t: t, ask: ask, lines: bufio.NewScanner(log)}
}

// next waits for the guest's next reading.
func (g *clockGuest) next() (wall, elapsed int64) {
	g.t.Helper()
	for g.lines.Scan() {
		_, reading, ok := strings.Cut(g.lines.Text(), `msg="wall `)
		if !ok {
			continue
		}
		if _, err := fmt.Sscanf(reading, "%d elapsed %d", &wall, &elapsed); err != nil {
			g.t.Fatal(err)
		}
		return wall, elapsed
	}
	g.t.Fatal("the guest has ended")
	return 0, 0
}

// again asks for one more reading.
func (g *clockGuest) again() (wall, elapsed int64) {
	g.t.Helper()
	if _, err := g.ask.Write([]byte{'\n'}); err != nil {
		g.t.Fatal(err)
	}
	return g.next()
}

// A guest's clocks are the host's at each call, not those of its start.
func TestClockFollows(t *testing.T) {
	t.Parallel()
	begin := time.Now()
	g := runClock(t, readHostClock)
	wall, elapsed := g.next()
	for range 3 {
		before, boot := time.Now(), mustReadClock(t)
		if before.UnixNano() < wall {
			t.Errorf("the guest's clock is %d ns ahead", wall-before.UnixNano())
		}
		nextWall, nextElapsed := g.again()
		passed := mustReadClock(t) - boot
		if after := time.Now(); nextWall < before.UnixNano() || nextWall > after.UnixNano() {
			t.Errorf("the wall clock shows %d, not between %d and %d", nextWall, before.UnixNano(), after.UnixNano())
		}
		if nextElapsed <= elapsed || nextElapsed > int64(time.Since(begin)) {
			t.Errorf("after %d ns %d ns have elapsed, of %v", elapsed, nextElapsed, time.Since(begin))
		}
		if passed < 0 || nextElapsed-elapsed > int64(time.Since(begin)) {
			t.Errorf("between two readings %d ns have elapsed", nextElapsed-elapsed)
		}
		wall, elapsed = nextWall, nextElapsed
	}
}

func mustReadClock(t *testing.T) int64 {
	t.Helper()
	ns, err := readHostClock(unix.CLOCK_BOOTTIME)
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

// The guest sees a host that is suspended, and one whose clock is set.
func TestClockSteps(t *testing.T) {
	t.Parallel()
	const second = int64(time.Second)
	var wall, boot atomic.Int64
	wall.Store(1000 * second)
	boot.Store(70 * second)
	g := runClock(t, func(id int32) (int64, error) {
		if id == unix.CLOCK_BOOTTIME {
			return boot.Load(), nil
		}
		return wall.Load(), nil
	})
	if w, e := g.next(); w != 1000*second || e != 0 {
		t.Errorf("at the start: %d, %d", w, e)
	}
	for _, step := range []struct {
		name                 string
		wall, boot           int64
		wantWall, wantPassed int64
	}{
		{"a second", 1001 * second, 71 * second, 1001 * second, second},
		{"an hour's suspension", 4601 * second, 3671 * second, 4601 * second, 3601 * second},
		{"set back", 10 * second, 3671 * second, 10 * second, 3601 * second},
		{"set forward", 9000 * second, 3671*second + 1, 9000 * second, 3601*second + 1},
	} {
		wall.Store(step.wall)
		boot.Store(step.boot)
		if w, e := g.again(); w != step.wantWall || e != step.wantPassed {
			t.Errorf("%s: the guest reads %d and %d, want %d and %d", step.name, w, e, step.wantWall, step.wantPassed)
		}
	}
}

func TestHostClockFails(t *testing.T) {
	t.Parallel()
	if _, err := readHostClock(1 << 20); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a clock that isn't: %v", err)
	}
	fails := func(int32) (int64, error) { return 0, unix.EPERM }
	if _, err := newHostClock(fails); !errors.Is(err, unix.EPERM) {
		t.Errorf("a host without the clock: %v", err)
	}
	if _, err := (&hostClock{read: fails}).now(hypercall.WallTime); !errors.Is(err, unix.EPERM) {
		t.Errorf("a host without the clock: %v", err)
	}
}

// What a guest clears goes back to the host, while it runs.
func TestMemClrGivesBack(t *testing.T) {
	t.Parallel()
	const size = 64 << 20
	log, logged := io.Pipe()
	v := newImageVM(t, "memclr", Config{Args: []string{fmt.Sprint(size)}, Logger: slog.New(slog.NewTextHandler(logged, nil))})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	done := make(chan error)
	go func() {
		code, err := v.Run(ctx)
		logged.Close()
		if err == nil && code != 0 {
			err = fmt.Errorf("exit code %d", code)
		}
		done <- err
	}()
	lines := bufio.NewScanner(log)
	await := func(text string) int64 {
		for lines.Scan() {
			if strings.Contains(lines.Text(), text) {
				v.mu.Lock()
				defer v.mu.Unlock()
				return blocks(t, v.memory.ram.fd) * 512
			}
		}
		t.Fatalf("the guest never said %q", text)
		return 0
	}
	written := await("written")
	v.Stop()
	cleared := await("cleared")
	if written < size || cleared > written-size {
		t.Errorf("RAM in use: %d bytes before, %d after clearing %d", written, cleared, int64(size))
	}
	v.Stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
