package cli

import (
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/hprobe/hprobe/cmd/internal/controlapi"
	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/detectors/binder"
)

// TestImageFlags: what is found in the operator's file reaches the daemon, and what is
// wrong is said before it is asked.
func TestImageFlags(t *testing.T) {
	h, socket := serve(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	f, err := elf.Open(self)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	code := make([]byte, 15)
	text := f.Section(".text")
	if _, err := text.ReadAt(code, 0x40); err != nil {
		t.Fatal(err)
	}
	at := fmt.Sprintf("image:/bin/x+%#x", text.Offset+0x40)
	if status, _, errs := run("probe", "add", "-d", "guest", "--at", at, "--comm", "x y", "--image-file", self, "--socket", socket); status != exitOK {
		t.Fatalf("status %d: %s", status, errs)
	}
	got, ok := h.asked[len(h.asked)-1].(*controlapi.AddProbeRequest)
	if !ok || got.GetAt() != at || got.GetComm() != "x y" || got.GetImage().GetOffset() != text.Offset+0x40 || !strings.HasPrefix(string(got.GetImage().GetCode()), string(code)) {
		t.Errorf("%v", got)
	}
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		status   int
		at, file string
		want     string
	}{
		{exitUsage, "do_exit", self, "--image-file is for"},
		{exitUsage, "image:/bin/x!", self, "image:/bin/sh!main"},
		{exitFailed, "image:/bin/x!f", script, "no program that can be read"},
		{exitFailed, "image:/bin/x!f", script + "none", "no such file"},
		{exitNotFound, "image:/bin/x!no-such-function-at-all", self, "no such function"},
		{exitFailed, "image:/bin/x+0xffffffffff", self, "no code"},
	} {
		asked := len(h.asked)
		status, _, errs := run("probe", "add", "-d", "guest", "--at", c.at, "--image-file", c.file, "--socket", socket)
		if status != c.status || !strings.Contains(errs, c.want) || len(h.asked) != asked {
			t.Errorf("%s of %s: status %d, %q", c.at, c.file, status, errs)
		}
	}
}

