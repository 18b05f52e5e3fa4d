// Command conform runs the drivers' conformance suite (xenevents/drivertest) in
// dom0 of the lab, against the native driver and the one guest that runs there.
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

	"github.com/hprobe/hprobe/xenevents/drivertest"
	"github.com/hprobe/hprobe/xenevents/native"
)

// Result is what a check came to: both texts empty, and it passed.
type Result struct {
	Name        string
	Error, Skip string `json:",omitempty"`
}

func main() {
	only := flag.String("run", "", "only the checks whose name this regular expression matches")
	list := flag.Bool("list", false, "print the checks' names, and run none")
	flag.Parse()
	if err := run(*only, *list); err != nil {
		fmt.Fprintln(os.Stderr, "conform:", err)
		os.Exit(1)
	}
}

// checkLimit bounds a check: one that hangs must not hide what the others say.
const checkLimit = 3 * time.Minute

func run(only string, list bool) (err error) {
	pattern, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	var env drivertest.Env
	if !list {
		host, err := native.Open(context.Background(), native.Options{})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, host.Close()) }()
		domains, err := host.Domains(context.Background())
		if err != nil || len(domains) != 1 {
			return fmt.Errorf("%d domains: %w", len(domains), err)
		}
		env = drivertest.Env{Host: host, Domain: domains[0].ID}
		if env.Touch, err = touch(&env); err != nil {
			return err
		}
	}
	out := json.NewEncoder(os.Stdout)
	for _, c := range drivertest.Checks() {
		if !pattern.MatchString(c.Name) {
			continue
		}
		r := Result{Name: c.Name}
		if !list {
			r = check(&env, c)
		}
		if err := out.Encode(r); err != nil {
			return err
		}
	}
	return nil
}

func check(env *drivertest.Env, c drivertest.Check) Result {
	ctx, cancel := context.WithTimeout(context.Background(), checkLimit)
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
func touch(env *drivertest.Env) (_ func(context.Context) error, err error) {
	dom, err := env.Host.Open(context.Background(), env.Domain)
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
