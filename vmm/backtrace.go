package vmm

import (
	"bytes"
	"encoding/binary"
	"slices"

	"github.com/fix-project/arcavm/hypercall"
	"github.com/fix-project/arcavm/vmm/image"
)

// Bounds of a backtrace, whose stack is the guest's and may hold anything.
const (
	maxBacktrace = 64      // frames that are shown
	outermost    = 16      // of these, that are shown whatever is left out
	maxInlined   = 64      // frames of inlined calls, beside those
	maxWalk      = 1 << 16 // frames that are looked at, so that recursion can be folded
	maxCycle     = 8       // functions of one round of a recursion
	minRepeats   = 2       // rounds that are folded, beside the one that is shown
)

// backtrace says where registers point to and who called. after says that RIP
// may lie behind the instruction that matters, as it does after an exit; at a
// fault it is the instruction's own.
func (v *VM) backtrace(r *Registers, after bool) []Frame {
	return backtrace(v.memory, v.cfg.Image, r, after)
}

func backtrace(m *memory, img *image.Image, r *Registers, after bool) []Frame {
	return walk(m, img, r, after).frames(img)
}

// trace is a backtrace without names, which cost more than the walk and don't
// depend on what the guest does next.
type trace struct {
	rip    uint64
	inside uint64 // the instruction that matters
	steps  []step
}

func walk(m *memory, img *image.Image, r *Registers, after bool) trace {
	w := walker{memory: m, image: img, cr3: r.CR3}
	return trace{rip: r.RIP, inside: w.instruction(r.RIP, after), steps: fold(w.callers(r))}
}

// frames names what the trace has.
func (t trace) frames(img *image.Image) []Frame {
	steps, skipped := t.steps, 0
	if over := 1 + len(steps) - maxBacktrace; over > 0 {
		first := len(steps) - outermost - over
		for _, s := range steps[first : first+over] {
			skipped += 1 + s.repeats*s.cycle
		}
		steps = slices.Concat(steps[:first], steps[first+over:])
	}
	inlined := maxInlined
	frames := symbolize(nil, img, t.rip, t.inside, &inlined)
	for i, s := range steps {
		first := len(frames)
		// The return address may already lie in the next function if the call
		// was the last instruction of its own.
		frames = symbolize(frames, img, s.address, s.address-1, &inlined)
		f := &frames[len(frames)-1]
		f.Repeats, f.Cycle = s.repeats, s.cycle
		if i == len(steps)-outermost {
			frames[first].Skipped = skipped
		}
	}
	return frames
}

// walker reads a guest's stack and code.
type walker struct {
	memory *memory
	image  *image.Image
	cr3    uint64
}

// instruction returns an address inside the instruction that the CPU is at.
// After an exit RIP may have moved past it, and if a function ends with it, to
// the next function.
func (w *walker) instruction(rip uint64, after bool) uint64 {
	if !after || rip == 0 {
		return rip
	}
	// An exit by out that RIP hasn't moved past.
	if code := bytes.TrimLeft(w.code(rip, 3), "\x66\xF3"); len(code) > 0 && isOut(code[0]) {
		return rip
	}
	// out %al, %dx and hlt, which it has moved past.
	if code := w.code(rip-1, 1); len(code) > 0 && (isOut(code[0]) || code[0] == opHLT) {
		return rip - 1
	}
	if _, _, ok := w.image.Lookup(rip); !ok {
		return rip - 1
	}
	return rip
}

// Opcodes (Intel SDM volume 2).
const (
	opPushRBP = 0x55
	opRet     = 0xC3
	opHLT     = 0xF4
)

var (
	endBranch  = []byte{0xF3, 0x0F, 0x1E, 0xFA} // endbr64
	moveRSPRBP = [][]byte{{0x48, 0x89, 0xE5}, {0x48, 0x8B, 0xEC}}
	subRSP     = [][]byte{{0x48, 0x83, 0xEC}, {0x48, 0x81, 0xEC}}
)

// isOut reports whether an opcode is one of out and outs.
func isOut(op byte) bool {
	switch op {
	case 0x6E, 0x6F, 0xE6, 0xE7, 0xEE, 0xEF:
		return true
	}
	return false
}

// callers returns the return addresses on the stack, innermost first. Each
// frame must lie above the one before.
func (w *walker) callers(r *Registers) []uint64 {
	var calls []uint64
	if ret, ok := w.frameless(r); ok {
		calls = append(calls, ret)
	}
	for rbp := r.RBP; len(calls) < maxWalk && rbp != 0; {
		next, ok := w.word(rbp)
		if !ok {
			break
		}
		ret, ok := w.word(rbp + 8)
		if !ok || ret == 0 {
			break
		}
		calls = append(calls, ret)
		if next <= rbp {
			break
		}
		rbp = next
	}
	return calls
}

