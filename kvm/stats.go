package kvm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// Sizes in KVM's statistics file (section 4.134).
const (
	statsHeaderSize     = 24
	statsDescriptorSize = 16 // without the name, which follows it

	// A statistics file is some tens of KiB; what claims more is broken.
	statsMaxSize = 1 << 20
)

var reqGetStatsFD = request{"KVM_GET_STATS_FD", gokvm.IIO(0xce)}

// Stats are KVM's counters of a VM or a vCPU (section 4.134, KVM_CAP_BINARY_STATS_FD). Any goroutine may read them, during
// Run too.
type Stats struct {
	file *os.File
}

// OpenStats opens the VM's counters, such as pages_4k and remote_tlb_flush.
func (vm *VM) OpenStats() (*Stats, error) { return openStats(&vm.handle) }

// OpenStats opens the vCPU's counters, such as exits, halt_exits, irq_injections, and blocking, which is 1 while it is
// halted. It waits for a Run in flight, so open them before.
func (v *VCPU) OpenStats() (*Stats, error) { return openStats(&v.handle) }

func openStats(h *handle) (*Stats, error) {
	fd, err := call(h, reqGetStatsFD.name, func(fd uintptr) (uintptr, error) {
		return gokvm.Ioctl(fd, reqGetStatsFD.number, 0)
	})
	if err != nil {
		return nil, err
	}
	return &Stats{file: os.NewFile(uintptr(fd), "kvm-stats")}, nil
}

// Read returns the counters by name, histograms left out.
func (s *Stats) Read() (map[string]uint64, error) {
	stats, err := parseStats(s.file)
	if err != nil {
		return nil, fmt.Errorf("kvm: reading statistics: %w", err)
	}
	return stats, nil
}

// Close closes the counters. A VM lives on while they are open.
func (s *Stats) Close() error {
	if err := s.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("kvm: closing statistics: %w", err)
	}
	return nil
}

// parseStats reads struct kvm_stats_header, the struct kvm_stats_desc array and the values.
func parseStats(f io.ReaderAt) (map[string]uint64, error) {
	var header struct{ Flags, NameSize, Count, ID, Descriptors, Data uint32 }
	if err := readAt(f, 0, &header, statsHeaderSize); err != nil {
		return nil, err
	}
	stride := uint64(statsDescriptorSize) + uint64(header.NameSize)
	size := stride * uint64(header.Count)
	if size > statsMaxSize {
		return nil, fmt.Errorf("%d descriptors of %d bytes", header.Count, stride)
	}
	descriptors := make([]byte, size)
	if _, err := f.ReadAt(descriptors, int64(header.Descriptors)); err != nil {
		return nil, err
	}
	stats := make(map[string]uint64, header.Count)
	for ; len(descriptors) > 0; descriptors = descriptors[stride:] {
		var d struct {
			Flags    uint32
			Exponent int16
			Size     uint16
			Offset   uint32
			Bucket   uint32
		}
		if _, err := binary.Decode(descriptors, binary.LittleEndian, &d); err != nil {
			return nil, err
		}
		if d.Size != 1 {
			continue
		}
		name, _, _ := bytes.Cut(descriptors[statsDescriptorSize:stride], []byte{0})
		var value uint64
		if err := readAt(f, int64(header.Data)+int64(d.Offset), &value, 8); err != nil {
			return nil, err
		}
		stats[string(name)] = value
	}
	return stats, nil
}

func readAt(f io.ReaderAt, offset int64, into any, size int) error {
	buf := make([]byte, size)
	if _, err := f.ReadAt(buf, offset); err != nil {
		return err
	}
	_, err := binary.Decode(buf, binary.LittleEndian, into)
	return err
}
