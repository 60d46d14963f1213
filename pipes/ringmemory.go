package pipes

import (
	"log/slog"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/internal/limit"
)

// hotBytes is how much memory of freed rings is kept for the next ones instead
// of being given back to the host.
const hotBytes = 16 << 20

// ringMemory is the part of a window that the data of rings lies in. A block is
// in one of these states:
//
//	from → to        by
//	free → in use    allocate
//	in use → hot     keep: its pages stay in memory
//	hot → in use     allocate
//	hot → leaving    trim: a goroutine gives its pages back to the host
//	leaving → free   that goroutine, when they are there
//
// Table.mu guards all fields.
type ringMemory struct {
	buddy    *buddy
	base     uint64 // offset in the window
	limit    int64  // of used; 0: none
	used     int64
	hot      []block // oldest first
	hotSize  int64
	trimming bool

	mu      *sync.Mutex
	settled *sync.Cond // a trim ended
	release func(off, n int64) error
	log     *limit.Log
	logger  *slog.Logger
}

// allocate takes a block, from the hot ones first. mu is held, but given up
// while pages that could be the needed ones are on their way back. ENOMEM:
// there is no such block, or the limit is reached.
func (m *ringMemory) allocate(order uint8) (block, error) {
	for {
		if m.limit > 0 && m.used+(pageSize<<order) > m.limit {
			return block{}, unix.ENOMEM
		}
		if b, ok := m.reuse(order); ok {
			return b, nil
		}
		if b, ok := m.buddy.alloc(order); ok {
			m.used += b.bytes()
			return b, nil
		}
		switch {
		case m.trimming:
			m.settled.Wait()
		case len(m.hot) > 0:
			m.trim(0)
		default:
			return block{}, unix.ENOMEM
		}
	}
}

// reuse takes the hot block of an order that was freed last.
func (m *ringMemory) reuse(order uint8) (block, bool) {
	for i := len(m.hot) - 1; i >= 0; i-- {
		if b := m.hot[i]; b.order == order {
			m.hot = slices.Delete(m.hot, i, i+1)
			m.hotSize -= b.bytes()
			m.used += b.bytes()
			return b, true
		}
	}
	return block{}, false
}

// offset is where a block lies in the window.
func (m *ringMemory) offset(b block) uint64 { return m.base + uint64(b.offset()) }

// blockAt is the block of a ring.
func (m *ringMemory) blockAt(offset uint64, size uint32) block {
	return block{uint32((offset - m.base) / pageSize), orderOf(size)}
}

// keep frees a block: it stays hot for a while.
func (m *ringMemory) keep(b block) {
	m.used -= b.bytes()
	m.hotSize += b.bytes()
	m.hot = append(m.hot, b)
	m.cool()
}

// cool gives blocks back if too much is hot.
func (m *ringMemory) cool() {
	if m.hotSize > hotBytes && !m.trimming {
		m.trim(hotBytes / 4)
	}
}

// trim gives the oldest hot blocks back until no more than target bytes are
// hot. The system calls happen on a goroutine of their own: a virtual CPU's may
// be the one that freed the last block.
func (m *ringMemory) trim(target int64) {
	n := 0
	for m.hotSize > target {
		m.hotSize -= m.hot[n].bytes()
		n++
	}
	blocks := slices.Clone(m.hot[:n])
	m.hot = slices.Delete(m.hot, 0, n)
	if m.release == nil {
		m.restore(blocks)
		return
	}
	m.trimming = true
	go func() {
		m.releasePages(blocks)
		m.mu.Lock()
		defer m.mu.Unlock()
		m.restore(blocks)
		m.trimming = false
		m.cool()
		m.settled.Broadcast()
	}()
}

func (m *ringMemory) restore(blocks []block) {
	for _, b := range blocks {
		m.buddy.release(b)
	}
}

// releasePages makes one call for each run of neighbours. mu isn't held.
func (m *ringMemory) releasePages(blocks []block) {
	slices.SortFunc(blocks, func(a, b block) int { return int(a.page) - int(b.page) })
	for i := 0; i < len(blocks); {
		off, n := blocks[i].offset(), int64(0)
		for ; i < len(blocks) && blocks[i].offset() == off+n; i++ {
			n += blocks[i].bytes()
		}
		at := int64(m.base) + off
		if err := m.release(at, n); err != nil {
			m.log.Log(m.logger, slog.LevelWarn, "freed ring pages stay in memory",
				slog.Int64("offset", at), slog.Int64("bytes", n), slog.Any("err", err))
		}
	}
}
