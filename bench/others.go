package bench

import (
	"bytes"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// watchOthers returns a function that says how many processors were busy with
// other work since watchOthers was called, on average, or nil where /proc/stat
// doesn't say. Other work is what neither this process nor its children that
// have ended did; what the host took from a virtual machine counts as well.
func watchOthers() func() *float64 {
	start := time.Now()
	busy, err := busyTime()
	if err != nil {
		return func() *float64 { return nil }
	}
	own := ownTime()
	return func() *float64 {
		now, err := busyTime()
		if err != nil {
			return nil
		}
		others := max(0, now-busy-(ownTime()-own))
		share := others.Seconds() / time.Since(start).Seconds()
		return &share
	}
}

// ticksPerSecond is USER_HZ, the unit of /proc/stat, which is the same on every
// Linux for x86-64.
const ticksPerSecond = 100

// busyTime is how long all processors together have worked for programs so far,
// or would have if their host had let them. Interrupts aren't in it: the
// packets of a measurement cause them, and ownTime doesn't have them.
func busyTime() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	fields := bytes.Fields(line)
	if len(fields) < 9 || string(fields[0]) != "cpu" {
		return 0, unix.EINVAL
	}
	var ticks int64
	// These are user, nice, system and steal.
	for _, i := range []int{1, 2, 3, 8} {
		n, err := strconv.ParseInt(string(fields[i]), 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / ticksPerSecond), nil
}

// ownTime is the processor time of this process and of its children that have
// ended and been waited for.
func ownTime() time.Duration {
	var sum time.Duration
	for _, of := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if unix.Getrusage(of, &u) == nil {
			sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
	}
	return sum
}
