package daemoncli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hprobe/hprobe/xenevents"
)

const childEnv = "HPROBE_TEST_CHILD"

// TestMain is also the other process, which find starts.
func TestMain(m *testing.M) {
	if len(os.Args) < 2 || os.Args[1] != findCommand {
		os.Exit(m.Run())
	}
	switch what := os.Getenv(childEnv); what {
	case "hang":
		time.Sleep(time.Minute)
	case "crash":
		fmt.Fprintln(os.Stderr, "fatal error: runtime: out of memory")
		os.Exit(2)
	case "run": // what it is
		os.Exit(Main(os.Args[1:], os.Stdout, os.Stderr))
	case "args":
		fmt.Printf("{\"found\":{\"why\":%q}}\n", strings.Join(os.Args[2:], " "))
	default:
		fmt.Print(what)
	}
}

func TestFindProfile(t *testing.T) {
	info := &xenevents.DomainInfo{UUID: [16]byte{0xab}}
	o := profileOptions{folders: []string{"/a", "/b"}, capture: true}
	t.Setenv(childEnv, "args")
	if found, err := o.find(t.Context(), info); err != nil || found.Why != "--capture=true ab000000-0000-0000-0000-000000000000 --profiles /a --profiles /b" {
		t.Errorf("%+v, %v", found, err)
	}
	t.Setenv(childEnv, `{"found":{"file":"/a/x.hprofile","from":"/b/x.json","passed":["p: why"]}}`)
	if found, err := o.find(t.Context(), info); err != nil || found.File != "/a/x.hprofile" || found.From != "/b/x.json" || !slices.Equal(found.Passed, []string{"p: why"}) {
		t.Errorf("%+v, %v", found, err)
	}
	for child, want := range map[string]string{
		`{"error":"no profile"}`: "no profile",
		"crash":                  `"fatal error: runtime: out of memory"`,
		"garbage":                "invalid character",
		"{}":                     "no answer",
		`{"error":"5 levels","unsupported":true}`: "5 levels",
		"run": "xen",
	} {
		t.Setenv(childEnv, child)
		found, err := o.find(t.Context(), info)
		if err == nil || !strings.Contains(err.Error(), want) || errors.Is(err, errors.ErrUnsupported) != (want == "5 levels") {
			t.Errorf("%s: %+v, %v", child, found, err)
		}
	}
}

// TestFindProfileEnds: whoever waits for it may stop waiting, and it ends.
func TestFindProfileEnds(t *testing.T) {
	t.Setenv(childEnv, "hang")
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	start := time.Now()
	o := profileOptions{folders: []string{"/a"}}
	found, err := o.find(ctx, &xenevents.DomainInfo{})
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 5*time.Second {
		t.Errorf("%+v, %v after %v", found, err, time.Since(start))
	}
}
