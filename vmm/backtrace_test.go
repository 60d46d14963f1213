package vmm

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/fix-project/arcavm/internal/guestmap"
	"github.com/fix-project/arcavm/kvm"
	"github.com/fix-project/arcavm/testdata/images"
	"github.com/fix-project/arcavm/vmm/image"
)

func TestFold(t *testing.T) {
	t.Parallel()
	for calls, want := range map[string]string{
		"":                         "",
		"a":                        "a",
		"abc":                      "abc",
		"aab":                      "aab",
		"aaab":                     "a(2×1)b",
		"xaaaaa":                   "xa(4×1)",
		"ababab":                   "ab(2×2)",
		"xabababay":                "xab(2×2)ay",
		"aaabbbabcabcabc":          "a(2×1)b(2×1)abc(2×3)",
		"abcdefghabcdefghabcdefgh": "abcdefgh(2×8)",
		// A round that is longer than what is looked for.
		strings.Repeat("abcdefghi", 3): strings.Repeat("abcdefghi", 3),
		strings.Repeat("a", 1000):      "a(999×1)",
	} {
		var addresses []uint64
		for _, c := range calls {
			addresses = append(addresses, uint64(c))
		}
		var got strings.Builder
		for _, s := range fold(addresses) {
			got.WriteRune(rune(s.address))
			if s.repeats > 0 {
				fmt.Fprintf(&got, "(%d×%d)", s.repeats, s.cycle)
			}
		}
		if got.String() != want {
			t.Errorf("%s is folded to %s, want %s", calls, &got, want)
		}
	}
}

// A stack that can't be folded is shown from both ends.
func TestDeepBacktrace(t *testing.T) {
	t.Parallel()
	img, err := image.ParseBytes(images.Bytes("crash"), "crash")
	if err != nil {
		t.Fatal(err)
	}
	m, err := newMemory(MinMemory, MinWindow)
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	l, err := layOut(m, true, 1, []string{"crash"})
	if err != nil {
		t.Fatal(err)
	}
	if err := writeTables(m, true, l.tables); err != nil {
		t.Fatal(err)
	}
	for _, depth := range []int{10, maxBacktrace - 1, maxBacktrace, 1000} {
		clear(m.ram.mem[:16*1001])
		for i := range uint64(depth) {
			binary.LittleEndian.PutUint64(m.ram.mem[16*i:], guestmap.DirectMap+guestmap.RAMBase+16*(i+1))
			binary.LittleEndian.PutUint64(m.ram.mem[16*i+8:], i+1) // where it returns to
		}
		frames := backtrace(m, img, &Registers{Regs: kvm.Regs{RIP: 7, RBP: guestmap.DirectMap + guestmap.RAMBase}, CR3: l.tables}, false)
		all := len(frames)
		for _, f := range frames {
			all += f.Skipped
		}
		if all != depth+1 || len(frames) > maxBacktrace {
			t.Errorf("of %d frames, %d are shown, %d counted", depth+1, len(frames), all)
		}
		if last := frames[len(frames)-1]; last.Address != uint64(depth) {
			t.Errorf("the outermost of %d frames is %v", depth+1, last)
		}
		if gap := slices.IndexFunc(frames, func(f Frame) bool { return f.Skipped > 0 }); (gap >= 0) != (depth >= maxBacktrace) ||
			gap >= 0 && frames[gap].Address != frames[gap-1].Address+uint64(frames[gap].Skipped)+1 {
			t.Errorf("of %d frames, what is left out is at %d", depth+1, gap)
		}
	}
}
