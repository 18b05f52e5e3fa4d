package daemon

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hprobe/hprobe/cmd/internal/controlapi"
)

// TestImageRequests: what can't be a probe in an image is refused before any guest is
// touched.
func TestImageRequests(t *testing.T) {
	s := &server{d: New(Options{})}
	for want, r := range map[string]*controlapi.AddProbeRequest{
		"--comm and --image-file": {At: "do_exit", Comm: "x"},
		"for a place in":          {At: "0x401000", Pid: 1, Image: &controlapi.ImagePlace{}},
		"first instruction":       {At: "image:/bin/sh!main+4", Returns: true},
		"image:/bin/sh!main":      {At: "image:bin/sh!main"},
		"image:/bin/sh":           {At: "main", Pid: 7},
	} {
		_, err := s.AddProbe(t.Context(), r)
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v", r, err)
		}
	}
	if imagePlace(nil) != nil {
		t.Error("a place of nothing")
	}
	if p := imagePlace(&controlapi.ImagePlace{Offset: 7, Code: []byte{1}, BuildId: []byte{2}, Types: []byte{3}}); p.Types[0] != 3 || p.Offset != 7 || p.Code[0] != 1 || p.BuildID[0] != 2 {
		t.Errorf("%+v", p)
	}
}
