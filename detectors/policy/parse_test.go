package policy

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// probes is a document whose probes are given, from line 7 on.
func probes(text string) string { return head + "  probes:\n" + text }

const good = "  - {name: a, at: f, then: {finding: {}}}\n"

// wrong are files, and what is said of them: all lines of it.
var wrong = map[string]struct{ file, want string }{
	"empty":     {"", `p.yaml:1:1: there is no policy in it: one begins with apiVersion: hprobe/v1`},
	"comments":  {"# none\n---\n---\n", `p.yaml:1:1: there is no policy in it: one begins with apiVersion: hprobe/v1`},
	"no YAML":   {"a: [1\nb: 2\n", `p.yaml:2:2: this is no YAML: while parsing a flow sequence did not find expected ',' or ']'`},
	"tab":       {"a:\n\tb: 1\n", `p.yaml:2:1: this is no YAML: while scanning for the next token found character that cannot start any token`},
	"bytes":     {"a: \xff\n", `p.yaml:1:4: this is no text in UTF-8: write it anew in an editor that does`},
	"a list":    {"- a\n", `p.yaml:1:1: it is a list, and must be a map: write KEY: VALUE`},
	"a text":    {"hello\n", `p.yaml:1:1: it is a text, and must be a map: write KEY: VALUE`},
	"too large": {strings.Repeat("#", maxFile+1), `p.yaml:1:1: the file is larger than 262144 bytes, which no policy is: make several of it`},
	"too many":  {strings.Repeat("--- a\n", maxPolicies+1), `p.yaml:257:5: more than 256 policies in a file: make several of it`},
	"all errors": {"apiVersion: hprobe/v2\nkind: Policy\nmetadata: {nam: x}\nspec:\n  domains: {names: ['*']}\n  mode: enforced\n  probes:\n  - {name: a, at: f, wen: x, then: {finding: {}}}\n",
		`p.yaml:1:13: apiVersion: "hprobe/v2" is none of hprobe/v1 (near it: "hprobe/v1")
p.yaml:2:7: kind: "Policy" is none of ProbePolicy (near it: "ProbePolicy")
p.yaml:3:11: metadata: name is missing (like cve-2022-0185)
p.yaml:3:12: metadata: there is no field "nam" here (near it: "name", "tags", "title"); there are name, title, description, references, tags
p.yaml:6:9: spec.mode: "enforced" is none of observe, enforce (near it: "enforce", "observe")
p.yaml:8:22: spec.probes[0]: there is no field "wen" here (near it: "when", "then", "at"); there are name, at, syscalls, register, cpuid, memory, access, async, return, comm, image, only, capture, when, then, budget`},
	"missing": {"kind: ProbePolicy\n", `p.yaml:1:1: apiVersion is missing (one of hprobe/v1)
p.yaml:1:1: metadata is missing
p.yaml:1:1: spec is missing`},
	"duplicate key":    {probes("  - {name: a, at: f, at: g, then: {finding: {}}}\n"), `p.yaml:7:22: spec.probes[0]: "at" is here a second time: it was said in line 7`},
	"alias":            {"a: &x 1\nb: *x\n" + probes(good), `p.yaml:1:1: there is no field "a" here`},
	"anchor":           {probes("  - {name: &n a, at: f, then: {finding: {}}}\n"), `p.yaml:7:12: spec.probes[0].name: an anchor, "&n": there are none in a policy; leave it out, and write what its aliases stand for`},
	"use of an anchor": {probes("  - {name: &n a, at: *n, then: {finding: {}}}\n"), "p.yaml:7:12: spec.probes[0].name: an anchor, \"&n\": there are none in a policy; leave it out, and write what its aliases stand for\np.yaml:7:22: spec.probes[0].at: an alias, \"*n\": there are none in a policy; write what it stands for"},
	"merge key":        {probes("  - {<<: {name: a}, at: f, then: {finding: {}}}\n"), "p.yaml:7:5: spec.probes[0]: name is missing (like copied)\np.yaml:7:6: spec.probes[0]: there is no field \"<<\" here"},
	"tag":              {probes("  - {name: !!str a, at: f, then: {finding: {}}}\n"), `p.yaml:7:12: spec.probes[0].name: a tag, "!!str": there are none in a policy; leave it out`},
	"key no text":      {"[a]: b\n" + probes(good), `p.yaml:1:1: a key is a text, and this one is a list`},
	"nothing":          {probes("  - {name: a, at: f, when: , then: {finding: {}}}\n"), `p.yaml:7:28: spec.probes[0].when: there is nothing: leave the field out, or say what it is (like uid != 0)`},
	"number as text":   {probes("  - {name: 12, at: f, then: {finding: {}}}\n"), `p.yaml:7:12: spec.probes[0].name: it is a number, and must be a text: write it in quotes, '12'`},
	"bool as text":     {probes("  - {name: a, at: f, when: true, then: {finding: {}}}\n"), `p.yaml:7:28: spec.probes[0].when: it is true or false, and must be a text: write it in quotes, 'true'`},
	"text as bool":     {probes("  - {name: a, at: f, return: always, then: {finding: {}}}\n"), `p.yaml:7:30: spec.probes[0].return: it is a text, and must be true or false`},
	"list as text":     {probes("  - {name: a, at: f, when: [x], then: {finding: {}}}\n"), `p.yaml:7:28: spec.probes[0].when: it is a list, and must be a text (like uid != 0)`},
	"text as list":     {probes("  - {name: a, at: f, capture: x, then: {finding: {}}}\n"), `p.yaml:7:31: spec.probes[0].capture: it is a text, and must be a list: write - before each item, or [one, another]`},
	"empty list":       {head + "  probes: []\n", `p.yaml:6:11: spec.probes: an empty list: leave the field out, or say what is in it`},
	"long list":        {probes("  - {name: a, at: [" + strings.Repeat("f,", 9) + "f], then: {finding: {}}}\n"), `p.yaml:7:19: spec.probes[0].at: a list of 10 items: 8 are allowed`},
	"long text":        {probes("  - {name: a, at: f, when: " + strings.Repeat("x", 4097) + ", then: {finding: {}}}\n"), `p.yaml:7:28: spec.probes[0].when: a text of 4097 bytes: 4096 are allowed`},
	"empty text":       {probes("  - {name: a, at: f, when: ' ', then: {finding: {}}}\n"), `p.yaml:7:28: spec.probes[0].when: an empty text: leave the field out, or say what it is (like uid != 0)`},
	"terminal":         {probes("  - {name: a, at: f, when: \"\\e[2J\", then: {finding: {}}}\n"), `p.yaml:7:28: spec.probes[0].when: a text with characters that can't be printed: "\x1b[2J"`},
	"key for terminal": {probes("  - {name: a, at: f, \"\\e[2J\": x, then: {finding: {}}}\n"), `p.yaml:7:22: spec.probes[0]: a key with characters that can't be printed: "\x1b[2J"`},
	"bad name":         {probes("  - {name: a b, at: f, then: {finding: {}}}\n"), `p.yaml:7:12: spec.probes[0].name: "a b" can't be one (like copied): it must match ^[A-Za-z_][A-Za-z0-9_-]*$`},
	"percent":          {probes("  - {name: a, at: f, then: {finding: {}}, budget: {stalledPercent: 25%}}\n"), `p.yaml:7:68: spec.probes[0].budget.stalledPercent: "25%": a whole number without a unit is wanted here; write 25`},
	"per second":       {probes("  - {name: a, at: f, then: {finding: {}}, budget: {hitsPerSecond: 10/s}}\n"), `p.yaml:7:67: spec.probes[0].budget.hitsPerSecond: "10/s": a whole number without a unit is wanted here; write 10`},
	"fraction":         {probes("  - {name: a, at: f, then: {finding: {}}, budget: {hitsPerSecond: 1.5}}\n"), `p.yaml:7:67: spec.probes[0].budget.hitsPerSecond: it is a number with a fraction, and must be a whole number`},
	"negative":         {probes("  - {name: a, at: f, then: {finding: {}}, budget: {hitsPerSecond: -1}}\n"), `p.yaml:7:67: spec.probes[0].budget.hitsPerSecond: -1 is too small or too large: from 1 to 1000000000 is allowed`},
	"duration": {probes("  - {name: a, at: f}\n  watchdogs:\n  - {name: w, expect: a, within: 10}\n  - {name: x, expect: a, within: 10 seconds}\n  - {name: y, expect: a, within: 1ms}\n"),
		`p.yaml:9:34: spec.watchdogs[0].within: "10" is no time: write one with its unit, like 500ms, 10s, 5m or 1h30m
p.yaml:10:34: spec.watchdogs[1].within: "10 seconds" is no time: write one with its unit, like 500ms, 10s, 5m or 1h30m
p.yaml:11:34: spec.watchdogs[2].within: 1ms is too short or too long a time: from 100ms to 24h0m0s is allowed`},
	"date":               {head + "  expires: tomorrow\n  probes:\n" + good, `p.yaml:6:12: spec.expires: "tomorrow" is no day: write one like 2027-12-31`},
	"version":            {head + "  unless: [{kernel: 6.1}, {kernel: '~> 6.1'}, {kernel: '>= 6.x'}]\n  probes:\n" + good, "p.yaml:6:21: spec.unless[0].kernel: \"6.1\" is no comparison of a kernel's version: write >= 6.1.10, < 5.16, >= 5.15.0-91, or several with spaces between\np.yaml:6:36: spec.unless[1].kernel: \"~> 6.1\" is no\np.yaml:6:56: spec.unless[2].kernel: \">= 6.x\" is no"},
	"checks":             {head + "  unless: [{}, {bytes: {at: 'm!f', is: 0f}}, {bytes: {at: 'f g', is: '00'}}, {bytes: {at: f, is: xy}}]\n  probes:\n" + good, "p.yaml:6:12: spec.unless[0]: it says nothing: say kernel, banner, symbol, field or bytes\np.yaml:6:29: spec.unless[1].bytes.at: bytes are looked at in the kernel proper, at symbol or symbol+0x10\np.yaml:6:59: spec.unless[2].bytes.at: no place for a probe: \"f g\"\np.yaml:6:98: spec.unless[3].bytes.is: \"xy\" are no bytes: write two hexadecimal digits for each, like '0f 1f 44 00 00'"},
	"no guest":           {strings.Replace(probes(good), "{names: ['*']}", "{os: linux}", 1), `p.yaml:5:12: spec.domains: no guest is chosen: say names or labels; names: ['*'] are all guests`},
	"patterns":           {strings.Replace(probes(good), "['*']", "['!', 'a[']", 1), "p.yaml:5:21: spec.domains.names[0]: there is no pattern behind the !\np.yaml:5:26: spec.domains.names[1]: \"a[\" is no pattern: a [ wants its ]; * is any text, ? one character"},
	"label for terminal": {strings.Replace(probes(good), "names: ['*']", `labels: {"\e[2J": x}`, 1), `p.yaml:5:22: spec.domains.labels: a key with characters that can't be printed: "\x1b[2J"`},
	"tag for terminal":   {probes("  - {name: !%1b2J a, at: f, then: {finding: {}}}\n"), `p.yaml:7:12: spec.probes[0].name: a tag, "!\x1b2J": there are none`},
	"system":             {strings.Replace(probes(good), "['*']", "['*'], os: windows", 1), `p.yaml:5:31: spec.domains.os: "windows" is none of linux (near it: "linux")`},
	"labels":             {strings.Replace(probes(good), "names: ['*']", "labels: {a: 1}", 1), `p.yaml:5:25: spec.domains.labels.a: it is a number, and must be a text: write it in quotes, '1'`},
	"two names":          {probes("  - {name: a, at: f, then: {finding: {}}}\n  - {name: a, at: g, then: {finding: {}}}\n"), `p.yaml:8:12: spec.probes[1].name: there is a probe "a" already: each has a name of its own`},
	"two policies":       {probes(good) + "---\n" + probes(good), `p.yaml:11:18: metadata.name: there is a policy "test" in this file already, in line 3`},
	"nowhere":            {probes("  - {name: a, then: {finding: {}}}\n"), `p.yaml:7:5: spec.probes[0]: it is nowhere: say at, syscalls, register, cpuid or memory`},
	"two places":         {probes("  - {name: a, at: f, register: cr4, then: {finding: {}}}\n"), `p.yaml:7:5: spec.probes[0]: at and register exclude each other: a probe is at one of them; make two probes of it`},
	"place":              {probes("  - {name: a, at: 'f g', then: {finding: {}}}\n"), `p.yaml:7:19: spec.probes[0].at: no place for a probe: "f g" (no symbol's name)`},
	"one of places":      {probes("  - {name: a, at: [f, 'g h'], then: {finding: {}}}\n"), `p.yaml:7:23: spec.probes[0].at[1]: no place for a probe: "g h"`},
	"return":             {probes("  - {name: a, at: f+0x10, return: true, then: {finding: {}}}\n"), `p.yaml:7:19: spec.probes[0].at: returns are seen from a function's first instruction on`},
	"system calls":       {probes("  - {name: a, syscalls: ['!all'], then: {finding: {}}}\n"), `p.yaml:7:25: spec.probes[0].syscalls: !all leaves nothing: say which system calls`},
	"set at calls":       {probes("  - {name: a, syscalls: [open], then: {set: [arg0=1]}}\n"), `p.yaml:7:45: spec.probes[0].then.set: not for system calls, whose arguments are at different places: say at: __x64_sys_NAME`},
	"register":           {probes("  - {name: a, register: cr7, then: {finding: {}}}\n"), `p.yaml:7:25: spec.probes[0].register: no register that can be watched: "cr7"`},
	"cpuid":              {probes("  - {name: a, cpuid: all, then: {finding: {}}}\n"), `p.yaml:7:22: spec.probes[0].cpuid: no leaf of CPUID: "all"; it is a number (0x40000000), or any`},
	"memory":             {probes("  - {name: a, memory: 'x:0', then: {finding: {}}}\n"), `p.yaml:7:23: spec.probes[0].memory: no memory that can be watched: "x:0"`},
	"access":             {probes("  - {name: a, memory: x, access: rr, then: {finding: {}}}\n"), `p.yaml:7:23: spec.probes[0].memory: no accesses: "rr"; they are r, w, x, or several of these: rw, rwx`},
	"fields that do not fit": {probes("  - {name: a, syscalls: [open], return: true, access: w, async: true, comm: x, image: {offset: 1, code: '90'}, then: {finding: {}}}\n"),
		`p.yaml:7:41: spec.probes[0].return: calls end only where a function is probed: say at
p.yaml:7:55: spec.probes[0].access: it is of memory
p.yaml:7:65: spec.probes[0].async: it is of a register
p.yaml:7:77: spec.probes[0].comm: it is of a place in an image (at: image:PATH!symbol); of others say when: comm == "…"
p.yaml:7:87: spec.probes[0].image: it is of one place in an image (at: image:PATH!symbol)`},
	"condition":       {probes("  - {name: a, at: f, when: 'a ==', then: {finding: {}}}\n"), `p.yaml:7:28: spec.probes[0].when: "a ==": at character 5: mismatched input '<EOF>'`},
	"capture":         {probes("  - {name: a, at: f, capture: [x, 'y=('], then: {finding: {}}}\n"), `p.yaml:7:35: spec.probes[0].capture[1]: "(": `},
	"message":         {probes("  - {name: a, at: f, then: {finding: {message: 'x {y'}}}\n"), `p.yaml:7:48: spec.probes[0].then.finding.message: "x {y": a { without a }; write {{ for the character`},
	"set":             {probes("  - {name: a, at: f, then: {set: [rdi]}}\n"), `p.yaml:7:35: spec.probes[0].then.set[0]: "rdi": it is written PLACE=VALUE`},
	"severity":        {probes("  - {name: a, at: f, then: {finding: {severity: hihg}}}\n"), `p.yaml:7:49: spec.probes[0].then.finding.severity: "hihg" is none of info, medium, high (near it: "high", "info", "medium")`},
	"deny":            {probes("  - {name: a, at: f, then: {deny: EPERMS}}\n"), `p.yaml:7:35: spec.probes[0].then.deny: "EPERMS" is no error of Linux and no number: say something like EPERM, EACCES, or 0`},
	"deny where":      {probes("  - {name: a, at: f+1, then: {deny: EPERM}}\n"), `p.yaml:7:30: spec.probes[0].then: a call is refused at its function's entry: the place must be a symbol without an offset`},
	"deny ended":      {probes("  - {name: a, at: f, return: true, then: {deny: EPERM}}\n"), `p.yaml:7:42: spec.probes[0].then: a call that has returned can't be refused`},
	"deny a write":    {probes("  - {name: a, register: cr0, then: {deny: EPERM}}\n"), `p.yaml:7:36: spec.probes[0].then: there is no caller to be told an error: say deny write, and the write has no effect`},
	"deny and set":    {probes("  - {name: a, at: f, then: {deny: EPERM, set: [rdi=1]}}\n"), `p.yaml:7:28: spec.probes[0].then: deny and set exclude each other: a call that is refused does not run`},
	"nothing happens": {probes("  - {name: a, at: f}\n"), `p.yaml:7:5: spec.probes[0]: nothing happens at its hits: say then: {finding: {}}, or a verdict, a counter, or have a watchdog expect it`},
	"enforce nothing": {head + "  mode: enforce\n  probes:\n" + good, `p.yaml:6:9: spec.mode: enforce, and no probe has a verdict: say what is to happen (deny, set or pause), or leave mode out`},
	"no counter":      {head + "  counters: [{name: loops}]\n  probes:\n  - {name: a, at: f, then: {count: lops, threshold: 3}}\n  - {name: b, at: f, then: {reset: lops}}\n", "p.yaml:6:14: spec.counters[0]: nothing happens at any count of \"loops\": a probe with count: loops wants a threshold\np.yaml:8:36: spec.probes[0].then.count: there is no counter \"lops\" (near it: \"loops\"): spec.counters has those that there are\np.yaml:9:36: spec.probes[1].then.reset: there is no counter \"lops\""},
	"counters": {head + "  counters: [{name: c, key: 'a +'}, {name: c}]\n  probes:\n  - {name: a, at: f, then: {count: c, reset: c, threshold: 3}}\n  - {name: b, at: f, then: {threshold: 3}}\n  - {name: d, at: f, then: {reset: c, pause: true}}\n  - {name: e, at: f, then: {count: c, pause: true}}\n",
		`p.yaml:6:29: spec.counters[0].key: "a +": at character 4: mismatched input '<EOF>'
p.yaml:6:44: spec.counters[1].name: there is a counter "c" already: each has a name of its own
p.yaml:8:28: spec.probes[0].then: count and reset exclude each other: make two probes at the same place
p.yaml:9:40: spec.probes[1].then.threshold: a threshold of what? Say count: NAME, with a counter of spec.counters
p.yaml:10:28: spec.probes[2].then: a match that sets a counter back does nothing else: make two probes at the same place
p.yaml:11:28: spec.probes[3].then: from which count on? Say threshold: 1 for each match`},
	"watchdogs": {probes("  - {name: beat, at: f}\n  watchdogs: [{name: w, expect: beet, within: 1s}, {name: w, expect: beat, within: 1s, clock: gest, from: frist}]\n"),
		`p.yaml:8:33: spec.watchdogs[0].expect: there is no probe "beet" (near it: "beat") in this policy
p.yaml:8:59: spec.watchdogs[1].name: there is a watchdog "w" already: each has a name of its own
p.yaml:8:95: spec.watchdogs[1].clock: "gest" is none of guest, host (near it: "guest", "host")
p.yaml:8:107: spec.watchdogs[1].from: "frist" is none of armed, first (near it: "first", "armed")`},
}

