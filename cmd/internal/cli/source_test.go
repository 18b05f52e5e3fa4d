package cli

import (
	"strings"
	"testing"

	"github.com/hprobe/hprobe/cmd/internal/controlapi"
)

func TestSourcesThatExcludeEachOther(t *testing.T) {
	for args, want := range map[string]string{
		"": "--at, --syscall, --register, --cpuid or --memory", "--at f --register cr3": "--at and --register exclude", "--cpuid 1 --memory a": "--cpuid and --memory exclude",
		"--at f --async": "--async is for registers", "--at f --access r": "--access for memory",
	} {
		if code, _, errs := run(append(strings.Fields("probe add -d guest "+args), "--socket", "/nowhere")...); code != 2 || !strings.Contains(errs, want) {
			t.Errorf("%s: status %d, %q", args, code, errs)
		}
	}
}

// TestSourceInAList: it has no step, and what it is of is in place of an address.
func TestSourceInAList(t *testing.T) {
	rows := probeRows([]*controlapi.Probe{{Id: "p1", At: "w of jiffies", Source: &controlapi.Source{Memory: "jiffies"}, Passed: 4}, {Id: "p2", At: "do_exit", Step: "emulate"}})
	if got := strings.Join(rows[1], " "); got != `p1 ""  0 4 0 - w of jiffies ` {
		t.Errorf("%q", got)
	}
	if got := strings.Join(rows[2], " "); got != `p2 ""  0 - 0 emulate do_exit ` {
		t.Errorf("%q", got)
	}
}
