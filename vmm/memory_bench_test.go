package vmm

import (
	"testing"

	"github.com/fix-project/arcavm/hypercall"
	"github.com/fix-project/arcavm/internal/guestmap"
)

// BenchmarkMemClr is the call without the guest's way to the monitor and back:
// on memory that was written before each call, and on memory that never was.
func BenchmarkMemClr(b *testing.B) {
	for _, n := range []uint64{4 << 10, 64 << 10, 1<<20 - pageSize, 1 << 20, 64 << 20} {
		for name, written := range map[string]bool{"written": true, "untouched": false} {
			b.Run(size(n)+"/"+name, func(b *testing.B) { benchmarkMemClr(b, n, written) })
		}
	}
}

func benchmarkMemClr(b *testing.B, size uint64, written bool) {
	m, err := newMemory(size+pageSize, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer m.close()
	table := hypercall.NewTable(m, hypercall.Handlers{Stopping: func() bool { return false }})
	var counters hypercall.Counters
	b.SetBytes(int64(size))
	for b.Loop() {
		b.StopTimer()
		if written {
			for i := 0; i < int(size); i += pageSize {
				m.ram.mem[i] = 1
			}
		} else if err := m.Discard(guestmap.RAMBase, size); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		call := hypercall.Call{Number: hypercall.MemClr, Arguments: [6]uint64{guestmap.RAMBase, size}}
		if result, _ := table.Dispatch(0, &counters, &call); result != 0 {
			b.Fatalf("MEMCLR: %d", int64(result))
		}
	}
}
