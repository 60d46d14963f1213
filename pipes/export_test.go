package pipes

// StartAt makes a fresh pipe's cursors begin elsewhere, as if that many bytes had gone through. The guest attaches afterwards.
func (p *Pipe) StartAt(cursor uint64) {
	for _, h := range []*half{&p.rd, &p.wr} {
		h.mine.cursor.Store(cursor)
		h.theirs.cursor.Store(cursor)
		h.own, h.limit = cursor, cursor+h.bias
	}
}

// Table returns the table of a monitor's end.
func (p *Pipe) Table() *Table { return p.table }

// WatchBatch is how many slots the watchdog looks at each time.
const WatchBatch = watchBatch

// BeforeInterrupts has f called before each interrupt of [Options].Interrupt, by who raises it. For a table that nothing uses yet.
func (t *Table) BeforeInterrupts(f func()) {
	interrupt := t.o.Interrupt
	t.o.Interrupt = func(cpu int) {
		f()
		interrupt(cpu)
	}
}
