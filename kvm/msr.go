package kvm

import (
	"encoding/binary"
	"fmt"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"
)

const (
	msrsHeaderSize = 8
	msrEntrySize   = 16
)

// MSREntry is a model-specific register and its value (struct kvm_msr_entry).
type MSREntry = gokvm.MSREntry

// GetMSRs fills in the Data of each entry by its Index (section 4.18). If KVM
// doesn't know one, the error says which and wraps EINVAL; the entries before
// it are filled in.
func (v *VCPU) GetMSRs(entries []MSREntry) error {
	buf := encodeMSRs(entries)
	n, err := ioctl(&v.handle, reqGetMSRs, &buf[0])
	if err != nil {
		return err
	}
	for i := range entries[:min(n, len(entries))] {
		entries[i].Data = binary.LittleEndian.Uint64(buf[msrsHeaderSize+i*msrEntrySize+8:])
	}
	return checkMSRs(reqGetMSRs, entries, n)
}

// SetMSRs writes the entries in order (section 4.19). If KVM refuses one, the
// error says which and wraps EINVAL; the entries before it are written.
func (v *VCPU) SetMSRs(entries []MSREntry) error {
	buf := encodeMSRs(entries)
	n, err := ioctl(&v.handle, reqSetMSRs, &buf[0])
	if err != nil {
		return err
	}
	return checkMSRs(reqSetMSRs, entries, n)
}

func encodeMSRs(entries []MSREntry) []byte {
	buf := make([]byte, msrsHeaderSize, msrsHeaderSize+len(entries)*msrEntrySize)
	binary.LittleEndian.PutUint32(buf, uint32(len(entries)))
	for _, e := range entries {
		buf = binary.LittleEndian.AppendUint32(buf, e.Index)
		buf = binary.LittleEndian.AppendUint32(buf, 0)
		buf = binary.LittleEndian.AppendUint64(buf, e.Data)
	}
	return buf
}

// checkMSRs makes an error of a short count: KVM_GET_MSRS and KVM_SET_MSRS stop
// without an errno at the first register that they refuse.
func checkMSRs(r request, entries []MSREntry, n int) error {
	if n >= len(entries) {
		return nil
	}
	return &IoctlError{Ioctl: r.name, Err: fmt.Errorf("MSR %#x: %w", entries[n].Index, unix.EINVAL)}
}
