package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hprobe/hprobe/cmd/internal/controlapi"
	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/profiles/store"
	"github.com/hprobe/hprobe/xenevents"
)

// hostile is what a guest may call itself, its processes and its functions.
const hostile = "e\x1b[2J\u009b2J\u202e\n\tx"

// hprobed answers as the daemon does, with what a hostile guest says.
type hprobed struct {
	controlapi.UnimplementedProbeServiceServer
	controlapi.UnimplementedDetectorServiceServer
	controlapi.UnimplementedFindingServiceServer
	controlapi.UnimplementedPolicyServiceServer
	controlapi.UnimplementedDomainServiceServer
	controlapi.UnimplementedStatusServiceServer
	asked []any
	stop  func()
	// answer is what AddProbe answers; nil: a hostile guest's.
	answer *controlapi.Probe
	// settles: the policy "late" is armed after a while.
	settles bool
	// profile is that of the session with "guest"; "": there is no such session.
	profile string
}

// die ends hprobed in the middle of a call.
func (h *hprobed) die(ctx context.Context) error {
	go h.stop()
	<-ctx.Done()
	return nil
}

func (h *hprobed) probe() *controlapi.Probe {
	return &controlapi.Probe{Id: "p1", Domain: hostile, Name: hostile, At: "do_exit", Address: 0xffffffff81001000, State: "displaced", Step: "emulate", Instruction: hostile,
		Hits: 5, Changed: 2, Detail: hostile, Detector: hostile, Passed: 71, WithReturns: true, Returns: 72, Gaps: 1}
}

// ruled is a probe with a rule.
func (h *hprobed) ruled() *controlapi.Probe {
	p := h.probe()
	p.Detail, p.Detector = "", ""
	p.Rule = &controlapi.Rule{When: "a == \"" + hostile, Threshold: 3, Key: "pid", Deny: "EPERM", Set: []string{"rdi=" + hostile}, Pause: true}
	p.Matches = &controlapi.Matches{Matched: 4, Errors: 7, LastError: hostile, Keys: 1, Dropped: 6}
	return p
}

func (h *hprobed) detector() *controlapi.Detector {
	return &controlapi.Detector{Id: "d1", Domain: hostile, Name: hostile, Mode: "fix", What: hostile, Findings: 3, Probes: []*controlapi.Probe{{Hits: 4}, {Hits: 5}}}
}

func (h *hprobed) AddProbe(_ context.Context, r *controlapi.AddProbeRequest) (*controlapi.AddProbeResponse, error) {
	h.asked = append(h.asked, r)
	if r.GetDomain() != "guest" {
		return nil, status.Errorf(codes.NotFound, "domain %s: no such domain", r.GetDomain())
	}
	if h.answer != nil {
		return &controlapi.AddProbeResponse{Probe: h.answer}, nil
	}
	return &controlapi.AddProbeResponse{Probe: h.probe()}, nil
}

func (h *hprobed) ListProbes(ctx context.Context, r *controlapi.ListProbesRequest) (*controlapi.ListProbesResponse, error) {
	if r.GetDomain() == "die" {
		return nil, h.die(ctx)
	}
	return &controlapi.ListProbesResponse{Probes: []*controlapi.Probe{h.probe(), h.ruled()}}, nil
}

func (h *hprobed) RemoveProbe(_ context.Context, r *controlapi.RemoveProbeRequest) (*controlapi.RemoveProbeResponse, error) {
	if r.GetId() == "p2" {
		return &controlapi.RemoveProbeResponse{Probe: h.ruled()}, nil
	}
	return &controlapi.RemoveProbeResponse{Probe: h.probe()}, nil
}

