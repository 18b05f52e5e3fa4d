// Command captured runs hprobe profile capture in dom0 of the lab, and prints as JSON
// what it took, for how long the guest stood still, and whether the profile is the one
// that was made of the kernel's image. With -dump it has hprobe do so from a dump of the
// guest's memory, which it writes before and cuts off after.
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
	"syscall"
	"time"

	"github.com/hprobe/hprobe/profiles/build"
	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/test/xen/monitor"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/drivers"
)

// Report is what it prints.
type Report struct {
	Ticks    uint64 // from the command's start to its end
	CPUTicks uint64 // of these it ran, as dom0's kernel counts
	Memory   int64  // KiB, at most
	Paused   uint64 // ticks for which the guest stood still
	Pauses   int
	Symbols  int
	// Differs is where the two profiles do, "" where they do not.
	Differs string
	// Source is what the captured one says that it is of.
	Source string
	Output string
}

func main() {
	file := flag.String("dump", "", "a file to dump the guest's memory to")
	flag.Parse()
	if flag.NArg() != 3 {
		fmt.Println("usage: captured [-dump FILE] DOMAIN TO IMAGE'S-PROFILE")
		os.Exit(2)
	}
	var r Report
	err := r.run(context.Background(), *file, flag.Arg(0), flag.Arg(1), flag.Arg(2))
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(&r)
	}
	if err != nil {
		fmt.Println("captured:", err, r.Output)
		os.Exit(1)
	}
}

func (r *Report) run(ctx context.Context, file, domain, to, image string) error {
	if err := r.capture(ctx, file, domain, to); err != nil {
		return err
	}
	got, err := isf.ReadFile(to)
	if err != nil {
		return err
	}
	want, err := isf.ReadFile(image)
	if err != nil {
		return err
	}
	r.Symbols, r.Source = got.NumSymbols(), got.Meta().Source
	r.Differs, err = differ(got, want)
	return err
}

// capture runs hprobe, and asks how long the pause is.
func (r *Report) capture(ctx context.Context, file, domain, to string) (err error) {
	host, err := monitor.Driver(ctx, drivers.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, host.Close()) }()
	info, err := xenevents.FindDomain(ctx, host, domain)
	if err != nil {
		return err
	}
	opened, err := host.Open(ctx, info.ID)
	if err != nil {
		return err
	}
	dom := opened.(drivers.Domain)
	defer func() { err = errors.Join(err, dom.Close()) }()

	from := []string{domain}
	if file != "" {
		if err := dump(ctx, dom, info.Pages, file); err != nil {
			return err
		}
		from = []string{"--dump", file}
	} else if err := r.pause(ctx, dom, &info); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "hprobe", append([]string{"profile", "capture", "--to", to}, from...)...)
	start := dom.Ticks()
	out, err := cmd.CombinedOutput()
	r.Ticks, r.Output = dom.Ticks()-start, string(out)
	if err == nil && file != "" {
		err = os.Truncate(file, cutDump)
	}
	if err != nil {
		return err
	}
	cpu := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	r.CPUTicks = uint64(float64(dom.TicksPerSecond()) * float64(cpu) / float64(time.Second))
	r.Memory = cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss
	return nil
}

// pause is a capture that goes no further than to the pause's end.
func (r *Report) pause(ctx context.Context, dom drivers.Domain, info *xenevents.DomainInfo) error {
	stopped, stop := context.WithCancel(ctx)
	defer stop()
	if _, err := build.FromGuest(stopped, &clock{Domain: dom, report: r, stop: stop}, info); !errors.Is(err, context.Canceled) {
		return fmt.Errorf("a capture that was stopped: %w", err)
	}
	return nil
}

// clock is a guest that measures for how long it is paused.
type clock struct {
	drivers.Domain
	report *Report
	stop   func()
	start  uint64
}

func (c *clock) Pause() error {
	c.start = c.Ticks()
	c.report.Pauses++
	return c.Domain.Pause()
}

func (c *clock) Unpause() error {
	err := c.Domain.Unpause()
	c.report.Paused += c.Ticks() - c.start
	c.stop()
	return err
}

// differ says where two profiles differ but for their source: symbols one by one, as
// several may have one name, and all else as text.
func differ(got, want *isf.Profile) (string, error) {
	if a, b := got.NumSymbols(), want.NumSymbols(); a != b {
		return fmt.Sprintf("%d symbols, not %d", a, b), nil
	}
	for i := range want.NumSymbols() {
		if a, b := got.SymbolAt(i), want.SymbolAt(i); a != b {
			return fmt.Sprintf("%s at %#x, not %s at %#x", a.Name, a.Addr, b.Name, b.Addr), nil
		}
	}
	a, err := text(got)
	if err != nil {
		return "", err
	}
	b, err := text(want)
	if err != nil {
		return "", err
	}
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			from, to := max(0, i-100), i+100
			return fmt.Sprintf("…%q, not …%q", a[from:min(to, len(a))], b[from:min(to, len(b))]), nil
		}
	}
	if len(a) != len(b) {
		return fmt.Sprintf("one of them ends after %d bytes", min(len(a), len(b))), nil
	}
	return "", nil
}

// text is a profile but for what it is made of.
func text(p *isf.Profile) ([]byte, error) {
	var b bytes.Buffer
	if err := p.WriteJSON(&b); err != nil {
		return nil, err
	}
	source, err := json.Marshal(p.Meta().Source)
	if err != nil {
		return nil, err
	}
	out := bytes.Replace(b.Bytes(), source, []byte(`"source"`), 3) // before all else
	return bytes.Replace(out, fmt.Appendf(nil, `"captured":%q`, p.Meta().Captured), []byte(`"captured":""`), 1), nil
}
