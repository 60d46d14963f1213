package vmm

import (
	"encoding/binary"
	"testing"

	"github.com/fix-project/arcavm/hypercall"
	"github.com/fix-project/arcavm/internal/guestmap"
	"github.com/fix-project/arcavm/kvm"
	"github.com/fix-project/arcavm/testdata/images"
	"github.com/fix-project/arcavm/vmm/image"
)

// Whatever a crashed guest has left in its registers, on its stack and in its
// page tables, the report ends and is fit for a terminal.
func FuzzBacktrace(f *testing.F) {
	img, err := image.ParseBytes(images.Bytes("crash"), "crash")
	if err != nil {
		f.Fatal(err)
	}
	m, err := newMemory(MinMemory, MinWindow)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { m.close() })
	l, err := layOut(m, true, 1, []string{"crash"})
	if err != nil {
		f.Fatal(err)
	}
	if err := writeTables(m, true, l.tables); err != nil {
		f.Fatal(err)
	}
	var stack []byte
	for i := range uint64(3) { // frames that lie one above the other, then one that points down
		stack = binary.LittleEndian.AppendUint64(stack, guestmap.DirectMap+guestmap.RAMBase+16*(i+1))
		stack = binary.LittleEndian.AppendUint64(stack, img.Entry)
	}
	stack = binary.LittleEndian.AppendUint64(stack, guestmap.DirectMap+guestmap.RAMBase)
	stack = binary.LittleEndian.AppendUint64(stack, img.Entry)
	f.Add(stack, img.Entry, uint64(guestmap.DirectMap+guestmap.RAMBase), l.tables)
	f.Add(stack, ^uint64(0), ^uint64(7), uint64(0))
	// A page table whose entries point to itself.
	self := binary.LittleEndian.AppendUint64(nil, guestmap.RAMBase|ptePresent)
	f.Add(self, uint64(0), uint64(8), uint64(guestmap.RAMBase))
	f.Fuzz(func(t *testing.T, low []byte, rip, rbp, cr3 uint64) {
		low = low[:min(len(low), pageSize)]
		copy(m.ram.mem, low)
		defer clear(m.ram.mem[:len(low)])
		r := &Registers{Regs: kvm.Regs{RIP: rip, RBP: rbp, RSP: rbp}, CR3: cr3}
		frames := backtrace(m, img, r, true)
		if n := len(frames); n < 1 || n > maxBacktrace+maxInlined {
			t.Errorf("%d frames", n)
		}
		for _, frame := range frames {
			if s := frame.String(); s != hypercall.Printable(s) {
				t.Errorf("a frame says %q", s)
			}
		}
	})
}
