package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/hprobe/hprobe/cmd/internal/controlapi"
	"github.com/hprobe/hprobe/detectors/sinks"
)

// message prints a message as one line of JSON.
func (a *app) message(m proto.Message) error {
	b, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.out, "%s\n", sinks.ASCII(b))
	return err
}

// value prints anything as one line of JSON.
func (a *app) value(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.out, "%s\n", sinks.ASCII(b))
	return err
}

// ifJSON is a labcli.JSON.
func (a *app) ifJSON(v any) (printed bool, err error) {
	if !a.json {
		return false, nil
	}
	return true, a.value(v)
}

// table prints rows in columns; the first is the head.
func (a *app) table(rows [][]string) error {
	w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	var errs []error
	for _, r := range rows {
		for i := range r {
			r[i] = plain(r[i])
		}
		_, err := fmt.Fprintln(w, strings.Join(r, "\t"))
		errs = append(errs, err)
	}
	return errors.Join(append(errs, w.Flush())...)
}

// plain takes from a text what a terminal would obey, and leaves it readable: for
// what is no guest's own string, but may have one in it.
func plain(s string) string {
	var out strings.Builder
	for i, r := range s {
		switch {
		case r == utf8.RuneError && s[i] != "\uFFFD"[0]:
			fmt.Fprintf(&out, `\x%02x`, s[i])
		case strconv.IsPrint(r):
			out.WriteRune(r)
		default:
			q := strconv.QuoteRuneToASCII(r)
			out.WriteString(q[1 : len(q)-1])
		}
	}
	return out.String()
}

// plainLines is plain for each line of a text.
func plainLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = plain(lines[i])
	}
	return strings.Join(lines, "\n")
}

// guestText makes a guest's string harmless for a terminal: what is not plain
// is escaped, and then it is quoted.
func guestText(s string) string {
	for _, r := range s {
		if r <= ' ' || r > '~' || r == '"' || r == '\\' {
			return strconv.QuoteToASCII(s)
		}
	}
	if s == "" {
		return `""`
	}
	return s
}

// count is a number of things: "1 hit", "2 hits".
func count[T int | uint32 | uint64](n T, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

func clock(unixNano int64) string { return time.Unix(0, unixNano).Format("15:04:05.000") }

func process(p *controlapi.Process) string {
	if p == nil {
		return "?"
	}
	return fmt.Sprintf("%s[%d]", guestText(p.GetComm()), p.GetPid())
}

// hitLine is a hit for people.
func (p palette) hitLine(h *controlapi.Hit) string {
	var args []string
	for _, arg := range h.GetArguments() {
		args = append(args, plain(arg.GetName())+"="+argumentText(arg))
	}
	what := p.paint(names, plain(h.GetAt()))
	if len(args) > 0 || !h.GetReturned() { // what returned has no arguments, but may have captures
		what += "(" + strings.Join(args, ", ") + ")"
	}
	if h.GetReturned() {
		value := result(h.GetValue())
		if h.GetResult() != nil {
			value = argumentText(h.GetResult())
		}
		what += fmt.Sprintf(" -> %s  %d ticks", value, h.GetTicks())
	}
	if h.GetCount() > 0 {
		what += fmt.Sprintf("  count %d", h.GetCount())
	}
	if h.GetAction() != "" {
		what += "  " + p.paint(alarm, plain(h.GetAction()))
	}
	return fmt.Sprintf("%s  %s  %s  #%d  vcpu%d  %s  %s", p.paint(faint, clock(h.GetTimeUnixNano())), guestText(h.GetDomain()), p.paint(faint, plain(h.GetProbe())), h.GetSeq(), h.GetVcpu(), process(h.GetProcess()), what) + stackLines(h)
}

func argumentText(arg *controlapi.Argument) string {
	switch {
	case arg.GetError() != "":
		return "?"
	case arg.GetText() != "":
		return plain(arg.GetText())
	}
	return fmt.Sprintf("%#x", arg.GetValue())
}

// stackLines are a hit's stacks, each frame on a line of its own below the hit.
func stackLines(h *controlapi.Hit) string {
	var b strings.Builder
	of := ""
	for _, f := range h.GetStack() {
		whose := "kernel"
		if f.GetUser() {
			whose = "user"
		}
		if whose == of {
			whose = ""
		}
		fmt.Fprintf(&b, "\n    %-6s  %s", whose, plain(f.GetText()))
		if whose != "" {
			of = whose
		}
	}
	if why := h.GetStackError(); why != "" {
		fmt.Fprintf(&b, "\n    %-6s  … %s", "", plain(why))
	}
	return b.String()
}

// result is what a function returned: an errno if it looks like one.
func result(v uint64) string {
	if n := int64(v); n < 0 && n >= -4095 {
		return strconv.FormatInt(n, 10)
	}
	return fmt.Sprintf("%#x", v)
}

// findingLine is a finding for people.
func (p palette) findingLine(f *controlapi.Finding) string {
	what := p.paint(warn, "REPORTED")
	switch {
	case f.GetBlocked():
		what = p.paint(good, "BLOCKED")
	case f.GetSeverity() == "high":
		what = p.paint(alarm, "REPORTED")
	}
	return fmt.Sprintf("%s  %s  %s  %s  %s  vcpu%d  %s", p.paint(faint, clock(f.GetTimeUnixNano())), guestText(f.GetDomain()), what, plain(f.GetDetector()), process(f.GetProcess()), f.GetVcpu(), plain(f.GetMessage()))
}

func lostLine(n uint64) string {
	return fmt.Sprintf("… %d lost here: they came faster than this end reads", n)
}
