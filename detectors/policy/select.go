package policy

import (
	"maps"
	"path"
	"slices"
	"strings"
	"time"
)

// Guest is what is known of a guest before anybody looks into it.
type Guest struct {
	Name, UUID string
	Labels     map[string]string
	OS         string // "linux"; "" where nobody knows yet
}

// Selects says whether a policy is for a guest.
func (p *Policy) Selects(g Guest) bool {
	d := &p.Spec.Domains
	for key, value := range d.Labels {
		if got, ok := g.Labels[key]; !ok || got != value {
			return false
		}
	}
	return (g.OS == "" || g.OS == p.OS()) && d.Named(g)
}

// OS is the system of the guests that it is for.
func (p *Policy) OS() string {
	if p.Spec.Domains.OS != "" {
		return p.Spec.Domains.OS
	}
	return "linux"
}

// Named says whether the patterns of names choose a guest, by its name or UUID.
func (d *Domains) Named(g Guest) bool {
	in, wanted := false, false
	for _, pattern := range d.Names {
		pattern, not := strings.CutPrefix(pattern, "!")
		matches := matches(pattern, g.Name) || g.UUID != "" && matches(strings.ToLower(pattern), strings.ToLower(g.UUID))
		switch {
		case not && matches:
			return false
		case !not:
			wanted = true
			in = in || matches
		}
	}
	return in || !wanted
}

func matches(pattern, name string) bool {
	// A slash is a character as others here, and a name has none.
	ok, err := path.Match(pattern, name)
	return ok && err == nil
}

// Expired says whether a policy's last day is over.
func (p *Policy) Expired(now time.Time) bool {
	return !p.Spec.Expires.IsZero() && !now.Before(p.Spec.Expires.AddDate(0, 0, 1))
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
