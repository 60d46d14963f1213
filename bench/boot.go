package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/fix-project/arcavm/kvm"
	"github.com/fix-project/arcavm/testdata/images"
	"github.com/fix-project/arcavm/vmm"
	"github.com/fix-project/arcavm/vmm/image"
)

// newVM builds a VM from one of the images that are part of this program.
func newVM(name string, cfg vmm.Config) (*vmm.VM, error) {
	img, err := image.ParseBytes(images.Bytes(name), name)
	if err != nil {
		return nil, err
	}
	cfg.Image = img
	vm, err := vmm.New(cfg)
	var unavailable *kvm.UnavailableError
	if errors.As(err, &unavailable) {
		return nil, fmt.Errorf("%w: %w", errMissing, err)
	}
	return vm, err
}

// boot measures the way from nothing to the guest's first log record, within this process.
func boot(ctx context.Context, r *runner) error {
	sizes := []uint64{128 << 20, 1 << 30, 64 << 30}
	if r.quick {
		sizes = sizes[:1]
	}
	for _, memory := range sizes {
		rows, err := interleave(ctx, 2*r.rounds, []func() ([]sinceStart, error){func() ([]sinceStart, error) { return bootOnce(ctx, memory) }})
		if err != nil {
			return err
		}
		for i := range rows[0][0] {
			values := pick(rows[0], func(steps []sinceStart) float64 { return float64(steps[i].took.Microseconds()) / 1000 })
			f := Figure{
				Group: "boot of hello, in this process", Name: fmt.Sprintf("%d MiB: %s", memory>>20, rows[0][0][i].name), Unit: "ms", Ours: spreadOf(values),
			}
			if rows[0][0][i].name == lastOfMonitor {
				f = f.wantBelow(15)
			}
			r.add(f)
		}
	}
	return nil
}

// lastOfMonitor is the step that ends the monitor's share of a boot.
const lastOfMonitor = "virtual CPUs started"

// sinceStart is a step of a boot, and the time since vmm.New was called.
type sinceStart struct {
	name string
	took time.Duration
}

func bootOnce(ctx context.Context, memory uint64) ([]sinceStart, error) {
	vm, err := newVM("hello", vmm.Config{Memory: memory})
	if err != nil {
		return nil, err
	}
	code, err := vm.Run(ctx)
	if err != nil {
		return nil, err
	}
	if code != 0 {
		return nil, fmt.Errorf("hello: exit code %d", code)
	}
	start, steps := vm.Timing()
	out := make([]sinceStart, len(steps))
	for i, s := range steps {
		out[i] = sinceStart{s.Name, s.At.Sub(start)}
	}
	return out, nil
}

// roundTripBooted is the echo by a booted guest beside a plain one.
func roundTripBooted(ctx context.Context, r *runner) error {
	s := newScope(ctx)
	defer s.close()
	listening := make(chan netip.AddrPort, 1)
	vm, err := newVM("echo", vmm.Config{Args: []string{"127.0.0.1:0"}, OnListen: func(a netip.AddrPort) { listening <- a }})
	if err != nil {
		return err
	}
	s.keep(vm)
	ended := make(chan error, 1)
	s.goes(func() {
		_, err := vm.Run(s.ctx)
		ended <- err
	})
	var at netip.AddrPort
	select {
	case at = <-listening:
	case err := <-ended:
		return fmt.Errorf("echo has ended before it listened: %w", err)
	}
	guest, err := net.DialTCP("tcp4", nil, net.TCPAddrFromAddrPort(at))
	if err != nil {
		return err
	}
	s.keep(guest)
	l, err := s.listen()
	if err != nil {
		return err
	}
	plain, err := s.echoPlain(l)
	if err != nil {
		return err
	}
	n := 1000
	if r.quick {
		n = 200
	}
	rows, err := interleave(s.ctx, r.rounds, []func() (trips, error){
		func() (trips, error) { return ping(guest, n) },
		func() (trips, error) { return ping(plain, n) },
	})
	if err != nil {
		return err
	}
	for _, q := range percentiles {
		micros := func(t trips) float64 { return t.micros(q.p) }
		ours, theirs := pick(rows[0], micros), pick(rows[1], micros)
		f := Figure{Group: "round trip of 64 bytes", Name: "booted guest, " + q.name, Unit: "µs", Ours: spreadOf(ours)}.beside("plain echo", ours, theirs)
		if q.name == "p50" && r.floor > 0 {
			f = f.wantAtMost(f.Neighbour.Value.Median + 1.5*r.floor)
		}
		r.add(f)
	}
	return nil
}
