package emulated

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Requests of <linux/hpet.h>.
const (
	hpetInterruptsOn = 0x6801      // HPET_IE_ON
	hpetSetFrequency = 0x4008_6806 // HPET_IRQFREQ
)

// heartbeat is in Hz: rare enough to cost nothing, frequent enough that no
// interrupt is missed for long.
const heartbeat = 64

// startHeartbeat has the machine's HPET interrupt it periodically, to its end.
// QEMU now and then overlooks an interrupt that comes while it enters or leaves
// a guest of KVM, until the next interrupt. The kernel's own timer is set anew
// by its handler, so without the heartbeat there might be no next interrupt.
func startHeartbeat() error {
	timer, err := unix.Open("/dev/hpet", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the HPET: %w", err)
	}
	if err := unix.IoctlSetInt(timer, hpetSetFrequency, heartbeat); err != nil {
		return fmt.Errorf("set the HPET's frequency: %w", err)
	}
	// The descriptor stays open: to close it would end the interrupts.
	if err := unix.IoctlSetInt(timer, hpetInterruptsOn, 0); err != nil {
		return fmt.Errorf("have the HPET interrupt: %w", err)
	}
	return nil
}
