package pipes

// DirectionStats counts what one end did in one ring.
type DirectionStats struct {
	Bytes   uint64 // moved by this end
	Chunks  uint64 // cursor moves
	Signals uint64 // sent to the other end

	// Suppressed counts cursor moves that needed no signal: the other end was
	// awake, or its wake-up could wait.
	Suppressed uint64

	Wakes         uint64 // signals that came from the other end
	SpuriousWakes uint64 // of these, those that woke an operation for nothing
}

// PipeStats counts what one end did: as consumer (Read) and as producer
// (Write).
type PipeStats struct{ Read, Write DirectionStats }

func (s *DirectionStats) add(o DirectionStats) {
	s.Bytes += o.Bytes
	s.Chunks += o.Chunks
	s.Signals += o.Signals
	s.Suppressed += o.Suppressed
	s.Wakes += o.Wakes
	s.SpuriousWakes += o.SpuriousWakes
}

func (s *PipeStats) add(o PipeStats) {
	s.Read.add(o.Read)
	s.Write.add(o.Write)
}

// Stats of a [Table]. Pipes sums the monitor's ends of all pipes, freed ones
// included. Sizes are in bytes.
type Stats struct {
	Open   int    // pipes at the moment
	Opened uint64 // pipes ever
	Broken uint64 // pipes reset because the guest broke a ring

	// Rescued and Forgotten count lost wake-ups, which the watchdog made up
	// for: those that the guest owed, and those that the monitor owed. A guest
	// without bugs has no rescued ones; forgotten ones are bugs of the monitor.
	Rescued, Forgotten uint64

	// Late counts wake-ups that the watchdog made up for while a CPU of the
	// guest was busy, or waited for a processor of this machine.
	Late uint64

	Doorbells uint64 // interrupts raised; one can carry many signals
	Pipes     PipeStats
	RingBytes int64 // in use
	HotBytes  int64 // freed and kept for reuse
}

// Stats returns this end's counters.
func (p *Pipe) Stats() PipeStats { return PipeStats{Read: p.rd.counters(), Write: p.wr.counters()} }

func (h *half) counters() DirectionStats {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.stats
}

// Stats returns the table's counters. It takes the locks of every pipe: it is
// not for hot paths.
func (t *Table) Stats() Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := Stats{
		Open: t.slots.open, Opened: t.slots.opened, Broken: t.broken.Load(),
		Rescued: t.watchdog.rescued.Load(), Forgotten: t.watchdog.forgotten.Load(), Late: t.watchdog.late.Load(),
		Pipes: t.slots.past, RingBytes: t.memory.used, HotBytes: t.memory.hotSize,
	}
	for cpu := range t.raises {
		s.Doorbells += t.raises[cpu].doorbells.Load()
	}
	for i := range t.slots.used() {
		if p := t.slots.pipes[i].Load(); p != nil {
			s.Pipes.add(p.Stats())
		}
	}
	return s
}
