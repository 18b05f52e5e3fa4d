package xen

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hprobe/hprobe/test/lab"
)

// busy is the host of TestLoad.
var busy = lab.Config{Xen: "4.20", Guest: "6.12", CPUs: 2, VCPUs: 4}

// TestLoad: a guest with four vCPUs, in which everything comes and goes, and probes on
// its scheduler, its page faults, its opening of files and a function of a program: what
// they see is what the guest itself counted, in copies at other moments of it.
func TestLoad(t *testing.T) {
	t.Parallel()
	copies := 1
	if full {
		copies = 100
	}
	files := []lab.File{binary(t, "test/xen/load"), profile(t, busy.Guest), program(t, "load"), program(t, "texthash")}
	var wg sync.WaitGroup
	var hits, schedules, faults, opens, calls atomic.Uint64
	next := make(chan int)
	for range 2 {
		wg.Go(func() {
			for i := range next {
				l, err := loaded(i, files)
				if err != nil {
					t.Errorf("copy %d: %v", i, err)
					continue
				}
				for _, p := range l.Probes {
					hits.Add(p.Hits + p.Returns)
				}
				last := l.Marks[len(l.Marks)-1]
				schedules.Add(last.Schedules)
				faults.Add(last.Faults)
				opens.Add(l.Opens)
				calls.Add(l.Calls)
			}
		})
	}
	for i := range copies {
		next <- i
	}
	close(next)
	wg.Wait()
	if full && hits.Load() < 100_000 {
		t.Errorf("%d hits are too few to say much", hits.Load())
	}
	t.Logf("%d copies: %d hits: %d of __schedule, %d returns of handle_mm_fault, %d files opened, %d calls of the program's function",
		copies, hits.Load(), schedules.Load(), faults.Load(), opens.Load(), calls.Load())
}

// load is the report of test/xen/load.
type load struct {
	Marks        []struct{ Schedules, Scheduled, Faults, Faulted uint64 }
	Opens, Calls uint64
	Probes       []struct {
		Name                string
		Hits, Returns, Lost uint64
		State               int
	}
	Stats struct{ Reinjected, Stale, Evicted, StaleCalls uint64 }
	Error string
}

// loaded is one of TestLoad's copies.
func loaded(i int, files []lab.File) (l load, err error) {
	h, err := lab.Open(context.Background(), busy, lab.Options{Delay: 1 + i*11}, files...)
	if err != nil {
		return l, err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	run := func(script string) string {
		if err != nil { // the copy is of no more use
			return ""
		}
		ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
		defer cancel()
		res, runErr := h.Run(ctx, script)
		if runErr == nil && res.Exit != 0 {
			runErr = fmt.Errorf("%s: exit status %d\n%s", script, res.Exit, res.Output)
		}
		err = errors.Join(err, runErr)
		return strings.TrimSpace(res.Output)
	}
	// With this the guest's kernel counts its calls of __schedule.
	run("guest 'echo 1 > /proc/sys/kernel/sched_schedstats'")
	before := run("guest texthash")
	run(`load > /tmp/hits.log 2>&1 & echo $! > /tmp/hits.pid
while ! grep -q armed /tmp/hits.log; do [ -d /proc/$(cat /tmp/hits.pid) ] || { cat /tmp/hits.log; exit 1; }; sleep 0.02; done`)
	said := run(fmt.Sprintf("guest 'load %d'", 1+i%3))
	during := run("guest texthash")
	log := run("kill $(cat /tmp/hits.pid); " + awaitEnd + "cat /tmp/hits.log")
	warnings := run("guest 'dmesg | grep -E \"WARNING|BUG|Oops|rcu.*stall|lockup|hung|corrupt\" || true'")
	if err != nil {
		return l, err
	}
	_, text, _ := strings.Cut(log, "armed\n")
	if err := json.Unmarshal([]byte(text), &l); err != nil {
		return l, fmt.Errorf("the monitor says %q: %w", log, err)
	}
	return l, errors.Join(l.check(said), same("the guest's code, while it is probed", during, before), same("the guest's warnings", warnings, ""))
}

func same(what, is, want string) error {
	if is != want {
		return fmt.Errorf("%s: %q, not %q", what, is, want)
	}
	return nil
}

// check compares what was seen with what the guest says.
func (l *load) check(said string) error {
	var opens, calls uint64
	if _, err := fmt.Sscanf(said, "load opens %d calls %d ok", &opens, &calls); err != nil {
		return fmt.Errorf("the guest says %q: %w; the monitor %q", said, err, l.Error)
	}
	if l.Error != "" || len(l.Marks) != 20 || len(l.Probes) != 5 {
		return fmt.Errorf("%q, %d marks, %d probes", l.Error, len(l.Marks), len(l.Probes))
	}
	var errs []error
	if l.Opens != opens || l.Calls != calls {
		errs = append(errs, fmt.Errorf("%d files were opened, %d seen; %d calls made, %d seen", opens, l.Opens, calls, l.Calls))
	}
	// A CPU may be between a hit and its count, in which case it is ahead by one: of
	// ten marks one is not.
	var scheduled, faulted [2]int64
	for i, m := range l.Marks {
		s, f := int64(m.Scheduled-m.Schedules), int64(m.Faulted-m.Faults)
		if part := i / 10; i%10 == 0 {
			scheduled[part], faulted[part] = s, f
		} else {
			scheduled[part], faulted[part] = max(scheduled[part], s), min(faulted[part], f)
		}
	}
	if n := scheduled[1] - scheduled[0]; n != 0 {
		errs = append(errs, fmt.Errorf("the guest scheduled %d times more than was seen", n))
	}
	if n := faulted[1] - faulted[0]; n != 0 {
		errs = append(errs, fmt.Errorf("the guest had %d page faults more than were seen", n))
	}
	for _, p := range l.Probes {
		if p.Lost != 0 || p.State != 0 && p.Name != "user" {
			errs = append(errs, fmt.Errorf("%+v", p))
		}
	}
	if l.Stats.Reinjected != 0 || l.Stats.Evicted != 0 {
		errs = append(errs, fmt.Errorf("%+v", l.Stats))
	}
	return errors.Join(errs...)
}
