package kvm

import "encoding/binary"

const irqRoutingHeaderSize = 8

const (
	irqRoutingIRQChip = 1 // KVM_IRQ_ROUTING_IRQCHIP
	irqRoutingMSI     = 2 // KVM_IRQ_ROUTING_MSI

	irqChipIOAPIC = 2 // KVM_IRQCHIP_IOAPIC
)

// MSI is a message signalled interrupt: a write of Data to Address.
type MSI struct {
	Address uint64
	Data    uint32
}

// FixedMSI is the message that raises a vector, edge triggered, at the local
// APIC with the given id, 0 to 254.
func FixedMSI(apicID, vector uint8) MSI {
	return MSI{Address: 0xfee0_0000 | uint64(apicID)<<12, Data: uint32(vector)}
}

// IRQRoute says which message a GSI sends, or which pin of the I/O APIC it
// drives.
type IRQRoute struct {
	GSI    uint32
	MSI    MSI
	IOAPIC bool   // Pin counts, and not MSI
	Pin    uint32 // 0 to 23
}

// irqRoutingEntry is struct kvm_irq_routing_entry with its MSI member. Of the
// member for interrupt controllers, the chip lies where AddressLo does, and the
// pin where AddressHi does.
type irqRoutingEntry struct {
	GSI       uint32
	Type      uint32
	Flags     uint32
	_         uint32
	AddressLo uint32
	AddressHi uint32
	Data      uint32
	_         [5]uint32
}

// irqfd is struct kvm_irqfd.
type irqfd struct {
	fd         uint32
	gsi        uint32
	flags      uint32
	resamplefd uint32
	_          [16]byte
}

// msi is struct kvm_msi.
type msi struct {
	addressLo uint32
	addressHi uint32
	data      uint32
	flags     uint32
	devid     uint32
	_         [12]byte
}

// SetGSIRouting replaces the whole routing table, that of the interrupt
// controllers' pins included (section 4.52): the given GSIs lead where their
// routes say, all others nowhere, and none to the PICs. It needs
// [VM.CreateIRQChip] or [VM.CreateLocalAPICs] before.
func (vm *VM) SetGSIRouting(routes []IRQRoute) error {
	table := make([]byte, irqRoutingHeaderSize, irqRoutingHeaderSize+len(routes)*int(sizeOf[irqRoutingEntry]()))
	binary.LittleEndian.PutUint32(table, uint32(len(routes)))
	for _, r := range routes {
		e := irqRoutingEntry{
			GSI:       r.GSI,
			Type:      irqRoutingMSI,
			AddressLo: uint32(r.MSI.Address),
			AddressHi: uint32(r.MSI.Address >> 32),
			Data:      r.MSI.Data,
		}
		if r.IOAPIC {
			e = irqRoutingEntry{GSI: r.GSI, Type: irqRoutingIRQChip, AddressLo: irqChipIOAPIC, AddressHi: r.Pin}
		}
		table, _ = binary.Append(table, binary.LittleEndian, e)
	}
	return check(ioctl(&vm.handle, reqSetGSIRouting, &table[0]))
}

// AssignIRQFD raises the GSI whenever the eventfd is written (section 4.75).
// KVM resets the counter, and holds its own reference to the eventfd. EBUSY:
// the eventfd has a GSI already.
func (vm *VM) AssignIRQFD(fd int, gsi uint32) error {
	return check(ioctl(&vm.handle, reqIRQFD, &irqfd{fd: uint32(fd), gsi: gsi}))
}

// SignalMSI sends the message now (section 4.70). It reports whether a local
// APIC took it; a guest may have the vector blocked.
func (vm *VM) SignalMSI(m MSI) (delivered bool, err error) {
	n, err := ioctl(&vm.handle, reqSignalMSI, &msi{
		addressLo: uint32(m.Address), addressHi: uint32(m.Address >> 32), data: m.Data,
	})
	return n > 0, err
}
