package daemon

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hprobe/hprobe/cmd/internal/controlapi"
	"github.com/hprobe/hprobe/detectors/builtin/stopgap"
	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
)

func TestCodesOfErrors(t *testing.T) {
	for want, errs := range map[codes.Code][]error{
		codes.OK:                 {nil},
		codes.NotFound:           {xenevents.ErrNoDomain, isf.ErrNotFound},
		codes.FailedPrecondition: {&xenevents.UnsupportedError{Feature: "x"}, xenevents.ErrMonitored},
		codes.Unavailable:        {errEnding},
		// A guest that went is no hprobed that did.
		codes.Aborted: {xenevents.ErrDomainGone, xenevents.ErrClosed},
		codes.Unknown: {errors.New("else")},
	} {
		for _, err := range errs {
			wrapped := err
			if err != nil {
				wrapped = fmt.Errorf("in the middle: %w", err)
			}
			if got := status.Code(rpcError(wrapped)); got != want {
				t.Errorf("%v is %v, not %v", err, got, want)
			}
		}
	}
}

func TestStopgapOf(t *testing.T) {
	own := func(change func(*controlapi.AddStopgapRequest)) *controlapi.AddStopgapRequest {
		r := &controlapi.AddStopgapRequest{Name: "own", At: "vuln!f", Length: "[arg0+8]", Limit: 0x1001, Errno: "EINVAL"}
		change(r)
		return r
	}
	for _, c := range []struct {
		r     *controlapi.AddStopgapRequest
		title string
		limit uint64
		errno stopgap.Errno
	}{
		{&controlapi.AddStopgapRequest{Name: "vmsplice"}, "vmsplice() with a huge iovec (CVE-2008-0600)", 0x7fffffff, stopgap.EFAULT},
		{&controlapi.AddStopgapRequest{Name: "vmsplice", Limit: 9, Errno: "EPERM", Fix: true}, "vmsplice() with a huge iovec (CVE-2008-0600)", 9, stopgap.EPERM},
		{own(func(*controlapi.AddStopgapRequest) {}), "vuln!f() with too large a length", 0x1001, stopgap.EINVAL},
	} {
		d, err := stopgapOf(c.r)
		if err != nil {
			t.Errorf("%v: %v", c.r, err)
			continue
		}
		if r := d.Rule(); r.Title != c.title || r.Limit != c.limit || r.Errno != c.errno || d.Fix() != c.r.GetFix() {
			t.Errorf("%v: %+v", c.r, r)
		}
	}
	for want, r := range map[string]*controlapi.AddStopgapRequest{
		"knows no stopgap":       {Name: "nosuch"},
		"needs --at, --length":   {Name: "x", At: "f"},
		"no place of a value":    own(func(r *controlapi.AddStopgapRequest) { r.Length = "rdi" }),
		"no place for a probe":   own(func(r *controlapi.AddStopgapRequest) { r.At = "a b" }),
		"where a function's arg": own(func(r *controlapi.AddStopgapRequest) { r.At = "f+4" }),
		"no errno":               own(func(r *controlapi.AddStopgapRequest) { r.Errno = "EBAD" }),
	} {
		if d, err := stopgapOf(r); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %+v, %v", r, d, err)
		}
	}
}

func TestAnEndingDaemonAttachesToNothing(t *testing.T) {
	d := New(Options{})
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.meet(xenevents.DomainInfo{ID: 1}); status.Code(rpcError(err)) != codes.Unavailable {
		t.Errorf("%v", err)
	}
}