func (h *hprobed) AddStopgap(_ context.Context, r *controlapi.AddStopgapRequest) (*controlapi.AddStopgapResponse, error) {
	h.asked = append(h.asked, r)
	switch r.GetErrno() {
	case "EBAD":
		return nil, status.Error(codes.InvalidArgument, "no errno")
	case "EUNSUPPORTED":
		return nil, status.Error(codes.FailedPrecondition, "no altp2m")
	case "EFAILED":
		return nil, status.Error(codes.Unknown, "near it: "+hostile)
	}
	if r.GetName() == "waiting" {
		return &controlapi.AddStopgapResponse{Detector: &controlapi.Detector{Id: "d1", Domain: "guest", Name: "x", Mode: "fix", What: "what", Probes: []*controlapi.Probe{{State: "armed"}, {State: "waiting", Detail: "armed when"}}}}, nil
	}
	return &controlapi.AddStopgapResponse{Detector: h.detector()}, nil
}

func (h *hprobed) ListDetectors(context.Context, *controlapi.ListDetectorsRequest) (*controlapi.ListDetectorsResponse, error) {
	return &controlapi.ListDetectorsResponse{Detectors: []*controlapi.Detector{h.detector()}}, nil
}

func (h *hprobed) RemoveDetector(context.Context, *controlapi.RemoveDetectorRequest) (*controlapi.RemoveDetectorResponse, error) {
	return &controlapi.RemoveDetectorResponse{Detector: h.detector()}, nil
}

func (h *hprobed) GetStatus(context.Context, *controlapi.GetStatusRequest) (*controlapi.GetStatusResponse, error) {
	if h.profile != "" {
		return &controlapi.GetStatusResponse{Version: "v1", Driver: "native", Hypervisor: "Xen 4.20", Sessions: []*controlapi.Session{{Domain: "guest", ProfileFile: h.profile}}}, nil
	}
	return &controlapi.GetStatusResponse{Version: "v1", Driver: "native", Hypervisor: "Xen 4.20", Findings: 9, Dropped: 1, Traces: 2, Followers: 1,
		Sessions: []*controlapi.Session{{Domain: hostile, DomainId: 3, Kernel: hostile, Slide: 0x200000, Probes: 2, ShadowPages: 1, Events: map[string]uint64{"int3": 7}}}}, nil
}

func (h *hprobed) Trace(r *controlapi.TraceRequest, s grpc.ServerStreamingServer[controlapi.TraceResponse]) error {
	h.asked = append(h.asked, r)
	for i := range uint64(3) {
		hit := &controlapi.Hit{TimeUnixNano: 1, Domain: hostile, Probe: "p1", At: "do_exit", Seq: i + 1, Process: &controlapi.Process{Pid: 42, Comm: hostile},
			Arguments: []*controlapi.Argument{{Name: hostile, Value: 16}, {Name: "b", Error: "x"}, {Name: "c", Value: 1, Text: "7"}, {Name: "d", Text: hostile, Error: hostile}}, Count: i, Action: hostile}
		if i == 1 {
			hit.Lost, hit.Process = 8, nil
		}
		if i == 2 {
			hit.Arguments, hit.Returned, hit.Value, hit.Ticks = nil, true, ^uint64(0)-21, 900
		}
		if err := s.Send(&controlapi.TraceResponse{Hit: hit}); err != nil {
			return err
		}
	}
	if r.GetDomain() == "die" {
		return h.die(s.Context())
	}
	return nil
}

func (h *hprobed) Findings(r *controlapi.FindingsRequest, s grpc.ServerStreamingServer[controlapi.FindingsResponse]) error {
	h.asked = append(h.asked, r)
	for _, blocked := range []bool{false, true} {
		if err := s.Send(&controlapi.FindingsResponse{Finding: &controlapi.Finding{TimeUnixNano: 1, Domain: hostile, Detector: hostile, Process: &controlapi.Process{Pid: 42, Comm: hostile}, Message: hostile, Blocked: blocked}}); err != nil {
			return err
		}
	}
	if r.GetFollow() && r.GetDomain() == "die" {
		return h.die(s.Context())
	}
	return nil
}

func serve(t *testing.T) (*hprobed, string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	h := &hprobed{stop: s.Stop}
	controlapi.RegisterProbeServiceServer(s, h)
	controlapi.RegisterDetectorServiceServer(s, h)
	controlapi.RegisterFindingServiceServer(s, h)
	controlapi.RegisterPolicyServiceServer(s, h)
	controlapi.RegisterDomainServiceServer(s, h)
	controlapi.RegisterStatusServiceServer(s, h)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		<-done
	})
	return h, socket
}

