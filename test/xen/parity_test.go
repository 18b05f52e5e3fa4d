package xen

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/test/guests"
	"github.com/hprobe/hprobe/test/lab"
)

// TestParity: the same guest, the same probes and the same work give the same hits and
// findings with either driver, in the same order, with the same values.
func TestParity(t *testing.T) {
	t.Parallel()
	lab.NeedLibVMI(t)
	seen := map[string]parity{}
	for _, driver := range []string{"native", "libvmi"} {
		seen[driver] = parityOf(t, driver)
	}
	native, libvmi := seen["native"], seen["libvmi"]
	for _, what := range slices.Sorted(maps.Keys(native.hits)) {
		n, l := native.hits[what], libvmi.hits[what]
		t.Logf("%s: %d hits", what, len(n))
		for i := range max(len(n), len(l)) {
			if i >= len(n) || i >= len(l) || n[i] != l[i] {
				t.Errorf("%s: hit %d of %d and %d: native has %.600q, libvmi %.600q", what, i, len(n), len(l), at(n, i), at(l, i))
				break
			}
		}
	}
	if len(native.hits) != len(libvmi.hits) || len(native.hits) < 8 {
		t.Errorf("native has hits of %v, libvmi of %v", slices.Sorted(maps.Keys(native.hits)), slices.Sorted(maps.Keys(libvmi.hits)))
	}
	if !slices.Equal(native.findings, libvmi.findings) || len(native.findings) == 0 {
		t.Errorf("native finds %q, libvmi %q", native.findings, libvmi.findings)
	}
	if native.says != libvmi.says {
		t.Errorf("with native the guest says\n%s\nand with libvmi\n%s", native.says, libvmi.says)
	}
}

func at(lines []string, i int) string {
	if i < len(lines) {
		return lines[i]
	}
	return "nothing"
}

// parity is what was seen with one driver.
type parity struct {
	hits     map[string][]string // by what is probed, without times
	findings []string
	says     string // what the guest's programs print
}

func parityOf(t *testing.T, driver string) (p parity) {
	t.Helper()
	poke, err := guests.PokeModule(context.Background(), plain.Guest, func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	files := []lab.File{poke, pokeProgram(t), program(t, "calls"), profile(t, plain.Guest), {Name: "hprobed", Source: lab.GoBinaryLibVMI(t, module+"cmd/hprobed")}, {Name: "hprobe", Source: lab.GoBinaryLibVMI(t, module+"cmd/hprobe")}}
	h := lab.Copy(t, plain, files...)
	h.Guest.MustRun(t, "insmod /payload/poke.ko")
	h.MustRun(t, fmt.Sprintf(`hprobed --driver %s --profiles /payload/profiles --findings /tmp/findings.json > /tmp/hprobed.log 2>&1 & echo $! > /tmp/hprobed.pid
until hprobe status > /dev/null 2>&1; do [ -d /proc/$(cat /tmp/hprobed.pid) ] || { cat /tmp/hprobed.log; exit 1; }; sleep 0.1; done; grep -q driver=%s /tmp/hprobed.log`, driver, driver))
	const mine = ` --when 'comm == "poke" || comm == "calls"'`
	for _, flags := range []string{
		"--at __x64_sys_getpriority --stack kernel" + mine,
		"--at __x64_sys_getpriority --return" + mine,
		"--at do_sys_openat2" + mine,
		"--at 'poke!poke_ioctl'",
		"--register cr4:tsd", "--register cr0:wp", "--register sysenter_eip",
		"--cpuid 7" + mine,
		"--memory poke!poke_area+0x100:8 --access rw",
		`--register sysenter_eip --when 'new == 0x9999' --message 'MSR {new}'`,
		`--memory poke!poke_area:8 --when 'new == 0x666' --deny write --mode enforce`,
	} {
		says(t, h, 0, "hprobe probe add --domain guest "+flags)
	}
	h.MustRun(t, "hprobe trace -o json > /tmp/trace.json 2> /tmp/trace.err & echo $! > /tmp/trace.pid; "+awaitTraces)
	p.says = h.Guest.MustRun(t, fmt.Sprintf(`calls 100 1 | sed 's/ticks.*//'
poke cr4 0 4 20; poke cr0 0 0x10000 10; poke wrmsr %d 0x1234 20; poke wrmsr %d 0x9999 3; poke cpuid 7 0 30
poke write 0x100 0x1000 20 8; poke read 0x100 0 20 8; poke write 0xf9 0 20 8; poke add 0x100 1 20
poke write 0 0x665 3 8; poke read 0 0 1 8`, sysenterEIP, sysenterEIP))
	h.MustRun(t, "sleep 1; kill $(cat /tmp/trace.pid); hprobe status > /dev/null")
	p.hits = map[string][]string{}
	for line := range strings.Lines(h.MustRun(t, "cat /tmp/trace.json")) {
		var hit map[string]any
		if err := json.Unmarshal([]byte(line), &hit); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		what := fmt.Sprint(hit["probe"], " ", hit["at"])
		p.hits[what] = append(p.hits[what], timeless(t, hit))
	}
	h.MustRun(t, stopDaemon)
	for line := range strings.Lines(h.MustRun(t, "cat /tmp/findings.json")) {
		var f map[string]any
		if err := json.Unmarshal([]byte(line), &f); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		p.findings = append(p.findings, timeless(t, f))
	}
	alive(t, h)
	if err := h.Close(); err != nil { // a test has one copy at a time
		t.Fatal(err)
	}
	return p
}

// pointers are of a guest that puts its programs and stacks anywhere.
var pointers = regexp.MustCompile(`0x[0-9a-f]{9,}|\b[0-9]{11,}\b`)

// timeless is a record without what depends on when it was, and where: keys in order.
func timeless(t *testing.T, m map[string]any) string {
	t.Helper()
	for _, key := range []string{"time", "id", "time_unix_nano", "timeUnixNano", "ticks", "seq", "pid"} {
		delete(m, key)
	}
	if p, ok := m["process"].(map[string]any); ok {
		delete(p, "start_time")
		delete(p, "startTime")
		delete(p, "pid") // the guest's other processes come and go
		delete(p, "tid")
	}
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return pointers.ReplaceAllString(string(b), "…")
}