func TestWrongFiles(t *testing.T) {
	for name, c := range wrong {
		t.Run(name, func(t *testing.T) {
			all, err := Parse("p.yaml", []byte(c.file))
			if err == nil || all != nil {
				t.Fatalf("no error in\n%s", c.file)
			}
			got, want := strings.Split(err.Error(), "\n"), strings.Split(c.want, "\n")
			for i := range max(len(got), len(want)) {
				if i >= len(got) || i >= len(want) && name != "alias" || i < len(want) && !strings.HasPrefix(got[i], want[i]) {
					t.Errorf("of\n%s\nit says\n%v\nnot\n%s", c.file, err, c.want)
					break
				}
			}
			if strings.Contains(err.Error(), "\x1b") {
				t.Error("a terminal would obey it")
			}
		})
	}
}

func TestManyProblems(t *testing.T) {
	_, err := Parse("p.yaml", []byte(probes(strings.Repeat("  - {name: a b, at: f, then: {finding: {}}}\n", 60))))
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != maxProblems+1 || lines[maxProblems] != "and 10 more" {
		t.Errorf("%d lines, the last is %q", len(lines), lines[len(lines)-1])
	}
	var all Errors
	if !errors.As(err, &all) || all[0].Line != 7 || all[0].Column != 12 || all[0].Path != "spec.probes[0].name" {
		t.Errorf("%+v", all)
	}
}

