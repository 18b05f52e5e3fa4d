package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hprobe/hprobe/cmd/internal/controlapi"
	"github.com/hprobe/hprobe/detectors/policy"
	"github.com/hprobe/hprobe/profiles/store"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/guestmem"
	"github.com/hprobe/hprobe/xenevents/sim"
)

// rig is a daemon on a host of the simulator.
type rig struct {
	*server
	t    *testing.T
	host *sim.Host
	// find, when not nil, is called when a profile is sought.
	find atomic.Pointer[func(context.Context, *xenevents.DomainInfo) error]
	end  func() error
}

func newRig(t *testing.T, o Options) *rig {
	t.Helper()
	file := filepath.Join(t.TempDir(), "guest.hprofile")
	f, err := os.Create(file)
	if err == nil {
		err = errors.Join(profile(t).WriteCompact(f), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, host: sim.NewHost()}
	o.Host, o.Log = r.host, slog.New(slog.DiscardHandler)
	o.FindProfile = func(ctx context.Context, info *xenevents.DomainInfo) (*store.Found, error) {
		if find := r.find.Load(); find != nil {
			if err := (*find)(ctx, info); err != nil {
				return nil, err
			}
		}
		return &store.Found{File: file, From: file, Why: "it is the test's"}, nil
	}
	r.server = &server{d: New(o)}
	if err := r.d.LoadKept(); err != nil {
		t.Fatal(err)
	}
	r.d.work.Go(func() { r.d.watch(r.d.run) })
	done := false
	r.end = func() error {
		if done {
			return nil
		}
		done = true
		return r.d.Close()
	}
	t.Cleanup(func() {
		if err := r.end(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// until waits until something is so.
func (r *rig) until(what string, is func() bool) {
	r.t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("it never came to this: %s", what)
		}
	}
}

// states are those of a policy, as "guest=state".
func (r *rig) states(name string) []string {
	r.t.Helper()
	all, err := r.ListPolicies(r.t.Context(), &controlapi.ListPoliciesRequest{Name: name})
	if err != nil {
		r.t.Fatal(err)
	}
	var out []string
	for _, g := range all.GetPolicies()[0].GetGuests() {
		out = append(out, g.GetDomain()+"="+g.GetState())
	}
	slices.Sort(out)
	return out
}

func (r *rig) apply(document string) error {
	_, err := r.ApplyPolicy(r.t.Context(), &controlapi.ApplyPolicyRequest{File: "test.yaml", Document: document})
	return err
}

func (r *rig) mustApply(document string) {
	r.t.Helper()
	if err := r.apply(document); err != nil {
		r.t.Fatal(err)
	}
}

// domain is what hprobed says of a guest.
func (r *rig) domain(name string) *controlapi.Domain {
	r.t.Helper()
	all, err := r.ListDomains(r.t.Context(), nil)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, d := range all.GetDomains() {
		if d.GetName() == name {
			return d
		}
	}
	return nil
}

// poke writes a byte of a guest's kernel.
func (r *rig) poke(id xenevents.DomainID, at xenevents.GVA, v byte) {
	r.t.Helper()
	dom, err := r.host.Open(r.t.Context(), id)
	if err != nil {
		r.t.Fatal(err)
	}
	defer dom.Close()
	regs, err := dom.Registers(0)
	if err == nil {
		_, err = guestmem.NewReader(dom).WriteGVA(xenevents.AddressSpaceOf(&regs), []byte{v}, at)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// call calls the guest's function, and returns what it returned.
func (r *rig) call(v *sim.VCPU, args ...uint64) (rax uint64) {
	r.t.Helper()
	v.Set(func(regs *xenevents.Registers) { regs.RAX = 0x77 })
	v.Run(sim.Call(function, args...), sim.See(func(regs xenevents.Registers) { rax = regs.RAX }))
	ctx, cancel := context.WithTimeout(r.t.Context(), 20*time.Second)
	defer cancel()
	if err := v.Wait(ctx); err != nil {
		r.t.Fatal(err)
	}
	return rax
}

// shadow is a policy that refuses to look at /etc/shadow.
func shadow(name, names, more string) string {
	return fmt.Sprintf(`apiVersion: hprobe/v1
kind: ProbePolicy
metadata: {name: %s}
spec:
  domains: {names: %s}
  mode: enforce
%s
  probes:
  - name: stat
    at: vfs_stat
    when: name == "/etc/shadow"
    then: {deny: EACCES}
`, name, names, more)
}

const refused = ^uint64(13 - 1)

// TestPolicyFollowsGuests: a policy is in the guests of its names, those that come later
// and those that come again among them, and in no others; it goes when it is removed, and
// nothing of it stays.
func TestPolicyFollowsGuests(t *testing.T) {
	r := newRig(t, Options{})
	web1, v1 := simGuest(r.host, 1, "web-1")
	_, other := simGuest(r.host, 2, "db")
	r.mustApply(shadow("shadow", "['web-*']", ""))
	r.until("armed in web-1", func() bool { return slices.Equal(r.states("shadow"), []string{"web-1=armed"}) })
	hits := r.d.hits.Subscribe()
	if rax := r.call(v1, nameAt, 0); rax != refused {
		t.Errorf("web-1 got %#x", rax)
	}
	if m := <-hits.C; m.GetProbe() != "shadow.stat" || m.GetAction() != "denied with EACCES" || m.GetDomain() != "web-1" || m.GetArguments()[0].GetText() != `"/etc/shadow"` {
		t.Errorf("who traces sees %v", m)
	}
	hits.Close()
	if rax := r.call(other, nameAt, 0); rax != 0x77 {
		t.Errorf("db got %#x", rax)
	}
	web2, v2 := simGuest(r.host, 3, "web-2")
	r.until("armed in web-2", func() bool { return slices.Equal(r.states("shadow"), []string{"web-1=armed", "web-2=armed"}) })
	if rax := r.call(v2, nameAt, 0); rax != refused {
		t.Errorf("web-2 got %#x", rax)
	}
	// It restarts.
	r.host.Remove(web1)
	r.until("gone", func() bool { return slices.Equal(r.states("shadow"), []string{"web-2=armed"}) })
	web1, v1 = simGuest(r.host, 4, "web-1")
	r.until("armed again", func() bool { return slices.Equal(r.states("shadow"), []string{"web-1=armed", "web-2=armed"}) })
	if rax := r.call(v1, nameAt, 0); rax != refused {
		t.Errorf("web-1 got %#x after it restarted", rax)
	}
	// Another policy takes its place: for one of them only.
	r.mustApply(shadow("shadow", "['web-2']", ""))
	r.until("in one only", func() bool { return slices.Equal(r.states("shadow"), []string{"web-2=armed"}) })
	r.until("web-1 is left", func() bool { return web1.Leaks() == nil && r.call(v1, nameAt, 0) == 0x77 })
	if _, err := r.RemovePolicy(t.Context(), &controlapi.RemovePolicyRequest{Name: "shadow"}); err != nil {
		t.Fatal(err)
	}
	if leaks := append(web1.Leaks(), web2.Leaks()...); leaks != nil {
		t.Errorf("left behind: %q", leaks)
	}
	if rax := r.call(v2, nameAt, 0); rax != 0x77 {
		t.Errorf("web-2 got %#x without the policy", rax)
	}
	if _, err := r.RemovePolicy(t.Context(), &controlapi.RemovePolicyRequest{Name: "shadow"}); err == nil || !strings.Contains(err.Error(), `no policy "shadow"`) {
		t.Errorf("%v", err)
	}
	if found := r.d.Findings.Recent(0); len(found) != 4 {
		t.Errorf("%d findings: %+v", len(found), found)
	}
}

// TestPoliciesOutliveTheDaemon: those that a command applied are there when the next one
// starts; one that was removed is not.
func TestPoliciesOutliveTheDaemon(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "policies")
	r := newRig(t, Options{PolicyFolder: folder})
	r.mustApply(shadow("one", "[a]", "") + "---\n" + shadow("two", "[a]", "") + "---\n" + shadow("three", "[a]", ""))
	r.mustApply(shadow("two", "[b]", "")) // replaced
	if _, err := r.RemovePolicy(t.Context(), &controlapi.RemovePolicyRequest{Name: "three"}); err != nil {
		t.Fatal(err)
	}
	if err := r.end(); err != nil {
		t.Fatal(err)
	}
	next := newRig(t, Options{PolicyFolder: folder})
	simGuest(next.host, 1, "a")
	next.until("armed", func() bool { return slices.Equal(next.states("one"), []string{"a=armed"}) })
	if all := next.d.policies.list(); len(all) != 2 || all[1].Name() != "two" || next.states("two") != nil {
		t.Errorf("%+v", all)
	}
}

// TestStatesOfPolicies: where a policy is not armed, it says why.
func TestStatesOfPolicies(t *testing.T) {
	r := newRig(t, Options{})
	_, v := simGuest(r.host, 1, "a")
	for name, c := range map[string]struct{ document, state, detail string }{
		"expired":  {shadow("expired", "[a]", "  expires: 2020-02-02"), stateExpired, "2020-02-02"},
		"needless": {shadow("needless", "[a]", "  unless: [{symbol: vfs_stat}]"), stateNeedless, "its kernel has vfs_stat"},
		"failed":   {strings.ReplaceAll(shadow("failed", "[a]", ""), "vfs_stat", "vfs_sttat"), stateFailed, "vfs_sttat"},
	} {
		r.mustApply(c.document)
		r.until(name, func() bool { return slices.Equal(r.states(name), []string{"a=" + c.state}) })
		all, err := r.ListPolicies(t.Context(), &controlapi.ListPoliciesRequest{Name: name})
		if err != nil || !strings.Contains(all.GetPolicies()[0].GetGuests()[0].GetDetail(), c.detail) {
			t.Errorf("%s: %v, %v", name, all, err)
		}
	}
	// Nothing is armed, so hprobed is not in the guest.
	if d, err := r.ListDomains(t.Context(), nil); err != nil || d.GetDomains()[0].GetState() != "idle" {
		t.Errorf("%v, %v", d, err)
	}
	if err := r.apply("apiVersion: hprobe/v1\nkind: ProbePolicyy\n"); err == nil || !strings.Contains(err.Error(), "test.yaml:2:7") {
		t.Errorf("%v", err)
	}
	// A kernel that still starts changes its own code.
	simGuest(r.host, 2, "b")
	r.poke(2, stateAt, 2)
	r.mustApply(shadow("early", "[b]", ""))
	r.until("waits for the kernel", func() bool { return r.domain("b").GetState() == "attaching" })
	time.Sleep(3 * startPause)
	if s := r.states("early"); !slices.Equal(s, []string{"b=new"}) {
		t.Errorf("%q", s)
	}
	r.poke(2, stateAt, 3)
	r.until("armed", func() bool { return slices.Equal(r.states("early"), []string{"b=armed"}) })
	// Before the kernel runs there is nothing to be found.
	v.Set(func(regs *xenevents.Registers) { regs.LSTAR = 0 })
	r.mustApply(shadow("late", "[a]", ""))
	r.until("waits", func() bool { return slices.Equal(r.states("late"), []string{"a=" + stateWaiting}) })
	v.Set(func(regs *xenevents.Registers) { regs.LSTAR = entry })
	r.until("armed", func() bool { return slices.Equal(r.states("late"), []string{"a=armed"}) })
}

// TestConfiguredPolicies: those of the configuration come and go with it, and by no command.
func TestConfiguredPolicies(t *testing.T) {
	r := newRig(t, Options{})
	_, v := simGuest(r.host, 1, "a")
	simGuest(r.host, 2, "b")
	configure := func(rules []DomainRule, documents ...string) {
		t.Helper()
		all, err := policy.Parse("hprobed.yaml", []byte(strings.Join(documents, "---\n")))
		if len(documents) == 0 {
			all, err = nil, nil
		}
		if err == nil {
			err = r.d.Configure(rules, all)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	labelled := strings.ReplaceAll(shadow("labelled", "['*']", ""), "names: ['*']", "labels: {tier: front}")
	configure([]DomainRule{{Names: []string{"*", "!b"}, Labels: map[string]string{"tier": "front"}}}, shadow("one", "['*']", ""), labelled)
	r.until("armed", func() bool {
		return slices.Equal(r.states("one"), []string{"a=armed", "b=armed"}) && slices.Equal(r.states("labelled"), []string{"a=armed"})
	})
	first := r.d.known()[0].current()
	for _, err := range []error{r.apply(shadow("one", "[x]", "")), func() error {
		_, err := r.RemovePolicy(t.Context(), &controlapi.RemovePolicyRequest{Name: "one"})
		return err
	}()} {
		if err == nil || !strings.Contains(err.Error(), "hprobed.yaml") {
			t.Errorf("%v", err)
		}
	}
	// One that stays as it is is not taken out meanwhile.
	of := func(name string) *binding {
		all := first.list()
		if i := slices.IndexFunc(all, func(b *binding) bool { return b.policy.Name() == name }); i >= 0 {
			return all[i]
		}
		return nil
	}
	was := of("one")
	configure([]DomainRule{{Names: []string{"b"}, Ignore: true}}, shadow("one", "['*']", ""))
	r.until("changed", func() bool { return slices.Equal(r.states("one"), []string{"a=armed"}) && len(first.list()) == 1 })
	if now := of("one"); was == nil || was != now {
		t.Error("it was armed anew")
	}
	if _, err := r.AddProbe(t.Context(), &controlapi.AddProbeRequest{Domain: "b", At: "vfs_stat"}); err == nil || !strings.Contains(err.Error(), "ignore: true") {
		t.Errorf("%v", err)
	}
	configure(nil)
	r.until("left", func() bool { return r.d.known()[0].current() == nil })
	if rax := r.call(v, nameAt, 0); rax != 0x77 {
		t.Errorf("%#x", rax)
	}
}

// TestReleasedGuest: a guest that was released is left alone until it is resumed.
func TestReleasedGuest(t *testing.T) {
	r := newRig(t, Options{})
	g, v := simGuest(r.host, 1, "a")
	r.mustApply(shadow("shadow", "[a]", ""))
	p, err := r.AddProbe(t.Context(), &controlapi.AddProbeRequest{Domain: "a", At: "vfs_stat"})
	if err != nil {
		t.Fatal(err)
	}
	r.until("armed", func() bool { return slices.Equal(r.states("shadow"), []string{"a=armed"}) })
	d, err := r.ReleaseDomain(t.Context(), &controlapi.ReleaseDomainRequest{Domain: "a"})
	if err != nil || d.GetDomain().GetState() != "released" || g.Leaks() != nil {
		t.Errorf("%v, %v, %q", d, err, g.Leaks())
	}
	if rax := r.call(v, nameAt, 0); rax != 0x77 {
		t.Errorf("%#x", rax)
	}
	r.until("held", func() bool { return slices.Equal(r.states("shadow"), []string{"a=" + stateHeld}) })
	if _, err := r.AddProbe(t.Context(), &controlapi.AddProbeRequest{Domain: "a", At: "vfs_stat"}); err == nil || !strings.Contains(err.Error(), "hprobe domain resume") {
		t.Errorf("%v", err)
	}
	if _, err := r.RemoveProbe(t.Context(), &controlapi.RemoveProbeRequest{Id: p.GetProbe().GetId()}); err == nil || !strings.Contains(err.Error(), "went with it") {
		t.Errorf("%v", err)
	}
	if _, err := r.ResumeDomain(t.Context(), &controlapi.ResumeDomainRequest{Domain: "a"}); err != nil {
		t.Fatal(err)
	}
	r.until("armed again", func() bool { return slices.Equal(r.states("shadow"), []string{"a=armed"}) })
}

// TestOneGuestHoldsUpNoOther: while the profile of one guest is sought, and takes its
// time, others are served; and hprobed's end does not wait for it.
func TestOneGuestHoldsUpNoOther(t *testing.T) {
	r := newRig(t, Options{})
	simGuest(r.host, 1, "slow")
	_, v := simGuest(r.host, 2, "quick")
	seeking := make(chan struct{}, 1)
	find := func(ctx context.Context, info *xenevents.DomainInfo) error {
		if info.Name != "slow" {
			return nil
		}
		seeking <- struct{}{}
		<-ctx.Done()
		return context.Cause(ctx)
	}
	r.find.Store(&find)
	r.mustApply(shadow("shadow", "['*']", ""))
	<-seeking
	r.until("armed in quick", func() bool { return slices.Contains(r.states("shadow"), "quick=armed") })
	if rax := r.call(v, nameAt, 0); rax != refused {
		t.Errorf("%#x", rax)
	}
	d, err := r.ListDomains(t.Context(), nil)
	if err != nil || d.GetDomains()[0].GetState() != "attaching" || d.GetDomains()[1].GetState() != "watched" {
		t.Errorf("%v, %v", d, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := r.AddProbe(ctx, &controlapi.AddProbeRequest{Domain: "slow", At: "vfs_stat"}); err == nil || !strings.Contains(err.Error(), "another command") {
		t.Errorf("%v", err)
	}
	if err := r.end(); err != nil {
		t.Error(err)
	}
}

// TestCommandEndsWithTheDaemon: one that seeks a profile gives up when hprobed ends.
func TestCommandEndsWithTheDaemon(t *testing.T) {
	r := newRig(t, Options{})
	simGuest(r.host, 1, "slow")
	seeking := make(chan struct{}, 1)
	find := func(ctx context.Context, _ *xenevents.DomainInfo) error {
		seeking <- struct{}{}
		<-ctx.Done()
		return context.Cause(ctx)
	}
	r.find.Store(&find)
	added := make(chan error, 1)
	go func() {
		_, err := r.AddProbe(context.Background(), &controlapi.AddProbeRequest{Domain: "slow", At: "vfs_stat"})
		added <- err
	}()
	<-seeking
	if err := r.end(); err != nil {
		t.Error(err)
	}
	if err := <-added; err == nil || !strings.Contains(err.Error(), errEnding.Error()) {
		t.Errorf("%v", err)
	}
}

// TestRenamedGuest: policies go by the name that a guest has now.
func TestRenamedGuest(t *testing.T) {
	r := newRig(t, Options{})
	g, v := simGuest(r.host, 1, "a")
	r.mustApply(shadow("shadow", "[b]", ""))
	if rax := r.call(v, nameAt, 0); rax != 0x77 {
		t.Errorf("%#x", rax)
	}
	r.host.Rename(g, "b")
	r.until("armed", func() bool { return slices.Equal(r.states("shadow"), []string{"b=armed"}) })
	r.host.Rename(g, "c")
	r.until("left", func() bool { return r.states("shadow") == nil && r.d.known()[0].current() == nil })
}

// TestTriedAgain: what could not be armed for a reason that goes away is armed later, by itself.
func TestTriedAgain(t *testing.T) {
	r := newRig(t, Options{})
	simGuest(r.host, 1, "a")
	var tries atomic.Int32
	find := func(context.Context, *xenevents.DomainInfo) error {
		if tries.Add(1) <= 2 {
			return errors.New("no profile at the moment")
		}
		return nil
	}
	r.find.Store(&find)
	r.mustApply(shadow("shadow", "[a]", ""))
	r.until("failed", func() bool { return slices.Equal(r.states("shadow"), []string{"a=failed"}) })
	if d := r.domain("a"); d.GetState() != "failed" || !strings.Contains(d.GetDetail(), "no profile at the moment") {
		t.Errorf("%v", d)
	}
	r.until("armed", func() bool { return slices.Equal(r.states("shadow"), []string{"a=armed"}) })
	if n := tries.Load(); n != 3 {
		t.Errorf("%d tries", n)
	}
}

// TestManyGuests: 32 guests with a policy and a probe each, all called at once: each hit is
// counted where it was.
func TestManyGuests(t *testing.T) {
	const guests, calls = 32, 20
	r := newRig(t, Options{})
	r.mustApply(shadow("shadow", "['*']", ""))
	var vcpus []*sim.VCPU
	for i := range guests {
		_, v := simGuest(r.host, xenevents.DomainID(i+1), fmt.Sprintf("guest-%02d", i))
		vcpus = append(vcpus, v)
	}
	r.until("armed everywhere", func() bool {
		n := 0
		for _, s := range r.states("shadow") {
			if strings.HasSuffix(s, "=armed") {
				n++
			}
		}
		return n == guests
	})
	for i, v := range vcpus {
		var steps []sim.Step
		for range calls + i {
			steps = append(steps, sim.Call(function, nameAt, 0))
		}
		v.Run(steps...)
	}
	for _, v := range vcpus {
		if err := v.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	all, err := r.ListProbes(t.Context(), &controlapi.ListProbesRequest{})
	if err != nil || len(all.GetProbes()) != guests {
		t.Fatalf("%d probes, %v", len(all.GetProbes()), err)
	}
	for i, p := range all.GetProbes() {
		if p.GetDomain() != fmt.Sprintf("guest-%02d", i) || p.GetHits() != uint64(calls+i) || p.GetMatches().GetActed() != p.GetHits() || p.GetId() != "shadow.stat" {
			t.Errorf("%v", p)
		}
	}
}
