package cli

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/profiles/guestos"
)

// TestPartialAnswer: an answer that is not all says so where people look, where programs do,
// and by its status.
func TestPartialAnswer(t *testing.T) {
	rows := func() [][]string { return [][]string{{"PID", "NAME"}, {"1", guestText("\x1b[2J")}} }
	partial := &guestos.PartialError{Why: []string{"the list of \x1b[2J goes in a circle"}}
	found := struct {
		partialLine
		Processes []processLine `json:"processes"`
	}{partialOf(partial), each([]guestos.Status(nil), processLineOf)}
	for json, want := range map[bool]string{
		false: "PID  NAME\n1    \"\\x1b[2J\"\nPARTIAL: the list of \\x1b[2J goes in a circle\n",
		true:  `{"partial":true,"why":["the list of \u001b[2J goes in a circle"],"processes":[]}` + "\n",
	} {
		var out bytes.Buffer
		l := &look{app: &app{out: &out, json: json}}
		err := l.answer(&found, rows(), partial)
		if exitStatus(err) != exitPartial || out.String() != want {
			t.Errorf("%q, %v", out.String(), err)
		}
	}
	var out bytes.Buffer
	l := &look{app: &app{out: &out}}
	if err := l.answer(&found, rows(), nil); err != nil || strings.Contains(out.String(), "PARTIAL") {
		t.Errorf("%q, %v", out.String(), err)
	}
	out.Reset()
	failed := errors.New("no guest")
	if err := l.answer(&found, rows(), failed); !errors.Is(err, failed) || out.Len() != 0 {
		t.Errorf("%q, %v", out.String(), err)
	}
}

func TestProcessRow(t *testing.T) {
	first := guestos.Status{Namespaces: guestos.Namespaces{PID: 1, Mount: 2}}
	s := guestos.Status{PID: 7, TID: 8, Parent: 1, Comm: "a\nb", State: 'S', Threads: 2, UID: [4]uint32{0, 33}, Started: 12_345_678_900, Numbers: []uint32{7, 3}, Namespaces: guestos.Namespaces{PID: 4, Mount: 2}}
	if got, want := strings.Join(processRow(&s, &first, true, true), "|"), `7|8|1|33|S|2|   12.345678|"a\nb"|pid:[4] (3 there)`; got != want {
		t.Errorf("%q, not %q", got, want)
	}
	s.Kernel = true
	if got, want := strings.Join(processRow(&s, &first, false, false), "|"), `7|1|33|S|2|   12.345678|["a\nb"]`; got != want {
		t.Errorf("%q, not %q", got, want)
	}
}

func TestLogText(t *testing.T) {
	var out bytes.Buffer
	l := &look{app: &app{out: &out}}
	if err := l.log([]guestos.LogRecord{{Time: 1_500_000_000, Text: "two\nlines \x1b[2J"}}); err != nil || out.String() != "[    1.500000] two\n[    1.500000] lines \\x1b[2J\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
}

func TestLookUsage(t *testing.T) {
	for _, args := range []string{"ps", "ps a b", "maps a", "maps a b c", "maps a x", "files a -1", "maps a 99999999999", "files a", "dmesg", "modules", "ps a --timeout 0s", "ps a --timeout x"} {
		if status, _, stderr := run(strings.Fields(args)...); status != exitUsage || stderr == "" {
			t.Errorf("%s: %d, %q", args, status, stderr)
		}
	}
}
