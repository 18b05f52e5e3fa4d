package build

import (
	"debug/dwarf"
	"fmt"
	"math"

	"github.com/hprobe/hprobe/profiles/isf"
)

// addDWARF adds the types of a kernel's debug information, for one that has no BTF. Each
// file that the kernel was compiled of has all that it uses: of each name the first is
// taken. It returns the typedefs, as addBTF does.
func addDWARF(d *dwarf.Data, out *isf.Builder) (map[string]isf.Type, error) {
	c := &dwarfConverter{out: out, data: d, names: map[dwarf.Type]string{}, typedefs: map[string]isf.Type{}}
	for r := d.Reader(); ; {
		e, err := r.Next()
		if err != nil {
			return nil, fmt.Errorf("DWARF: %w", err)
		}
		if e == nil {
			break
		}
		if err := c.entry(r, e); err != nil {
			return nil, fmt.Errorf("DWARF: %w", err)
		}
		if c.members(); c.spent.text > maxTypeText {
			return nil, fmt.Errorf("DWARF: its types take more than %d bytes", maxTypeText)
		}
	}
	out.Base["pointer"] = isf.BaseType{Kind: "int", Size: 8, Endian: "little"}
	out.Base["void"] = isf.BaseType{Kind: "void", Endian: "little"}
	return c.typedefs, nil
}

// dwarfConverter turns DWARF's types into ISF's.
type dwarfConverter struct {
	out      *isf.Builder
	data     *dwarf.Data
	names    map[dwarf.Type]string // of unnamed structs, unions and enums
	typedefs map[string]isf.Type
	spent    spending
	pending  []*dwarf.StructType // whose members are still to come
}

