package cli

import (
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/hprobe/hprobe/cmd/internal/controlapi"
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
