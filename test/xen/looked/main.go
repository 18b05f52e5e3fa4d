// Command looked compares, in dom0 of the lab, what hprobe's ps, modules, maps, files and
// dmesg say of the guest with what the guest says itself, before and after, while the
// guest is busy; or says what they cost. It prints a report as JSON.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// Report is what it prints.
type Report struct {
	Runs                                int
	Threads, Passing                    int // that were compared, and that came or went meanwhile
	Regions, Files, Modules, LogRecords int
	Partial                             int // answers about what changes all the time
	Ticks                               uint64
	Processes                           int
	Wrong                               []string // the first few
	More                                int
}

func (r *Report) wrong(format string, args ...any) {
	if len(r.Wrong) < 20 {
		r.Wrong = append(r.Wrong, fmt.Sprintf(format, args...))
		return
	}
	r.More++
}

func main() {
	runs := flag.Int("runs", 10, "how often to look")
	cost := flag.Bool("cost", false, "say what it costs to read all processes, in ticks")
	flag.Parse()
	var r Report
	ctx := context.Background()
	run := func() error { return r.compare(ctx, *runs) }
	if *cost {
		run = func() error { return r.cost(ctx) }
	}
	err := run()
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(&r)
	}
	if err != nil {
		fmt.Println("looked:", err)
		os.Exit(1)
	}
}

// guest runs a command in the guest.
func guest(ctx context.Context, script string) (string, error) {
	out, err := exec.CommandContext(ctx, "guest", script).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("guest %s: %w: %s", script, err, out)
	}
	return string(out), nil
}

// hprobe runs one of its commands, and decodes what it says. exit is its status.
func hprobe(ctx context.Context, into any, args ...string) (exit int, err error) {
	cmd := exec.CommandContext(ctx, "hprobe", append(args, "-o", "json", "--profiles", "/payload/profiles")...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if failed := (*exec.ExitError)(nil); errors.As(err, &failed) {
		exit = failed.ExitCode()
	} else if err != nil {
		return 0, err
	}
	if err := json.Unmarshal(out, into); err != nil {
		return exit, fmt.Errorf("hprobe %s: exit status %d: %w: %q %s", strings.Join(args, " "), exit, err, out, stderr.Bytes())
	}
	return exit, nil
}

// compare looks at the guest so many times, and once by hprobe's commands.
func (r *Report) compare(ctx context.Context, runs int) (err error) {
	said, err := guest(ctx, "echo on > /proc/sys/kernel/printk_devkmsg; rm -f /tmp/stop; props 5 > /tmp/props.log 2>&1 & until grep -q . /tmp/props.log; do sleep 0.1; done; cat /tmp/props.log")
	if err != nil {
		return err
	}
	var memory, files uint32
	if _, err := fmt.Sscan(said, &memory, &files); err != nil {
		return fmt.Errorf("props says %q: %w", said, err)
	}
	if err := r.log(ctx); err != nil {
		return err
	}
	if _, err := guest(ctx, "props load > /tmp/load.log 2>&1 & until pidof load | grep -q .; do sleep 0.1; done"); err != nil {
		return err
	}
	procs := fmt.Sprintf("procs %d %d", memory, files)
	before, err := ask(ctx, procs)
	if err != nil {
		return err
	}
	churn := before.numberOf("churn")
	commands, err := lookAt(ctx, memory, files, churn)
	if err != nil {
		return err
	}
	looks := []look{commands}
	o, err := open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, o.close()) }()
	for ; r.Runs < runs; r.Runs++ {
		l, err := o.look(ctx, memory, files, churn)
		if err != nil {
			return err
		}
		looks = append(looks, l)
	}
	after, err := ask(ctx, procs)
	if err != nil {
		return err
	}
	made, err := guest(ctx, "touch /tmp/stop; until grep -q end /tmp/load.log; do sleep 0.1; done; cat /tmp/load.log; kill $(pidof props); rm /tmp/stop /tmp/load.log")
	if err != nil {
		return err
	}
	passing, err := ranges(made)
	if err != nil {
		return err
	}
	for i := range looks {
		r.check(&looks[i], before, after, passing)
	}
	return nil
}

// cost says how many ticks it takes to read all processes: the least of some times.
func (r *Report) cost(ctx context.Context) (err error) {
	o, err := open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, o.close()) }()
	for range 5 {
		start := o.dom.Ticks()
		all, err := o.Statuses(ctx, false)
		if err != nil {
			return err
		}
		if ticks := o.dom.Ticks() - start; r.Ticks == 0 || ticks < r.Ticks {
			r.Ticks, r.Processes = ticks, len(all)
		}
		r.Runs++
	}
	return nil
}
