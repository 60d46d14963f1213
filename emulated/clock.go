package emulated

import (
	"encoding/json"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Step is a part of a run, and when it was done.
type Step struct {
	Name string
	At   time.Time
}

// stepsName is the file with the steps until the first program, as JSON.
const stepsName = "/steps.json"

// Steps returns the steps of the Run that this process is in, until the first
// program could run, by the host's clock. Outside of emulated machines there
// are none.
func Steps() ([]Step, error) {
	if !Inside() {
		return nil, nil
	}
	data, err := os.ReadFile(stepsName)
	if err != nil {
		return nil, fmt.Errorf("read the steps of the emulated machine: %w", err)
	}
	var steps []Step
	if err := json.Unmarshal(data, &steps); err != nil {
		return nil, fmt.Errorf("read the steps of the emulated machine: %w", err)
	}
	return steps, nil
}

// writeSteps is for Steps.
func writeSteps(steps []Step) error {
	data, err := json.Marshal(steps)
	if err == nil {
		err = os.WriteFile(stepsName, data, 0o644)
	}
	if err != nil {
		return fmt.Errorf("note the steps: %w", err)
	}
	return nil
}

// The machine's TSC is the host's, and the kernel inside takes its time from
// it. It would find out the frequency by a timer of the machine's, within a few
// milliseconds of a processor that QEMU may get none of: what it finds then is
// wrong for good, and its clock runs as much too fast or too slow. So the host
// measures it.

// readTSC reads the processor's time stamp counter.
func readTSC() uint64

// ticks is what the counter was at a time.
type ticks struct {
	at    time.Time
	count uint64
}

// readTicks takes the best of several readings: this thread may be interrupted
// between the two clocks.
func readTicks() ticks {
	var best ticks
	least := time.Hour
	for range 16 {
		before := time.Now()
		count := readTSC()
		if took := time.Since(before); took < least {
			least, best = took, ticks{before.Add(took / 2), count}
		}
	}
	return best
}

// measure is how long at least the counter is measured.
const measure = 50 * time.Millisecond

// khz is the counter's frequency since t, or 0 if it has none. It waits until t
// is long enough ago.
func (t ticks) khz() uint64 {
	time.Sleep(measure - time.Since(t.at))
	now := readTicks()
	khz := float64(now.count-t.count) / float64(now.at.Sub(t.at)) * 1e6
	if now.count <= t.count || khz < 1e5 || khz > 1e7 {
		return 0
	}
	return uint64(khz + 0.5)
}

// hostTime is the host's answer to frameAskTime.
type hostTime struct {
	Now   time.Time
	Steps []Step // until now
}

// clock sets the machine's clock by the host's.
type clock struct {
	frames  *frameWriter
	answers chan hostTime // room for one
}

// Every clockInterval the clock is set if it is wrong by more than clockError
// and what the question took.
const (
	clockInterval = 10 * time.Second
	clockError    = 10 * time.Millisecond
)

// ask asks the host for its time, and returns when it did.
func (c *clock) ask() (time.Time, error) {
	asked := time.Now()
	return asked, c.frames.send(frameAskTime, nil)
}

// set waits for the host's answer, and sets the clock if it is wrong: it comes
// from the real-time clock, which counts seconds, or from a snapshot.
func (c *clock) set(asked time.Time) (hostTime, error) {
	answer := <-c.answers
	took := time.Since(asked)
	now := answer.Now.Add(took / 2)
	if time.Until(now).Abs() <= took+clockError {
		return answer, nil
	}
	value := unix.NsecToTimeval(now.UnixNano())
	if err := unix.Settimeofday(&value); err != nil {
		return answer, fmt.Errorf("set the clock: %w", err)
	}
	return answer, nil
}

// keep keeps the clock right, to the machine's end.
func (c *clock) keep() {
	for range time.Tick(clockInterval) {
		asked, err := c.ask()
		if err == nil {
			_, err = c.set(asked)
		}
		if err != nil {
			return // the host is gone, which ends this machine
		}
	}
}

// allSteps are the machine's own, by the clock that is set: those of init,
// which have been noted before that, and how the machine came to it unless it
// was resumed.
func (s *service) allSteps() ([]Step, error) {
	var boot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot); err != nil {
		return nil, fmt.Errorf("ask how long ago Linux started: %w", err)
	}
	now := time.Now()
	wall := now.Round(0)
	var steps []Step
	if !s.resumed {
		steps = []Step{{"firmware done, Linux unpacked", wall.Add(-time.Duration(boot.Nano()))}}
	}
	for _, step := range s.steps {
		steps = append(steps, Step{step.Name, wall.Add(-now.Sub(step.At))})
	}
	return steps, nil
}
