package rehearsal

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/hprobe/hprobe/cmd/internal/controlapi"
)

// Bounds of a file of findings, in bytes.
const (
	maxFile = 64 << 20
	maxLine = 1 << 20
)

// ReadFindings reads findings as hprobe findings -o json prints them, a line each. Of what
// is wrong it says in which line.
func ReadFindings(from io.Reader) (all []*controlapi.Finding, err error) {
	lines := bufio.NewScanner(io.LimitReader(from, maxFile))
	lines.Buffer(nil, maxLine)
	for n := 1; lines.Scan(); n++ {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		f := &controlapi.Finding{}
		if err := protojson.Unmarshal(lines.Bytes(), f); err != nil {
			return nil, fmt.Errorf("line %d: no finding as hprobe findings -o json prints it: %w", n, err)
		}
		all = append(all, f)
	}
	return all, lines.Err()
}

// address says whether a value may be one: of the kernel, or where Linux has programs
// that can be anywhere, their libraries and stacks. Small negative numbers are none.
func address(v uint64) bool {
	return v >= 0xffff_8000_0000_0000 && v < ^uint64(0)-0xffff || v >= 0x5500_0000_0000 && v < 0x8000_0000_0000
}

// line is what of a finding is compared: all but the time, the guest, the numbers of vCPUs
// and processes, and addresses, which are others in each run.
func line(f *controlapi.Finding) string {
	what := "reported"
	if f.GetBlocked() {
		what = "blocked"
	}
	who := "?"
	if p := f.GetProcess(); p != nil {
		who = fmt.Sprintf("%q", p.GetComm())
		if p.Uid != nil {
			who += fmt.Sprintf(" (uid %d)", p.GetUid())
		}
	}
	text := fmt.Sprintf("%s %s, %s at %q, by %s: %q", f.GetSeverity(), what, f.GetDetector(), f.GetProbe(), who, f.GetMessage())
	if tags := f.GetTags(); len(tags) > 0 {
		text += fmt.Sprintf(" %q", tags)
	}
	for _, fact := range f.GetFacts() {
		if v := fact.GetValue(); address(v) {
			text += fmt.Sprintf(" %s=…", fact.GetName())
		} else {
			text += fmt.Sprintf(" %s=%#x", fact.GetName(), v)
		}
	}
	return text
}

// maxCompared bounds the work of finding the shortest difference: pairs of lines.
const maxCompared = 4 << 20

// Compare says how findings differ from those that were expected, a line for each: "- " is
// missing, "+ " was not expected, "  " is near one of these. "" is not at all.
func Compare(expected, found []*controlapi.Finding) string {
	want, got := lines(expected), lines(found)
	if slices.Equal(want, got) {
		return ""
	}
	head := 0
	for head < min(len(want), len(got)) && want[head] == got[head] {
		head++
	}
	tail := 0
	for tail < min(len(want), len(got))-head && want[len(want)-1-tail] == got[len(got)-1-tail] {
		tail++
	}
	var b strings.Builder
	same := func(all []string) {
		for _, l := range all {
			b.WriteString("  " + l + "\n")
		}
	}
	same(want[max(0, head-near):head])
	differ(&b, want[head:len(want)-tail], got[head:len(got)-tail])
	same(want[len(want)-tail:][:min(near, tail)])
	return b.String()
}

// near is how many lines before and behind a difference are shown.
const near = 2

func lines(all []*controlapi.Finding) []string {
	out := make([]string, len(all))
	for i, f := range all {
		out[i] = line(f)
	}
	return out
}

// differ writes the difference of two lists by their longest common subsequence.
func differ(b *strings.Builder, want, got []string) {
	if len(want)*len(got) > maxCompared {
		for i := range want {
			b.WriteString("- " + want[i] + "\n")
		}
		want = nil
	}
	common := make([][]int32, len(want)+1) // of what is left from i and j on
	for i := range common {
		common[i] = make([]int32, len(got)+1)
	}
	for i := len(want) - 1; i >= 0; i-- {
		for j := len(got) - 1; j >= 0; j-- {
			if want[i] == got[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	i, j := 0, 0
	for i < len(want) || j < len(got) {
		switch {
		case i < len(want) && j < len(got) && want[i] == got[j]:
			b.WriteString("  " + want[i] + "\n")
			i, j = i+1, j+1
		case j == len(got) || i < len(want) && common[i+1][j] >= common[i][j+1]:
			b.WriteString("- " + want[i] + "\n")
			i++
		default:
			b.WriteString("+ " + got[j] + "\n")
			j++
		}
	}
}