func run(args ...string) (status int, stdout, stderr string) {
	var out, errs bytes.Buffer
	status = Main(args, &out, &errs)
	return status, out.String(), errs.String()
}

// harmless fails where a terminal would obey.
func harmless(t *testing.T, what, text string) {
	t.Helper()
	if !utf8.ValidString(text) || strings.ContainsAny(text, "\x1b\u009b\u202e\t\x7f") {
		t.Errorf("%s: a terminal would obey %q", what, text)
	}
}

func TestWhatAGuestSaysIsHarmless(t *testing.T) {
	_, socket := serve(t)
	for args, want := range map[string]string{
		"probe add -d guest --at do_exit": "p1: armed in",
		"probe ls":                        "p1",
		"probe rm p1":                     "after 5 hits\n",
		"probe rm p2":                     "after 5 hits, 4 matched\n",
		"stopgap add x -d guest":          "fix mode",
		"stopgap ls":                      "  4  ", // hits of the first probe
		"stopgap rm d1":                   "it saw 3 attempts in 4 calls",
		"status":                          "1 lost; 2 traces; findings are followed by 1\n",
		"trace":                           "#3",
		"findings":                        "BLOCKED",
	} {
		for _, form := range []string{"text", "json"} {
			code, out, errs := run(append(strings.Fields(args), "--socket", socket, "-o", form)...)
			if code != 0 || errs != "" {
				t.Errorf("%s: status %d, %q", args, code, errs)
			}
			harmless(t, args, out)
			lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
			if form == "json" {
				for _, l := range lines {
					var v map[string]any
					if err := json.Unmarshal([]byte(l), &v); err != nil {
						t.Errorf("%s: %v: %q", args, err, l)
					} else if d, ok := v["domain"]; ok && d != hostile {
						t.Errorf("%s: the domain is called %q", args, d)
					}
				}
				continue
			}
			if !strings.Contains(out, want) || !strings.Contains(out, `\x1b`) && !strings.Contains(out, `\u001b`) {
				t.Errorf("%s: no %q in %q", args, want, out)
			}
			if n := map[string]int{"probe ls": 3, "stopgap ls": 2, "trace": 4}[args]; n != 0 && len(lines) != n {
				t.Errorf("%s: %d lines, not %d: %q", args, len(lines), n, out)
			}
		}
	}
	if _, out, _ := run("trace", "--socket", socket); !strings.Contains(out, "8 lost here") || !strings.Contains(out, "b=?") || !strings.Contains(out, "  ?  ") || !strings.Contains(out, "=0x10") ||
		!strings.Contains(out, "c=7, d=?)  count 1  e") || !strings.Contains(out, "#3  vcpu0  ") || !strings.Contains(out, "  do_exit -> -22  900 ticks  count 2  e") {
		t.Errorf("%q", out)
	}
	if _, out, _ := run("probe", "ls", "--socket", socket); !strings.Contains(out, "; from 3 on of one pid (1 key, 6 forgotten); observe: deny EPERM, set rdi=") || !strings.Contains(out, ", pause; last error: e") {
		t.Errorf("%q", out)
	}
	if _, out, _ := run("probe", "ls", "--socket", socket); !strings.Contains(out, "RETURNS  PASSED") || !strings.Contains(out, "  72       71  ") {
		t.Errorf("%q", out)
	}
	for want, p := range map[string][]*controlapi.Probe{
		"ID DOMAIN STATE HITS CHANGED STEP AT FOR":                {{}},
		"ID DOMAIN STATE HITS RETURNS PASSED CHANGED STEP AT FOR": {{}, {WithReturns: true}},
		"ID DOMAIN STATE HITS PASSED CHANGED STEP AT FOR":         {{Passed: 1}},
		"ID DOMAIN STATE HITS MATCHED ERRORS CHANGED STEP AT FOR": {{Matches: &controlapi.Matches{}}, {}},
	} {
		rows := probeRows(p)
		if got := strings.Join(rows[0], " "); got != want || len(rows) != len(p)+1 || len(rows[len(p)]) != len(rows[0]) {
			t.Errorf("%q, not %q: %q", got, want, rows)
		}
	}
	for v, want := range map[uint64]string{0: "0x0", 7: "0x7", ^uint64(0): "-1", ^uint64(4095): "0xfffffffffffff000", ^uint64(4094): "-4095", 0xffffffea: "0xffffffea"} {
		if got := result(v); got != want {
			t.Errorf("%#x is shown as %s", v, got)
		}
	}
}

