package kvm

import (
	"encoding/binary"
	"errors"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"
)

const (
	cpuidHeaderSize = 8
	cpuidEntrySize  = 40
	// KVM itself allows 256; it must grow before this is too little.
	cpuidMaxEntries = 1024
)

// CPUIDEntry2 is what one CPUID leaf answers (struct kvm_cpuid_entry2).
type CPUIDEntry2 = gokvm.CPUIDEntry2

// SupportedCPUID returns every leaf that this KVM can offer to a guest on this
// processor (section 4.46).
func (s *System) SupportedCPUID() ([]CPUIDEntry2, error) {
	return getCPUID(&s.handle, reqGetSupportedCPUID)
}

// SetCPUID sets the vCPU's leaves (section 4.20), once, before its first Run.
func (v *VCPU) SetCPUID(entries []CPUIDEntry2) error {
	buf := make([]byte, cpuidHeaderSize, cpuidHeaderSize+len(entries)*cpuidEntrySize)
	binary.LittleEndian.PutUint32(buf, uint32(len(entries)))
	for i := range entries {
		buf, _ = binary.Append(buf, binary.LittleEndian, &entries[i])
	}
	return check(ioctl(&v.handle, reqSetCPUID2, &buf[0]))
}

func getCPUID(h *handle, r request) ([]CPUIDEntry2, error) {
	for n := 128; ; n *= 2 {
		buf := make([]byte, cpuidHeaderSize+n*cpuidEntrySize)
		binary.LittleEndian.PutUint32(buf, uint32(n))
		_, err := ioctl(h, r, &buf[0])
		if errors.Is(err, unix.E2BIG) && n < cpuidMaxEntries {
			continue
		}
		if err != nil {
			return nil, err
		}
		entries := make([]CPUIDEntry2, min(int(binary.LittleEndian.Uint32(buf)), n))
		_, err = binary.Decode(buf[cpuidHeaderSize:], binary.LittleEndian, entries)
		return entries, err
	}
}
