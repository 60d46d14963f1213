package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/fix-project/arcavm/kvm"
	"github.com/fix-project/arcavm/testdata/images"
	"github.com/fix-project/arcavm/vmm"
	"github.com/fix-project/arcavm/vmm/image"
)

// booted is a virtual machine whose guest serves TCP on this machine.
type booted struct {
	vm     *vmm.VM
	at     netip.AddrPort
	cancel context.CancelFunc
	ended  chan struct{}
	err    error // why the guest has ended; written before ended is closed
}

// boot starts one of the images that are part of this program, and waits until
// it listens. The image must be a server whose first argument is an address;
// args are the others.
func (s *scope) boot(name string, cfg vmm.Config, args ...string) (*booted, error) {
	img, err := image.ParseBytes(images.Bytes(name), name)
	if err != nil {
		return nil, err
	}
	listening := make(chan netip.AddrPort, 1)
	cfg.Image, cfg.Args = img, append([]string{"127.0.0.1:0"}, args...)
	cfg.OnListen = func(a netip.AddrPort) { listening <- a }
	vm, err := vmm.New(cfg)
	var unavailable *kvm.UnavailableError
	if errors.As(err, &unavailable) {
		return nil, fmt.Errorf("%w: %w", errMissing, err)
	}
	if err != nil {
		return nil, err
	}
	b := &booted{vm: vm, ended: make(chan struct{})}
	var ctx context.Context
	ctx, b.cancel = context.WithCancel(s.ctx)
	s.guests = append(s.guests, b)
	go func() {
		defer close(b.ended)
		if code, err := vm.Run(ctx); err == nil {
			b.err = fmt.Errorf("the guest has exited with code %d", code)
		} else {
			b.err = err
		}
	}()
	select {
	case b.at = <-listening:
		return b, nil
	case <-b.ended:
		return nil, fmt.Errorf("%s doesn't listen: %w", name, b.err)
	}
}

// close ends the VM. It returns an error if the guest had ended by itself, or a
// wake-up was lost.
func (b *booted) close() error {
	var err error
	select {
	case <-b.ended:
		err = b.err
	default:
	}
	b.cancel()
	<-b.ended
	return errors.Join(err, errRescued(lost(b.vm.Stats().Pipes)))
}

func (b *booted) counts() counts {
	s := b.vm.Stats()
	c := counts{pipes: s.Pipes}
	for _, n := range s.Exits {
		c.exits += n
	}
	for _, n := range s.Hypercalls {
		c.hypercalls += n
	}
	return c
}

// dial connects to the guest.
func (s *scope) dial(b *booted) (*net.TCPConn, error) {
	c, err := net.DialTCP("tcp4", nil, net.TCPAddrFromAddrPort(b.at))
	if err == nil {
		s.keep(c)
	}
	return c, err
}