// TestImageTypes: what DWARF says of a place reaches the daemon, and the operator what it
// can't tell.
func TestImageTypes(t *testing.T) {
	h, socket := serve(t)
	dir := t.TempDir()
	source, program, stripped := filepath.Join(dir, "x.c"), filepath.Join(dir, "x"), filepath.Join(dir, "stripped")
	text := `struct pair { long a, b, c; };
static inline __attribute__((always_inline)) long more(long n) { asm volatile("nop"); return n; }
__attribute__((noipa)) long both(struct pair *p, double d, struct pair by) { return p->a + d + by.b; }
static __attribute__((noipa)) long twice(long n) { return n; }
volatile long all;
int count(int n) { all++; return n + all; }
int main(int argc, char **argv) {
	struct pair p = {argc};
	for (long i = more(argc); i < 9; i += more(i)) /* the loop */
		p.b += twice(i) + count(i);
	return both(&p, 1, p);
}
`
	if err := os.WriteFile(source, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, command := range [][]string{{"gcc", "-O2", "-g", "-o", program, source}, {"objcopy", "--strip-all", program, stripped}} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v: %s", command, err, out)
		}
	}
	add := func(args ...string) (int, string, *controlapi.AddProbeRequest) {
		asked := len(h.asked)
		status, _, errs := run(append([]string{"probe", "add", "-d", "guest", "--socket", socket, "-o", "json"}, args...)...)
		if len(h.asked) == asked {
			return status, errs, nil
		}
		return status, errs, h.asked[len(h.asked)-1].(*controlapi.AddProbeRequest)
	}
	for _, files := range [][]string{{"--image-file", program}, {"--image-file", stripped, "--debug-file", program}} {
		status, errs, got := add(append(files, "--at", "image:/bin/x!both")...)
		if status != exitOK || strings.Count(errs, "hprobe: note: ") != 2 || !strings.Contains(errs, "argument d (double) is not shown") || !strings.Contains(errs, "argument by (struct pair) is not shown: it is on the stack") {
			t.Errorf("%q: status %d, %q", files, status, errs)
		}
		loc, err := binder.ParseLocation("image:/bin/x!both")
		if err != nil {
			t.Fatal(err)
		}
		sig, err := binder.SignatureAt(nil, loc, &detectors.ImagePlace{Types: got.GetImage().GetTypes()})
		if err != nil || len(sig.Args) != 3 || sig.Args[0].Name != "p" || sig.Result.Name != "long int" {
			t.Errorf("%+v, %v", sig, err)
		}
		if len(got.GetImage().GetTypes()) > 4096 {
			t.Errorf("%d bytes of types for one struct", len(got.GetImage().GetTypes()))
		}
	}
	if status, errs, got := add("--image-file", program, "--at", fmt.Sprintf("image:/bin/x!x.c:%d", 1+strings.Count(text[:strings.Index(text, "/* the loop")], "\n"))); status != exitOK || len(got.GetImage().GetCode()) == 0 || got.GetImage().GetTypes() != nil ||
		!strings.Contains(errs, "the line has code at") {
		t.Errorf("status %d, %q: %+v", status, errs, got)
	}
	if status, errs, got := add("--image-file", program, "--at", "image:/bin/x!count"); status != exitOK || !strings.Contains(errs, "copied it into other functions, at 1 place,") || got.GetImage().GetTypes() == nil {
		t.Errorf("status %d, %q", status, errs)
	}
	for _, c := range []struct {
		status int
		want   string
		args   []string
	}{
		{exitUsage, "--debug-file comes with", []string{"--debug-file", program, "--at", "image:/bin/x!both"}},
		{exitUsage, "a line is found in your own copy", []string{"--at", "image:/bin/x!x.c:7"}},
		{exitNotFound, "the next one with code", []string{"--image-file", program, "--at", "image:/bin/x!x.c:1"}},
		{exitNotFound, "--debug-file", []string{"--image-file", stripped, "--at", "image:/bin/x!both"}},
		{exitNotFound, "into others, 2 times", []string{"--image-file", program, "--at", "image:/bin/x!more"}},
		{exitFailed, "another build", []string{"--image-file", stripped, "--debug-file", "/bin/ls", "--at", "image:/bin/x!both"}},
	} {
		if status, errs, got := add(c.args...); status != c.status || !strings.Contains(errs, c.want) || got != nil {
			t.Errorf("%q: status %d, %q", c.args, status, errs)
		}
	}
}

func TestImageTexts(t *testing.T) {
	waiting := &controlapi.Probe{Id: "p1", Domain: "g", At: "image:/bin/x!f", InImage: true, Offset: 0x1234, State: "waiting"}
	armed := proto.Clone(waiting).(*controlapi.Probe)
	armed.State, armed.Instruction, armed.Step, armed.Processes, armed.Touched = "armed", "push rbp", "emulate", 3, 2
	missed := proto.Clone(armed).(*controlapi.Probe)
	missed.Missed, missed.MissedWhy, missed.Comm = 2, hostile, hostile
	for want, p := range map[string]*controlapi.Probe{
		"p1: waiting in g for a process that runs image:/bin/x!f (0x1234 of the file): mapped 0 times":                                       waiting,
		`p1: armed in g at image:/bin/x!f (0x1234 of the file), on "push rbp", stepped over by emulate: mapped 3 times, 2 of them in memory`: armed,
		`p1: waiting in g for the page of 0x1 in process 7`:                                                                                  {Id: "p1", Domain: "g", At: "0x1", Pid: 7, State: "waiting"},
		`p1: armed in g at do_exit (0x10), on "nop", stepped over by emulate`:                                                                {Id: "p1", Domain: "g", At: "do_exit", Address: 16, State: "armed", Instruction: "nop", Step: "emulate"},
	} {
		if got := addedText(p); got != want {
			t.Errorf("%q, not %q", got, want)
		}
	}
	harmless(t, "add", addedText(missed))
	rows := probeRows([]*controlapi.Probe{missed, {}})
	if head := strings.Join(rows[0], " "); head != "ID DOMAIN STATE HITS PROCESSES MISSED CHANGED STEP AT FOR" || rows[1][4] != "3" || rows[2][4] != "-" {
		t.Errorf("%q", rows)
	}
	if at := placeOf(missed); !strings.HasPrefix(at, "image:/bin/x!f of ") {
		t.Errorf("%q", at)
	}
}
