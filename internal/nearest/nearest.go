// Package nearest finds what a misspelt name was meant to be.
package nearest

import "strings"

// Of returns the candidate that name is probably a misspelling of, or "".
func Of(name string, candidates []string) string {
	best, least := "", 1+max(1, (len(name)+1)/3)
	for _, c := range candidates {
		distance := editDistance(name, c)
		if len(name) >= 2 && (strings.HasPrefix(c, name) || strings.HasPrefix(name, c)) {
			distance = 1
		}
		if distance < least {
			best, least = c, distance
		}
	}
	return best
}

// maxName is the length from which on a name is near to none: a distance costs
// the product of two lengths.
const maxName = 100

// editDistance counts the bytes to insert, delete, replace or swap with their
// neighbour to make b of a.
func editDistance(a, b string) int {
	if len(a) > maxName {
		return len(a)
	}
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			replace := rows[i-1][j-1]
			if a[i-1] != b[j-1] {
				replace++
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, replace)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
