package rpc

import "slices"

// Range is a part of the guest's RAM, in bytes from its start.
type Range struct{ Offset, Size uint64 }

// union returns the pages that the ranges touch, as disjoint ranges in order.
func union(ranges []Range) []Range {
	var pages []Range
	for _, r := range ranges {
		if r.Size == 0 {
			continue
		}
		start := r.Offset &^ (pageSize - 1)
		end := (r.Offset + r.Size + pageSize - 1) &^ (pageSize - 1)
		pages = append(pages, Range{start, end - start})
	}
	slices.SortFunc(pages, func(a, b Range) int {
		if a.Offset < b.Offset {
			return -1
		}
		return 1
	})
	merged := pages[:0]
	for _, r := range pages {
		if n := len(merged); n > 0 && r.Offset <= merged[n-1].Offset+merged[n-1].Size {
			last := &merged[n-1]
			last.Size = max(last.Size, r.Offset+r.Size-last.Offset)
			continue
		}
		merged = append(merged, r)
	}
	return merged
}
