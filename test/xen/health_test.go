package xen

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/hprobe/hprobe/test/lab"
	"github.com/hprobe/hprobe/xenevents/drivertest"
)

// healthFile has the table of what each driver passes, and what it skips and why.
// HPROBE_UPDATE=1 has a run write its driver's column anew; without, a run that differs fails.
const healthFile = "../../docs/internals/drivers.md"

const healthBegin, healthEnd = "<!-- generated: HPROBE_UPDATE=1 go test ./test/xen -run 'TestHosts/.*/Conformance' (HPROBE_TEST_DRIVER=libvmi for the other column) -->\n", "<!-- end -->\n"

var healthLock sync.Mutex

// health compares a driver's results, by check, with the table. One host is enough: on
// the others nothing may be skipped that is not skipped here.
func health(t *testing.T, cfg lab.Config, results map[string]string) {
	t.Helper()
	healthLock.Lock()
	defer healthLock.Unlock()
	driver, err := lab.Driver()
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(healthFile)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := bytes.Cut(file, []byte(healthBegin))
	table, after, ok2 := bytes.Cut(rest, []byte(healthEnd))
	if !ok || !ok2 {
		t.Fatalf("%s has no table", healthFile)
	}
	columns := readHealth(string(table))
	if os.Getenv("HPROBE_UPDATE") == "" {
		for name, was := range columns[driver] {
			if now := results[name]; now != was && (cfg == plain || was == "pass") {
				t.Errorf("%s: %q, and %q in %s", name, now, was, healthFile)
			}
		}
		for name := range results {
			if columns[driver][name] == "" {
				t.Errorf("%s has no line of %s: HPROBE_UPDATE=1 makes it", healthFile, name)
			}
		}
		return
	}
	if cfg != plain {
		return
	}
	columns[driver] = results
	file = slices.Concat(before, []byte(healthBegin), []byte(writeHealth(columns)), []byte(healthEnd), after)
	if err := os.WriteFile(healthFile, file, 0o644); err != nil {
		t.Fatal(err)
	}
}

var healthDrivers = []string{"native", "libvmi"}

func readHealth(table string) map[string]map[string]string {
	columns := map[string]map[string]string{}
	for _, d := range healthDrivers {
		columns[d] = map[string]string{}
	}
	for line := range strings.Lines(table) {
		cells := strings.Split(strings.TrimSpace(line), " | ")
		if len(cells) != 1+len(healthDrivers) || !strings.HasPrefix(cells[0], "| `") {
			continue
		}
		name := strings.Trim(cells[0], "| `")
		for i, d := range healthDrivers {
			columns[d][name] = strings.TrimSuffix(cells[1+i], " |")
		}
	}
	return columns
}

func writeHealth(columns map[string]map[string]string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "| check | %s |\n|---%s|\n", strings.Join(healthDrivers, " | "), strings.Repeat("|---", len(healthDrivers)))
	for _, c := range drivertest.Checks() {
		fmt.Fprintf(&b, "| `%s`", c.Name)
		for _, d := range healthDrivers {
			result := columns[d][c.Name]
			if result == "" {
				result = "not run"
			}
			fmt.Fprintf(&b, " | %s", result)
		}
		b.WriteString(" |\n")
	}
	return b.String()
}

// TestHealthTable: what is written is read, and all checks are there.
func TestHealthTable(t *testing.T) {
	want := map[string]map[string]string{"native": {}, "libvmi": {}}
	for i, c := range drivertest.Checks() {
		want["native"][c.Name], want["libvmi"][c.Name] = "pass", []string{"pass", "skip: no such thing"}[i%2]
	}
	got := readHealth(writeHealth(want))
	for _, d := range healthDrivers {
		if !maps.Equal(got[d], want[d]) {
			t.Errorf("%s: %v, not %v", d, got[d], want[d])
		}
	}
}
