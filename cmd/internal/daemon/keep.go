package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hprobe/hprobe/detectors/policy"
)

// keepPolicy writes a policy into the folder from which the next hprobed reads it. A crash
// leaves the old file or the new one.
func (d *Daemon) keepPolicy(a *applied) (err error) {
	if d.PolicyFolder == "" {
		return nil
	}
	f, err := os.CreateTemp(d.PolicyFolder, ".new-*")
	if err != nil {
		return fmt.Errorf("keep policy %s: %w", a.Name(), err)
	}
	_, err = f.Write(a.text)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), d.policyFile(a.Name()))
	}
	if err != nil {
		return fmt.Errorf("keep policy %s: %w", a.Name(), errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}

func (d *Daemon) policyFile(name string) string { return filepath.Join(d.PolicyFolder, name+".yaml") }

// LoadKept takes the policies that an earlier hprobed kept. One that can't be read any more
// is an error, and the others are taken nevertheless.
func (d *Daemon) LoadKept() error {
	if d.PolicyFolder == "" {
		return nil
	}
	if err := os.MkdirAll(d.PolicyFolder, 0o750); err != nil {
		return fmt.Errorf("policies: %w", err)
	}
	files, err := filepath.Glob(filepath.Join(d.PolicyFolder, "*.yaml"))
	if err != nil {
		return fmt.Errorf("policies: %w", err)
	}
	var errs []error
	for _, f := range files {
		read, err := policy.ReadFile(f)
		if err == nil {
			var all []*applied
			all, err = appliedOf(read, false)
			d.policies.take(all)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// withdraw ends a policy, and returns when it is out of every guest that answers.
func (d *Daemon) withdraw(ctx context.Context, a *applied) error {
	d.policies.mu.Lock()
	switch {
	case a.configured:
		d.policies.mu.Unlock()
		return errConfigured(a)
	case d.policies.all[a.Name()] == a:
		if d.PolicyFolder != "" {
			if err := os.Remove(d.policyFile(a.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
				d.policies.mu.Unlock()
				return fmt.Errorf("policy %s: %w", a.Name(), err)
			}
		}
		delete(d.policies.all, a.Name())
	}
	d.policies.mu.Unlock()
	return d.settle(ctx)
}

func errConfigured(a *applied) error {
	return invalid(fmt.Errorf("policy %s is of hprobed's configuration (%s): change it there, and have hprobed read it anew (systemctl reload hprobed)", a.Name(), a.File()))
}