func TestFlagsReachTheDaemon(t *testing.T) {
	h, socket := serve(t)
	for _, c := range []struct {
		args string
		want any
	}{
		{"probe add --domain guest --at vuln!f+0x10 --name n", &controlapi.AddProbeRequest{Domain: "guest", At: "vuln!f+0x10", Name: "n"}},
		{"probe add --domain guest --syscall openat,execve --syscall !read", &controlapi.AddProbeRequest{Domain: "guest", Syscalls: []string{"openat", "execve", "!read"}}},
		{"probe add --domain guest --at f --return", &controlapi.AddProbeRequest{Domain: "guest", At: "f", Returns: true}},
		{"stopgap add vuln -d guest --at vuln!f --length [arg0+8] --limit 0x1001 --errno EINVAL --fix",
			&controlapi.AddStopgapRequest{Name: "vuln", Domain: "guest", At: "vuln!f", Length: "[arg0+8]", Limit: 0x1001, Errno: "EINVAL", Fix: true}},
		{"probe add -d guest --at f --when a==1 --capture a,b[1,2],str(c) --capture x=d --threshold 3 --key pid --reset a==2 --message {a} --deny EPERM --set rdi=1 --set rsi=2 --pause --mode enforce",
			&controlapi.AddProbeRequest{Domain: "guest", At: "f", Rule: &controlapi.Rule{When: "a==1", Capture: []string{"a", "b[1,2]", "str(c)", "x=d"}, Threshold: 3, Key: "pid", ResetWhen: "a==2",
				Message: "{a}", Deny: "EPERM", Set: []string{"rdi=1", "rsi=2"}, Pause: true, Mode: "enforce"}}},
		{"probe add -d guest --register cr4:smep --async", &controlapi.AddProbeRequest{Domain: "guest", Source: &controlapi.Source{Register: "cr4:smep", Async: true}}},
		{"probe add -d guest --at f --max-hits 100 --max-stall 3", &controlapi.AddProbeRequest{Domain: "guest", At: "f", MaxHits: 100, MaxStall: 3}},
		{"probe add -d guest --cpuid any --when leaf==1", &controlapi.AddProbeRequest{Domain: "guest", Source: &controlapi.Source{Cpuid: "any"}, Rule: &controlapi.Rule{When: "leaf==1"}}},
		{"probe add -d guest --memory a+1:2 --access rw", &controlapi.AddProbeRequest{Domain: "guest", Source: &controlapi.Source{Memory: "a+1:2", Access: "rw"}}},
		{"trace p7 -d guest -n 1", &controlapi.TraceRequest{Id: "p7", Domain: "guest"}},
		{"findings -d guest --last 5 -f -n 1", &controlapi.FindingsRequest{Domain: "guest", Last: 5, Follow: true}},
	} {
		h.asked = nil
		code, out, errs := run(append(strings.Fields(c.args), "--socket", socket)...)
		if code != 0 || len(h.asked) != 1 || h.asked[0].(interface{ String() string }).String() != c.want.(interface{ String() string }).String() {
			t.Errorf("%s: status %d, %q; asked for %v, not %v", c.args, code, errs, h.asked, c.want)
		}
		if strings.Contains(c.args, "-n 1") && strings.Count(out, "\n") != 1 {
			t.Errorf("%s: %q", c.args, out)
		}
	}
}