// frameless returns the return address of the function that RIP is in if it
// has no frame there: one that never makes one, or that has not made it yet, or
// has taken it down. Else the chain of frames would lack the caller. It
// believes the stack only if that address is one that a call returns to.
func (w *walker) frameless(r *Registers) (uint64, bool) {
	at := r.RSP
	if here := w.code(r.RIP, 1); len(here) == 0 || here[0] != opRet {
		symbol, offset, ok := w.image.Lookup(r.RIP)
		if !ok {
			return 0, false
		}
		done := w.code(symbol.Start, min(offset, maxPrologue)) // what the function has done so far
		done = bytes.TrimPrefix(done, endBranch)
		has := func(b []byte) bool { return bytes.Contains(done, b) }
		if slices.ContainsFunc(subRSP, has) {
			return 0, false // the top of the stack is a variable
		}
		if len(done) > 0 && done[0] == opPushRBP {
			if slices.ContainsFunc(moveRSPRBP, has) {
				return 0, false
			}
			at += 8
		}
	}
	ret, ok := w.word(at)
	if !ok || !w.afterCall(ret) {
		return 0, false
	}
	// With a frame, its return address would be found twice.
	if above, ok := w.word(r.RBP + 8); ok && above == ret && r.RBP+8 == at {
		return 0, false
	}
	return ret, true
}

// maxPrologue is how many bytes of a function may go by before its frame
// stands.
const maxPrologue = 32

// afterCall reports whether the instruction before address may be a call.
func (w *walker) afterCall(address uint64) bool {
	if _, _, ok := w.image.Lookup(address - 1); !ok {
		return false
	}
	for n := uint64(image.MaxCallSize); n > 1; n-- {
		if code := w.code(address-n, n); uint64(len(code)) == n {
			return image.EndsWithCall(code)
		}
	}
	return false
}

// code returns n bytes of code, or fewer at the end of a page that the next
// one isn't mapped after.
func (w *walker) code(address, n uint64) []byte {
	var code []byte
	for n > 0 {
		physical, ok := translate(w.memory, w.cr3, address)
		if !ok {
			break
		}
		here := min(n, pageSize-address%pageSize)
		b, err := w.memory.Bytes(physical, here)
		if err != nil {
			break
		}
		code = append(code, b...)
		address, n = address+here, n-here
	}
	return code
}

// word reads a word at a guest-virtual address through the page tables.
func (w *walker) word(address uint64) (uint64, bool) {
	if address%8 != 0 {
		return 0, false // a frame is aligned, and an aligned word doesn't cross a page
	}
	physical, ok := translate(w.memory, w.cr3, address)
	if !ok {
		return 0, false
	}
	return readPhysical(w.memory, physical)
}

// step is a return address, and the rounds of recursion that end there.
type step struct {
	address        uint64
	repeats, cycle int
}

// fold keeps one round of each recursion in calls.
func fold(calls []uint64) []step {
	var steps []step
	for len(calls) > 0 {
		cycle, repeats := recursion(calls)
		for _, a := range calls[:cycle] {
			steps = append(steps, step{address: a})
		}
		if repeats > 0 {
			last := &steps[len(steps)-1]
			last.repeats, last.cycle = repeats, cycle
		}
		calls = calls[cycle*(1+repeats):]
	}
	return steps
}

// recursion returns the shortest cycle that calls begins with, and how often it
// is there once more; 1 and 0 if there is none.
func recursion(calls []uint64) (cycle, repeats int) {
	for cycle := 1; cycle <= min(maxCycle, len(calls)/(1+minRepeats)); cycle++ {
		same := 0
		for cycle+same < len(calls) && calls[cycle+same] == calls[same] {
			same++
		}
		if repeats := same / cycle; repeats >= minRepeats {
			return cycle, repeats
		}
	}
	return 1, 0
}

// symbolize appends the frame of what holds the address inside, with its line,
// after those of the inlined calls that it is in, while some are left. Address
// is how far behind.
func symbolize(frames []Frame, img *image.Image, address, inside uint64, left *int) []Frame {
	file, line, _ := img.Line(inside)
	for _, c := range img.Inlined(inside) {
		if *left > 0 {
			*left--
			frames = append(frames, Frame{
				Address: address, Symbol: hypercall.Printable(c.Function), Inlined: true,
				File: hypercall.Printable(file), Line: line,
			})
		}
		file, line = c.File, c.Line
	}
	f := Frame{Address: address, File: hypercall.Printable(file), Line: line}
	if s, off, ok := img.Lookup(inside); ok {
		f.Symbol, f.Offset = hypercall.Printable(s.Name), off+(address-inside)
	}
	return append(frames, f)
}

func readPhysical(m *memory, address uint64) (uint64, bool) {
	b, err := m.Bytes(address, 8)
	if err != nil {
		return 0, false
	}
	return binary.LittleEndian.Uint64(b), true
}

// translate walks four levels of page tables (Intel SDM volume 3, section 4.5).
func translate(m *memory, cr3, address uint64) (uint64, bool) {
	table := cr3 & pteAddress
	for shift := 39; ; shift -= 9 {
		entry, ok := readPhysical(m, table+(address>>shift&511)*8)
		if !ok || entry&ptePresent == 0 {
			return 0, false
		}
		if shift == 12 || shift < 39 && entry&pteLarge != 0 {
			mask := uint64(1)<<shift - 1
			return entry&pteAddress&^mask | address&mask, true
		}
		table = entry & pteAddress
	}
}
