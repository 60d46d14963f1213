package bench

// items are all that is measured, in the order of the report.
func items(quick bool) []item {
	streams := []int{1, 8, 64}
	rings := []uint32{64 << 10, 256 << 10, 1 << 20, 4 << 20}
	if quick {
		streams, rings = []int{1, 64}, []uint32{64 << 10, 1 << 20}
	}
	list := []item{
		// First, while little memory has been used and given back.
		{"idle streams, 1000", idle{1000}.run},
		{"idle streams, 10000", idle{10000}.run},
	}
	for _, toGuest := range []bool{false, true} {
		for _, n := range streams {
			b := bulk{toGuest: toGuest, streams: n, rings: rings}
			list = append(list, item{b.name(), b.run})
		}
	}
	return append(list,
		item{"floors", floors}, // before the round trip that is judged by them
		item{"round trip, guest end in Go", roundTripGo},
		item{"round trip, booted guest", roundTripBooted},
		item{"connections", connections},
		item{"boot", boot},
	)
}
