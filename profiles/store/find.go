package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/hprobe/hprobe/profiles/build"
	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
)

// Found is the profile of a guest's kernel.
type Found struct {
	File   string `json:"file"`   // to read
	From   string `json:"from"`   // of which File is the compact form; mostly File itself
	Kernel string `json:"kernel"` // the guest's banner, in plain text
	Why    string `json:"why"`    // it is this one
	// Captured: it was made from the guest's memory just now.
	Captured bool `json:"captured,omitempty"`
	// Passed are profiles that might have been it, and why they are not.
	Passed []string `json:"passed,omitempty"`
}

// maxPassed bounds Found.Passed.
const maxPassed = 16

// NoProfileError says that no profile is of the kernel that a guest runs.
type NoProfileError struct {
	Kernel  string // its banner, in plain text
	Folders string // where there is none
	Passed  []string
}

func (e *NoProfileError) Error() string {
	text := fmt.Sprintf("no profile in %s is of the guest's kernel, %q", e.Folders, e.Kernel)
	for _, p := range e.Passed {
		text += "; " + p
	}
	return text
}

// Find finds the profile of the kernel that a guest runs, by its banner, and makes sure of
// it in the guest's memory: by the banner and the build id at the places that the profile
// has for them. Profiles in hprobe's own form come before ISF files, and what was made of
// files before the one that was captured from this guest; those captured from others are
// never taken. It fails with a *NoProfileError where there is none, and with what
// build.GuestBanner says. The guest runs meanwhile, as GuestBanner has it.
func (s *Store) Find(ctx context.Context, dom build.Guest, info *xenevents.DomainInfo) (*Found, error) {
	all, err := s.List(ctx)
	if err != nil {
		return nil, err
	}
	// To try one that is in the compact form takes less than to find the guest's banner.
	for i := range all {
		p := &all[i]
		if !p.compact() || p.Error != "" || p.Captured != "" {
			continue
		}
		if found, err := s.try(dom, info, p); err == nil {
			found.Kernel = p.Banner
			return found, nil
		}
	}
	banner, err := build.GuestBanner(ctx, dom, int(info.MaxVCPU)+1)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(all, func(a, b Profile) int { return cmp.Compare(a.Captured, b.Captured) })
	var passed []string
	pass := func(p *Profile, why string) {
		if len(passed) < maxPassed {
			passed = append(passed, fmt.Sprintf("%s: %s", p.name(), why))
		}
	}
	for i := range all {
		p := &all[i]
		switch {
		case p.Error != "":
			pass(p, p.Error)
			continue
		case p.Banner != banner:
			continue
		}
		found, err := s.try(dom, info, p)
		if err == nil {
			found.Kernel, found.Passed = banner, passed
			if p.Captured != "" {
				found.Why = fmt.Sprintf("captured from the guest before: no profile in %s has its banner", s.Folders())
			}
			return found, nil
		}
		pass(p, err.Error())
	}
	return nil, &NoProfileError{banner, s.Folders(), passed}
}

// try says whether a profile is of the guest's kernel.
func (s *Store) try(dom build.Guest, info *xenevents.DomainInfo, p *Profile) (*Found, error) {
	profile, path, err := s.take(p)
	if err != nil {
		return nil, err
	}
	meta := profile.Meta()
	if meta.Captured != "" && meta.Captured != info.UUIDString() {
		return nil, errors.New("it was captured from another guest, or from a dump")
	}
	if _, err := guestos.FindKernel(dom, int(info.MaxVCPU)+1, profile); err != nil {
		return nil, err
	}
	why := "its banner is the guest's"
	if meta.BuildID != "" {
		why = "its banner and build id are the guest's"
	}
	return &Found{File: path, From: p.name(), Why: why}, nil
}

// take opens a profile. Of an ISF file, which takes seconds and hundreds of MB to read, it
// keeps the compact form; where that can't be kept, the file is read as it is each time.
func (s *Store) take(p *Profile) (*isf.Profile, string, error) {
	if p.compact() {
		profile, err := isf.ReadFile(p.Path)
		return profile, p.Path, err
	}
	name := hash(fmt.Sprint(p.file)) + Ext
	path := filepath.Join(s.dir, convertedFolder, name)
	if profile, err := isf.ReadFile(path); err == nil {
		return profile, path, nil
	}
	profile, err := p.read()
	if err != nil {
		return nil, "", err
	}
	if path, err = s.keep(convertedFolder, name, profile); err != nil {
		if p.Inner != "" {
			return nil, "", err
		}
		return profile, p.Path, nil
	}
	return profile, path, nil
}

// Capture makes a profile from a guest's memory and keeps it, for this guest alone. why
// says why that is done.
func (s *Store) Capture(ctx context.Context, dom build.Guest, info *xenevents.DomainInfo, why *NoProfileError) (*Found, error) {
	p, err := build.FromGuest(ctx, dom, info)
	if err != nil {
		return nil, err
	}
	path, err := s.Add(p)
	if err != nil {
		return nil, err
	}
	return &Found{File: path, From: path, Kernel: p.Meta().Banner, Captured: true, Passed: why.Passed,
		Why: fmt.Sprintf("captured from the guest: no profile in %s has its banner", why.Folders)}, nil
}
