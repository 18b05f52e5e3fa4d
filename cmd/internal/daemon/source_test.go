package daemon

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hprobe/hprobe/cmd/internal/controlapi"
)

// TestSourcesOffTheWire: what is wrong is said before a guest is asked for.
func TestSourcesOffTheWire(t *testing.T) {
	s := &server{d: &Daemon{}}
	for _, c := range []struct {
		r    *controlapi.AddProbeRequest
		want string
	}{
		{&controlapi.AddProbeRequest{At: "do_exit", Source: &controlapi.Source{Register: "cr3"}}, "no place"},
		{&controlapi.AddProbeRequest{Comm: "sh", Source: &controlapi.Source{Register: "cr3"}}, "no place"},
		{&controlapi.AddProbeRequest{Syscalls: []string{"read"}, Source: &controlapi.Source{Register: "cr3"}}, "ask for two"},
		{&controlapi.AddProbeRequest{Comm: "sh", Syscalls: []string{"read"}}, "--comm and --image-file"},
		{&controlapi.AddProbeRequest{Source: &controlapi.Source{}}, "one thing"},
		{&controlapi.AddProbeRequest{Source: &controlapi.Source{Register: "cr9"}}, "cr9"},
		{&controlapi.AddProbeRequest{Source: &controlapi.Source{Register: "cr3"}, Rule: &controlapi.Rule{Deny: "write", Mode: "enforce"}}, "cr3 can't be denied"},
		{&controlapi.AddProbeRequest{Source: &controlapi.Source{Register: "cr3"}, Rule: &controlapi.Rule{Deny: "write"}}, "can't be denied"},
		{&controlapi.AddProbeRequest{Source: &controlapi.Source{Register: "cr4"}, Rule: &controlapi.Rule{Deny: "EPERM"}}, "deny write"},
		{&controlapi.AddProbeRequest{Source: &controlapi.Source{Register: "cr4", Async: true}, Rule: &controlapi.Rule{Pause: true}}, "async"},
		{&controlapi.AddProbeRequest{Source: &controlapi.Source{Memory: "a", Access: "rx"}, Rule: &controlapi.Rule{Deny: "write"}}, "can't be denied"},
		{&controlapi.AddProbeRequest{Source: &controlapi.Source{Cpuid: "1"}, Rule: &controlapi.Rule{Mode: "kill"}}, "mode"},
	} {
		if _, err := s.AddProbe(t.Context(), c.r); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v", c.r, err)
		}
	}
	r := &controlapi.AddProbeRequest{Source: &controlapi.Source{Memory: "a", Access: "rw"}, Rule: &controlapi.Rule{Deny: "write", Mode: "enforce"}}
	if got := sourceOf(r); got.Memory != "a" || got.Access != "rw" || !got.Deny || sourceMessage(got).GetMemory() != "a" || sourceMessage(nil) != nil {
		t.Errorf("%+v", got)
	}
}
