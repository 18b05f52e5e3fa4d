package daemon

import (
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

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

func TestAnEndingDaemonAttachesToNothing(t *testing.T) {
	d := New(Options{})
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.attached(t.Context(), "guest"); status.Code(rpcError(err)) != codes.Unavailable {
		t.Errorf("%v", err)
	}
}
