// Package drivertest is the conformance suite that every driver passes. It is a
// list of named checks, for the subtests of a unit test and for a command in dom0
// alike: it does not know package testing.
//
// A check changes a live guest and puts it back; it pauses the guest for moments
// only. That nothing is left behind is part of each.
package drivertest

import (
	"context"
	"errors"
	"fmt"

	"github.com/hprobe/hprobe/xenevents"
)

// Env is what the checks run against: a guest that nobody monitors.
type Env struct {
	Host   xenevents.Host
	Domain xenevents.DomainID
	// Touch has the guest read and run the page of its kernel that LSTAR of vCPU 0
	// points to (any system call runs it), and write CR3 at least 16 times, and
	// returns when it has. It is called from a goroutine of its own while the
	// check serves the events. Nil: the checks that need it are skipped.
	Touch func(ctx context.Context) error
}

// Check is one claim about a driver.
type Check struct {
	Name string // stable, for programs
	// Func returns nil where the claim holds, an error that matches *Skip where
	// that can't be told, and else what was seen instead.
	Func func(ctx context.Context, env *Env) error
}

// Skip is the reason why a check could not run.
type Skip struct{ Reason string }

func (s *Skip) Error() string { return s.Reason }

// Checks are all checks, in an order that goes from looking to changing.
func Checks() []Check {
	return []Check{
		{"list", list},
		{"open-bad-id", openBadID},
		{"features", onDomain(features)},
		{"info", onDomain(info)},
		{"read-across-pages", onDomain(readAcross)},
		{"read-absent", onDomain(readAbsent)},
		{"registers", onDomain(registers)},
		{"pause-nests", onDomain(pauseNests)},
		{"with-paused-panic", onDomain(withPausedPanic)},
		{"spare-frames", onDomain(spareFrames)},
		{"write-spare-frame", onDomain(writeSpare)},
		{"attach-twice", onDomain(attachTwice)},
		{"events-close-twice", onDomain(closeTwice)},
		{"next-after-close", onDomain(nextAfterClose)},
		{"interrupt", onDomain(interrupt)},
		{"next-ends-with-context", onDomain(nextContext)},
		{"subscriptions", onDomain(subscriptions)},
		{"views", onDomain(views)},
		{"views-absent-frame", onDomain(viewsAbsent)},
		{"views-busy", onDomain(viewsBusy)},
		{"async-events", onDomain(asyncEvents)},
		{"held-writes", onDomain(heldWrites)},
		{"read-violation", onDomain(readViolation)},
		{"execute-violation", onDomain(executeViolation)},
		{"hidden-int3", onDomain(hiddenInt3)},
		{"reply-once", onDomain(replyOnce)},
		{"late-replies", onDomain(lateReplies)},
		{"panic-in-the-middle", onDomain(panics)},
		{"close-sends-replies", onDomain(closeSends)},
		{"close-undoes-everything", onDomain(closeUndoes)},
	}
}

// open is what a check on an open domain is given.
type open struct {
	env *Env
	dom xenevents.Domain
}

// onDomain opens the domain for a check, closes it (twice) after, and sees that
// the domain is as it was and can be attached anew.
func onDomain(check func(context.Context, *open) error) func(context.Context, *Env) error {
	return func(ctx context.Context, env *Env) (err error) {
		before, err := infoOf(ctx, env)
		if err != nil {
			return err
		}
		dom, err := env.Host.Open(ctx, env.Domain)
		if err != nil {
			return err
		}
		err = check(ctx, &open{env, dom})
		for range 2 {
			if e := dom.Close(); e != nil {
				err = errors.Join(err, fmt.Errorf("close: %w", e))
			}
		}
		// What the check did is undone, whatever became of the check's time.
		return errors.Join(err, asBefore(context.WithoutCancel(ctx), env, before))
	}
}

func infoOf(ctx context.Context, env *Env) (info xenevents.DomainInfo, err error) {
	dom, err := env.Host.Open(ctx, env.Domain)
	if err != nil {
		return info, err
	}
	defer func() { err = errors.Join(err, dom.Close()) }()
	return dom.Info(ctx)
}

func asBefore(ctx context.Context, env *Env, before xenevents.DomainInfo) (err error) {
	after, err := infoOf(ctx, env)
	if err != nil {
		return err
	}
	if after != before {
		return fmt.Errorf("the domain was %+v and is %+v after Close", before, after)
	}
	dom, err := env.Host.Open(ctx, env.Domain)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dom.Close()) }()
	if _, err := dom.Attach(ctx); err != nil {
		return fmt.Errorf("attach after Close: %w", err)
	}
	return nil
}

// role asks for one of a driver's further roles.
func role[T any](o *open) (T, error) {
	r, ok := o.dom.(T)
	if !ok {
		return r, &Skip{fmt.Sprintf("the driver has no %T", new(T))}
	}
	return r, nil
}

// unsupported turns a driver's honest no into a Skip.
func unsupported(err error) error {
	if errors.Is(err, errors.ErrUnsupported) {
		return &Skip{err.Error()}
	}
	return err
}

// must is an error that says what was expected of err, unless err matches want.
func must(err, want error, what string) error {
	if errors.Is(err, want) {
		return nil
	}
	return fmt.Errorf("%s: got %v, want %v", what, orNil(err), want)
}

// mustFail is an error where something went well that must not.
func mustFail(err error, what string) error {
	if err != nil {
		return nil
	}
	return fmt.Errorf("%s: no error", what)
}

func orNil(err error) string {
	if err == nil {
		return "no error"
	}
	return err.Error()
}
