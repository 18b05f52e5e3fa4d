package policy

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Versions is a range of kernel versions: comparisons that all must hold.
type Versions struct {
	text string
	all  []comparison
}

// comparison is one: ">= 6.1.10".
type comparison struct {
	op   string
	than version
}

// version is 6.1.10, or a distribution's 5.15.0-91.101: base 5.15.0, build 91.101.
type version struct{ base, build []uint64 }

var (
	oneComparison = regexp.MustCompile(`^\s*(<=|>=|<|>|=)\s*([0-9]+(?:\.[0-9]+){0,3})(?:-([0-9]+(?:\.[0-9]+){0,3}))?(?:\s+|$)`)
	releaseOf     = regexp.MustCompile(`^Linux version ([0-9]+(?:\.[0-9]+){1,3})(?:-([0-9]+(?:\.[0-9]+){0,3}))?`)
	// Debian's banner ends in its package's version: "#1 SMP PREEMPT_DYNAMIC Debian 6.1.55-1 (2023-09-29)".
	debianOf = regexp.MustCompile(` Debian ([0-9]+(?:\.[0-9]+){1,3})[-~+]`)
)

// UnmarshalText reads ">= 5.15.16 < 5.16".
func (v *Versions) UnmarshalText(text []byte) error {
	v.text, v.all = strings.TrimSpace(string(text)), nil
	for rest := string(text); strings.TrimSpace(rest) != ""; {
		m := oneComparison.FindStringSubmatch(rest)
		if m == nil {
			return fmt.Errorf("%q is no comparison of a kernel's version: write >= 6.1.10, < 5.16, >= 5.15.0-91, or several with spaces between", strings.TrimSpace(rest))
		}
		v.all = append(v.all, comparison{m[1], version{numbers(m[2]), numbers(m[3])}})
		rest = rest[len(m[0]):]
	}
	if v.all == nil {
		return fmt.Errorf("there is no comparison: write >= 6.1.10 for instance")
	}
	return nil
}

func (v Versions) String() string { return v.text }

// IsZero says whether there is none.
func (v Versions) IsZero() bool { return v.all == nil }

// numbers reads 6.1.10; one that is too large is the largest.
func numbers(text string) (all []uint64) {
	if text == "" {
		return nil
	}
	for _, part := range strings.Split(text, ".") {
		n, _ := strconv.ParseUint(part, 10, 64)
		all = append(all, n)
	}
	return all
}

// release is what a kernel says of its version.
type release struct {
	text string // as uname -r has it
	version
	// base is upstream's where exact; else only its first two numbers are.
	exact bool
}

// parseRelease reads a kernel's banner. Distributions call their kernels after the first
// release of a series (6.1.0-13, 5.15.0-91) and put fixes of later ones in; Debian says in
// the banner which release it has.
func parseRelease(banner string) (r release, err error) {
	m := releaseOf.FindStringSubmatch(banner)
	if m == nil {
		return r, fmt.Errorf("its banner %q has no version", banner[:min(len(banner), 128)])
	}
	r.text, _, _ = strings.Cut(strings.TrimPrefix(banner, "Linux version "), " ")
	r.base, r.build = numbers(m[1]), numbers(m[2])
	// A build of a release after the first, 6.12.118+deb13, 5.14.21-150500, is of that.
	r.exact = len(r.build) == 0 || len(r.base) > 2 && r.base[2] != 0
	if d := debianOf.FindStringSubmatch(banner); d != nil && slices.Equal(numbers(d[1])[:2], r.base[:2]) {
		r.version, r.exact = version{base: numbers(d[1])}, true
		r.build = numbers(m[2])
	}
	return r, nil
}

// in says whether a kernel is in the range, for all that is known.
func (v Versions) in(r release) bool {
	for _, c := range v.all {
		if !c.holds(r) {
			return false
		}
	}
	return true
}

func (c *comparison) holds(r release) bool {
	base, build := r.base, r.build
	switch {
	case c.than.build != nil:
		base = numbers(strings.FieldsFunc(r.text, func(c rune) bool { return c != '.' && (c < '0' || c > '9') })[0])
		if compare(base, c.than.base) != 0 || build == nil {
			return false // of another base: their builds say nothing of each other
		}
		return c.is(compare(build, c.than.build))
	case !r.exact && len(c.than.base) > 2 && compare(base[:2], c.than.base[:2]) == 0:
		return false
	}
	return c.is(compare(base, c.than.base))
}

func (c *comparison) is(order int) bool {
	switch c.op {
	case "<":
		return order < 0
	case "<=":
		return order <= 0
	case ">":
		return order > 0
	case ">=":
		return order >= 0
	}
	return order == 0
}

// compare compares number by number; what is not there is 0.
func compare(a, b []uint64) int {
	for i := range max(len(a), len(b)) {
		var x, y uint64
		if i < len(a) {
			x = a[i]
		}
		if i < len(b) {
			y = b[i]
		}
		if x != y {
			return map[bool]int{true: -1, false: 1}[x < y]
		}
	}
	return 0
}
