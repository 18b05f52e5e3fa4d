package xen

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/test/guests"
)

// sourceLine is the number of the line of a guest's program that has a text in it.
func sourceLine(t *testing.T, name, text string) int {
	t.Helper()
	source, err := guests.Source(name)
	if err != nil {
		t.Fatal(err)
	}
	before, _, ok := strings.Cut(string(source), text)
	if !ok {
		t.Fatalf("%s has no %q", name, text)
	}
	return 1 + strings.Count(before, "\n")
}

// tracedCalls are what a trace has of a probe, from where the place is.
func tracedCalls(trace, id string) (all []string) {
	for line := range strings.Lines(trace) {
		if words := strings.Fields(line); len(words) > 2 && words[2] == id {
			_, what, _ := strings.Cut(line, "!")
			all = append(all, strings.TrimSpace(what))
		}
	}
	return all
}

// TestTypedImages: of a program that was stripped in the guest, its debug file in dom0 tells
// names and types: what is shown, and what rules choose, is what the program says that it
// called; in a static function and at a line, too.
func TestTypedImages(t *testing.T) {
	t.Parallel()
	h := imagesHost(t, plain)
	const at, copied = "hprobe probe add -d guest --at 'image:/payload/typed!", "' --image-file /payload/copies/typed"
	const file = copied + " --debug-file /payload/copies/typed.debug"
	// What only debug information has.
	says(t, h, 2, at+"serve' --when 'req.path == \"x\"'", "there is no argument req here", "--debug-file")
	says(t, h, 2, at+"serve"+copied+" --when 'req.path == \"x\"'", "there is no argument req here", "--debug-file")
	says(t, h, 3, at+"hidden"+copied, "no such function", "--debug-file")
	says(t, h, 2, at+"typed.c:1'", "--image-file")
	says(t, h, 1, at+"typed.c:1"+copied, "--debug-file")
	says(t, h, 1, at+"serve"+copied+" --debug-file /payload/copies/images", "another build")
	says(t, h, 2, at+"serve"+file+" --when 'ratio > 1.0'", "register of floats")
	says(t, h, 2, at+"serve"+file+" --when 'req.paht == \"x\"'", "did you mean 'path'?")
	line := sourceLine(t, "typed", "/* the line */")
	says(t, h, 3, at+fmt.Sprintf("typed.c:%d", sourceLine(t, "typed", "enum kind"))+file, "the next one with code")
	says(t, h, 0, "hprobe status", "attached to no guest")

	says(t, h, 0, at+"serve"+file, "p1: waiting", "note: argument ratio (double) is not shown: it is in a register of floats")
	const members = "path=req.path,uid=req.owner.uid,name=req.owner.name,kind=req.kind,urgent=req.urgent,level=req.level,count=req.count,why,sure"
	says(t, h, 0, at+"serve"+file+" --capture "+members, "p2: waiting")
	says(t, h, 0, at+"serve"+file+" --when 'req.path == \"/etc/shadow\" && req.owner.uid >= 1003 && req.level > 5 && why.startsWith(\"because\")' --capture path=req.path,why", "p3: waiting")
	says(t, h, 0, at+"hidden"+file+" --return", "p4: waiting")
	says(t, h, 0, at+"serve"+file+" --return --when 'ret < 0' --capture ret", "p5: waiting")
	says(t, h, 0, at+fmt.Sprintf("typed.c:%d", line)+file+" --capture pid", "p6: waiting")
	h.MustRun(t, "hprobe trace > /tmp/trace.log 2>&1 & echo $! > /tmp/trace.pid; "+awaitTraces)
	const calls = 14
	out := runs(t, h, fmt.Sprintf("typed %d", calls))
	trace := h.MustRun(t, "sleep 1; kill $(cat /tmp/trace.pid); cat /tmp/trace.log")
	t.Log(trace)

	var members2, matched, ends, below []string
	for one := range strings.Lines(out) {
		one = strings.TrimSpace(one)
		switch {
		case strings.HasPrefix(one, "serve("):
			call, served, _ := strings.Cut(one, " served=")
			members2 = append(members2, call)
			if strings.Contains(call, `path="/etc/shadow"`) && len(members2) > 6 {
				_, why, _ := strings.Cut(call, `why=`)
				why, _, _ = strings.Cut(why, ", sure")
				matched = append(matched, `serve(path="/etc/shadow", why=`+why+`)`)
			}
			if strings.HasPrefix(served, "-") {
				below = append(below, "serve(ret="+served+") -> "+served)
			}
		case strings.HasPrefix(one, "hidden("):
			_, text, _ := strings.Cut(one, "text=")
			text, _, _ = strings.Cut(text, " lined")
			ends = append(ends, "hidden -> "+text)
		}
	}
	if len(members2) != calls || len(matched) != 3 || len(ends) != calls || len(below) == 0 {
		t.Fatalf("the program says %q", out)
	}
	withoutTicks := func(all []string) (short []string) {
		for _, one := range all {
			one, _, _ = strings.Cut(one, "  ")
			short = append(short, one)
		}
		return short
	}
	hidden := withoutTicks(tracedCalls(trace, "p4"))
	hidden = slices.DeleteFunc(hidden, func(one string) bool { return !strings.Contains(one, "->") })
	for id, c := range map[string]struct{ got, want []string }{"p2": {tracedCalls(trace, "p2"), members2}, "p3": {tracedCalls(trace, "p3"), matched}, "p4": {hidden, ends}, "p5": {withoutTicks(tracedCalls(trace, "p5")), below}} {
		if !slices.Equal(c.got, c.want) {
			t.Errorf("%s is traced as\n%q\nnot\n%q", id, c.got, c.want)
		}
	}
	all := tracedCalls(trace, "p1")
	for i, one := range all {
		if !strings.HasPrefix(one, "serve(req=struct request at 0x") || !strings.Contains(one, fmt.Sprintf(`, why="because %d", ratio=?, sure=%t)`, i, i%4 != 0)) {
			t.Errorf("call %d is traced as %q", i, one)
		}
	}
	if at := tracedCalls(trace, "p6"); len(all) != calls || len(at) != calls || !strings.HasPrefix(at[0], fmt.Sprintf("typed.c:%d(pid=", line)) {
		t.Errorf("%d calls, and %d of the line: %q", len(all), len(at), at)
	}
	for id, n := range map[string]int{"p1": calls, "p2": calls, "p3": calls, "p4": calls, "p5": calls, "p6": calls} {
		says(t, h, 0, "hprobe probe rm "+id, fmt.Sprintf("after %d hits", n))
	}
	says(t, h, 0, "hprobe status", "attached to no guest")
	if log := h.MustRun(t, "cat /tmp/hprobed.log"); strings.Contains(log, "level=ERROR") {
		t.Error(log)
	}
	alive(t, h)
}
