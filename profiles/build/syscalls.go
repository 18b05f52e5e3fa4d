package build

import (
	"fmt"
	"strings"

	"github.com/cilium/ebpf/btf"

	"github.com/hprobe/hprobe/profiles/isf"
)

// A system call's function gets a struct pt_regs, so its own prototype says
// nothing about the call's arguments. The kernel's tracing knows them
// (CONFIG_FTRACE_SYSCALLS; struct syscall_metadata in include/trace/syscall.h):
// for each call its name, and the types and names of its arguments as text.
const (
	syscallMetaPrefix = "__syscall_meta__"
	maxSyscalls       = 4096
	maxSyscallArgs    = 6 // the kernel's calling convention has no more
	maxSyscallText    = 256
)

// addSyscalls gives each system call a prototype: "sys_read". Kernels without
// the tracing simply have none.
func (c *types) addSyscalls(m *Image, all []symbol) {
	nameAt, argsAt, typesAt, namesAt, ok := c.syscallLayout()
	if !ok {
		return
	}
	result := c.out.Base("long int")
	n := 0
	for _, s := range all {
		if !strings.HasPrefix(s.name, syscallMetaPrefix) {
			continue
		}
		if n++; n > maxSyscalls {
			return
		}
		text := func(at uint64) (string, error) {
			p, err := m.uint64(at)
			if err != nil {
				return "", err
			}
			return m.cstring(p, maxSyscallText)
		}
		name, err := text(s.addr + nameAt)
		if err != nil || !strings.HasPrefix(name, "sys_") || c.taken["syscall "+name] {
			continue
		}
		count, err := m.bytes(s.addr+argsAt, 4)
		if err != nil || count[0] > maxSyscallArgs {
			continue
		}
		var args []isf.Field
		types, err1 := m.uint64(s.addr + typesAt)
		names, err2 := m.uint64(s.addr + namesAt)
		if count[0] > 0 && (err1 != nil || err2 != nil) {
			continue
		}
		for i := range uint64(count[0]) {
			decl, err := text(types + 8*i)
			if err != nil {
				decl = "unsigned long"
			}
			arg, err := text(names + 8*i)
			if err != nil || arg == "" {
				arg = fmt.Sprintf("arg%d", i)
			}
			args = append(args, isf.Field{Name: arg, Type: c.parse(decl)})
		}
		c.taken["syscall "+name] = true
		c.out.DefineFunction(name, args, result, false)
	}
}

// syscallLayout looks up where struct syscall_metadata has its members.
func (c *types) syscallLayout() (name, args, types, names uint64, ok bool) {
	s, isStruct := c.byName["struct syscall_metadata"].(*btf.Struct)
	if !isStruct {
		return
	}
	found := 0
	for _, m := range s.Members {
		at := uint64(m.Offset) / 8
		switch m.Name {
		case "name":
			name = at
		case "nb_args":
			args = at
		case "types":
			types = at
		case "args":
			names = at
		default:
			continue
		}
		found++
	}
	return name, args, types, names, found == 4
}

// parse turns a declaration as the kernel's syscalls have it ("const struct
// iovec *", "size_t") into a type. What it does not know is an unsigned long:
// the size of the register.
func (c *types) parse(decl string) isf.TypeID {
	stars := strings.Count(decl, "*")
	var words []string
	for _, w := range strings.Fields(strings.ReplaceAll(decl, "*", " ")) {
		switch w {
		case "const", "volatile", "__user", "__restrict", "restrict":
		default:
			words = append(words, w)
		}
	}
	id, ok := c.named(strings.Join(words, " "))
	switch {
	case ok:
	case stars > 0:
		id = c.out.Base("void")
	default:
		id = c.out.Base("long unsigned int")
	}
	for range min(stars, maxTypeDepth) {
		id = c.out.Pointer(id)
	}
	return id
}

// inBTF is how compilers name what C programmers write in another way.
var inBTF = map[string]string{
	"unsigned":           "unsigned int",
	"long":               "long int",
	"unsigned long":      "long unsigned int",
	"long long":          "long long int",
	"unsigned long long": "long long unsigned int",
	"short":              "short int",
	"unsigned short":     "short unsigned int",
}

func (c *types) named(name string) (isf.TypeID, bool) {
	if name == "void" {
		return c.out.Base("void"), true
	}
	if n, ok := inBTF[name]; ok {
		name = n
	}
	if t, ok := c.byName[name]; ok {
		return c.use(t), true
	}
	if tag, rest, ok := strings.Cut(name, " "); ok && (tag == "struct" || tag == "union") {
		kind := isf.KindStruct
		if tag == "union" {
			kind = isf.KindUnion
		}
		return c.out.Struct(kind, rest), true
	}
	return 0, false
}
