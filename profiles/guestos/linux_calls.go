package guestos

import (
	"errors"
	"fmt"
	"strings"

	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
)

// Arg says where an argument of a function is at its first instruction.
type Arg struct {
	Name string
	// Register is the number of the register that holds it, in encoding order.
	Register int
	// InPtRegs: the register points to a struct pt_regs, which has it at Offset.
	InPtRegs bool
	Offset   uint64
	// Half: only the low 32 bits are the argument.
	Half bool
	Type isf.Type
	// Unread says why it can't be read; nil: it can.
	Unread error
}

// Read returns the argument's value, of a struct in two registers the first 8
// bytes. mem reads 8 bytes of guest memory.
func (a *Arg) Read(regs *xenevents.Registers, mem func(xenevents.GVA) (uint64, error)) (uint64, error) {
	if a.Unread != nil {
		return 0, a.Unread
	}
	v := *regs.GPR(a.Register)
	if !a.InPtRegs {
		return v, nil
	}
	v, err := mem(xenevents.GVA(v + a.Offset))
	if a.Half {
		v = uint64(uint32(v))
	}
	return v, err
}

// syscallFields are the members of struct pt_regs that hold a system call's arguments.
var syscallFields = []string{"di", "si", "dx", "r10", "r8", "r9"}

// syscallWrapper is what the functions are called that x86-64 Linux (4.17 and
// later) enters for a system call, with a struct pt_regs instead of arguments.
const syscallWrapper = "__x64_sys_"

// syscallPrototypes are the inner functions that have the real prototype.
var syscallPrototypes = []string{"__do_sys_", "ksys_", "__se_sys_"}

// ErrNoPrototype says that the profile does not know the arguments of a function.
var ErrNoPrototype = errors.New("its arguments are not in the profile")

// Args returns the arguments of a function: names and types from the profile
// where it has them. The arguments of a system call are arg0 to arg5 where
// their names are not known.
func Args(p *isf.Profile, function string) ([]Arg, error) {
	if call, ok := strings.CutPrefix(function, syscallWrapper); ok {
		return syscallArgs(p, call)
	}
	for _, wrapper := range []string{compatOnlyWrapper, compatWrapper} {
		if call, ok := strings.CutPrefix(function, wrapper); ok {
			return compatArgs(p, call)
		}
	}
	f, err := p.Func(function)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", function, ErrNoPrototype)
	}
	return ArgsOf(p, f), nil
}

// UntypedArgs returns the six registers that arguments of a function may be in.
func UntypedArgs() []Arg {
	all := make([]Arg, len(functionRegisters))
	for i, r := range functionRegisters {
		all[i] = Arg{Name: fmt.Sprintf("arg%d", i), Register: r}
	}
	return all
}

// withoutUnused takes away what the function of a call without arguments is given all
// the same: struct pt_regs *__unused.
func withoutUnused(params []isf.Param) []isf.Param {
	if len(params) == 1 && params[0].Name == "__unused" {
		return params[:0]
	}
	return params
}

func syscallArgs(p *isf.Profile, call string) ([]Arg, error) {
	var params []isf.Param
	for _, prefix := range syscallPrototypes {
		if f, err := p.Func(prefix + call); err == nil {
			params = f.Params
			break
		}
	}
	params = withoutUnused(params)
	all := make([]Arg, len(syscallFields))
	for i, field := range syscallFields {
		at, err := p.Field("pt_regs", field)
		if err != nil {
			return nil, err
		}
		all[i] = Arg{Name: fmt.Sprintf("arg%d", i), Register: functionRegisters[0], InPtRegs: true, Offset: at.Offset, Type: at.Type}
		if i < len(params) && params[i].Name != "" {
			all[i].Name, all[i].Type = params[i].Name, params[i].Type
		}
	}
	if params != nil {
		all = all[:min(len(params), len(all))]
	}
	return all, nil
}
