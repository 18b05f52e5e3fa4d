// Package arch holds the tests that keep the house in shape: which room may
// import which, and which words only one room may say.
package arch

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/hprobe/hprobe/"

// mayImport is docs/internals/rooms.md as data: a room (a folder and all below
// it, the longest match counts) and the rooms that it may import beside itself.
var mayImport = map[string][]string{
	"xenevents":            {},
	"xenevents/native":     {"xenevents"},
	"xenevents/libvmi":     {"xenevents", "xenevents/native"},
	"xenevents/drivers":    {"xenevents", "xenevents/guestmem", "xenevents/native", "xenevents/libvmi"},
	"xenevents/sim":        {"xenevents"},
	"xenevents/replay":     {"xenevents"},
	"xenevents/guestmem":   {"xenevents"},
	"xenevents/shadow":     {"xenevents"},
	"xenevents/drivertest": {"xenevents", "xenevents/guestmem"},
	"xenevents/pagewatch":  {"xenevents", "xenevents/guestmem", "xenevents/shadow"},
	"xenevents/probe":      {"xenevents", "xenevents/guestmem", "xenevents/shadow", "xenevents/pagewatch"},
	"xenevents/rescue":     {"xenevents", "xenevents/native"},

	"profiles/isf":       {},
	"profiles/image":     {"profiles/isf", "profiles/debuginfo"},
	"profiles/store":     {"profiles/isf", "profiles/build", "profiles/guestos", "xenevents"},
	"profiles/build":     {"profiles/isf", "profiles/debuginfo", "xenevents", "xenevents/guestmem"},
	"profiles/guestos":   {"profiles/isf", "profiles/near", "xenevents", "xenevents/guestmem"},
	"profiles/near":      {},
	"profiles/debuginfo": {"profiles/isf"},

	"detectors":           {"xenevents"},
	"detectors/policy":    {"detectors", "detectors/binder", "detectors/condition", "profiles/isf", "profiles/near", "profiles/guestos", "xenevents"},
	"detectors/binder":    {"detectors", "detectors/condition", "profiles/isf", "profiles/near", "profiles/guestos", "profiles/image", "xenevents", "xenevents/probe"},
	"detectors/builtin":   {"detectors", "xenevents"},
	"detectors/condition": {"detectors", "profiles/isf", "profiles/near", "profiles/guestos", "xenevents"},
	"detectors/sinks":     {"detectors"},

	"plugins/proto":      {},
	"plugins/sdk":        {"detectors", "plugins/proto"},
	"plugins/host":       {"detectors", "plugins/proto"},
	"plugins/examples":   {"detectors", "plugins/sdk"},
	"plugins/plugintest": {"detectors", "plugins/sdk"},

	"cmd/hprobed":             {"cmd/internal"},
	"cmd/hprobe":              {"cmd/internal"},
	"cmd/internal/controlapi": {},
	"cmd/internal":            {"cmd/internal/controlapi", "xenevents", "profiles", "detectors", "plugins", "test/lab"},

	"packaging": {},

	"test/arch":    {},
	"test/report":  {},
	"test/lab":     {},
	"test/guests":  {"test/lab"},
	"test/demo":    {"test/lab", "test/guests"},
	"test/screens": {"test/lab", "test/guests"},
	"test/xen":     {"test/lab", "test/guests", "cmd", "xenevents", "profiles", "detectors"},
	"test/bench":   {"test/lab"},
}

// testsMayImport says what the _test.go files of a room may import beside what
// the room itself may: the software guest and an engine for it, the conformance suite, the lab.
var testsMayImport = []string{"xenevents/sim", "xenevents/probe", "xenevents/drivertest", "xenevents/guestmem", "test/lab", "profiles/build"}

type pkg struct {
	ImportPath, Dir                                    string
	GoFiles, TestGoFiles, XTestGoFiles, IgnoredGoFiles []string
	Imports, TestImports, XTestImports                 []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles,TestGoFiles,XTestGoFiles,IgnoredGoFiles,Imports,TestImports,XTestImports", "./...")
	cmd.Dir = root(t)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) < 5 {
		t.Fatalf("go list names only %d packages", len(all))
	}
	return all
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// room returns the longest key of mayImport that holds the package.
func room(path string) string {
	best := ""
	for r := range mayImport {
		if (path == r || strings.HasPrefix(path, r+"/")) && len(r) > len(best) {
			best = r
		}
	}
	return best
}

// subtree says whether path is anywhere below one of the rooms: for the rooms
// that put everything together.
func subtree(path string, rooms []string) bool {
	return slices.ContainsFunc(rooms, func(r string) bool { return path == r || strings.HasPrefix(path, r+"/") })
}

func allowed(from, to string) bool {
	if room(from) == room(to) {
		return true
	}
	if r := room(from); strings.HasPrefix(r, "cmd") || strings.HasPrefix(r, "test/") {
		return subtree(to, mayImport[r])
	}
	return slices.Contains(mayImport[room(from)], room(to))
}

