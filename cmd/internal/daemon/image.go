package daemon

import (
	"context"
	"errors"

	"github.com/hprobe/hprobe/cmd/internal/control"
	"github.com/hprobe/hprobe/cmd/internal/controlapi"
	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/detectors/binder"
	"github.com/hprobe/hprobe/xenevents/probe"
)

var errOnlyInImages = errors.New("--comm and --image-file are for a place in a program or library: --at image:PATH!symbol")

// ofImage says whether a request says what only places in images have.
func ofImage(r *controlapi.AddProbeRequest) bool { return r.GetComm() != "" || r.GetImage() != nil }

// imagePlace reads a place off the wire; none is none.
func imagePlace(m *controlapi.ImagePlace) *detectors.ImagePlace {
	if m == nil {
		return nil
	}
	place := &detectors.ImagePlace{Offset: m.GetOffset(), Code: m.GetCode(), BuildID: m.GetBuildId()}
	if len(m.GetTypes()) > 0 {
		place.Types = m.GetTypes()
	}
	return place
}

// inImage adds what there is to say of a probe in an image.
func (s *session) inImage(ctx context.Context, one *controlapi.Probe, p *binder.Bound, st *probe.Status) {
	one.InImage, one.Comm, one.Offset = true, p.Spec.Comm, p.Place.Offset
	one.Address = uint64(st.At)
	one.Processes, one.Touched, one.Missed, one.MissedWhy = uint32(st.Members), uint32(st.Armed), st.Missed, control.Text(st.MissedWhy)
	if st.Members == 0 && p.Spec.PID != 0 && s.binder.Ended(ctx, p.Spec.PID) {
		one.State, one.Detail = probe.Ended.String(), "its process has exited"
	}
}
