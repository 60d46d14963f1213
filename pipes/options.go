package pipes

import (
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"
)

// Options of a [Table].
type Options struct {
	// CPUs is the number of virtual CPUs, 1 to 64.
	CPUs int

	// StreamLimit is the number of pipe slots, 1 to MaxStreams.
	StreamLimit int

	// Doorbell raises the stream interrupt on a CPU. It must not wait, nor use
	// a pipe or the table. Several goroutines may call it at once.
	Doorbell func(cpu int)

	// Interrupt, if set, is called in Doorbell's place where no lock of this
	// package is held: when a cursor has moved, but not when a state has
	// changed. It must not wait either, but may use pipes and the table, as the
	// interrupt handler of a guest in this process does.
	Interrupt func(cpu int)

	// Release gives pages of the window back to the host, by a hole for
	// instance; they read as zero or as before afterwards. nil: they are kept.
	// It is called on a goroutine of the table's own. [Table.Wait] waits for
	// it.
	Release func(off, n int64) error

	// WatchInterval is how often the watchdog looks for lost wake-ups, which
	// takes two audits; 0: every 2 seconds.
	WatchInterval time.Duration

	// Halted reports whether a CPU waits for an interrupt. The watchdog tells
	// lost wake-ups from late ones by it. nil: every CPU does, always, and a
	// guest that needs longer than WatchInterval from a store to the signal
	// that follows it is taken for one that forgot.
	Halted func(cpu int) bool

	// Logger gets what a guest did wrong, at a limited rate: broken rings as
	// warnings, lost wake-ups as errors. nil: none.
	Logger *slog.Logger

	// RingLimit is how many bytes the rings of all pipes may have together. 0:
	// as many as the window has room for.
	RingLimit int64
}

// complete refuses what is out of range, and sets what may be left out.
func (o *Options) complete() error {
	if o.CPUs < 1 || o.CPUs > 64 || o.StreamLimit < 1 || o.StreamLimit > MaxStreams ||
		o.RingLimit < 0 || o.Doorbell == nil {
		return fmt.Errorf("stream table of %d CPUs, %d streams: %w", o.CPUs, o.StreamLimit, unix.EINVAL)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Interrupt == nil {
		o.Interrupt = o.Doorbell
	}
	if o.WatchInterval <= 0 {
		o.WatchInterval = watchInterval
	}
	return nil
}
