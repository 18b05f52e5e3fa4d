package guestos

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"

	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/profiles/near"
	"github.com/hprobe/hprobe/xenevents"
)

// Syscall is a system call as its ABI calls it.
type Syscall struct {
	Name string
	Nr   uint32
	// Compat: of a 32-bit program, or by int 0x80. Its numbers, names and arguments
	// are those of i386.
	Compat bool
}

func (s Syscall) String() string {
	if s.Compat {
		return "32-bit " + s.Name
	}
	return s.Name
}

// SyscallPlace is a place in the kernel where some of a set of calls come by.
type SyscallPlace struct {
	// At is where: a symbol, or an address.
	At string

	native string // the only native call here; "" where there is none
	// compat: what comes by may be a 32-bit program's, and native where shared.
	compat, shared bool
	// dispatcher: the function that all calls of 32-bit programs pass, with the number
	// as its second argument.
	dispatcher bool
}

// SyscallSet is a set of system calls of a kernel, and where to see them. It belongs
// to the goroutine of the Kernel.
type SyscallSet struct {
	Places []SyscallPlace
	Names  []string // of the calls, sorted

	kernel   *Kernel
	compat   map[uint32]bool // numbers of i386's
	counts32 bool            // the dispatcher sees 32-bit calls, wherever they go then
	origAX   uint64          // in struct pt_regs
	status   uint64          // thread_info.status in struct task_struct
	native   map[string][]Arg
	old      map[string][]Arg
}

// Names of functions.
const (
	compatWrapper     = "__ia32_sys_"
	compatOnlyWrapper = "__ia32_compat_sys_"
	notThere          = "ni_syscall" // what numbers without a call enter
	// compatDispatcher is what all 32-bit calls pass, since Linux 6.9 and in stable
	// kernels from 5.15 on: a switch instead of a table.
	compatDispatcher = "ia32_sys_call"
)

// maxSyscalls bounds the kernel's tables of system calls.
const maxSyscalls = 1024

// renamed are the native calls whose functions have another name than the ABI has.
var renamed = map[string]string{"stat": "newstat", "fstat": "newfstat", "lstat": "newlstat", "uname": "newuname", "sendfile": "sendfile64", "umount2": "umount"}

// tsCompat is TS_COMPAT in thread_info.status: a 32-bit call is under way.
const tsCompat = 2

// Syscalls finds where the calls come by that pick wants, by name: native ones at their
// own functions, so that others cost nothing; those of 32-bit programs where all of
// them come by, which costs a guest without such programs nothing, or, in kernels that
// have a table for them, at their own functions as well.
func (k *Kernel) Syscalls(pick func(name string) bool) (*SyscallSet, error) {
	s := &SyscallSet{kernel: k, compat: map[uint32]bool{}, native: map[string][]Arg{}, old: map[string][]Arg{}}
	at, err := k.Profile.Field("pt_regs", "orig_ax")
	if err != nil {
		return nil, fmt.Errorf("system calls: %w", err)
	}
	s.origAX = at.Offset
	if at, err = k.Profile.Field("task_struct", "thread_info.status"); err != nil {
		return nil, fmt.Errorf("system calls: %w", err)
	}
	s.status = at.Offset
	names := map[string]bool{}
	places := map[xenevents.GVA]*SyscallPlace{}
	for name, function := range k.nativeCalls() {
		if !pick(name) {
			continue
		}
		a, err := k.Address(syscallWrapper + function)
		if err != nil {
			return nil, err
		}
		names[name] = true
		places[a] = &SyscallPlace{At: syscallWrapper + function, native: name, shared: k.sharedEntry(function, a)}
	}
	if err := s.addCompat(pick, names, places); err != nil {
		return nil, err
	}
	for _, at := range slices.Sorted(maps.Keys(places)) {
		s.Places = append(s.Places, *places[at])
	}
	s.Names = slices.Sorted(maps.Keys(names))
	return s, nil
}