// entry takes one of the top of a compilation unit, and passes by what is below it.
func (c *dwarfConverter) entry(r *dwarf.Reader, e *dwarf.Entry) error {
	name, _ := e.Val(dwarf.AttrName).(string)
	switch e.Tag {
	case dwarf.TagCompileUnit, 0:
		return nil
	case dwarf.TagSubprogram:
		return c.function(r, e, name)
	}
	r.SkipChildren()
	if name == "" || e.Val(dwarf.AttrDeclaration) != nil {
		return nil // what has no name comes with what it is a part of
	}
	known := false
	switch e.Tag {
	case dwarf.TagVariable:
		if _, known = c.out.Vars[name]; known || e.Val(dwarf.AttrType) == nil {
			return nil
		}
		of, err := c.typeAt(e)
		c.out.Vars[c.spend(name)] = of
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
	t, err := c.data.Type(e.Offset)
	if err != nil {
		return err
	}
	of := c.typeOf(t, 0)
	if e.Tag == dwarf.TagTypedef {
		c.typedefs[name] = of
	}
	return nil
}

// function reads a prototype, with its parameters from below it.
func (c *dwarfConverter) function(r *dwarf.Reader, e *dwarf.Entry, name string) error {
	if _, known := c.out.Funcs[name]; known || name == "" || !e.Children {
		r.SkipChildren()
		if known || name == "" {
			return nil
		}
	}
	f := isf.Func{Return: isf.Type{Kind: isf.Base, Name: "void"}}
	var err error
	if f.Return, err = c.typeAt(e); err != nil {
		return err
	}
	for e.Children {
		p, err := r.Next()
		if err != nil {
			return err
		}
		if p == nil || p.Tag == 0 {
			break
		}
		r.SkipChildren()
		if p.Tag != dwarf.TagFormalParameter {
			continue
		}
		param := isf.Param{}
		param.Name, _ = p.Val(dwarf.AttrName).(string)
		if param.Type, err = c.typeAt(p); err != nil {
			return err
		}
		f.Params = append(f.Params, param)
	}
	c.spend(name)
	c.out.Funcs[name] = f
	return nil
}

// typeAt is the type that an entry names; without one it is void.
func (c *dwarfConverter) typeAt(e *dwarf.Entry) (isf.Type, error) {
	at, ok := e.Val(dwarf.AttrType).(dwarf.Offset)
	if !ok {
		return isf.Type{Kind: isf.Base, Name: "void"}, nil
	}
	t, err := c.data.Type(at)
	if err != nil {
		return isf.Type{}, err
	}
	return c.typeOf(t, 0), nil
}

func (c *dwarfConverter) spend(name string) string {
	c.spent.text += len(name) + 32
	return name
}

// typeOf describes a type, and adds it where it is new; typedefs and qualifiers are looked
// through.
func (c *dwarfConverter) typeOf(t dwarf.Type, depth int) isf.Type {
	void := isf.Type{Kind: isf.Base, Name: "void"}
	if depth > maxDepth {
		return void
	}
	c.spend("")
	switch t := t.(type) {
	case *dwarf.TypedefType:
		return c.typeOf(t.Type, depth+1)
	case *dwarf.QualType:
		return c.typeOf(t.Type, depth+1)
	case *dwarf.PtrType:
		sub := c.typeOf(t.Type, depth+1)
		return isf.Type{Kind: isf.Pointer, Subtype: &sub}
	case *dwarf.ArrayType:
		sub := c.typeOf(t.Type, depth+1)
		return isf.Type{Kind: isf.Array, Count: uint64(max(t.Count, 0)), Subtype: &sub} // -1: as many as there are
	case *dwarf.FuncType:
		return isf.Type{Kind: isf.Function}
	case *dwarf.StructType:
		return c.structure(t)
	case *dwarf.EnumType:
		return c.enum(t)
	case *dwarf.IntType:
		return c.base(t.Name, "int", t.ByteSize, true)
	case *dwarf.UintType:
		return c.base(t.Name, "int", t.ByteSize, false)
	case *dwarf.CharType:
		return c.base(t.Name, "char", t.ByteSize, true)
	case *dwarf.UcharType:
		return c.base(t.Name, "char", t.ByteSize, false)
	case *dwarf.BoolType:
		return c.base(t.Name, "bool", t.ByteSize, false)
	case *dwarf.FloatType:
		return c.base(t.Name, "float", t.ByteSize, true)
	}
	return void
}

func (c *dwarfConverter) base(name, kind string, size int64, signed bool) isf.Type {
	if _, ok := c.out.Base[name]; !ok {
		c.out.Base[c.spend(name)] = isf.BaseType{Kind: kind, Size: uint64(size), Signed: signed, Endian: "little"}
	}
	return isf.Type{Kind: isf.Base, Name: name}
}

// name gives a type without a name one of its own.
func (c *dwarfConverter) name(t dwarf.Type, name string) string {
	if name != "" {
		return name
	}
	if c.names[t] == "" {
		c.spent.unnamed++
		c.names[t] = fmt.Sprintf("unnamed_%d", c.spent.unnamed)
	}
	return c.names[t]
}

func (c *dwarfConverter) structure(t *dwarf.StructType) isf.Type {
	kind := isf.Struct
	if t.Kind == "union" {
		kind = isf.Union
	}
	name := c.name(t, t.StructName)
	of := isf.Type{Kind: kind, Name: name}
	if _, known := c.out.Users[name]; known || t.Incomplete {
		return of
	}
	c.out.Users[c.spend(name)] = isf.UserType{Kind: kind, Size: uint64(t.ByteSize), Fields: map[string]isf.Field{}}
	c.pending = append(c.pending, t)
	return of
}

// members adds those of the structs that were come to: one may lead to thousands.
func (c *dwarfConverter) members() {
	for len(c.pending) > 0 {
		t := c.pending[len(c.pending)-1]
		c.pending = c.pending[:len(c.pending)-1]
		fields := c.out.Users[c.name(t, t.StructName)].Fields
		for i, m := range t.Field {
			f := isf.Field{Offset: uint64(m.ByteOffset), Type: c.typeOf(m.Type, 0), Anonymous: c.spend(m.Name) == ""}
			if m.BitSize > 0 {
				f.Offset, f.Type = bitField(m, f.Type)
			}
			fields[fieldName(i, m.Name)] = f
		}
	}
}

// bitField says where a bit field is, as ISF has it: from the start of a place of its type's
// own. DWARF 5 counts from the struct's start; before, from the other end of such a place,
// whose size then comes along.
func bitField(m *dwarf.StructField, whole isf.Type) (uint64, isf.Type) {
	size := max(m.Type.Size(), 1)
	bit := m.DataBitOffset
	if m.ByteSize > 0 {
		size = m.ByteSize
		bit = 8*(m.ByteOffset+m.ByteSize) - m.BitOffset - m.BitSize
	}
	offset := max(bit, 0) / 8 / size * size
	return uint64(offset), isf.Type{Kind: isf.Bitfield, BitLen: uint8(min(m.BitSize, math.MaxUint8)), BitPos: uint8(max(bit, 0) - 8*offset), BitsType: &whole}
}

func (c *dwarfConverter) enum(t *dwarf.EnumType) isf.Type {
	name := c.name(t, t.EnumName)
	of := isf.Type{Kind: isf.Enum, Name: name}
	if _, known := c.out.Enums[name]; known {
		return of
	}
	e := isf.EnumType{Base: "unsigned int", Size: uint64(t.ByteSize), Constants: map[string]int64{}}
	for _, v := range t.Val {
		e.Constants[c.spend(v.Name)] = v.Val
		if v.Val < 0 {
			e.Base = "int"
		}
	}
	c.out.Enums[c.spend(name)] = e
	return of
}