func TestImportsGoInOneDirection(t *testing.T) {
	for _, p := range packages(t) {
		from := strings.TrimPrefix(p.ImportPath, module)
		if room(from) == "" {
			t.Errorf("%s is in no room that design knows: add it to the table in test/arch", from)
			continue
		}
		check := func(imports []string, isTest bool) {
			for _, i := range imports {
				to, ours := strings.CutPrefix(i, module)
				if !ours || allowed(from, to) || isTest && subtree(to, testsMayImport) {
					continue
				}
				t.Errorf("%s imports %s, an arrow that the table does not have", from, to)
			}
		}
		check(p.Imports, false)
		check(p.TestImports, true)
		check(p.XTestImports, true)
	}
}

// words that only some folders may say. A folder counts with all below it.
var words = []struct {
	imports string
	only    []string
	why     string
}{
	{"golang.org/x/sys/unix", []string{"xenevents/native/internal/sys", "test/lab", "cmd/internal"}, "one room speaks to the operating system for the driver"},
	{"unsafe", []string{"xenevents/native/internal/sys", "xenevents/libvmi"}, "memory that Go does not know of stays in one room"},
	{module + "cmd/internal/daemon", []string{"cmd/internal/daemoncli"}, "hprobe starts for each command, and does without the daemon"},
	{module + "cmd/internal/daemoncli", []string{"cmd/hprobed", "cmd/internal/pages"}, "hprobe starts for each command, and does without the daemon"},
	{"C", []string{"xenevents/libvmi"}, "everything else is a static binary without cgo"},
}

func TestWordsOfOneRoom(t *testing.T) {
	for _, p := range packages(t) {
		from := strings.TrimPrefix(p.ImportPath, module)
		for _, w := range words {
			if slices.Contains(p.Imports, w.imports) && !subtree(from, w.only) && !generatedOnly(t, p, w.imports) {
				t.Errorf("%s imports %q, which only %v may: %s", from, w.imports, w.only, w.why)
			}
		}
	}
}

// generatedOnly says whether all files of p that import path are generated.
func generatedOnly(t *testing.T, p pkg, path string) bool {
	for _, f := range p.GoFiles {
		file := parse(t, filepath.Join(p.Dir, f))
		for _, i := range file.Imports {
			if i.Path.Value == fmt.Sprintf("%q", path) && !ast.IsGenerated(file) {
				return false
			}
		}
	}
	return true
}

func parse(t *testing.T, path string) *ast.File {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

const longestFile = 650 // "about 600 lines"

// leftover is a mark of work that is left, without an issue number. It is put
// together here, so as not to be one itself.
var leftover = regexp.MustCompile(`\b(` + "TO" + "DO|FIX" + "ME|X" + "XX" + `)\b[^(#]`)

func TestFiles(t *testing.T) {
	for _, p := range packages(t) {
		for _, f := range slices.Concat(p.GoFiles, p.TestGoFiles, p.XTestGoFiles, p.IgnoredGoFiles) {
			path := filepath.Join(p.Dir, f)
			file := parse(t, path)
			if ast.IsGenerated(file) {
				continue
			}
			if n := lines(t, path); n > longestFile {
				t.Errorf("%s has %d lines: one noun a file, about 600 lines at most", path, n)
			}
			for _, d := range file.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && fn.Name.Name == "init" && fn.Recv == nil {
					t.Errorf("%s: func init: wire things up where they are used", path)
				}
			}
			for _, c := range file.Comments {
				if leftover.MatchString(c.Text()) {
					t.Errorf("%s: %q: say which issue", path, leftover.FindString(c.Text()))
				}
			}
		}
	}
}

func lines(t *testing.T, path string) int {
	t.Helper()
	out, err := exec.Command("wc", "-l", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if _, err := fmt.Sscan(string(out), &n); err != nil {
		t.Fatal(err)
	}
	return n
}

var topLevel = []string{"cmd", "xenevents", "plugins", "detectors", "profiles", "test", "docs", "packaging",
	"go.mod", "go.sum", "Makefile", "README.md", "LICENSE"}

func TestTopLevel(t *testing.T) {
	cmd := exec.Command("git", "ls-files")
	cmd.Dir = root(t)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("git ls-files: %v", err)
	}
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		top, _, _ := strings.Cut(s.Text(), "/")
		if !strings.HasPrefix(top, ".") && !slices.Contains(topLevel, top) {
			t.Errorf("%s: the top level holds %v only", s.Text(), topLevel)
		}
		if strings.HasSuffix(s.Text(), ".ko") || fs.ValidPath(s.Text()) && strings.HasSuffix(s.Text(), ".test") {
			t.Errorf("%s: no binaries in the tree", s.Text())
		}
	}
}
