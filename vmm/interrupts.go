package vmm

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/internal/eventfd"
	"github.com/fix-project/arcavm/kvm"
)

// streamGSI is CPU 0's GSI; the others follow. Each is routed as an MSI
// straight to one local APIC. None has a route to the PIC: a legacy GSI raised
// there can arrive as an ExtINT of vector 0.
const streamGSI = 0

// interrupts are the eventfds that raise a CPU's stream interrupt when written.
type interrupts struct {
	streams []int // by CPU
}

// newInterrupts routes the GSIs and ties an eventfd to each of ours.
func newInterrupts(vm *kvm.VM, cpus int) (_ *interrupts, err error) {
	i := &interrupts{}
	defer func() {
		if err != nil {
			err = errors.Join(err, i.close())
		}
	}()
	if err := vm.SetGSIRouting(gsiRoutes(cpus)); err != nil {
		return nil, err
	}
	for c := range cpus {
		fd, err := newIRQFD(vm, uint32(streamGSI+c))
		if err != nil {
			return nil, err
		}
		i.streams = append(i.streams, fd)
	}
	return i, nil
}

func gsiRoutes(cpus int) []kvm.IRQRoute {
	var routes []kvm.IRQRoute
	for c := range cpus {
		routes = append(routes, kvm.IRQRoute{GSI: uint32(streamGSI + c), MSI: kvm.FixedMSI(uint8(c), streamVector)})
	}
	return routes
}

func newIRQFD(vm *kvm.VM, gsi uint32) (int, error) {
	fd, err := eventfd.New()
	if err != nil {
		return -1, fmt.Errorf("making an interrupt: %w", err)
	}
	if err := vm.AssignIRQFD(fd, gsi); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// raiseStream tells CPU cpu to look at its pending bitmap. Any goroutine may
// call it.
func (i *interrupts) raiseStream(cpu int) { eventfd.Signal(i.streams[cpu]) }

func (i *interrupts) close() error {
	var errs []error
	for _, fd := range i.streams {
		errs = append(errs, unix.Close(fd))
	}
	i.streams = nil
	return errors.Join(errs...)
}
