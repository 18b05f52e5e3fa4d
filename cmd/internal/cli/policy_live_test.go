package cli

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hprobe/hprobe/cmd/internal/controlapi"
	"github.com/hprobe/hprobe/profiles/isf"
)

// policyOf is a policy as hprobed tells of it; its guests have hostile names.
func policyOf(name string, states ...string) *controlapi.Policy {
	p := &controlapi.Policy{Name: name, Title: "t " + hostile, Mode: "enforce", Expires: "2027-01-02", File: "f " + hostile, Configured: name == "configured"}
	for i, s := range states {
		g := &controlapi.PolicyGuest{Domain: hostile, DomainId: uint32(i + 1), State: s, Findings: 3}
		if s == "failed" {
			g.Detail = "why " + hostile
		}
		if s == "armed" {
			g.Probes = []*controlapi.Probe{{Id: name + ".stat", State: "armed", At: "vfs_stat", Hits: 9, Matches: &controlapi.Matches{Matched: 4, Errors: 1}}}
		}
		p.Guests = append(p.Guests, g)
	}
	return p
}

func (h *hprobed) ApplyPolicy(_ context.Context, r *controlapi.ApplyPolicyRequest) (*controlapi.ApplyPolicyResponse, error) {
	h.asked = append(h.asked, r)
	if strings.Contains(r.GetDocument(), "wrong") {
		return nil, status.Errorf(codes.InvalidArgument, "%s:2:7: kind: %s", r.GetFile(), hostile)
	}
	out := &controlapi.ApplyPolicyResponse{}
	for _, name := range strings.Fields(r.GetDocument()) {
		out.Policies = append(out.Policies, &controlapi.Policy{Name: name})
	}
	return out, nil
}

func (h *hprobed) RemovePolicy(_ context.Context, r *controlapi.RemovePolicyRequest) (*controlapi.RemovePolicyResponse, error) {
	if r.GetName() == "nosuch" {
		return nil, status.Error(codes.NotFound, "there is no policy")
	}
	return &controlapi.RemovePolicyResponse{Policy: policyOf(r.GetName(), "armed", "failed")}, nil
}

func (h *hprobed) ListPolicies(_ context.Context, r *controlapi.ListPoliciesRequest) (*controlapi.ListPoliciesResponse, error) {
	h.asked = append(h.asked, r)
	all := []*controlapi.Policy{policyOf("configured", "armed"), policyOf("lonely"), policyOf("broken", "armed", "failed"), policyOf("late", "new")}
	if r.GetName() != "" {
		all = slices.DeleteFunc(all, func(p *controlapi.Policy) bool { return p.GetName() != r.GetName() })
	}
	if h.settles && len(h.asked) > 3 && r.GetName() == "late" {
		all[0] = policyOf("late", "armed")
	}
	return &controlapi.ListPoliciesResponse{Policies: all}, nil
}

func (h *hprobed) ListDomains(context.Context, *controlapi.ListDomainsRequest) (*controlapi.ListDomainsResponse, error) {
	return &controlapi.ListDomainsResponse{Domains: []*controlapi.Domain{{Name: "web-1"}, {Name: hostile}, {Name: "db"}}}, nil
}

func (h *hprobed) ReleaseDomain(_ context.Context, r *controlapi.ReleaseDomainRequest) (*controlapi.ReleaseDomainResponse, error) {
	return &controlapi.ReleaseDomainResponse{Domain: &controlapi.Domain{Name: hostile}}, nil
}

func (h *hprobed) ResumeDomain(context.Context, *controlapi.ResumeDomainRequest) (*controlapi.ResumeDomainResponse, error) {
	return &controlapi.ResumeDomainResponse{Domain: &controlapi.Domain{Name: hostile}}, nil
}