// TestWaiting: what is not armed yet says why, and a set of system calls what it is.
func TestWaiting(t *testing.T) {
	h, socket := serve(t)
	for want, p := range map[string]*controlapi.Probe{
		"p1: waiting in guest: armed when\n":                             {Id: "p1", Domain: "guest", State: "waiting", Detail: "armed when", At: "m!f"},
		"p1: waiting in guest for the page of 0x401000 in process 7\n":   {Id: "p1", Domain: "guest", State: "waiting", At: "0x401000", Pid: 7},
		"p1: armed in guest at 3 places of 1 system call\n":              {Id: "p1", Domain: "guest", State: "armed", Syscalls: []string{"openat"}, Places: 3, SyscallCount: 1},
		"d1: x watches guest, fix mode: what\nd1: waiting: armed when\n": nil,
	} {
		h.answer = p
		args := "probe add -d guest --at f"
		if p == nil {
			args = "stopgap add waiting -d guest"
		}
		if code, out, errs := run(append(strings.Fields(args), "--socket", socket)...); code != 0 || out != want {
			t.Errorf("%q: status %d, %q, %q", want, code, out, errs)
		}
	}
}

func TestSplitExpressions(t *testing.T) {
	for text, want := range map[string][]string{
		"a": {"a"}, "a, b": {"a", "b"}, "f(a, b),c": {"f(a, b)", "c"}, `s == "a,b", 'c,"'`: {`s == "a,b"`, `'c,"'`}, `"a\",b",c`: {`"a\",b"`, "c"}, "[1,{2: 3,4: 5}],a": {"[1,{2: 3,4: 5}]", "a"},
		"a,": {"a", ""}, "": {""}, "a),b": {"a)", "b"}, `"a\`: {`"a\`},
	} {
		if got := splitExpressions(text); !slices.Equal(got, want) {
			t.Errorf("%q is %q, not %q", text, got, want)
		}
	}
}

func TestExitStatusAndMessage(t *testing.T) {
	_, socket := serve(t)
	none := filepath.Join(t.TempDir(), "none.sock")
	for args, want := range map[string]struct {
		code int
		text string
	}{
		"nosuch":                       {2, `no command "nosuch"`},
		"probe nosuch":                 {2, `hprobe probe has no command "nosuch"`},
		"--nosuch":                     {2, "unknown flag: --nosuch (hprobe --help)"},
		"probe add --nosuch":           {2, "(hprobe probe add --help)"},
		"-o yaml status":               {2, `not "yaml"`},
		"probe add --at do_exit":       {2, "say --domain"},
		"probe add -d guest":           {2, "say --at"},
		"probe add -d guest --at x y":  {2, "no arguments"},
		"probe rm":                     {2, "ID"},
		"probe rm p1 p2":               {2, "ID"},
		"doctor a b":                   {2, "doctor"},
		"trace a b":                    {2, "trace"},
		"trace -n -1":                  {2, `"-1"`},
		"findings -n x":                {2, `"x"`},
		"findings --last -1":           {2, `"-1"`},
		"stopgap add x -d g --limit y": {2, `"y"`},
		"stopgap add -d guest":         {2, "NAME"},
		"lab up x":                     {2, "lab up"},
		"lab copy -o json":             {2, "hprobe lab copy prints text only"},
		"lab up --cpus 9":              {2, "the lab emulates 1 to 4 (hprobe lab up --help)"},
		"lab console -o json":          {2, "hprobe lab console prints text only"},
		"profile build":                {2, "VMLINUZ"},
		"profile build x --to y.txt":   {2, ".json.xz"},
		"profile build /nonexistent":   {1, "/nonexistent"},
		"profile capture":              {2, "DOMAIN"},
		"profile check":                {2, "FILE|DOMAIN"},
		"profile check ./none.json":    {1, "./none.json"},
		"profile capture g --to y.txt": {2, ".json.xz"},
		"profile capture g --driver x": {2, `no driver is called "x"`},
		"status --socket " + none:      {5, none},
		"probe add -d \x1b --at x --socket " + socket:                {3, `domain \x1b: no such domain`},
		"stopgap add x -d guest --errno EBAD --socket " + socket:     {2, "no errno"},
		"stopgap add x -d g --errno EUNSUPPORTED --socket " + socket: {4, "no altp2m"},
		"profile capture g --dump x":                                 {2, "no arguments"},
		"profile capture --dump x --driver y":                        {2, `no driver is called "y"`},
		"profile capture --dump x --driver native":                   {4, "--driver libvmi"},
		"domain ls --dump x --driver native":                         {4, "--driver libvmi"},
		"stopgap add x -d g --errno EFAILED --socket " + socket:      {1, `near it: e\x1b[2J\u009b2J\u202e`},
	} {
		code, out, errs := run(strings.Split(args, " ")...)
		if code != want.code || !strings.HasPrefix(errs, "hprobe: ") || !strings.Contains(errs, want.text) || out != "" {
			t.Errorf("%q: status %d, %q, %q", args, code, out, errs)
		}
		harmless(t, args, errs)
	}
	if _, out, _ := run("--help"); !strings.Contains(out, exitHelp) {
		t.Errorf("%q has no exit statuses", out)
	}
	for _, args := range []string{"", "probe", "--help", "probe add --help", "--version", "help stopgap"} {
		code, out, errs := run(strings.Fields(args)...)
		if code != 0 || errs != "" || !strings.Contains(out, "hprobe") {
			t.Errorf("%q: status %d, %q, %q", args, code, out, errs)
		}
	}
}

