package binder

import (
	"bytes"
	"slices"
	"testing"

	"github.com/hprobe/hprobe/detectors"
)

// TestImageReturns: the end of a call in a program is told with its value and who ran,
// and when the process ends nothing is waited for where it would have returned.
func TestImageReturns(t *testing.T) {
	b := newImageBench(t, "kernel", "one", "two")
	b.maps(1, true)
	b.maps(2, true)
	const callIn = placeIn + 0x80 // call sum; nop; ret
	b.g.Poke(b.code.GPA()+placeIn+0x10, bytes.Repeat([]byte{0x90}, 0x70))
	b.g.Poke(b.code.GPA()+callIn, []byte{0xe8, 0x7b, 0xff, 0xff, 0xff, 0x90, 0xc3})
	type end struct {
		seq, value uint64
		pid        uint32
	}
	var ends []end
	bound := b.bind(detectors.ProbeSpec{At: "image:/lib/image.so!sum", Image: theImage, Return: true, Handle: func(h detectors.Hit) detectors.Outcome {
		if r, over := h.Return(); over {
			p, _ := h.Process()
			ends = append(ends, end{h.Seq(), r.Value, p.PID})
		}
		return detectors.Outcome{}
	}})
	for i := range uint64(2) {
		for pid := range uint64(2) {
			if got := b.in(int(pid)+1, imageAt+callIn, i, pid); got != i+pid {
				t.Errorf("it returned %d", got)
			}
		}
	}
	if want := []end{{1, 0, 1}, {2, 1, 2}, {3, 1, 1}, {4, 2, 2}}; !slices.Equal(ends, want) {
		t.Errorf("%+v, want %+v", ends, want)
	}
	b.is(bound, 2, 4)
	sites := func() int {
		_, stats, err := b.engine.Probes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return stats.Sites
	}
	if n := sites(); n != 2 {
		t.Errorf("%d sites", n)
	}
	b.in(2, endsMemoryAt+slide, processesAt+2<<12+mmIn)
	if n := sites(); n != 1 {
		t.Errorf("%d sites", n)
	}
	if err := b.binder.Unbind(t.Context(), bound); err != nil || sites() != 0 {
		t.Errorf("%v, %d sites", err, sites())
	}
}
