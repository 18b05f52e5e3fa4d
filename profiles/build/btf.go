package build

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/cilium/ebpf/btf"

	"github.com/hprobe/hprobe/profiles/isf"
)

// addBTF adds the types of the kernel's .BTF section, and those of modules of it. It
// returns the kernel's typedefs, which ISF has no place for.
func addBTF(m *memory, modules []moduleTypes, out *isf.Builder) (map[string]isf.Type, error) {
	p := m.named(".BTF")
	if p == nil {
		return nil, errors.New("no BTF in it: hprobe needs a kernel with CONFIG_DEBUG_INFO_BTF, as the distributions have")
	}
	b, err := m.read(p)
	if err != nil {
		return nil, fmt.Errorf("BTF: %w", err)
	}
	ids, err := boundBTF(b, 1)
	if err != nil {
		return nil, fmt.Errorf("BTF: %w", err)
	}
	spec, err := btf.LoadSpecFromReader(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("BTF: %w", err)
	}
	c := &converter{out: out, spec: spec, names: map[btf.Type]string{}, typedefs: map[string]isf.Type{}, spent: new(spending)}
	if err := c.nameByTypedefs(); err != nil {
		return nil, fmt.Errorf("BTF: %w", err)
	}
	if err := c.addAll(); err != nil {
		return nil, fmt.Errorf("BTF: %w", err)
	}
	out.Base["pointer"] = isf.BaseType{Kind: "int", Size: 8, Endian: "little"}
	out.Base["void"] = isf.BaseType{Kind: "void", Endian: "little"}
	return c.typedefs, c.addModules(modules, ids)
}

// converter turns BTF's types into ISF's.
type converter struct {
	out   *isf.Builder
	spec  *btf.Spec
	names map[btf.Type]string // of unnamed structs, unions and enums, and a module's named ones
	// typedefs are what a name means.
	typedefs map[string]isf.Type
	spent    *spending

	// Of a module's types:
	module string     // its name
	kernel *converter // of the kernel's types, which they may lead to
}

// spending is what all types of a profile take.
type spending struct {
	text    int // bytes, about
	unnamed int // types without a name
}

// spend counts what a name, or a type without one, takes.
func (c *converter) spend(name string) string {
	c.spent.text += len(name) + 32
	return name
}

func (c *converter) addAll() error {
	for t, err := range c.spec.All() {
		if err != nil {
			return err
		}
		most := maxTypeText
		if c.kernel != nil {
			most = maxModuleText
		}
		if c.add(t); c.spent.text > most {
			return fmt.Errorf("its types take more than %d bytes: %w", most, errBTF)
		}
	}
	return nil
}

func (c *converter) add(t btf.Type) {
	c.spend(t.TypeName())
	switch t := t.(type) {
	case *btf.Int:
		c.out.Base[t.Name] = baseOf(t)
	case *btf.Float:
		c.out.Base[t.Name] = isf.BaseType{Kind: "float", Size: uint64(t.Size), Signed: true, Endian: "little"}
	case *btf.Struct:
		if name := c.name(t, t.Name); c.kernel == nil || c.out.Users[name].Kind == "" { // a module's may be there
			c.out.Users[name] = c.user(isf.Struct, t.Size, t.Members)
		}
	case *btf.Union:
		if name := c.name(t, t.Name); c.kernel == nil || c.out.Users[name].Kind == "" {
			c.out.Users[name] = c.user(isf.Union, t.Size, t.Members)
		}
	case *btf.Enum:
		c.out.Enums[c.name(t, t.Name)] = c.enum(t)
	case *btf.Typedef:
		c.typedefs[t.Name] = c.typeOf(t, 0)
	case *btf.Func:
		if p, ok := btf.UnderlyingType(t.Type).(*btf.FuncProto); ok {
			c.out.Funcs[c.function(t.Name)] = c.proto(p)
		}
	case *btf.Var:
		c.out.Vars[t.Name] = c.typeOf(t.Type, 0)
	}
}

// nameByTypedefs gives types that have a name only by a typedef (kernel_cap_t, atomic_t)
// that one, as dwarf2json does, where no other type has it.
func (c *converter) nameByTypedefs() error {
	taken := map[string]bool{}
	var typedefs []*btf.Typedef
	for t, err := range c.spec.All() {
		if err != nil {
			return err
		}
		if unnamed(t) {
			continue
		}
		switch t := t.(type) {
		case *btf.Struct, *btf.Union, *btf.Enum:
			taken[t.TypeName()] = true
		case *btf.Typedef:
			if unnamed(t.Type) {
				typedefs = append(typedefs, t)
			}
		}
	}
	for _, t := range typedefs {
		if !taken[t.Name] && c.names[t.Type] == "" {
			taken[t.Name] = true
			c.names[t.Type] = t.Name
		}
	}
	return nil
}

