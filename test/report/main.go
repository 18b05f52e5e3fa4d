// Command report reads `go test -json` from its standard input and prints what
// a person wants of it: a line for each package, the whole output of what
// failed, what took long, the reason of each skipped test, and a closing count.
//
// It exits with 1 when a test failed or nothing ran, and, with -strict, also
// when a test was skipped for another reason than a missing LibVMI.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
)

// event is one line of `go test -json` (see `go doc test2json`).
type event struct {
	Action, Package, Test, Output, ImportPath string
	Elapsed                                   float64
}

type name struct{ pkg, test string }

type report struct {
	out                     io.Writer
	output                  map[name]*strings.Builder
	skips                   []skip
	took                    map[name]float64 // seconds, of tests without tests of their own
	passed, failed, skipped int
	brokenPackages          int
}

type skip struct {
	name
	reason string
}

func newReport(out io.Writer) *report {
	return &report{out: out, output: map[name]*strings.Builder{}, took: map[name]float64{}}
}

func main() {
	strict := flag.Bool("strict", false, "fail on a skipped test unless its reason begins with \"libvmi:\"")
	flag.Parse()
	r := newReport(os.Stdout)
	if err := r.read(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
	if !r.summary(*strict) {
		os.Exit(1)
	}
}

func (r *report) read(in io.Reader) error {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var e event
		if json.Unmarshal([]byte(line), &e) != nil {
			fmt.Fprint(r.out, line) // not from test2json: say, a compiler's complaint
			continue
		}
		r.take(e)
	}
}

func (r *report) take(e event) {
	n := name{e.Package, e.Test}
	switch e.Action {
	case "build-output":
		fmt.Fprint(r.out, e.Output)
	case "output":
		b := r.output[n]
		if b == nil {
			b = new(strings.Builder)
			r.output[n] = b
		}
		b.WriteString(e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			r.packageEnded(e)
		} else {
			r.testEnded(e, n)
		}
	}
}

func (r *report) testEnded(e event, n name) {
	if _, outer := r.took[n]; !outer {
		r.took[n] = e.Elapsed
	}
	for outer := n.test; strings.Contains(outer, "/"); {
		outer = outer[:strings.LastIndexByte(outer, '/')]
		r.took[name{n.pkg, outer}] = 0 // what it took is in those of its tests, which end before it
	}
	switch e.Action {
	case "pass":
		r.passed++
	case "fail":
		r.failed++
		fmt.Fprintf(r.out, "FAIL  %s %s (%.1fs)\n%s", n.pkg, n.test, e.Elapsed, r.text(n))
	case "skip":
		r.skipped++
		r.skips = append(r.skips, skip{n, reason(r.text(n))})
	}
	delete(r.output, n)
}

func (r *report) packageEnded(e event) {
	n := name{e.Package, ""}
	switch e.Action {
	case "pass":
		fmt.Fprintf(r.out, "ok    %s (%.1fs)\n", e.Package, e.Elapsed)
	case "fail":
		r.brokenPackages++
		fmt.Fprintf(r.out, "FAIL  %s (%.1fs)\n%s", e.Package, e.Elapsed, r.text(n))
		for left := range r.output { // a panic or a time-out: some test never ended
			if left.pkg == e.Package && left.test != "" {
				fmt.Fprintf(r.out, "--- never ended: %s\n%s", left.test, r.text(left))
			}
		}
	}
	delete(r.output, n)
}

func (r *report) text(n name) string {
	if b := r.output[n]; b != nil {
		return b.String()
	}
	return ""
}

// reason takes the t.Skip line out of a skipped test's output: the last line
// but the "--- SKIP" one, without its file and number.
func reason(output string) string {
	last := ""
	for line := range strings.Lines(output) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "---") && !strings.HasPrefix(line, "===") {
			last = line
		}
	}
	if _, after, ok := strings.Cut(last, ".go:"); ok {
		if _, text, ok := strings.Cut(after, ": "); ok {
			return text
		}
	}
	return last
}

// summary prints the end of the report and says whether all is well.
func (r *report) summary(strict bool) bool {
	ok := r.failed == 0 && r.brokenPackages == 0 && r.passed > 0
	for _, s := range r.skips {
		fmt.Fprintf(r.out, "SKIP  %s %s: %s\n", s.pkg, s.test, s.reason)
		if strict && !strings.HasPrefix(s.reason, "libvmi:") {
			fmt.Fprintln(r.out, "      (only tests that need LibVMI may skip here)")
			ok = false
		}
	}
	r.slowest()
	fmt.Fprintf(r.out, "%d passed, %d failed, %d skipped\n", r.passed, r.failed, r.skipped)
	return ok
}

// slowest prints the tests that took longest: where to look when all take too long.
func (r *report) slowest() {
	const shown, long = 30, 20 // tests, seconds
	all := slices.SortedFunc(maps.Keys(r.took), func(a, b name) int { return cmp.Compare(r.took[b], r.took[a]) })
	for _, n := range all[:min(len(all), shown)] {
		if r.took[n] >= long {
			fmt.Fprintf(r.out, "%5.0f s  %s\n", r.took[n], n.test)
		}
	}
}
