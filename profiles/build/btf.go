package build

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf/btf"

	"github.com/hprobe/hprobe/profiles/isf"
)

// maxBTF bounds a kernel's BTF, in bytes. Debian's have 4 to 6 MB.
const maxBTF = 64 << 20

var errNoBTF = errors.New("no BTF: the kernel was built without CONFIG_DEBUG_INFO_BTF, which every big distribution sets")

// types turns the kernel's BTF into ISF's types.
type types struct {
	out *isf.Builder
	// Structs, unions and enums as ISF names them: C has them without a name,
	// and in different files different ones with the same name.
	names map[btf.Type]string
	taken map[string]bool
	// C types by how a declaration names them: "struct file", "size_t".
	byName map[string]btf.Type
	// ISF's, of those that were converted.
	done map[btf.Type]isf.TypeID
	// Of the variables that BTF knows: the per-CPU ones.
	vars map[string]isf.TypeID
}

// addTypes adds all types and prototypes of the BTF.
func addTypes(out *isf.Builder, raw []byte) (*types, error) {
	if len(raw) > maxBTF {
		return nil, fmt.Errorf("BTF of %d bytes: at most %d", len(raw), maxBTF)
	}
	spec, err := btf.LoadSpecFromReader(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("BTF: %w", err)
	}
	var all []btf.Type
	for t, err := range spec.All() {
		if err != nil {
			return nil, fmt.Errorf("BTF: %w", err)
		}
		all = append(all, t)
	}
	c := &types{out: out, names: map[btf.Type]string{}, taken: map[string]bool{}, byName: map[string]btf.Type{}, done: map[btf.Type]isf.TypeID{}, vars: map[string]isf.TypeID{}}
	c.giveNames(all)
	out.DefineBase("void", isf.Base{Kind: isf.BaseVoid})
	out.DefineBase("pointer", isf.Base{Kind: isf.BaseInt, Size: 8})
	c.taken["base void"], c.taken["base pointer"] = true, true
	functions := map[string]bool{}
	for _, t := range all {
		switch t := t.(type) {
		case *btf.Int:
			c.defineBase(t.Name, intBase(t))
		case *btf.Float:
			c.defineBase(t.Name, isf.Base{Kind: isf.BaseFloat, Size: uint64(t.Size), Signed: true})
		case *btf.Struct:
			out.DefineStruct(isf.KindStruct, c.names[t], uint64(t.Size), c.fields(t.Members))
		case *btf.Union:
			out.DefineStruct(isf.KindUnion, c.names[t], uint64(t.Size), c.fields(t.Members))
		case *btf.Enum:
			c.defineEnum(t)
		case *btf.Var:
			c.vars[t.Name] = c.use(t.Type)
		case *btf.Func:
			// Static functions may share a name and differ: the first counts.
			if p, ok := t.Type.(*btf.FuncProto); ok && !functions[t.Name] {
				functions[t.Name] = true
				c.defineFunction(t.Name, p)
			}
		}
	}
	return c, nil
}

// giveNames gives each struct, union and enum a name of its own. A tag stays
// what it is; what has none takes the name of its typedef, as C programmers
// know it ("atomic_t"), else one that tells where it stands in the BTF.
func (c *types) giveNames(all []btf.Type) {
	for i, t := range all {
		name, tag := "", ""
		switch t := t.(type) {
		case *btf.Struct:
			name, tag = t.Name, "struct "
		case *btf.Union:
			name, tag = t.Name, "union "
		case *btf.Enum:
			name, tag = t.Name, "enum "
		case *btf.Int, *btf.Float, *btf.Typedef:
			name = t.TypeName()
		}
		if name == "" {
			continue
		}
		if _, ok := c.byName[tag+name]; !ok {
			c.byName[tag+name] = t
		}
		if tag != "" {
			c.giveName(t, name, i)
		}
	}
	for i, t := range all {
		if d, ok := t.(*btf.Typedef); ok && unnamed(d.Type) && c.names[d.Type] == "" {
			c.giveName(d.Type, d.Name, i)
		}
	}
	for i, t := range all {
		if unnamed(t) && c.names[t] == "" {
			c.giveName(t, fmt.Sprintf("unnamed_%x", i), i)
		}
	}
}

func (c *types) giveName(t btf.Type, name string, i int) {
	space := "type "
	if _, ok := t.(*btf.Enum); ok {
		space = "enum "
	}
	if c.taken[space+name] {
		name = fmt.Sprintf("%s@%x", name, i)
	}
	c.taken[space+name] = true
	c.names[t] = name
}

func unnamed(t btf.Type) bool {
	switch t.(type) {
	case *btf.Struct, *btf.Union, *btf.Enum:
		return t.TypeName() == ""
	}
	return false
}

func (c *types) defineBase(name string, b isf.Base) {
	if !c.taken["base "+name] {
		c.taken["base "+name] = true
		c.out.DefineBase(name, b)
	}
}

func intBase(t *btf.Int) isf.Base {
	b := isf.Base{Kind: isf.BaseInt, Size: uint64(t.Size), Signed: t.Encoding == btf.Signed}
	switch {
	case t.Encoding == btf.Bool:
		b.Kind = isf.BaseBool
	case t.Encoding == btf.Char || t.Name == "char":
		// Compilers leave BTF's "char" flag out: the name tells.
		b.Kind, b.Signed = isf.BaseChar, true
	case t.Name == "unsigned char":
		b.Kind = isf.BaseChar
	}
	return b
}

