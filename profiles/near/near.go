// Package near finds the name that somebody may have meant.
package near

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Bounds: names may be a hostile guest's.
const (
	longest = 64   // letters of a name that are compared
	most    = 4096 // names that are looked at
)

// Names returns the n names that are nearest to one, the nearest first. Of two as
// near, one that has the other in it comes first. It looks at so many names only, and
// takes some milliseconds for them at most.
func Names(name string, names []string, n int) []string {
	type candidate struct {
		name string
		far  int
	}
	var all []candidate
	for _, c := range names[:min(len(names), most)] {
		if c == "" {
			continue
		}
		far := 2 * Distance(name, c)
		if strings.Contains(c, name) || strings.Contains(name, c) {
			far--
		}
		all = append(all, candidate{c, far})
	}
	slices.SortStableFunc(all, func(a, b candidate) int { return cmp.Compare(a.far, b.far) })
	all = slices.CompactFunc(all, func(a, b candidate) bool { return a.name == b.name })
	near := make([]string, 0, n)
	for _, c := range all[:min(len(all), n)] {
		near = append(near, c.name)
	}
	return near
}

// Hint is what an error says of the three nearest names: ` (near it: "a", "b")`, or
// nothing where there are no names.
func Hint(name string, names []string) string {
	var quoted []string
	for _, n := range Names(name, names, 3) {
		quoted = append(quoted, fmt.Sprintf("%q", n))
	}
	if quoted == nil {
		return ""
	}
	return " (near it: " + strings.Join(quoted, ", ") + ")"
}

// Distance is Levenshtein's: how many letters must be changed. Of long names only the
// beginning counts.
func Distance(a, b string) int {
	a, b = a[:min(len(a), longest)], b[:min(len(b), longest)]
	var row, last [longest + 1]int
	for j := range len(b) + 1 {
		row[j] = j
	}
	for i := range len(a) {
		last = row
		row[0] = i + 1
		for j := range len(b) {
			change := 1
			if a[i] == b[j] {
				change = 0
			}
			row[j+1] = min(last[j]+change, last[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
