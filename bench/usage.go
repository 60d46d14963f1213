package bench

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/pipes"
)

const mebibyte = 1 << 20

// counts are what a VM counts, or a rig.
type counts struct {
	pipes             pipes.Stats
	exits, hypercalls uint64 // 0 for a rig
}

// since returns what was counted after an earlier look.
func (c counts) since(before counts) counts {
	direction := func(is, was pipes.DirectionStats) pipes.DirectionStats {
		return pipes.DirectionStats{
			Bytes:         is.Bytes - was.Bytes,
			Chunks:        is.Chunks - was.Chunks,
			Signals:       is.Signals - was.Signals,
			Suppressed:    is.Suppressed - was.Suppressed,
			Wakes:         is.Wakes - was.Wakes,
			SpuriousWakes: is.SpuriousWakes - was.SpuriousWakes,
		}
	}
	c.exits -= before.exits
	c.hypercalls -= before.hypercalls
	p, was := &c.pipes, before.pipes
	p.Opened -= was.Opened
	p.Broken -= was.Broken
	p.Rescued -= was.Rescued
	p.Forgotten -= was.Forgotten
	p.Late -= was.Late
	p.Doorbells -= was.Doorbells
	p.Pipes.Read = direction(p.Pipes.Read, was.Pipes.Read)
	p.Pipes.Write = direction(p.Pipes.Write, was.Pipes.Write)
	return c
}

// both sums what both directions count.
func (c counts) both(f func(pipes.DirectionStats) uint64) float64 {
	return float64(f(c.pipes.Pipes.Read) + f(c.pipes.Pipes.Write))
}

// lost is how many wake-ups were lost, and made up for by the watchdog.
func lost(s pipes.Stats) uint64 { return s.Rescued + s.Forgotten }

func (c counts) chunks() float64 {
	return c.both(func(d pipes.DirectionStats) uint64 { return d.Chunks })
}

// usage is what some work took.
type usage struct {
	elapsed time.Duration
	cpu     time.Duration // processor time of the whole process
	mallocs uint64
	counts  counts
	bytes   int
}

func (u usage) mibPerSecond() float64 { return u.mib() / u.elapsed.Seconds() }
func (u usage) mib() float64          { return float64(u.bytes) / mebibyte }
func (u usage) cpuPerGiB() float64    { return u.cpu.Seconds() / (u.mib() / 1024) }
func (u usage) allocations() float64  { return float64(u.mallocs) / u.mib() }

// processorTime is the processor time that this process has used so far.
func processorTime() (time.Duration, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t); err != nil {
		return 0, fmt.Errorf("processor time: %w", err)
	}
	return time.Duration(t.Nano()), nil
}

func mallocs() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.Mallocs
}

func nativeUint64(b []byte) uint64 { return binary.NativeEndian.Uint64(b) }