func TestHprobedThatGoesAway(t *testing.T) {
	for _, args := range []string{"trace -d die", "findings -f -d die", "probe ls -d die"} {
		_, socket := serve(t)
		code, out, errs := run(append(strings.Fields(args), "--socket", socket)...)
		if code != 5 || !strings.Contains(errs, "no hprobed answers at "+socket+" any more") || !strings.Contains(errs, "start it again") {
			t.Errorf("%s: status %d, %q, %q", args, code, out, errs)
		}
	}
}

func TestProfileCommands(t *testing.T) {
	dir := t.TempDir()
	b := isf.NewBuilder()
	b.Meta.Banner = "Linux version 6.1 \x1b[2J"
	b.Symbols = []isf.Symbol{{Name: "a", Addr: 1}, {Name: "b", Addr: 2}}
	p, err := b.Profile()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Open(dir).Add(p); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"x.json", "x.json.xz", "x.hprofile"} {
		path := filepath.Join(dir, name)
		if err := writeProfile(path, p); err != nil {
			t.Fatal(err)
		}
		if got, err := isf.ReadFile(path); err != nil || got.NumSymbols() != 2 {
			t.Errorf("%s: %v", name, err)
		}
	}
	code, out, _ := run("profile", "ls", "--profiles", dir)
	harmless(t, "profile ls", out)
	if lines := strings.Split(strings.TrimSpace(out), "\n"); code != 0 || len(lines) != 5 || !strings.Contains(lines[1], `"Linux version 6.1 \x1b[2J"`) {
		t.Errorf("%d, %q", code, out)
	}
	code, out, _ = run("profile", "ls", "--profiles", dir, "-o", "json")
	var l profileLine
	if err := json.Unmarshal([]byte(strings.Split(out, "\n")[0]), &l); code != 0 || err != nil || l.Kernel != b.Meta.Banner {
		t.Errorf("%d, %v, %q", code, err, out)
	}
	code, out, _ = run("profile", "check", filepath.Join(dir, "x.hprofile"))
	harmless(t, "profile check", out)
	if code != 0 || !strings.Contains(out, "well-formed: 2 symbols") || !strings.Contains(out, "which guests it fits is not known") {
		t.Errorf("%d, %q", code, out)
	}
	code, out, _ = run("profile", "check", "-o", "json", filepath.Join(dir, "x.hprofile"))
	if err := json.Unmarshal([]byte(out), &l); code != 0 || err != nil || l.Symbols != 2 || l.Guests != nil {
		t.Errorf("%d, %v, %q", code, err, out)
	}
	if code, out, errs := run("profile", "check", filepath.Join(dir, "x.json")); code != 1 || out != "" || !strings.Contains(errs, "no banner") { // its linux_banner is nowhere
		t.Errorf("%d, %q, %q", code, out, errs)
	}
	if code, out, _ := run("stopgap", "rules"); code != 0 || !strings.Contains(out, "__x64_sys_vmsplice  0x7fffffff  EFAULT") {
		t.Errorf("%d, %q", code, out)
	}
	if code, out, _ := run("stopgap", "rules", "-o", "json"); code != 0 || !strings.Contains(out, `"limit":2147483647`) {
		t.Errorf("%d, %q", code, out)
	}
}

