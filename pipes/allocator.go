package pipes

import "math/bits"

// buddy allocates runs of pages, a power of two each, out of a region. All its
// state is private: a guest can't write there. It isn't safe for concurrent
// use.
type buddy struct {
	pages uint32
	free  [maxOrder + 1][]uint32
	at    map[block]int // where a free block stands in its list
}

// block is 1<<order pages from page on. A block lies at a multiple of its size.
type block struct {
	page  uint32
	order uint8
}

const maxOrder = 14 // MaxRingSize

func orderOf(size uint32) uint8 { return uint8(bits.Len32(size/pageSize - 1)) }

func (b block) offset() int64 { return int64(b.page) * pageSize }
func (b block) bytes() int64  { return pageSize << b.order }

// newBuddy covers the region with free blocks, the largest that fit.
func newBuddy(pages uint32) *buddy {
	a := &buddy{pages: pages, at: make(map[block]int)}
	for page := uint32(0); page < pages; {
		order := min(maxOrder, bits.Len32(pages-page)-1)
		if page != 0 {
			order = min(order, bits.TrailingZeros32(page))
		}
		a.put(block{page, uint8(order)})
		page += 1 << order
	}
	return a
}

// put adds a free block.
func (a *buddy) put(b block) {
	a.at[b] = len(a.free[b.order])
	a.free[b.order] = append(a.free[b.order], b.page)
}

// take removes a free block.
func (a *buddy) take(b block) {
	list := a.free[b.order]
	i, last := a.at[b], len(list)-1
	if i != last {
		list[i] = list[last]
		a.at[block{list[i], b.order}] = i
	}
	a.free[b.order] = list[:last]
	delete(a.at, b)
}

// alloc takes a block of an order, from a larger one if need be. It reports
// false if there is none.
func (a *buddy) alloc(order uint8) (block, bool) {
	for o := order; o <= maxOrder; o++ {
		list := a.free[o]
		if len(list) == 0 {
			continue
		}
		b := block{list[len(list)-1], o}
		a.take(b)
		for b.order > order {
			b.order--
			a.put(block{b.page + 1<<b.order, b.order})
		}
		return b, true
	}
	return block{}, false
}

// release frees a block, and joins it with its neighbours while it can.
func (a *buddy) release(b block) {
	for b.order < maxOrder {
		mate := block{b.page ^ 1<<b.order, b.order}
		if _, ok := a.at[mate]; !ok {
			break
		}
		a.take(mate)
		b = block{min(b.page, mate.page), b.order + 1}
	}
	a.put(b)
}
