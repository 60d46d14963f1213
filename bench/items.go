package bench

// items are all that is measured, in the order of the report.
func items(quick bool) []item {
	streams := []int{1, 8, 64}
	rings := []uint32{64 << 10, 256 << 10, 1 << 20, 4 << 20}
	idling := []int{10, 1000, 10000}
	if quick {
		streams, rings, idling = []int{1, 64}, []uint32{64 << 10, 1 << 20}, []int{10, 1000}
	}
	list := []item{
		{"streams at once", idle{idling}.run},
		{"round trip, guest end in Go", roundTripGo},
		{"round trip, booted guest", roundTripBooted},
		{"connections, guest end in Go", connectionsGo},
		{"connections, booted guest", connectionsBooted},
		{"fairness", fairness},
		{"boot", boot},
	}
	for _, toGuest := range []bool{false, true} {
		for _, n := range streams {
			b := bulk{toGuest: toGuest, streams: n, rings: rings}
			list = append(list,
				item{b.name() + ", guest end in Go", b.runGo},
				item{b.name() + ", booted guest", b.runBooted})
		}
	}
	return list
}
