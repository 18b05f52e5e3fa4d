package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// position is where something is in a file, from 1 on.
type position struct{ line, column int }

// Problem is one thing that is wrong with a policy file.
type Problem struct {
	File         string
	Line, Column int    // from 1 on; the column in characters
	Path         string // of the field, "spec.probes[0].when"; "" where it is of no field
	Why          string // what is wrong, and what to do
}

func (p *Problem) String() string {
	text := fmt.Sprintf("%s:%d:%d: ", p.File, p.Line, p.Column)
	if p.Path != "" {
		text += p.Path + ": "
	}
	return text + p.Why
}

// Errors is all that is wrong with a policy file, in the order of the file.
type Errors []Problem

// Bounds of problems.
const (
	maxProblems = 50   // that are said: as many as anybody reads
	enough      = 1000 // after which nobody looks for more
)

func (e Errors) Error() string {
	var lines []string
	for i := range e[:min(len(e), maxProblems)] {
		lines = append(lines, e[i].String())
	}
	if more := len(e) - maxProblems; more > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(lines, "\n")
}

// reader collects the problems of a file.
type reader struct {
	file string
	all  Errors
}

func (r *reader) add(at position, path, format string, args ...any) {
	r.all = append(r.all, Problem{File: r.file, Line: at.line, Column: at.column, Path: path, Why: fmt.Sprintf(format, args...)})
}

// err is what was collected, or nil.
func (r *reader) err() error {
	if r.all == nil {
		return nil
	}
	slices.SortStableFunc(r.all, func(a, b Problem) int { return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column)) })
	return r.all
}

// where is the position of a field, or of the nearest one around it that the file has.
func (p *Policy) where(path string) position {
	for {
		if at, ok := p.positions[path]; ok || path == "" {
			return at
		}
		path = path[:max(strings.LastIndexAny(path, ".["), 0)]
	}
}

// wrong adds a problem of a field of a policy.
func (r *reader) wrong(p *Policy, path, format string, args ...any) {
	r.add(p.where(path), path, format, args...)
}
