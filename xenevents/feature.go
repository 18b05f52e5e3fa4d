package xenevents

import (
	"context"
	"fmt"
)

// Answer is what probing for a feature found out.
type Answer uint8

// The three answers.
const (
	CannotTell Answer = iota // the probe itself failed: Feature.Detail says why
	No
	Yes
)

func (a Answer) String() string { return [...]string{"cannot tell", "no", "yes"}[min(a, Yes)] }

// Need says what a missing feature means for hprobe.
type Need uint8

// The weights of a feature.
const (
	Optional Need = iota // works without it, slower or with less
	Required             // hprobe can't attach without it
	Refused              // hprobe must not attach where it is there (passthrough, nested HVM)
)

// Feature is one thing that a host, a CPU or a domain can do, found out by
// doing the smallest real thing rather than by a version number.
type Feature struct {
	Name   string // stable, for programs: "altp2m", "fast-singlestep"
	Title  string // for people: "altp2m views (hidden breakpoints)"
	Answer Answer
	Need   Need
	Detail string // what was seen: "param 35 reads 2 (external)"
	// Fix is the exact line to add, and where, if something can be done.
	Fix string
}

// Blocks reports whether the feature keeps hprobe from attaching.
func (f *Feature) Blocks() bool {
	return f.Need == Required && f.Answer == No || f.Need == Refused && f.Answer == Yes
}

// Prober finds out what can be done; Host and Domain implementations serve it.
// It leaves the host and the domain as they were.
type Prober interface {
	Features(ctx context.Context) ([]Feature, error)
}

// Refuse says why a domain must not be watched, if a feature blocks that: with an
// *UnsupportedError that says what to do.
func Refuse(ctx context.Context, dom Domain) error {
	p, ok := dom.(Prober)
	if !ok {
		return nil
	}
	features, err := p.Features(ctx)
	if err != nil {
		return err
	}
	for i := range features {
		if f := &features[i]; f.Blocks() {
			return &UnsupportedError{Feature: "watching this domain", Need: fmt.Sprintf("%s: %v. %s", f.Title, f.Answer, f.Fix)}
		}
	}
	return nil
}
