package debuginfo

import "debug/dwarf"

// Walker goes through entries in their order. It moves forward only.
type Walker struct {
	info *Info
	r    *dwarf.Reader
	at   int // depth of the entry to come
	// Depth is how deep the entry that Next returned is: a unit is at 0, where the walk
	// began with one.
	Depth int
}

// Walk begins with the first unit.
func (i *Info) Walk() *Walker { return &Walker{info: i, r: i.data.Reader()} }

// WalkFrom begins with an entry, at depth 0.
func (i *Info) WalkFrom(at dwarf.Offset) *Walker {
	w := i.Walk()
	w.r.Seek(at)
	return w
}

// Next returns the next entry; nil at the end.
func (w *Walker) Next() (*dwarf.Entry, error) {
	for {
		e, err := w.step()
		if err != nil || e == nil || e.Tag != 0 {
			return e, err
		}
	}
}

// below returns the next entry if it is below the one at a depth; else nil, and the walk
// has gone by all that are.
func (w *Walker) below(depth int) (*dwarf.Entry, error) {
	for w.at > depth {
		e, err := w.step()
		if err != nil || e == nil || e.Tag != 0 {
			return e, err
		}
	}
	return nil, nil
}

// Child returns the next child of the entry at a depth, and passes by what is below that;
// nil behind the last one.
func (w *Walker) Child(depth int) (*dwarf.Entry, error) {
	e, err := w.below(depth)
	if err == nil && e != nil {
		err = w.Skip(e)
	}
	return e, err
}

// Skip passes by what is below the entry that was returned last.
func (w *Walker) Skip(e *dwarf.Entry) error {
	if !e.Children {
		return nil
	}
	if next, ok := e.Val(dwarf.AttrSibling).(dwarf.Offset); ok && next > e.Offset {
		w.r.Seek(next)
		w.at = w.Depth
		return nil
	}
	for depth := w.Depth; w.at > depth; {
		if e, err := w.step(); err != nil || e == nil {
			return err
		}
	}
	return nil
}

// step reads one entry, be it the empty one that ends a list.
func (w *Walker) step() (*dwarf.Entry, error) {
	e, err := w.r.Next()
	if err != nil || e == nil {
		return nil, err
	}
	cost := 1
	for n := range e.Field {
		if text, ok := e.Field[n].Val.(string); ok {
			cost += len(text) / 64
		}
	}
	if err := w.info.spend(cost); err != nil {
		return nil, err
	}
	if isUnit(e.Tag) {
		w.at = 0 // whatever was left open before
	}
	w.Depth = w.at
	switch {
	case e.Tag == 0:
		w.at = max(w.at-1, 0)
	case e.Children:
		w.at++
	}
	return e, nil
}

func isUnit(t dwarf.Tag) bool {
	return t == dwarf.TagCompileUnit || t == dwarf.TagPartialUnit || t == dwarf.TagTypeUnit || t == dwarf.TagSkeletonUnit
}

// entry reads one; nil where there is none.
func (i *Info) entry(at dwarf.Offset) (*dwarf.Entry, error) {
	w := i.WalkFrom(at)
	e, err := w.step()
	if e != nil && e.Tag == 0 {
		return nil, err
	}
	return e, err
}

// maxOrigins bounds how far an entry leads on to others that say more of the same.
const maxOrigins = 4

// Origin is the entry that says first what a copy, or the definition of what was declared
// elsewhere, is of: the entry itself where it is neither.
func (i *Info) Origin(e *dwarf.Entry) (*dwarf.Entry, error) {
	for range maxOrigins {
		at, ok := e.Val(dwarf.AttrAbstractOrigin).(dwarf.Offset)
		if !ok {
			break
		}
		next, err := i.entry(at)
		if err != nil || next == nil {
			return e, err
		}
		e = next
	}
	return e, nil
}

// Val is an attribute of an entry, or of what that is a copy or the definition of.
func (i *Info) Val(e *dwarf.Entry, of dwarf.Attr) (any, error) {
	for range maxOrigins {
		if v := e.Val(of); v != nil {
			return v, nil
		}
		at, ok := e.Val(dwarf.AttrAbstractOrigin).(dwarf.Offset)
		if !ok {
			at, ok = e.Val(dwarf.AttrSpecification).(dwarf.Offset)
		}
		if !ok {
			break
		}
		next, err := i.entry(at)
		if err != nil || next == nil {
			return nil, err
		}
		e = next
	}
	return nil, nil
}
