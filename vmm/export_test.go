package vmm

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/fix-project/arcavm/internal/guestmap"
	"github.com/fix-project/arcavm/kvm"
)

// Counts returns what the CPUs of the image count have counted to.
func (v *VM) Counts() ([]uint64, error) {
	const stride = 64
	for s := range v.cfg.Image.Symbols() {
		if s.Name != "counts" {
			continue
		}
		b, err := v.memory.Bytes(s.Start-guestmap.DirectMap, stride*uint64(len(v.cpus)))
		if err != nil {
			return nil, err
		}
		n := make([]uint64, len(v.cpus))
		for i := range n {
			n[i] = binary.LittleEndian.Uint64(b[i*stride:])
		}
		return n, nil
	}
	return nil, errors.New("no symbol counts")
}

// Settled reports an error unless each CPU of a paused VM has its exit
// completed: another KVM_RUN that doesn't enter the guest leaves the registers
// as they are.
func (v *VM) Settled() error {
	for _, c := range v.cpus {
		if at := v.gate.whereIs(c); at == placeInside {
			return fmt.Errorf("CPU %d is inside", c.index)
		}
		before, _, err := c.vcpu.PeekRegs()
		if err != nil {
			return err
		}
		c.vcpu.SetImmediateExit(true)
		if err := c.vcpu.Run(); !errors.Is(err, kvm.ErrInterrupted) {
			return fmt.Errorf("CPU %d: KVM_RUN returned %w", c.index, err)
		}
		after, _, err := c.vcpu.PeekRegs()
		if err != nil {
			return err
		}
		if before != after {
			return fmt.Errorf("CPU %d had an exit half done: %+v became %+v", c.index, before, after)
		}
	}
	return nil
}
