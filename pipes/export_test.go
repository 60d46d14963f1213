package pipes

// StartAt makes a fresh pipe's cursors begin elsewhere, as if that many bytes
// had gone through. The guest attaches afterwards.
func (p *Pipe) StartAt(cursor uint64) {
	for _, h := range p.halves() {
		h.shared.mine.cursor.Store(cursor)
		h.shared.theirs.cursor.Store(cursor)
		h.cursor = newCursor(h.cursor.size, cursor, h.producer)
	}
}

// Table returns the table of a monitor's end.
func (p *Pipe) Table() *Table { return p.end.(*monitorEnd).table }

// WatchBatch is how many slots an audit of the watchdog covers.
const WatchBatch = watchBatch

// BeforeInterrupts has f called before each interrupt of [Options].Interrupt,
// on the goroutine that raises it. For a table that isn't in use yet.
func (t *Table) BeforeInterrupts(f func()) {
	interrupt := t.o.Interrupt
	t.o.Interrupt = func(cpu int) {
		f()
		interrupt(cpu)
	}
}
