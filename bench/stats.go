package bench

import (
	"math"
	"slices"
)

// Spread is the median of several rounds with the least and the most.
type Spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// spreadOf returns the zero Spread for no values.
func spreadOf(values []float64) Spread {
	if len(values) == 0 {
		return Spread{}
	}
	s := slices.Sorted(slices.Values(values))
	n := len(s)
	return Spread{Median: (s[(n-1)/2] + s[n/2]) / 2, Min: s[0], Max: s[n-1]}
}

// ratios divides pair by pair; pairs whose divisor is 0 are left out.
func ratios(ours, beside []float64) []float64 {
	var out []float64
	for i := range min(len(ours), len(beside)) {
		if beside[i] != 0 {
			out = append(out, ours[i]/beside[i])
		}
	}
	return out
}

// percentile returns the value that the share p (0 to 1) of sorted values
// doesn't exceed, by the nearest rank. There must be a value.
func percentile[T any](sorted []T, p float64) T {
	rank := int(math.Ceil(p * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}
