package vmm

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/fix-project/arcavm/internal/guestmap"
	"github.com/fix-project/arcavm/kvm"
	"github.com/fix-project/arcavm/pipes"
)

// The boot block of PROTOCOL.md section 5.
const (
	bootMagic   = "ARCABOOT"
	bootVersion = 1
	bootSize    = 192

	stackSize = 64 << 10
)

// Interrupt vectors, as the boot block tells them to the guest.
const (
	streamVector = 0x40
	stopVector   = 0x41
)

// Feature bits of the boot block.
const (
	featureGiBPages = 1 << iota
	featureFSGSBase
	featureSMEP
	featureSMAP
	featureRDTSCP
	featureTSCDeadline
	featureInvariantTSC
	featureClock // the CLOCK call
)

func featureBits(f kvm.Features) (bits uint64) {
	for _, b := range []struct {
		has bool
		bit uint64
	}{
		{f.GiBPages, featureGiBPages},
		{f.FSGSBASE, featureFSGSBase},
		{f.SMEP, featureSMEP},
		{f.SMAP, featureSMAP},
		{f.RDTSCP, featureRDTSCP},
		{f.TSCDeadline, featureTSCDeadline},
		{f.InvariantTSC, featureInvariantTSC},
		{true, featureClock},
	} {
		if b.has {
			bits |= b.bit
		}
	}
	return bits
}

// bootLayout is where in RAM the monitor's own structures lie: at its top, in
// the order of the fields.
type bootLayout struct {
	tables uint64 // page tables; the PML4 comes first
	block  uint64 // boot block, then the arguments
	stacks uint64 // one of stackSize for each CPU
	end    uint64
}

// stackTop is the virtual address at which CPU i's stack starts.
func (l bootLayout) stackTop(i int) uint64 {
	return guestmap.DirectMap + l.stacks + uint64(i+1)*stackSize
}

// layOut places what the monitor puts into RAM. Its lowest address is the end
// of what is free for the guest.
func layOut(m *memory, gibPages bool, cpus int, args []string) (bootLayout, error) {
	n := uint64(bootSize)
	for _, a := range args {
		n += 16 + uint64(len(a)) + 1
	}
	tables := uint64(tablePages(m, gibPages)) * pageSize
	block := alignUp(n, pageSize)
	stacks := uint64(cpus) * stackSize
	if need := tables + block + stacks; need > uint64(len(m.ram.mem)) {
		return bootLayout{}, &ConfigError{"memory", fmt.Sprintf("%d MiB are too little for %d CPUs and their page tables", len(m.ram.mem)>>20, cpus)}
	}
	l := bootLayout{end: m.ram.end()}
	l.stacks = l.end - stacks
	l.block = l.stacks - block
	l.tables = l.block - tables
	return l, nil
}

// Page table entry bits (Intel SDM volume 3, section 4.5).
const (
	ptePresent  = 1 << 0
	pteWritable = 1 << 1
	pteAccessed = 1 << 5
	pteDirty    = 1 << 6
	pteLarge    = 1 << 7
	pteGlobal   = 1 << 8
	pteAddress  = 0x000F_FFFF_FFFF_F000

	tableEntry = ptePresent | pteWritable | pteAccessed
	largeEntry = tableEntry | pteDirty | pteLarge
)

// tablePages is the number of pages that writeTables fills.
func tablePages(m *memory, gibPages bool) int {
	if gibPages {
		return 2
	}
	ramGiBs := alignUp(m.ram.end(), gib)/gib - m.ram.base/gib
	windowGiBs := alignUp(m.window.end(), gib)/gib - m.window.base/gib
	return 2 + int(ramGiBs+windowGiBs)
}

// writeTables builds the direct map of PROTOCOL.md section 4 at physical
// address at.
func writeTables(m *memory, gibPages bool, at uint64) error {
	t, err := m.Bytes(at, uint64(tablePages(m, gibPages))*pageSize)
	if err != nil {
		return fmt.Errorf("writing page tables: %w", err)
	}
	set := func(page, index int, entry uint64) {
		binary.LittleEndian.PutUint64(t[page*pageSize+index*8:], entry)
	}
	set(0, 256, (at+pageSize)|tableEntry)
	next := 2
	for _, r := range []*region{m.ram, m.window} {
		for g := r.base; g < r.end(); g += gib {
			if gibPages {
				set(1, int(g/gib), g|largeEntry)
				continue
			}
			set(1, int(g/gib), (at+uint64(next)*pageSize)|tableEntry)
			for a := g; a < min(g+gib, r.end()); a += hugePage {
				set(next, int(a%gib/hugePage), a|largeEntry)
			}
			next++
		}
	}
	return nil
}

// bootInfo is what the boot block says beyond the layout of memory.
type bootInfo struct {
	cpus     int
	limit    int
	freeBase uint64
	freeSize uint64
	control  pipes.Descriptor
	pending  uint64
	stride   uint64
	args     []string
	wall     time.Time
	wallTSC  uint64
	tscHz    uint64
	features uint64
}

// writeBlock writes the boot block and the arguments at physical address at.
func writeBlock(m *memory, at uint64, b bootInfo) error {
	n := uint64(bootSize + 16*len(b.args))
	for _, a := range b.args {
		n += uint64(len(a)) + 1
	}
	p, err := m.Bytes(at, n)
	if err != nil {
		return fmt.Errorf("writing the boot block: %w", err)
	}
	le := binary.LittleEndian
	copy(p, bootMagic)
	le.PutUint32(p[8:], bootVersion)
	le.PutUint32(p[12:], bootSize)
	le.PutUint32(p[16:], uint32(b.cpus))
	le.PutUint32(p[20:], uint32(b.limit))
	le.PutUint64(p[24:], m.ram.base)
	le.PutUint64(p[32:], uint64(len(m.ram.mem)))
	le.PutUint64(p[40:], b.freeBase)
	le.PutUint64(p[48:], b.freeSize)
	le.PutUint64(p[56:], m.window.base)
	le.PutUint64(p[64:], uint64(len(m.window.mem)))
	le.PutUint64(p[72:], uint64(b.control.ID))
	le.PutUint64(p[80:], b.control.Header)
	le.PutUint64(p[88:], b.control.Outgoing)
	le.PutUint64(p[96:], b.control.Incoming)
	le.PutUint32(p[104:], b.control.OutgoingSize)
	le.PutUint32(p[108:], b.control.IncomingSize)
	le.PutUint64(p[112:], b.pending)
	le.PutUint64(p[120:], b.stride)
	p[128], p[129] = streamVector, stopVector
	le.PutUint32(p[132:], uint32(len(b.args)))
	le.PutUint64(p[136:], at+bootSize)
	le.PutUint64(p[144:], uint64(b.wall.Unix()))
	le.PutUint32(p[152:], uint32(b.wall.Nanosecond()))
	le.PutUint64(p[160:], b.wallTSC)
	le.PutUint64(p[168:], b.tscHz)
	le.PutUint64(p[176:], b.features)

	text := uint64(bootSize + 16*len(b.args))
	for i, a := range b.args {
		le.PutUint64(p[bootSize+16*i:], at+text)
		le.PutUint64(p[bootSize+16*i+8:], uint64(len(a)))
		text += uint64(copy(p[text:], a)) + 1
	}
	return nil
}
