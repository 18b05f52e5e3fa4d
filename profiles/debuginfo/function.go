package debuginfo

import (
	"debug/dwarf"

	"github.com/hprobe/hprobe/profiles/isf"
)

// maxParams bounds a prototype.
const maxParams = 64

// Func is the prototype of the function that an entry is. w has returned the entry, and
// is behind all that is below it then.
func (c *Converter) Func(w *Walker, e *dwarf.Entry) (f isf.Func, err error) {
	if f.Return, err = c.Of(e); err != nil {
		return f, err
	}
	for depth := w.Depth; ; {
		p, err := w.Child(depth)
		if err != nil || p == nil {
			return f, err
		}
		if p.Tag != dwarf.TagFormalParameter || len(f.Params) == maxParams {
			continue
		}
		name, err := c.info.Val(p, dwarf.AttrName)
		if err != nil {
			return f, err
		}
		param := isf.Param{}
		param.Name, _ = name.(string)
		if param.Type, err = c.Of(p); err != nil {
			return f, err
		}
		f.Params = append(f.Params, param)
	}
}
