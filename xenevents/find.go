package xenevents

import (
	"context"
	"fmt"
	"strconv"
	"strings"
)

// FindDomain finds the domain that somebody names on a command line: by name,
// ID or UUID. A name counts before an ID: a domain may be called "7". It fails
// with ErrNoDomain, and the names that there are.
func FindDomain(ctx context.Context, h Host, name string) (DomainInfo, error) {
	all, err := h.Domains(ctx)
	if err != nil {
		return DomainInfo{}, err
	}
	id, idErr := strconv.ParseUint(name, 10, 15)
	for _, matches := range []func(*DomainInfo) bool{
		func(d *DomainInfo) bool { return d.Name == name && name != "" },
		func(d *DomainInfo) bool { return idErr == nil && uint64(d.ID) == id },
		func(d *DomainInfo) bool { return strings.EqualFold(d.UUIDString(), name) },
	} {
		for i := range all {
			if matches(&all[i]) {
				return all[i], nil
			}
		}
	}
	if len(all) == 0 {
		return DomainInfo{}, fmt.Errorf("domain %q: %w (no guest runs on this host)", name, ErrNoDomain)
	}
	var names []string
	for _, d := range all[:min(len(all), 20)] {
		names = append(names, fmt.Sprintf("%q (%d)", d.Name, d.ID))
	}
	return DomainInfo{}, fmt.Errorf("domain %q: %w (running: %s)", name, ErrNoDomain, strings.Join(names, ", "))
}
