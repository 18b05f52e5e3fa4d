package build

import (
	"bytes"
	"fmt"
	"math"

	"github.com/cilium/ebpf/btf"

	"github.com/hprobe/hprobe/profiles/isf"
)

// addModules adds the types of modules. A function's prototype is MODULE!FUNCTION. A type
// has its own name, unless the kernel or a module before has another one of that name: then
// it is MODULE!NAME.
func (c *converter) addModules(modules []moduleTypes, firstID int) error {
	for _, m := range modules {
		own, err := c.ofModule(&m, firstID)
		if err == nil {
			err = own.addAll()
		}
		if err != nil {
			return fmt.Errorf("BTF of module %s: %w", m.name, err)
		}
	}
	return nil
}

// ofModule is a converter for a module's types, which are numbered from an ID on.
func (c *converter) ofModule(m *moduleTypes, firstID int) (*converter, error) {
	if _, err := boundBTF(m.btf, firstID); err != nil {
		return nil, err
	}
	spec, err := btf.LoadSplitSpecFromReader(bytes.NewReader(m.btf), c.spec)
	if err != nil {
		return nil, err
	}
	return &converter{out: c.out, spec: spec, names: map[btf.Type]string{}, typedefs: map[string]isf.Type{}, spent: c.spent, module: m.name, kernel: c}, nil
}

// moduleName is what a named type of a module is called.
func (c *converter) moduleName(t btf.Type, name string) string {
	own, ok := c.names[t]
	if !ok {
		if own = name; c.taken(t, name) {
			own = c.module + "!" + name
		}
		c.names[t] = own
	}
	return own
}

// taken says whether a name is another type's.
func (c *converter) taken(t btf.Type, name string) bool {
	switch t := t.(type) {
	case *btf.Struct:
		u, ok := c.out.Users[name]
		return ok && !sameShape(&u, isf.Struct, t.Size, t.Members)
	case *btf.Union:
		u, ok := c.out.Users[name]
		return ok && !sameShape(&u, isf.Union, t.Size, t.Members)
	case *btf.Enum:
		e, ok := c.out.Enums[name]
		if !ok || e.Size != uint64(t.Size) || len(e.Constants) != len(t.Values) {
			return ok
		}
		for _, v := range t.Values {
			if have, ok := e.Constants[v.Name]; !ok || have != int64(v.Value) {
				return true
			}
		}
	}
	return false
}

// sameShape says whether a type has these members where they are.
func sameShape(u *isf.UserType, kind isf.Kind, size uint32, members []btf.Member) bool {
	if u.Kind != kind || u.Size != uint64(size) || len(u.Fields) != len(members) {
		return false
	}
	for i, m := range members {
		f, ok := u.Fields[isf.FieldName(i, m.Name)]
		at := 8 * f.Offset
		if f.Type.Kind == isf.Bitfield {
			at += uint64(f.Type.BitPos)
		}
		if !ok || at != uint64(m.Offset) || uint64(f.Type.BitLen) != min(uint64(m.BitfieldSize), math.MaxUint8) {
			return false
		}
	}
	return true
}