// SyscallNames are the names of all system calls that the kernel has, sorted: native
// ones and those of 32-bit programs.
func (k *Kernel) SyscallNames() []string {
	names := map[string]bool{}
	for name := range k.nativeCalls() {
		names[name] = true
	}
	if k.hasCompat() {
		for _, name := range i386Calls {
			names[name] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// NoSyscall is the error that a kernel has no system call of a name.
func (k *Kernel) NoSyscall(name string) error {
	return &absentError{fmt.Sprintf("the guest's kernel has no system call %q%s", name, near.Hint(name, k.SyscallNames()))}
}

// nativeCalls are the functions of native calls, by the calls' names, without their
// prefix. What the kernel's own table does not have, functions for 32-bit programs that
// have a native twin all the same, is left out.
func (k *Kernel) nativeCalls() map[string]string {
	abi := map[string]string{}
	for name, function := range renamed {
		abi[function] = name
	}
	listed := k.tableOf("sys_call_table")
	all := map[string]string{}
	for _, s := range k.symbolsWith(syscallWrapper) {
		function := strings.TrimPrefix(s.Name, syscallWrapper)
		if function == notThere || listed != nil && !listed[xenevents.GVA(s.Addr+k.Slide)] {
			continue
		}
		name := function
		if n, ok := abi[function]; ok {
			name = n
		}
		all[name] = function
	}
	return all
}

// symbolsWith are the symbols that begin with a prefix.
func (k *Kernel) symbolsWith(prefix string) (all []isf.Symbol) {
	n := k.Profile.NumSymbols()
	for i := sort.Search(n, func(i int) bool { return k.Profile.SymbolAt(i).Name >= prefix }); i < n; i++ {
		s := k.Profile.SymbolAt(i)
		if !strings.HasPrefix(s.Name, prefix) {
			break
		}
		all = append(all, s)
	}
	return all
}

// tableOf is what is in a table of system calls; nil where there is none. What the
// guest has there that is no function is of no use, and does no harm.
func (k *Kernel) tableOf(symbol string) map[xenevents.GVA]bool {
	at, err := k.Address(symbol)
	if err != nil {
		return nil
	}
	listed := map[xenevents.GVA]bool{}
	for i := range uint64(maxSyscalls) {
		entry, err := k.read64(uint64(at) + 8*i)
		if err != nil {
			break
		}
		listed[xenevents.GVA(entry)] = true
	}
	return listed
}

// sharedEntry says whether a native function is that of 32-bit programs as well: calls
// without arguments need no other one.
func (k *Kernel) sharedEntry(function string, at xenevents.GVA) bool {
	other, err := k.Address(compatWrapper + function)
	return err == nil && other == at
}

func (k *Kernel) hasCompat() bool {
	_, err := k.Address(compatDispatcher)
	_, tableErr := k.Address("ia32_sys_call_table")
	return err == nil || tableErr == nil
}

// addCompat adds the places where 32-bit calls come by.
func (s *SyscallSet) addCompat(pick func(string) bool, names map[string]bool, places map[xenevents.GVA]*SyscallPlace) error {
	for nr, name := range i386Calls {
		if pick(name) {
			s.compat[nr] = true
		}
	}
	if len(s.compat) == 0 {
		return nil
	}
	at, err := s.kernel.Address(compatDispatcher)
	switch {
	case err == nil:
		s.counts32 = true
		places[at] = &SyscallPlace{At: compatDispatcher, compat: true, dispatcher: true}
	case errors.Is(err, isf.ErrNotFound):
		if err := s.addCompatTable(places); err != nil {
			return err
		}
	default:
		return err
	}
	if s.kernel.hasCompat() {
		for nr := range s.compat {
			names[i386Calls[nr]] = true
		}
	}
	return nil
}

// addCompatTable adds the functions in the kernel's table of 32-bit calls, where it has
// one. An entry that is no function's first instruction by the profile is not probed:
// the table is the guest's.
func (s *SyscallSet) addCompatTable(places map[xenevents.GVA]*SyscallPlace) error {
	k := s.kernel
	table, err := k.Address("ia32_sys_call_table")
	if errors.Is(err, isf.ErrNotFound) {
		clear(s.compat) // this kernel runs no 32-bit programs
		return nil
	}
	if err != nil {
		return err
	}
	native := map[xenevents.GVA]bool{}
	for _, n := range k.symbolsWith(syscallWrapper) {
		native[xenevents.GVA(n.Addr+k.Slide)] = true
	}
	for nr := range s.compat {
		entry, err := k.read64(uint64(table) + 8*uint64(nr))
		if err != nil {
			return fmt.Errorf("the guest's table of 32-bit system calls: %w", err)
		}
		symbol, ok := k.Symbolize(xenevents.GVA(entry))
		if !ok || strings.ContainsRune(symbol, '+') || !strings.HasPrefix(symbol, "__") || strings.HasSuffix(symbol, notThere) {
			delete(s.compat, nr)
			continue
		}
		if p := places[xenevents.GVA(entry)]; p != nil {
			p.compat, p.shared = true, p.shared || p.native != ""
			continue
		}
		places[xenevents.GVA(entry)] = &SyscallPlace{At: fmt.Sprintf("%#x", entry), compat: true, shared: native[xenevents.GVA(entry)]}
	}
	return nil
}

// Native says whether the set has a native call of a name.
func (s *SyscallSet) Native(name string) bool {
	return slices.ContainsFunc(s.Places, func(p SyscallPlace) bool { return p.native == name })
}

// CallAt is the call of the set at a hit of one of its places; ok is false where
// another call came by. load reads 8 bytes of guest memory as the vCPU sees it.
func (s *SyscallSet) CallAt(place int, regs *xenevents.Registers, load func(xenevents.GVA) (uint64, error)) (call Syscall, ok bool, err error) {
	p := &s.Places[place]
	nr, compat := regs.RSI, p.compat
	if !p.dispatcher {
		if nr, err = load(xenevents.GVA(regs.RDI + s.origAX)); err != nil {
			return call, false, fmt.Errorf("the number of a system call: %w", err)
		}
		if p.shared {
			if compat, err = s.underCompat(regs, load); err != nil {
				return call, false, err
			}
		}
	}
	call = Syscall{Name: p.native, Nr: uint32(nr), Compat: compat}
	switch {
	case !compat && p.native == "", compat && s.counts32 && !p.dispatcher:
		return call, false, nil
	case !compat:
		return call, true, nil
	}
	call.Name = i386Calls[call.Nr]
	return call, s.compat[call.Nr], nil
}

// underCompat says whether the running thread is in a call of a 32-bit program.
func (s *SyscallSet) underCompat(regs *xenevents.Registers, load func(xenevents.GVA) (uint64, error)) (bool, error) {
	k := s.kernel
	k.Prepare()
	if k.task.err != nil {
		return false, fmt.Errorf("the kind of a system call: %w", k.task.err)
	}
	task, err := load(xenevents.GVA(kernelGS(regs) + k.task.current))
	if err != nil {
		return false, fmt.Errorf("the kind of a system call: %w", err)
	}
	status, err := load(xenevents.GVA(task + s.status))
	if err != nil {
		return false, fmt.Errorf("the kind of a system call: %w", err)
	}
	return status&tsCompat != 0, nil
}

// Args are a call's arguments, as its caller gave them.
func (s *SyscallSet) Args(call Syscall) ([]Arg, error) {
	known := s.native
	if call.Compat {
		known = s.old
	}
	if args, ok := known[call.Name]; ok {
		return args, nil
	}
	args, err := s.findArgs(call)
	if err == nil {
		known[call.Name] = args
	}
	return args, err
}

func (s *SyscallSet) findArgs(call Syscall) ([]Arg, error) {
	if call.Compat {
		return compatArgs(s.kernel.Profile, call.Name)
	}
	function := call.Name
	if f, ok := renamed[function]; ok {
		function = f
	}
	return Args(s.kernel.Profile, syscallWrapper+function)
}

// AnyArgs are arg0 to arg5 of a native call, of which nothing else is known.
func (k *Kernel) AnyArgs() ([]Arg, error) { return syscallArgs(k.Profile, "") }

// compatFields have a 32-bit call's arguments, in the low halves.
var compatFields = []string{"bx", "cx", "dx", "si", "di", "bp"}

// otherwise are the i386 calls that take other arguments than the function of their
// name does: those that split 64-bit numbers in two, or have them in memory.
var otherwise = []string{"mmap", "select", "clone", "readdir", "pread64", "pwrite64", "truncate64", "ftruncate64", "readahead", "fadvise64", "fadvise64_64", "sync_file_range", "fallocate", "fanotify_mark", "lookup_dcookie"}

func compatArgs(p *isf.Profile, call string) ([]Arg, error) {
	var params []isf.Param
	if !slices.Contains(otherwise, call) {
		params = withoutUnused(compatParams(p, call))
	}
	all := make([]Arg, len(compatFields))
	for i, field := range compatFields {
		at, err := p.Field("pt_regs", field)
		if err != nil {
			return nil, err
		}
		all[i] = Arg{Name: fmt.Sprintf("arg%d", i), Register: functionRegisters[0], InPtRegs: true, Offset: at.Offset, Half: true, Type: at.Type}
		if i < len(params) && params[i].Name != "" {
			all[i].Name, all[i].Type = params[i].Name, params[i].Type
		}
	}
	if params != nil {
		all = all[:min(len(params), len(all))]
	}
	return all, nil
}

func compatParams(p *isf.Profile, call string) []isf.Param {
	for _, prefix := range append([]string{"__do_compat_sys_"}, syscallPrototypes...) {
		if f, err := p.Func(prefix + call); err == nil {
			return f.Params
		}
	}
	return nil
}
