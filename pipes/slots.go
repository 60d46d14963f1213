package pipes

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// slots are the places of a table's pipes. Table.mu guards all fields but the
// pointers.
type slots struct {
	pipes       []atomic.Pointer[Pipe] // by slot; nil if free
	generations []uint32               // of all slots that were ever used
	unused      []uint32               // those of them that are free
	open        int
	opened      uint64
	past        PipeStats // of freed pipes
}

// used is how many slots were ever used: the rest holds no pipe.
func (s *slots) used() int { return len(s.generations) }

func (s *slots) full() bool { return len(s.unused) == 0 && s.used() == len(s.pipes) }

// take takes a slot, the one freed last first, and returns the id of the next
// pipe in it. It reports false if all are in use.
func (s *slots) take() (ID, bool) {
	if s.full() {
		return 0, false
	}
	if n := len(s.unused); n > 0 {
		slot := s.unused[n-1]
		s.unused = s.unused[:n-1]
		s.generations[slot]++
		return ID(s.generations[slot])<<32 | ID(slot), true
	}
	s.generations = append(s.generations, 0)
	return ID(s.used() - 1), true
}

// put makes a pipe that has taken its slot known.
func (s *slots) put(p *Pipe) {
	s.open++
	s.opened++
	s.pipes[p.descriptor.ID.Slot()].Store(p)
}

// free frees a pipe's slot.
func (s *slots) free(p *Pipe, counters PipeStats) {
	slot := p.descriptor.ID.Slot()
	s.pipes[slot].Store(nil)
	s.unused = append(s.unused, slot)
	s.past.add(counters)
	s.open--
}

// find returns an open pipe, without Table.mu; ENOENT if the id is unknown or
// outdated.
func (s *slots) find(id ID) (*Pipe, error) {
	if slot := id.Slot(); uint64(slot) < uint64(len(s.pipes)) {
		if p := s.pipes[slot].Load(); p != nil && p.descriptor.ID == id {
			return p, nil
		}
	}
	return nil, unix.ENOENT
}
