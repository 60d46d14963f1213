package vmm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fix-project/arcavm/vmm"
	"github.com/fix-project/arcavm/vmm/vmmtest"
)

// pause pauses a VM that runs.
func pause(t testing.TB, vm *vmm.VM) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := vm.Pause(ctx); err != nil {
		t.Fatal(err)
	}
}

func resume(t testing.TB, vm *vmm.VM) {
	t.Helper()
	if err := vm.Resume(); err != nil {
		t.Fatal(err)
	}
}

func counts(t testing.TB, vm *vmm.VM) []uint64 {
	t.Helper()
	n, err := vm.Counts()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// goesOn waits until a CPU of the image count has counted on.
func goesOn(t testing.TB, vm *vmm.VM, from []uint64) {
	t.Helper()
	for late := time.Now().Add(patience); slices.Equal(counts(t, vm), from); runtime.Gosched() {
		if time.Now().After(late) {
			t.Fatal("the guest stands")
		}
	}
}

// sequence is a console that checks that the bytes 0 to 255 come again and
// again.
type sequence struct {
	t    *testing.T
	next byte
}

func (s *sequence) Write(p []byte) (int, error) {
	for _, b := range p {
		if b != s.next {
			s.t.Errorf("byte %d came on the console, want %d", b, s.next)
		}
		s.next = b + 1
	}
	return len(p), nil
}

// A paused guest stands still, with no exit half done, and a report of it
// doesn't change between two looks. It goes on where it was.
func TestPause(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"spin", "call", "print"} {
		for _, cpus := range []int{1, 2, 4, vmm.MaxCPUs} {
			t.Run(fmt.Sprintf("%s/%d CPUs", mode, cpus), func(t *testing.T) {
				g := vmmtest.Boot(t, vmm.Config{
					Image: vmmtest.Image(t, "count"), Args: []string{mode}, CPUs: cpus,
					Console: &sequence{t: t},
				})
				g.WaitLog("counting")
				at := make([]uint64, cpus)
				for range 20 {
					goesOn(t, g.VM, at)
					pause(t, g.VM)
					at = standsStill(t, g.VM)
					resume(t, g.VM)
				}
			})
		}
	}
}

// standsStill checks that a paused guest doesn't move, and returns its counts.
func standsStill(t *testing.T, vm *vmm.VM) []uint64 {
	t.Helper()
	before := counts(t, vm)
	first, err := vm.Report()
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.Settled(); err != nil {
		t.Error(err)
	}
	second, err := vm.Report()
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(first, second) {
		t.Errorf("the first report is %+v, the second %+v", first, second)
	}
	if after := counts(t, vm); !slices.Equal(before, after) {
		t.Errorf("the counts %d became %d", before, after)
	}
	return before
}

// Pauses are counted, and a VM can be paused before it runs.
func TestPauseBeforeTheStart(t *testing.T) {
	t.Parallel()
	vm, err := vmm.New(vmm.Config{
		Image: vmmtest.Image(t, "hello"), Args: []string{"--exit", "7"}, CPUs: 2,
	})
	if err != nil {
		vmmtest.Unavailable(t, err)
	}
	if err := vm.Resume(); !errors.Is(err, vmm.ErrNotPaused) {
		t.Errorf("Resume of what isn't paused: %v", err)
	}
	pause(t, vm)
	pause(t, vm)
	code := make(chan int, 1)
	go func() {
		n, err := vm.Run(t.Context())
		if err != nil {
			t.Error(err)
		}
		code <- n
	}()
	for i := range 2 {
		select {
		case <-code:
			t.Fatal("the guest has ended")
		default:
		}
		r, err := vm.Report()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range r.CPUs {
			if len(c.Backtrace) != 1 || c.Backtrace[0].Symbol != "_start" || c.Backtrace[0].Offset != 0 {
				t.Errorf("with %d Resumes, CPU %d is %+v", i, c.CPU, c)
			}
		}
		resume(t, vm)
	}
	if n := <-code; n != 7 {
		t.Errorf("the guest ended with %d", n)
	}
	if err := vm.Pause(t.Context()); !errors.Is(err, vmm.ErrClosed) {
		t.Errorf("Pause after the end: %v", err)
	}
	if err := vm.Resume(); !errors.Is(err, vmm.ErrClosed) {
		t.Errorf("Resume after the end: %v", err)
	}
}

