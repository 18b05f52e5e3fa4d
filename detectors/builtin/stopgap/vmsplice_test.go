package stopgap

import (
	"maps"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/xenevents"
)

// copied is what the kernel has copied of a call: a struct iov_iter at 0x9000, and a
// splice_desc at 0x8000.
func copied(offset, count, segments uint64, lengths ...uint64) map[xenevents.GVA]uint64 {
	words := iovec(0xa000, lengths...)
	maps.Copy(words, map[xenevents.GVA]uint64{0x9000: offset, 0x9008: count, 0x9010: segments, 0x9018: 0xa000, 0x8000 + 8*spliceData: 0x9000})
	return words
}

func newVmsplice(t *testing.T, limit uint64, fix bool) *Detector {
	t.Helper()
	rule, err := Known("vmsplice")
	if err != nil {
		t.Fatal(err)
	}
	if limit != 0 {
		rule.Limit = limit
	}
	d, err := New(rule, fix)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestVmspliceCopied: what the kernel's copy says is an attempt, in both directions.
func TestVmspliceCopied(t *testing.T) {
	for name, c := range map[string]struct {
		limit uint64
		words map[xenevents.GVA]uint64
		fact  string // "" for none
	}{
		"honest":                   {0, copied(0, 4096, 1, 4096), ""},
		"just not cut":             {0, copied(0, maxTotal-1, 1), ""},
		"cut":                      {0, copied(0, maxTotal, 1), "iov[0].iov_len, as copied,"}, // no iovec there
		"one of several":           {0, copied(0, maxTotal, 2, maxTotal, 0), "all of iov, as copied,"},
		"several together":         {0, copied(0, maxTotal, 3, 1, 2, maxTotal-3), "all of iov, as copied,"},
		"several that are honest":  {0, copied(0, 3<<20, 3, 1<<20, 1<<20, 1<<20), ""},
		"used in part":             {0, copied(4096, maxTotal, 1), ""},
		"none":                     {0, copied(0, 0, 0), ""},
		"a lower limit":            {0x1001, copied(0, 0x1001, 1), "iov[0].iov_len, as copied,"},
		"a lower limit, of one":    {0x1001, copied(0, 0x2001, 2, 0x1000, 0x1001), "iov[1].iov_len, as copied,"},
		"a lower limit, of no one": {0x1001, copied(0, 0x2000, 2, 0x1000, 0x1000), ""},
		"a higher limit":           {1 << 40, copied(0, maxTotal, 1), "iov[0].iov_len, as copied,"},
	} {
		for _, fix := range []bool{false, true} {
			d := newVmsplice(t, c.limit, fix)
			for _, p := range d.Probes()[1:] {
				if p.Vital != fix {
					t.Errorf("%s is vital: %v", p.At, p.Vital)
				}
				h := &call{args: []uint64{0x9000, 0x9000}, words: c.words}
				if strings.Contains(p.At, "__splice_from_pipe") {
					h.args[1] = 0x8000
				}
				out := p.Handle(h)
				if (out.Finding != nil) != (c.fact != "") || out.Verdict.Deny != (fix && c.fact != "") {
					t.Errorf("%s, %s, fix %v: %+v", name, p.At, fix, out)
				}
				if out.Finding != nil && (out.Finding.Facts[0].Name != c.fact || out.Verdict.Deny && out.Verdict.Return != -14) {
					t.Errorf("%s, %s: %+v", name, p.At, out)
				}
			}
		}
	}
}

// TestVmspliceUnseen: what can't be read is let pass, and reported.
func TestVmspliceUnseen(t *testing.T) {
	words := copied(0, maxTotal, 2)
	delete(words, 0x9008)
	for _, h := range []*call{{}, {args: []uint64{0x7000, 0x7000}}, {args: []uint64{0x9000, 0x8000}, words: words}, {args: []uint64{0x9000, 0x8000}, words: copied(0, 4096, 2)}} {
		for _, p := range newVmsplice(t, 0, true).Probes()[1:] {
			if out := p.Handle(h); out.Verdict.Deny || out.Finding == nil || !strings.Contains(out.Finding.Message, "could not be judged") {
				t.Errorf("%+v: %+v", h, out)
			}
		}
	}
}

// TestVmspliceOnce: an attempt is reported once, where it is seen first.
func TestVmspliceOnce(t *testing.T) {
	d := newVmsplice(t, 0, false)
	p := d.Probes()
	enter := func(tid uint32, n uint64) bool {
		return p[0].Handle(&call{tid: tid, args: []uint64{1, 0x100, 1}, words: iovec(0x100, n)}).Finding != nil
	}
	use := func(tid uint32, n uint64) bool {
		return p[1].Handle(&call{tid: tid, args: []uint64{0x9000}, words: copied(0, n, 1)}).Finding != nil
	}
	for i, c := range []struct {
		f    func(uint32, uint64) bool
		tid  uint32
		n    uint64
		want bool
	}{
		{enter, 1, 1 << 40, true}, {use, 2, maxTotal, true}, {use, 1, maxTotal, false}, {use, 1, maxTotal, true}, // a 32-bit program's, say
		{enter, 1, 4096, false}, {use, 1, 4096, false}, {enter, 1, 4096, false}, {use, 1, maxTotal, true}, // changed meanwhile
	} {
		if got := c.f(c.tid, c.n); got != c.want {
			t.Errorf("%d: %v", i, got)
		}
	}
	for tid := range uint32(3 * maxReported) {
		enter(tid, 1<<40)
	}
	if n := len(d.reported); n == 0 || n > maxReported {
		t.Errorf("%d threads are remembered", n)
	}
	if d.Attempts() != 4+3*maxReported {
		t.Errorf("%d attempts", d.Attempts())
	}
}
