package policy

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/hprobe/hprobe/detectors/binder"
	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
)

// Target is the guest that a policy is compiled for.
type Target struct {
	Kernel *guestos.Kernel
	// Do runs f where the guest's memory may be read: the engine's goroutine. nil: here.
	Do func(f func() error) error
	// Regardless has a policy compiled also where its spec.unless holds.
	Regardless bool
}

func (t *Target) do(f func() error) error {
	if t.Do == nil {
		return f()
	}
	return t.Do(f)
}

// NotNeededError says that a guest does not need a policy: its spec.unless holds.
type NotNeededError struct {
	Policy string
	Why    string
}

func (e *NotNeededError) Error() string {
	return fmt.Sprintf("policy %q is not needed here: %s", e.Policy, e.Why)
}

// holds says whether one of the checks is true of a guest's kernel, and which.
func (t *Target) holds(all []Check) (why string, ok bool, err error) {
	for i := range all {
		if why, ok, err = t.check(&all[i]); ok || err != nil {
			return why, ok, err
		}
	}
	return "", false, nil
}

// check says whether all that a check says is true of a guest's kernel.
func (t *Target) check(c *Check) (why string, ok bool, err error) {
	var all []string
	profile := t.Kernel.Profile
	if !c.Kernel.IsZero() {
		r, err := parseRelease(profile.Meta().Banner)
		if err != nil || !c.Kernel.in(r) {
			return "", false, err
		}
		all = append(all, fmt.Sprintf("its kernel %s is %s", r.name(), c.Kernel))
	}
	if c.Banner != "" {
		if !strings.Contains(profile.Meta().Banner, c.Banner) {
			return "", false, nil
		}
		all = append(all, fmt.Sprintf("its banner has %q", c.Banner))
	}
	if c.Symbol != "" {
		if len(profile.Addresses(c.Symbol)) == 0 {
			return "", false, nil
		}
		all = append(all, "its kernel has "+c.Symbol)
	}
	if c.Field != "" {
		of, member, _ := strings.Cut(c.Field, ".")
		if _, err := profile.Field(of, member); errors.Is(err, isf.ErrNotFound) {
			return "", false, nil
		} else if err != nil {
			return "", false, err
		}
		all = append(all, "its kernel has "+c.Field)
	}
	if c.Bytes != nil {
		if ok, err := t.has(c.Bytes); !ok || err != nil {
			return "", false, err
		}
		all = append(all, fmt.Sprintf("it has %s at %s", c.Bytes.Is, c.Bytes.At))
	}
	return strings.Join(all, ", and "), true, nil
}

// name is a release for people.
func (r *release) name() string {
	base := strings.Trim(strings.ReplaceAll(fmt.Sprint(r.base), " ", "."), "[]")
	if strings.HasPrefix(r.text, base) {
		return r.text
	}
	return fmt.Sprintf("%s (%s)", r.text, base)
}

// has says whether the guest has bytes at a place. One that its kernel lacks has none.
func (t *Target) has(b *Bytes) (same bool, err error) {
	loc, err := binder.ParseLocation(b.At)
	if err != nil {
		return false, err
	}
	if len(t.Kernel.Profile.Addresses(loc.Symbol)) == 0 {
		return false, nil
	}
	err = t.do(func() error {
		at, err := t.Kernel.Address(loc.Symbol)
		if err != nil {
			return err
		}
		got := make([]byte, len(b.Is))
		if _, err := t.Kernel.Read(got, at+xenevents.GVA(loc.Offset)); err != nil {
			return fmt.Errorf("bytes at %s: %w", b.At, err)
		}
		same = bytes.Equal(got, b.Is)
		return nil
	})
	return same, err
}
