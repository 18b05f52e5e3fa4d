// Command conform runs the drivers' conformance suite (xenevents/drivertest) in
// dom0 of the lab, against a driver and the one guest that runs there.
// It prints a line of JSON for each check.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"time"

	"github.com/hprobe/hprobe/test/xen/monitor"
	"github.com/hprobe/hprobe/xenevents/drivers"
	"github.com/hprobe/hprobe/xenevents/drivertest"
)

// Result is what a check came to: both texts empty, and it passed.
type Result struct {
	Name        string
	Error, Skip string `json:",omitempty"`
}

func main() {
	only := flag.String("run", "", "only the checks whose name this regular expression matches")
	flag.Parse()
	monitor.Main("conform", func(ctx context.Context) error { return run(ctx, *only) })
}

// checkLimit bounds a check: one that hangs must not hide what the others say.
const checkLimit = 3 * time.Minute

func run(ctx context.Context, only string) (err error) {
	pattern, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	host, err := monitor.Open(ctx, "", drivers.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, host.Close()) }()
	env := drivertest.Env{Host: host, Domain: host.Guest.ID}
	if env.Touch, err = touch(ctx, &env); err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	for _, c := range drivertest.Checks() {
		if !pattern.MatchString(c.Name) {
			continue
		}
		if err := out.Encode(check(ctx, &env, c)); err != nil {
			return err
		}
	}
	return nil
}

func check(ctx context.Context, env *drivertest.Env, c drivertest.Check) Result {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	r := Result{Name: c.Name}
	var skip *drivertest.Skip
	switch err := c.Func(ctx, env); {
	case errors.As(err, &skip):
		r.Skip = skip.Reason
	case err != nil:
		r.Error = err.Error()
	}
	return r
}

// touch has the guest read the page that system calls enter, run it, and switch
// address spaces, as each new process does several times.
func touch(ctx context.Context, env *drivertest.Env) (_ func(context.Context) error, err error) {
	dom, err := env.Host.Open(ctx, env.Domain)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, dom.Close()) }()
	r, err := dom.Registers(0)
	if err != nil {
		return nil, err
	}
	script := fmt.Sprintf("guest 'texthash %#x && for i in 1 2 3 4 5 6 7 8; do calls 10 1 || exit; done'", r.LSTAR)
	return func(ctx context.Context) error {
		if out, err := exec.CommandContext(ctx, "sh", "-c", script).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", script, err, out)
		}
		return nil
	}, nil
}
