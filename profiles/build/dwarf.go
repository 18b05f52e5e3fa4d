package build

import (
	"debug/dwarf"
	"fmt"

	"github.com/hprobe/hprobe/profiles/debuginfo"
	"github.com/hprobe/hprobe/profiles/isf"
)

// addDWARF adds the types of a kernel's debug information, for one that has no BTF. It
// returns the typedefs, as addBTF does.
func addDWARF(d *debuginfo.Info, out *isf.Builder) (map[string]isf.Type, error) {
	c := &dwarfConverter{Converter: debuginfo.NewConverter(d, out, false), out: out, typedefs: map[string]isf.Type{}}
	for w := d.Walk(); ; {
		e, err := w.Next()
		if err == nil && e != nil {
			err = c.entry(w, e)
		}
		if err == nil {
			_, err = c.Members(maxTypeText)
		}
		if err != nil {
			return nil, fmt.Errorf("DWARF: %w", err)
		}
		if e == nil {
			break
		}
		if c.Spent > maxTypeText {
			return nil, fmt.Errorf("DWARF: its types take more than %d bytes", maxTypeText)
		}
	}
	return c.typedefs, nil
}

// dwarfConverter takes what a kernel's profile has of DWARF.
type dwarfConverter struct {
	*debuginfo.Converter
	out      *isf.Builder
	typedefs map[string]isf.Type
}

// entry takes one of the top of a compilation unit, and passes by what is below it.
func (c *dwarfConverter) entry(w *debuginfo.Walker, e *dwarf.Entry) error {
	name, _ := e.Val(dwarf.AttrName).(string)
	switch e.Tag {
	case dwarf.TagCompileUnit:
		return nil
	case dwarf.TagSubprogram:
		if _, known := c.out.Funcs[name]; known || name == "" {
			return w.Skip(e)
		}
		f, err := c.Func(w, e)
		c.out.Funcs[c.Spend(name)] = f
		return err
	}
	if err := w.Skip(e); err != nil || name == "" || e.Val(dwarf.AttrDeclaration) != nil {
		return err // what has no name comes with what it is a part of
	}
	known := false
	switch e.Tag {
	case dwarf.TagVariable:
		if _, known = c.out.Vars[name]; known || e.Val(dwarf.AttrType) == nil {
			return nil
		}
		of, err := c.Of(e)
		c.out.Vars[c.Spend(name)] = of
		return err
	case dwarf.TagStructType, dwarf.TagUnionType:
		_, known = c.out.Users[name]
	case dwarf.TagEnumerationType:
		_, known = c.out.Enums[name]
	case dwarf.TagBaseType:
		_, known = c.out.Base[name]
	case dwarf.TagTypedef:
		_, known = c.typedefs[name]
	default:
		return nil
	}
	if known {
		return nil
	}
	of, err := c.At(e.Offset)
	if e.Tag == dwarf.TagTypedef {
		c.typedefs[name] = of
	}
	return err
}