func TestShowFeatures(t *testing.T) {
	all := []xenevents.Feature{
		{Name: "a", Title: "a good one", Answer: xenevents.Yes, Need: xenevents.Required, Detail: "not shown"},
		{Name: "b", Title: "a missing one", Answer: xenevents.No, Need: xenevents.Required, Detail: "detail", Fix: "add x=1"},
		{Name: "c", Title: "a bad one", Answer: xenevents.Yes, Need: xenevents.Refused, Detail: "detail"},
		{Name: "d", Title: "an absent bad one", Answer: xenevents.No, Need: xenevents.Refused},
		{Name: "e", Title: "one that is missed by nobody", Answer: xenevents.No},
		{Name: "f", Title: "an unknown one", Need: xenevents.Required, Detail: "why"},
	}
	var out bytes.Buffer
	if err := (&app{out: &out}).showFeatures(all); err != nil {
		t.Fatal(err)
	}
	var marks []string
	for l := range strings.Lines(out.String()) {
		if l[0] != ' ' {
			marks = append(marks, strings.Fields(l)[0])
		}
	}
	if want := []string{"ok", "BAD", "BAD", "ok", "-", "?"}; !slices.Equal(marks, want) || !strings.Contains(out.String(), "to do: add x=1") || strings.Contains(out.String(), "not shown") {
		t.Errorf("%q:\n%s", marks, out.String())
	}
	out.Reset()
	if err := (&app{out: &out, json: true}).showFeatures(all[1:2]); err != nil || strings.TrimSpace(out.String()) !=
		`{"name":"b","title":"a missing one","answer":"no","need":"required","blocks":true,"detail":"detail","fix":"add x=1"}` {
		t.Errorf("%s, %v", out.String(), err)
	}
}

func TestDomainLine(t *testing.T) {
	for _, c := range []struct {
		d           xenevents.DomainInfo
		kind, state string
	}{
		{xenevents.DomainInfo{}, "pv", "running"}, {xenevents.DomainInfo{HVM: true, Paused: true}, "hvm/pvh", "paused"},
		{xenevents.DomainInfo{Shutdown: true, Paused: true}, "pv", "shut down"}, {xenevents.DomainInfo{Dying: true, Shutdown: true}, "pv", "dying"},
	} {
		if l := domainLineOf(&c.d); l.Type != c.kind || l.State != c.state {
			t.Errorf("%+v is %+v", c.d, l)
		}
	}
	if l := domainLineOf(&xenevents.DomainInfo{Pages: 65536}); l.MemoryMB != 256 {
		t.Errorf("%+v", l)
	}
}

func TestCount(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 hits", 1: "1 hit", 2: "2 hits"} {
		if got := count(n, "hit"); got != want {
			t.Errorf("%q, not %q", got, want)
		}
	}
}

func FuzzPlain(f *testing.F) {
	f.Add("a\x1b[2J\u009b\u202e\xff\ufffd\n…")
	f.Fuzz(func(t *testing.T, s string) {
		for what, got := range map[string]string{"plain": plain(s), "guestText": guestText(s)} {
			for i, r := range got {
				if r < ' ' || r >= 0x7f && r < 0xa0 || r >= 0x202a && r <= 0x202e || r == utf8.RuneError && !strings.HasPrefix(got[i:], "\ufffd") {
					t.Fatalf("%s of %q is %q", what, s, got)
				}
			}
		}
		if got := guestText(s); strings.ContainsAny(got, "\n") || got == "" || got[0] != '"' && strings.ContainsAny(got, " \"") {
			t.Errorf("guestText of %q is %q", s, got)
		}
	})
}
