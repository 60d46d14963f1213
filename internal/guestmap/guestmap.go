// Package guestmap has the addresses that are the same in every guest:
// PROTOCOL.md sections 3 and 4. Those of the older ABIs are the same.
package guestmap

const (
	// RAMBase is the physical address at which RAM starts. Nothing of a guest's
	// memory lies below.
	RAMBase = 4 << 30
	// MaxPhysical is the first physical address that the direct map can't hold,
	// 512 GiB: what one entry of the topmost page table maps.
	MaxPhysical = 512 << 30
	// DirectMap is the virtual address of physical address 0 when a guest
	// starts.
	DirectMap = 0xFFFF_8000_0000_0000
	// PhysicalMask clears the bits that DirectMap adds to a physical address.
	PhysicalMask = 0x7FFF_FFFF_FFFF
)
