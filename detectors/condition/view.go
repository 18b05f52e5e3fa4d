package condition

import (
	"bytes"
	"errors"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/xenevents"
)

// Bounds of what is read at one hit, whatever the guest's memory says.
const (
	maxString   = 4096 // bytes of a string: Linux's PATH_MAX
	maxElements = 4096 // of an array or behind a pointer
	maxReads    = 1024
	maxBytes    = 64 << 10
)

// ErrTooMuch says that the expressions of a hit read more than a hit may.
var ErrTooMuch = errors.New("more of the guest's memory than one hit may read")

// view is the present hit as expressions see it: CEL's variables, and the guest's
// memory within bounds. What was looked up once is kept until the next hit.
type view struct {
	hit          detectors.Hit
	names        map[string]int
	values       []any // nil: not looked up yet
	sources      []source
	raws         []raw
	reads, bytes int
	buf          [8]byte
	records      [16]object // most paths need no more
	used         int
}

// at goes on to another hit.
func (v *view) at(h detectors.Hit) {
	v.hit, v.reads, v.bytes, v.used = h, 0, 0, 0
	clear(v.values)
	clear(v.raws)
}

// raw is a number as it was found once at this hit.
type raw struct {
	read bool
	n    uint64
	err  error
}

// raw is the number behind a variable: all expressions of a hit see the same one,
// whatever the guest writes meanwhile.
func (v *view) raw(i int) (uint64, error) {
	r := &v.raws[i]
	if !r.read {
		r.read = true
		r.n, r.err = v.sources[i].number(v.hit)
	}
	return r.n, r.err
}

// ResolveName looks up a variable: nothing is read that no expression names.
func (v *view) ResolveName(name string) (any, bool) {
	i, ok := v.names[name]
	if !ok {
		return nil, false
	}
	if v.values[i] == nil {
		got, err := v.look(i)
		if err != nil {
			v.values[i] = types.WrapErr(err)
		} else {
			v.values[i] = got
		}
	}
	return v.values[i], true
}

// Parent makes it an Activation.
func (v *view) Parent() cel.Activation { return nil }

func (v *view) spend(n int) error {
	v.reads++
	v.bytes += n
	if v.reads > maxReads || v.bytes > maxBytes {
		return ErrTooMuch
	}
	return nil
}

// number reads an integer of at most 8 bytes.
func (v *view) number(at, size uint64) (uint64, error) {
	if err := v.spend(int(size)); err != nil {
		return 0, err
	}
	if size == 8 {
		return v.hit.ReadUint64(xenevents.GVA(at))
	}
	if _, err := v.hit.Read(v.buf[:size], xenevents.GVA(at)); err != nil {
		return 0, err
	}
	return little(v.buf[:size]), nil
}

// text reads a string of at most limit bytes, up to its NUL. One that is longer
// comes cut off.
func (v *view) text(at uint64, limit int) (string, error) {
	var all []byte
	var chunk [256]byte
	for len(all) < limit {
		// Not over the end of a page: what is behind it may not be there.
		want := min(len(chunk), limit-len(all), int(xenevents.PageSize-xenevents.GVA(at).Offset()))
		if err := v.spend(want); err != nil {
			return "", err
		}
		n, err := v.hit.Read(chunk[:want], xenevents.GVA(at))
		if end := bytes.IndexByte(chunk[:n], 0); end >= 0 {
			return string(append(all, chunk[:end]...)), nil
		}
		if err != nil {
			return "", err
		}
		all = append(all, chunk[:n]...)
		at += uint64(n)
	}
	return string(all), nil
}

// record makes a struct's value.
func (v *view) record(s *shape, at uint64) *object {
	if v.used == len(v.records) {
		return &object{view: v, at: at, shape: s}
	}
	o := &v.records[v.used]
	v.used++
	*o = object{view: v, at: at, shape: s}
	return o
}

// source is where a variable's value comes from.
type source struct {
	shape *shape
	index int // in the view
	arg   int // of the function; -1: of the process
	// unread says why no expression can name it; nil: one can.
	unread error
	// One of these: a number or pointer, which shape makes a value of, or a text.
	number func(h detectors.Hit) (uint64, error)
	text   func(h detectors.Hit) (string, error)
}

// add makes room for a variable; its source is of use from then on.
func (v *view) add(s source) source {
	s.index = len(v.sources)
	v.sources, v.values, v.raws = append(v.sources, s), append(v.values, nil), append(v.raws, raw{})
	return s
}

func (v *view) look(i int) (any, error) {
	from := &v.sources[i]
	if from.text != nil {
		got, err := from.text(v.hit)
		return types.String(got), err
	}
	n, err := v.raw(i)
	if err != nil {
		return nil, err
	}
	return from.shape.of(v, n)
}