func (c *types) defineEnum(t *btf.Enum) {
	base, kind := fmt.Sprintf("enum%d", 8*t.Size), isf.Base{Kind: isf.BaseInt, Size: uint64(t.Size), Signed: t.Signed}
	switch {
	case t.Size == 4 && t.Signed:
		base = "int"
	case t.Size == 4:
		base = "unsigned int"
	case !t.Signed:
		base = "u" + base
	}
	c.defineBase(base, kind)
	constants := make([]isf.Constant, 0, len(t.Values))
	for _, v := range t.Values {
		value := int64(v.Value)
		if t.Size == 4 && t.Signed {
			value = int64(int32(v.Value))
		}
		constants = append(constants, isf.Constant{Name: v.Name, Value: value})
	}
	c.out.DefineEnum(c.names[t], base, uint64(t.Size), constants)
}

func (c *types) defineFunction(name string, p *btf.FuncProto) {
	var args []isf.Field
	variadic := false
	for i, a := range p.Params {
		// An unnamed void at the end is C's "...".
		if _, void := a.Type.(*btf.Void); void && a.Name == "" && i == len(p.Params)-1 {
			variadic = true
			continue
		}
		args = append(args, isf.Field{Name: a.Name, Type: c.use(a.Type)})
	}
	c.out.DefineFunction(name, args, c.use(p.Return), variadic)
}

func (c *types) fields(members []btf.Member) []isf.Field {
	fields := make([]isf.Field, 0, len(members))
	for i, m := range members {
		f := isf.Field{Name: m.Name, Offset: uint64(m.Offset) / 8, Type: c.use(m.Type)}
		if m.BitfieldSize > 0 {
			size := uint64(4)
			if n, err := btf.Sizeof(m.Type); err == nil && n > 0 && n <= 8 {
				size = uint64(n)
			}
			// The unit of the declared type that the bits lie in, as the x86-64
			// psABI places them: they never cross it, unless the struct is packed.
			unit := uint64(m.Offset) / 8 / size * size
			position := uint64(m.Offset) - 8*unit
			if position+uint64(m.BitfieldSize) > 8*size {
				unit = uint64(m.Offset) / 8
				position = uint64(m.Offset) % 8
			}
			f.Offset = unit
			f.Type = c.out.Bits(f.Type, uint(position), uint(m.BitfieldSize))
		}
		if f.Name == "" {
			f.Name = fmt.Sprintf("unnamed_field_%x_%d", f.Offset, i)
			switch btf.UnderlyingType(m.Type).(type) {
			case *btf.Struct, *btf.Union:
				f.Anonymous = true
			}
		}
		fields = append(fields, f)
	}
	slices.SortStableFunc(fields, func(x, y isf.Field) int { return cmp.Compare(x.Offset, y.Offset) })
	return fields
}

// maxTypeDepth bounds pointers to pointers to …: what C code has, with room.
// The rest of a deeper type is void.
const maxTypeDepth = 32

// use turns a type into how ISF refers to it. Typedefs and qualifiers are
// looked through.
func (c *types) use(t btf.Type) isf.TypeID { return c.useAt(t, 0) }

func (c *types) useAt(t btf.Type, depth int) isf.TypeID {
	t = btf.UnderlyingType(t)
	if id, ok := c.done[t]; ok {
		return id
	}
	if depth > maxTypeDepth {
		return c.out.Base("void")
	}
	var id isf.TypeID
	switch t := t.(type) {
	case *btf.Int:
		id = c.out.Base(t.Name)
	case *btf.Float:
		id = c.out.Base(t.Name)
	case *btf.Pointer:
		id = c.out.Pointer(c.useAt(t.Target, depth+1))
	case *btf.Array:
		id = c.out.Array(c.useAt(t.Type, depth+1), uint64(t.Nelems))
	case *btf.Struct:
		id = c.out.Struct(isf.KindStruct, c.names[t])
	case *btf.Union:
		id = c.out.Struct(isf.KindUnion, c.names[t])
	case *btf.Enum:
		id = c.out.Enum(c.names[t])
	case *btf.Fwd:
		switch t.Kind {
		case btf.FwdUnion:
			id = c.out.Struct(isf.KindUnion, t.Name)
		default:
			id = c.out.Struct(isf.KindStruct, t.Name)
		}
	case *btf.FuncProto:
		id = c.out.Function()
	default:
		id = c.out.Base("void")
	}
	if depth == 0 {
		c.done[t] = id
	}
	return id
}

// ofSymbol returns what is known of a symbol's type: BTF has the types of
// functions and of per-CPU variables, not of other variables.
func (c *types) ofSymbol(s symbol) isf.TypeID {
	switch s.kind {
	case 't', 'T', 'w', 'W':
		return c.out.Function()
	}
	if id, ok := c.vars[s.name]; ok {
		return id
	}
	if t, ok := wellKnown[s.name]; ok && c.byName["struct "+t] != nil {
		return c.out.Struct(isf.KindStruct, t)
	}
	return 0
}

// wellKnown are variables whose type BTF does not tell, and which Volatility
// takes from the symbol.
var wellKnown = map[string]string{
	"init_task":      "task_struct",
	"init_mm":        "mm_struct",
	"init_nsproxy":   "nsproxy",
	"init_user_ns":   "user_namespace",
	"init_pid_ns":    "pid_namespace",
	"init_uts_ns":    "uts_namespace",
	"init_cred":      "cred",
	"modules":        "list_head",
	"super_blocks":   "list_head",
	"iomem_resource": "resource",
	"init_files":     "files_struct",
	"init_fs":        "fs_struct",
}