// unnamed says whether a type that should have a name has none.
func unnamed(t btf.Type) bool {
	switch t.(type) {
	case *btf.Struct, *btf.Union, *btf.Enum:
		return t.TypeName() == ""
	}
	return false
}

// name gives a type without a name one of its own.
func (c *converter) name(t btf.Type, name string) string {
	if c.kernel != nil {
		if _, err := c.kernel.spec.TypeID(t); err == nil {
			return c.kernel.name(t, name)
		}
		if name != "" {
			return c.moduleName(t, name)
		}
	}
	if name != "" {
		return name
	}
	if c.names[t] == "" {
		c.spent.unnamed++
		c.names[t] = fmt.Sprintf("unnamed_%d", c.spent.unnamed)
	}
	return c.names[t]
}

// function is what a function is called.
func (c *converter) function(name string) string {
	if c.kernel != nil {
		return c.module + "!" + name
	}
	return name
}

func baseOf(t *btf.Int) isf.BaseType {
	b := isf.BaseType{Kind: "int", Size: uint64(t.Size), Endian: "little"}
	switch t.Encoding {
	case btf.Signed:
		b.Signed = true
	case btf.Bool:
		b.Kind = "bool"
	case btf.Char:
		b.Kind = "char"
	}
	if t.Name == "char" {
		b.Kind, b.Signed = "char", true
	}
	return b
}

func (c *converter) user(kind isf.Kind, size uint32, members []btf.Member) isf.UserType {
	u := isf.UserType{Kind: kind, Size: uint64(size), Fields: map[string]isf.Field{}}
	for i, m := range members {
		f := isf.Field{Offset: uint64(m.Offset.Bytes()), Type: c.typeOf(m.Type, 0)}
		if m.BitfieldSize > 0 {
			// ISF counts bits from the start of the type's own place.
			whole := c.typeOf(m.Type, 0)
			size, err := btf.Sizeof(m.Type)
			if err != nil || size <= 0 {
				size = 4
			}
			f.Offset = uint64(int(m.Offset) / 8 / size * size)
			f.Type = isf.Type{Kind: isf.Bitfield, BitLen: uint8(m.BitfieldSize), BitPos: uint8(uint64(m.Offset) - 8*f.Offset), BitsType: &whole}
		}
		f.Anonymous = c.spend(m.Name) == ""
		u.Fields[isf.FieldName(i, m.Name)] = f
	}
	return u
}

func (c *converter) enum(t *btf.Enum) isf.EnumType {
	e := isf.EnumType{Base: "unsigned int", Size: uint64(t.Size), Constants: map[string]int64{}}
	if t.Signed {
		e.Base = "int"
	}
	for _, v := range t.Values {
		e.Constants[c.spend(v.Name)] = int64(v.Value)
	}
	return e
}

func (c *converter) proto(p *btf.FuncProto) isf.Func {
	f := isf.Func{Return: c.typeOf(p.Return, 0)}
	for _, a := range p.Params {
		f.Params = append(f.Params, isf.Param{Name: c.spend(a.Name), Type: c.typeOf(a.Type, 0)})
	}
	return f
}

const maxDepth = 32

// typeOf describes a type; typedefs and qualifiers are looked through.
func (c *converter) typeOf(t btf.Type, depth int) isf.Type {
	c.spend(t.TypeName())
	if depth > maxDepth {
		return isf.Type{Kind: isf.Base, Name: "void"}
	}
	switch t := btf.UnderlyingType(t).(type) {
	case *btf.Int:
		return isf.Type{Kind: isf.Base, Name: t.Name}
	case *btf.Float:
		return isf.Type{Kind: isf.Base, Name: t.Name}
	case *btf.Pointer:
		sub := c.typeOf(t.Target, depth+1)
		return isf.Type{Kind: isf.Pointer, Subtype: &sub}
	case *btf.Array:
		sub := c.typeOf(t.Type, depth+1)
		return isf.Type{Kind: isf.Array, Count: uint64(t.Nelems), Subtype: &sub}
	case *btf.Struct:
		return isf.Type{Kind: isf.Struct, Name: c.name(t, t.Name)}
	case *btf.Union:
		return isf.Type{Kind: isf.Union, Name: c.name(t, t.Name)}
	case *btf.Enum:
		return isf.Type{Kind: isf.Enum, Name: c.name(t, t.Name)}
	case *btf.Fwd:
		kind := isf.Struct
		if t.Kind == btf.FwdUnion {
			kind = isf.Union
		}
		return isf.Type{Kind: kind, Name: t.Name}
	case *btf.FuncProto:
		return isf.Type{Kind: isf.Function}
	}
	return isf.Type{Kind: isf.Base, Name: "void"}
}