// TestBombs: what is small in a file must not be large in memory, nor take long.
func TestBombs(t *testing.T) {
	laughs := "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
	for i := range 20 {
		laughs += fmt.Sprintf("a%d: &a%d [%s]\n", i+1, i+1, strings.Repeat(fmt.Sprintf("*a%d,", i), 9))
	}
	for _, bomb := range []string{laughs, strings.Repeat("[", maxFile), strings.Repeat("{a: ", maxFile/4), strings.Repeat("- ", maxFile/2), strings.Repeat("a: 1\n", maxFile/5), "a: '" + strings.Repeat("x", maxFile-10) + "'"} {
		start := time.Now()
		_, err := Parse("p.yaml", []byte(bomb))
		if err == nil || time.Since(start) > 20*time.Second || len(err.Error()) > 64<<10 {
			t.Errorf("%q…: %v, %v", bomb[:20], err != nil, time.Since(start))
		}
	}
}

func TestReadFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "p.yaml")
	if _, err := ReadFile(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if err := os.WriteFile(path, []byte("---\n"+probes(good)+"---\n"+strings.Replace(probes(good), "name: test", "name: other", 1)+"...\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := ReadFile(path)
	if err != nil || len(all) != 2 || all[0].Name() != "test" || all[1].Name() != "other" || all[0].Enforces() {
		t.Errorf("%v, %v", all, err)
	}
}

func TestSelects(t *testing.T) {
	for _, c := range []struct {
		domains string
		guest   Guest
		want    bool
	}{
		{"names: ['*']", Guest{Name: "web-1"}, true},
		{"names: ['web-*', '!web-test']", Guest{Name: "web-1"}, true},
		{"names: ['web-*', '!web-test']", Guest{Name: "web-test"}, false},
		{"names: ['!web-test', 'web-*']", Guest{Name: "web-test"}, false},
		{"names: ['web-*']", Guest{Name: "db"}, false},
		{"names: ['!web-*']", Guest{Name: "db"}, true},
		{"names: ['!web-*']", Guest{Name: "web-1"}, false},
		{"names: ['Web-?']", Guest{Name: "web-1"}, false},
		{"names: ['0AB*']", Guest{Name: "db", UUID: "0abc"}, true},
		{"names: ['0ab*']", Guest{Name: "db"}, false},
		{"labels: {a: x}", Guest{Name: "db", Labels: map[string]string{"a": "x", "b": "y"}}, true},
		{"labels: {a: x, b: z}", Guest{Name: "db", Labels: map[string]string{"a": "x", "b": "y"}}, false},
		{"labels: {a: x}", Guest{Name: "db"}, false},
		{"names: [db], labels: {a: x}", Guest{Name: "web", Labels: map[string]string{"a": "x"}}, false},
		{"names: [db]", Guest{Name: "db", OS: "linux"}, true},
		{"names: [db], os: linux", Guest{Name: "db", OS: "windows"}, false},
	} {
		all, err := Parse("p.yaml", []byte(strings.Replace(probes(good), "names: ['*']", c.domains, 1)))
		if err != nil {
			t.Fatal(err)
		}
		if got := all[0].Selects(c.guest); got != c.want {
			t.Errorf("%s of %+v: %v", c.domains, c.guest, got)
		}
	}
}

func TestExpired(t *testing.T) {
	p := policies(t, "  expires: 2027-01-31\n  probes:\n"+good)[0]
	never := policies(t, "  probes:\n"+good)[0]
	for at, want := range map[string]bool{"2027-01-31T23:59:59Z": false, "2027-02-01T00:00:00Z": true, "2027-02-01T01:00:00+02:00": false, "2026-01-01T00:00:00Z": false} {
		now, err := time.Parse(time.RFC3339, at)
		if err != nil {
			t.Fatal(err)
		}
		if p.Expired(now) != want || never.Expired(now) {
			t.Errorf("%s: %v, %v", at, p.Expired(now), never.Expired(now))
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, c := range wrong {
		if len(c.file) < 4096 {
			f.Add([]byte(c.file))
		}
	}
	for _, p := range Stock() {
		text, err := StockText(p.Name())
		if err != nil {
			f.Fatal(err)
		}
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		all, err := Parse("p.yaml", data)
		if (err == nil) != (all != nil) {
			t.Fatalf("%v, %v", all, err)
		}
		if err != nil && strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' && r != '\n' }) {
			t.Fatalf("a terminal would obey %q", err)
		}
		for _, p := range all {
			p.Selects(Guest{Name: "guest", UUID: "x"})
		}
	})
}