// A halted guest is paused and goes on like any other; that it is to stop, it
// hears when it goes on.
func TestPauseIdle(t *testing.T) {
	t.Parallel()
	for _, cpus := range []int{1, 2, 4, vmm.MaxCPUs} {
		t.Run(fmt.Sprint(cpus, " CPUs"), func(t *testing.T) {
			t.Parallel()
			g := vmmtest.Boot(t, vmm.Config{Image: vmmtest.Image(t, "idle"), CPUs: cpus})
			g.WaitLog("idle")
			for range 50 {
				pause(t, g.VM)
				if err := g.VM.Settled(); err != nil {
					t.Error(err)
				}
				resume(t, g.VM)
			}
			pause(t, g.VM)
			g.VM.Stop()
			if r, err := g.VM.Report(); err != nil || strings.Contains(g.Log(), "asked to stop") {
				t.Errorf("a paused guest has heard: %v, %+v", err, r)
			}
			resume(t, g.VM)
			if code, err := g.Wait(); code != 0 || err != nil {
				t.Errorf("the guest ended with %d, %v", code, err)
			}
		})
	}
}

// Pause waits for a CPU that is in the embedder's Logger, as long as it may,
// and then leaves nothing paused.
func TestPauseWhileStuck(t *testing.T) {
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
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := g.VM.Pause(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Pause returned %v", err)
	}
	if err := g.VM.Resume(); !errors.Is(err, vmm.ErrNotPaused) {
		t.Errorf("Resume returned %v", err)
	}
	paused := make(chan error, 1)
	go func() { paused <- g.VM.Pause(t.Context()) }()
	close(release)
	if err := <-paused; err == nil {
		resume(t, g.VM)
	} else if !errors.Is(err, vmm.ErrClosed) { // it was too late for this guest
		t.Error(err)
	}
	if code, err := g.Wait(); code != 0 || err != nil {
		t.Errorf("the guest ended with %d, %v", code, err)
	}
}

// A pause doesn't keep a VM from its end, and the report of a deadline shows
// the paused CPUs.
func TestEndWhilePaused(t *testing.T) {
	t.Parallel()
	late := errors.New("too late")
	for _, c := range []struct {
		name string
		end  func(vm *vmm.VM, cancel context.CancelCauseFunc)
		want error
	}{
		{"Close", func(vm *vmm.VM, _ context.CancelCauseFunc) { _ = vm.Close() }, vmm.ErrClosed},
		{"cancel", func(_ *vmm.VM, cancel context.CancelCauseFunc) { cancel(late) }, late},
		{"deadline", func(*vmm.VM, context.CancelCauseFunc) {}, context.DeadlineExceeded},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			vm, err := vmm.New(vmm.Config{
				Image: vmmtest.Image(t, "count"), Args: []string{"call"}, CPUs: 4,
			})
			if err != nil {
				vmmtest.Unavailable(t, err)
			}
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			if c.want == context.DeadlineExceeded {
				short, stop := context.WithTimeout(ctx, 200*time.Millisecond)
				defer stop()
				ctx = short
			}
			done := make(chan error, 1)
			go func() {
				_, err := vm.Run(ctx)
				done <- err
			}()
			pause(t, vm)
			c.end(vm, cancel)
			err = <-done
			if !errors.Is(err, c.want) {
				t.Errorf("the run ended with %v", err)
			}
			if hang := (*vmm.HangError)(nil); errors.As(err, &hang) {
				if len(hang.CPUs) != 4 || hang.CPUs[3].Registers == nil {
					t.Errorf("the CPUs were %+v", hang.CPUs)
				}
			}
			if err := vm.Resume(); !errors.Is(err, vmm.ErrClosed) {
				t.Errorf("Resume returned %v", err)
			}
		})
	}
}

// meddler pauses, resumes and reports until stopped, from several goroutines.
// The guest runs between any two pauses of one of them.
type meddler struct {
	t    *testing.T
	vm   *vmm.VM
	stop chan struct{}
	all  sync.WaitGroup
}