func TestLivePolicies(t *testing.T) {
	h, socket := serve(t)
	file := func(text string) string {
		name := filepath.Join(t.TempDir(), "p.yaml")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	for _, c := range []struct {
		args       string
		code       int
		out, error string
	}{
		{"policy ls", 0, "configured  enforce  2027-01-02  1 of 1  3         f e\\x1b", ""},
		{"policy status", 0, "lonely  enforce  until 2027-01-02  t e\\x1b[2J\\u009b2J\\u202e\\n\\tx\n  no guest that runs now is selected\n", ""},
		{"policy status broken", 0, "armed\n    PROBE  STATE  HITS  MATCHED  ERRORS  AT\n    stat   armed  9     4        1       vfs_stat\n", ""},
		{"policy status broken", 0, "failed: why e\\x1b[2J", ""},
		{"policy rm configured", 0, "configured: removed from 2 guests, after 6 findings\n", ""},
		{"policy rm nosuch", 3, "", "there is no policy"},
		{"policy rm", 2, "", "(hprobe policy rm --help)"},
		{"policy apply " + file("lonely"), 0, "lonely (enforce): no guest that runs now is selected; those that come will be\n", ""},
		{"policy apply " + file("configured"), 0, "configured (enforce):\n  \"e\\x1b[2J\\u009b2J\\u202e\\n\\tx\": armed\n", ""},
		{"policy apply " + file("broken"), 1, "failed: why e\\x1b", "not every policy is armed"},
		{"policy apply --wait 0s " + file("late"), 0, "not there yet", ""},
		{"policy apply " + file("wrong"), 2, "", "p.yaml:2:7: kind: e\\x1b"},
		{"policy apply /nonexistent", 2, "", "/nonexistent"},
		{"policy apply " + file(strings.Repeat("x", maxPolicyFile+1)), 2, "", "larger than"},
		{"domain release x", 0, "nothing of hprobed is in it any more\n", ""},
		{"domain resume x", 0, "policies come back", ""},
	} {
		code, out, errs := run(append(strings.Fields(c.args), "--socket", socket)...)
		if code != c.code || !strings.Contains(out, c.out) || !strings.Contains(errs, c.error) {
			t.Errorf("%s: status %d, %q, %q", c.args, code, out, errs)
		}
		harmless(t, c.args, strings.ReplaceAll(out+errs, "\t", " "))
	}
	// A file that is not there is told of before hprobed is asked.
	if code, _, errs := run("policy", "apply", "--socket", filepath.Join(t.TempDir(), "none"), file("lonely"), "/nonexistent"); code != 2 || !strings.Contains(errs, "/nonexistent") {
		t.Errorf("%d, %q", code, errs)
	}
	// It waits for guests that hprobed has not come to yet.
	h.asked, h.settles = nil, true
	if code, out, _ := run("policy", "apply", "--socket", socket, file("late")); code != 0 || !strings.Contains(out, ": armed") || len(h.asked) < 4 {
		t.Errorf("%d, %q, %d", code, out, len(h.asked))
	}
}

// kernelFile is a profile with some symbols.
func kernelFile(t *testing.T, symbols ...string) string {
	t.Helper()
	b := isf.NewBuilder()
	b.Meta.Banner = "Linux version 6"
	for i, s := range symbols {
		b.Symbols = append(b.Symbols, isf.Symbol{Name: s, Addr: uint64(i)})
	}
	p, err := b.Profile()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "k.hprofile")
	if err := writeProfile(file, p); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestCompletion: a shell is told of what there is, and of no name that it would obey.
func TestCompletion(t *testing.T) {
	h, socket := serve(t)
	h.profile = kernelFile(t, "do_exit", "do_exec", "do_exit", "vfs_read", "do_e\x1b")
	for args, want := range map[string]string{
		"probe add -d guest --at do_e":  "do_exec do_exit",
		"probe add -d nobody --at do_e": "",
		"policy rm ":                    "broken configured late lonely",
		"policy status lo":              "lonely",
		"domain release ":               "db web-1",
		"probe add -d ":                 "db web-1",
		"probe rm ":                     "p1",
		"trace p":                       "p1",
		"trace -d web":                  "web-1",
	} {
		words := strings.Split(args, " ")
		code, out, _ := run(append([]string{"__complete", "--socket", socket}, words...)...)
		var got []string
		for _, l := range strings.Split(out, "\n") {
			if l != "" && !strings.HasPrefix(l, ":") && !strings.HasPrefix(l, "Completion ended") {
				got = append(got, l)
			}
		}
		slices.Sort(got)
		if code != 0 || strings.Join(got, " ") != want {
			t.Errorf("%q: status %d, %q", args, code, out)
		}
	}
	if code, out, _ := run("version", "--socket", socket); code != 0 || !strings.Contains(out, "\nhprobed v1, driver native, Xen 4.20\n") {
		t.Errorf("%d, %q", code, out)
	}
	if code, out, _ := run("version", "--socket", filepath.Join(t.TempDir(), "none")); code != 0 || !strings.Contains(out, "\nhprobed does not run\n") {
		t.Errorf("%d, %q", code, out)
	}
	if _, out, _ := run("__complete", "--socket", filepath.Join(t.TempDir(), "none"), "policy", "rm", ""); !strings.HasPrefix(out, ":") {
		t.Errorf("without hprobed: %q", out)
	}
}

func TestTopScreen(t *testing.T) {
	session := func(ticks, events uint64) *controlapi.Session {
		return &controlapi.Session{Domain: hostile, DomainId: 7, Probes: 2, ShadowPages: 1, Events: map[string]uint64{"int3": events}, Ticks: ticks, TicksPerSecond: 1000}
	}
	probe := func(id string, hits uint64) *controlapi.Probe {
		return &controlapi.Probe{Id: id, Domain: hostile, At: "f", State: "armed", Hits: hits}
	}
	then := time.Unix(1000, 0)
	m := &topModel{
		before: &topSample{then, &controlapi.GetStatusResponse{Sessions: []*controlapi.Session{session(100, 5)}}, []*controlapi.Probe{probe("a", 10), probe("b", 100)}},
		now: &topSample{then.Add(2 * time.Second), &controlapi.GetStatusResponse{Version: "v1", Driver: "native", Findings: 2, Dropped: 1, Sessions: []*controlapi.Session{session(600, 25)}},
			[]*controlapi.Probe{probe("b", 100), probe("a", 50), probe("new", 7)}},
	}
	text := m.screen(false)
	harmless(t, "top", text)
	for _, want := range []string{"1 watched guest", "2 findings (1 lost)", "10        25.0 %", "20      50    armed", "0       100   armed"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in %q", want, text)
		}
	}
	if a, b := strings.Index(text, "  a  "), strings.Index(text, "  b  "); a > b {
		t.Errorf("the busiest is not first: %q", text)
	}
	m.order = 1
	if text := m.screen(false); strings.Index(text, "  a  ") < strings.Index(text, "  b  ") {
		t.Errorf("that with most hits is not first: %q", text)
	}
	m.height, m.width = 9, 30
	lines := strings.Split(m.screen(true), "\n")
	if len(lines) != 9 || !strings.Contains(lines[6], "more lines") {
		t.Errorf("%q", lines)
	}
	for _, l := range lines {
		if n := len([]rune(strings.NewReplacer("\x1b[1m", "", "\x1b[m", "", "\x1b[0m", "").Replace(l))); n > 30 {
			t.Errorf("%d wide: %q", n, l)
		}
	}
	if text := (&topModel{}).screen(true); !strings.Contains(text, "asking") {
		t.Errorf("%q", text)
	}
	_, socket := serve(t)
	if code, out, errs := run("top", "--every", "100ms", "--socket", socket); code != 0 || !strings.Contains(out, "HITS/S") || errs != "" {
		t.Errorf("%d, %q, %q", code, out, errs)
	}
	if code, _, errs := run("top", "--every", "1ms", "--socket", socket); code != 2 || !strings.Contains(errs, "at least 100ms") {
		t.Errorf("%d, %q", code, errs)
	}
}
