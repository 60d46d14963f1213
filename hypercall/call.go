package hypercall

import "strconv"

// Port is the I/O port of hypercalls: the guest writes one byte of any value
// there.
const Port = 0

// ConsolePort is the I/O port of the debug console.
const ConsolePort = 0xE9

// Number names a call; the guest passes it in RAX.
type Number uint64

// The calls.
const (
	Exit        Number = 0
	Log         Number = 1
	SymName     Number = 2
	MemSet      Number = 3
	MemClr      Number = 4
	Panic       Number = 5
	NotifyRead  Number = 16
	NotifyWrite Number = 17
	ReadClock   Number = 18

	numberLimit = 19
)

var names = [numberLimit]string{
	Exit: "EXIT", Log: "LOG", SymName: "SYMNAME", MemSet: "MEMSET", MemClr: "MEMCLR", Panic: "PANIC",
	NotifyRead: "NOTIFY_READ", NotifyWrite: "NOTIFY_WRITE", ReadClock: "CLOCK",
}

func (n Number) String() string {
	if n < numberLimit && names[n] != "" {
		return names[n]
	}
	return "hypercall " + strconv.FormatUint(uint64(n), 10)
}

// Call is one call: the registers RAX, and RDI, RSI, RCX, R10, R8, R9 in this
// order. Its result goes to RAX.
type Call struct {
	Number    Number
	Arguments [6]uint64
}

// Clock names a clock of the host, for [ReadClock].
type Clock uint64

const (
	// WallTime counts from 1970 in UTC. It is set and stepped as the host's is.
	WallTime Clock = 0
	// ElapsedTime counts from some moment before the guest's start. It never
	// goes back or jumps, and it goes on while the host is suspended.
	ElapsedTime Clock = 1
)