func meddle(t *testing.T, vm *vmm.VM) *meddler {
	m := &meddler{t: t, vm: vm, stop: make(chan struct{})}
	for i := range uint64(3) {
		m.all.Go(func() {
			random := rand.New(rand.NewPCG(i, 0))
			for m.once(random) {
				select {
				case <-m.stop:
					return
				case <-time.After(time.Duration(random.IntN(3000)) * time.Microsecond):
				}
			}
		})
	}
	return m
}

// once reports whether the VM is still there.
func (m *meddler) once(random *rand.Rand) bool {
	if random.IntN(4) == 0 {
		_, err := m.vm.Report()
		return m.allowed(err)
	}
	limit := patience
	if random.IntN(3) == 0 {
		limit = time.Duration(random.IntN(200)) * time.Microsecond
	}
	ctx, cancel := context.WithTimeout(m.t.Context(), limit)
	defer cancel()
	if err := m.vm.Pause(ctx); err != nil {
		return errors.Is(err, context.DeadlineExceeded) || m.allowed(err)
	}
	if random.IntN(4) == 0 {
		time.Sleep(time.Duration(random.IntN(1000)) * time.Microsecond)
	}
	return m.allowed(m.vm.Resume())
}

// allowed reports whether the VM is still there.
func (m *meddler) allowed(err error) bool {
	if err != nil && !errors.Is(err, vmm.ErrClosed) {
		m.t.Error(err)
	}
	return err == nil
}

// end stops meddling, and leaves nothing paused.
func (m *meddler) end() {
	close(m.stop)
	m.all.Wait()
	if err := m.vm.Resume(); !errors.Is(err, vmm.ErrNotPaused) && !errors.Is(err, vmm.ErrClosed) {
		m.t.Errorf("Resume at the end: %v", err)
	}
}

// However a VM ends, pauses, reports and their ends beside it change nothing.
func TestPauseAgainstEnds(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		args []string
		wait string
		end  func(g *vmmtest.Guest)
		want string // what the run ends with
	}{
		{"idle", nil, "", func(g *vmmtest.Guest) { g.VM.Stop() }, "0 <nil>"},
		{"idle", nil, "idle", func(g *vmmtest.Guest) { g.VM.Close() }, "0 vmm: the VM is closed"},
		{"count", []string{"call"}, "counting", func(g *vmmtest.Guest) { g.Cancel() }, "0 context canceled"},
		{"count", []string{"print"}, "", func(g *vmmtest.Guest) { g.Cancel() }, "0 context canceled"},
		{"crash", []string{"ud2"}, "", nil, "0 the guest died on CPU 0: panic: invalid opcode"},
		{"crash", []string{"triple"}, "", nil, "0 the guest died on CPU 0: triple fault"},
		{"crash", []string{"port"}, "", nil, "0 the guest died on CPU 0: write to I/O port 0x1234"},
		{"crash", []string{"mmio"}, "", nil, "0 the guest died on CPU 0: read of physical address"},
		{"hello", []string{"--exit", "3"}, "", nil, "3 <nil>"},
		{"smp", nil, "", nil, "0 <nil>"},
	} {
		for _, cpus := range []int{1, 2, 4, vmm.MaxCPUs} {
			if cpus == vmm.MaxCPUs && c.name == "smp" {
				continue // so many CPUs take half a minute at its spinlock
			}
			name := fmt.Sprintf("%s %s/%d CPUs", c.name, strings.Join(c.args, " "), cpus)
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				g := vmmtest.Boot(t, vmm.Config{
					Image: vmmtest.Image(t, c.name), Args: c.args, CPUs: cpus, Console: io.Discard,
				})
				m := meddle(t, g.VM)
				if c.wait != "" {
					g.WaitLog(c.wait)
				}
				if c.end != nil {
					c.end(g)
				}
				code, err := g.Wait()
				m.end()
				if got := fmt.Sprint(code, " ", err); !strings.HasPrefix(got, c.want) {
					t.Errorf("the run ended with %s, want %s", got, c.want)
				}
				if err := g.VM.Pause(t.Context()); !errors.Is(err, vmm.ErrClosed) {
					t.Errorf("Pause after the end: %v", err)
				}
			})
		}
	}
}

// echoGuests are guests that send back what they get, of two ABIs.
func echoGuests(t *testing.T, test func(t *testing.T, g *vmmtest.Guest)) {
	for _, cpus := range []int{1, 2, 4} {
		t.Run(fmt.Sprintf("streams/%d CPUs", cpus), func(t *testing.T) {
			t.Parallel()
			test(t, vmmtest.Boot(t, vmm.Config{
				Image: vmmtest.Image(t, "echo"), Args: []string{"127.0.0.1:0"}, CPUs: cpus,
			}))
		})
		t.Run(fmt.Sprintf("rpc/%d CPUs", cpus), func(t *testing.T) {
			test(t, rpcBoot(t, vmm.Config{CPUs: cpus}, "rpc-echo", "127.0.0.1", "0"))
		})
	}
}

// echoed sends a body and takes it back.
func echoed(c *net.TCPConn, body []byte) error {
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(body)
		sent <- errors.Join(err, c.CloseWrite())
	}()
	got, err := io.ReadAll(c)
	if err == nil && !bytes.Equal(got, body) {
		err = fmt.Errorf("%d bytes came back for %d, or other ones", len(got), len(body))
	}
	return errors.Join(err, <-sent)
}

// Streams are right, however often their guest is paused.
func TestPauseWithTraffic(t *testing.T) {
	t.Parallel()
	size := 1 << 20
	if testing.Short() {
		size = 64 << 10
	}
	echoGuests(t, func(t *testing.T, g *vmmtest.Guest) {
		addr := g.Addr().String()
		m := meddle(t, g.VM)
		defer m.end()
		var all sync.WaitGroup
		for i := range 8 {
			c := dial(t, addr)
			all.Go(func() {
				if err := echoed(c, content(uint64(i), size+i)); err != nil {
					t.Errorf("stream %d: %v", i, err)
				}
			})
		}
		all.Wait()
	})
}

// A paused guest's peer meets backpressure, and after the pause the guest gets
// all that was sent. The watchdog, which looks many times meanwhile, takes no
// wake-up for lost: vmmtest fails the test if it does.
func TestPauseBackpressure(t *testing.T) {
	t.Parallel()
	echoGuests(t, func(t *testing.T, g *vmmtest.Guest) {
		c := dial(t, g.Addr().String())
		if err := c.SetWriteBuffer(64 << 10); err != nil {
			t.Fatal(err)
		}
		body := content(1, 16<<20)
		// The stream exists, and its guest waits.
		if _, err := c.Write(body[:1]); err != nil {
			t.Fatal(err)
		}
		first := make([]byte, 1)
		if _, err := io.ReadFull(c, first); err != nil || first[0] != body[0] {
			t.Fatalf("%d came back, %v", first, err)
		}
		pause(t, g.VM)
		if err := c.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := c.Write(body)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a paused guest's peer wrote %d bytes, %v", n, err)
		}
		if err := c.SetWriteDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		resume(t, g.VM)
		sent := make(chan error, 1)
		go func() {
			_, err := c.Write(body[n:])
			sent <- errors.Join(err, c.CloseWrite())
		}()
		got, err := io.ReadAll(c)
		if err := errors.Join(err, <-sent); err != nil || !bytes.Equal(got, body) {
			t.Errorf("%d bytes came back of %d, or other ones, %v", len(got), len(body), err)
		}
	})
}

// Guests of the older ABI whose CPUs all take from one allocator lose nothing
// by pauses.
func TestPauseRPC(t *testing.T) {
	onCPUs(t, func(t *testing.T, cfg vmm.Config) {
		g := rpcBoot(t, cfg, "rpc-smp", "50")
		m := meddle(t, g.VM)
		wantCode(t, g, 0)
		m.end()
		wantLog(t, g, "allocator as before")
	})
}

// A guest that asks for sockets by hypercalls answers every client, though
// pauses come while calls are under way.
func TestPauseHypercallABI(t *testing.T) {
	const clients = 40
	onCPUs(t, func(t *testing.T, cfg vmm.Config) {
		g := rpcBoot(t, cfg, "rpc-calls", callsHTTP, anyLoopback, "0", fmt.Sprint(clients))
		addr := g.Addr().String()
		m := meddle(t, g.VM)
		defer m.end()
		var all errgroup.Group
		all.SetLimit(8)
		for i := range clients {
			all.Go(func() error { return rpcRequest(addr, i) })
		}
		if err := all.Wait(); err != nil {
			t.Error(err)
		}
	})
}
