package guestos

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
)

// Where the tests' kernel has its system calls.
const (
	callsAt              = 0xffffffff81010000
	openatAt, statAt     = callsAt + 0x10, callsAt + 0x20
	getpidAt, chownAt    = callsAt + 0x30, callsAt + 0x40
	compatOpenAt, niAt   = callsAt + 0x50, callsAt + 0x60
	dispatchAt, unusedAt = callsAt + 0x70, callsAt + 0x80
	tableAt64, tableAt32 = 0xffffffff82c00000, 0xffffffff82c01000
	origAX, threadStatus = 0x78, 0x200
)

// callsProfile is of a kernel with some system calls: table says whether it has a table
// of 32-bit ones, or a switch.
func callsProfile(t testing.TB, table bool) *isf.Profile {
	return testProfile(t, func(b *isf.Builder) {
		for name, at := range map[string]uint64{
			"__x64_sys_openat": openatAt, "__x64_sys_newstat": statAt, "__x64_sys_getpid": getpidAt, "__ia32_sys_getpid": getpidAt, "__do_sys_getpid": getpidAt, "__ia32_sys_chown": chownAt,
			"__ia32_compat_sys_openat": compatOpenAt, "__x64_sys_ni_syscall": niAt, "__ia32_sys_ni_syscall": niAt, "__x64_sys_chown16": unusedAt, "sys_call_table": tableAt64,
		} {
			b.Symbols = append(b.Symbols, isf.Symbol{Name: name, Addr: at})
		}
		if table {
			b.Symbols = append(b.Symbols, isf.Symbol{Name: "ia32_sys_call_table", Addr: tableAt32})
		} else {
			b.Symbols = append(b.Symbols, isf.Symbol{Name: "ia32_sys_call", Addr: dispatchAt})
		}
		for i, name := range []string{"orig_ax", "bx", "cx", "bp"} {
			b.Users["pt_regs"].Fields[name] = isf.Field{Offset: []uint64{origAX, 0x28, 0x58, 0x20}[i]}
		}
		b.Users["thread_info"] = isf.UserType{Kind: isf.Struct, Size: 24, Fields: map[string]isf.Field{"status": {Offset: 0x10}}}
		b.Users["task_struct"].Fields["thread_info"] = isf.Field{Offset: threadStatus - 0x10, Type: isf.Type{Kind: isf.Struct, Name: "thread_info"}}
		number := isf.Type{Kind: isf.Base, Name: "int"}
		b.Funcs["__do_sys_openat"] = isf.Func{Params: []isf.Param{{Name: "dfd", Type: number}, {Name: "filename", Type: number}}}
		b.Funcs["__do_compat_sys_openat"] = isf.Func{Params: []isf.Param{{Name: "old", Type: number}}}
		b.Funcs["__do_sys_mmap"] = isf.Func{Params: []isf.Param{{Name: "addr", Type: number}}}
	})
}

// callsGuest has the tables; the third entry of the native one is nobody's.
func callsGuest(t testing.TB) *guest {
	g := newGuest(t, banner+"\n\x00")
	g.page(tableAt64, string(words(openatAt+slide, statAt+slide, 0x1234, getpidAt+slide, niAt+slide)))
	compat := make([]uint64, 512)
	for i := range compat {
		compat[i] = niAt + slide
	}
	compat[20], compat[295], compat[212], compat[5], compat[200] = getpidAt+slide, compatOpenAt+slide, chownAt+slide, compatOpenAt+4+slide, getpidAt+slide
	g.page(tableAt32, string(words(compat...)))
	return g
}

func words(all ...uint64) (b []byte) {
	for _, v := range all {
		b = le.AppendUint64(b, v)
	}
	return b
}

func every(string) bool { return true }

func named(names ...string) func(string) bool {
	return func(n string) bool { return slices.Contains(names, n) }
}

func TestSyscallPlaces(t *testing.T) {
	for _, c := range []struct {
		table bool
		pick  func(string) bool
		want  string
		names string
	}{
		{true, named("openat"), fmt.Sprintf("__x64_sys_openat %#x", uint64(compatOpenAt+slide)), "openat"},
		{false, named("openat"), "__x64_sys_openat ia32_sys_call", "openat"},
		{false, named("stat", "chown32"), "__x64_sys_newstat ia32_sys_call", "chown32 stat"},
		{true, named("chown32"), fmt.Sprintf("%#x", uint64(chownAt+slide)), "chown32"},
		{true, named("getpid"), "__x64_sys_getpid", "getpid"},
		{true, named("getgid32"), fmt.Sprintf("%#x", uint64(getpidAt+slide)), "getgid32"}, // where a native call is, too
		{true, named("open"), "", ""}, // in the middle of a function, says the guest
		{true, named("read", "ni_syscall", "chown16"), "", ""},
		{true, every, fmt.Sprintf("__x64_sys_openat __x64_sys_newstat __x64_sys_getpid %#x %#x", uint64(chownAt+slide), uint64(compatOpenAt+slide)), "chown32 getgid32 getpid openat stat"},
	} {
		k := callsGuest(t).find(t, callsProfile(t, c.table))
		s, err := k.Syscalls(c.pick)
		if err != nil {
			t.Fatal(err)
		}
		var at []string
		for _, p := range s.Places {
			at = append(at, p.At)
		}
		if got := strings.Join(at, " "); got != c.want || strings.Join(s.Names, " ") != c.names {
			t.Errorf("%q of %q, not %q of %q", got, s.Names, c.want, c.names)
		}
	}
	k := callsGuest(t).find(t, callsProfile(t, false))
	if names := k.SyscallNames(); !slices.Contains(names, "mmap2") || !slices.Contains(names, "stat") || slices.Contains(names, "newstat") || slices.Contains(names, "ni_syscall") || slices.Contains(names, "chown16") {
		t.Errorf("%q", names)
	}
	if err := k.NoSyscall("opnat"); !errors.Is(err, isf.ErrNotFound) || !strings.Contains(err.Error(), `"opnat" (near it: "openat"`) {
		t.Errorf("%v", err)
	}
	if _, err := callsGuest(t).find(t, testProfile(t, nil)).Syscalls(every); !errors.Is(err, isf.ErrNotFound) {
		t.Errorf("%v", err)
	}
	// A table that is not there is an error only where it is needed.
	g := callsGuest(t)
	g.space.Unmap(tableAt32 + slide)
	k = g.find(t, callsProfile(t, true))
	if _, err := k.Syscalls(named("stat")); err == nil { // i386 has one, too
		t.Error("no error")
	}
}

func TestWhichSyscall(t *testing.T) {
	const gs, task, regsAt = 0xffff888100000000, 0xffff888200000000, 0xffffc90000001000
	for _, table := range []bool{true, false} {
		k := callsGuest(t).find(t, callsProfile(t, table))
		s, err := k.Syscalls(named("openat", "getpid", "stat", "getgid32"))
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			at     string
			nr     uint64
			compat bool
			want   string // "": none of the set
		}{
			{"__x64_sys_openat", 257, false, "openat 257"}, {"__x64_sys_newstat", 4, false, "stat 4"}, {"__x64_sys_getpid", 39, false, "getpid 39"},
			{"__x64_sys_getpid", 20, true, map[bool]string{true: "32-bit getpid 20"}[table]}, // else the dispatcher saw it
			{"__x64_sys_getpid", 200, true, map[bool]string{true: "32-bit getgid32 200"}[table]}, {"__x64_sys_getpid", 24, true, ""},
			{fmt.Sprintf("%#x", uint64(compatOpenAt+slide)), 295, true, "32-bit openat 295"}, {fmt.Sprintf("%#x", uint64(compatOpenAt+slide)), 296, true, ""},
			{"ia32_sys_call", 295, true, "32-bit openat 295"}, {"ia32_sys_call", 1<<32 | 20, true, "32-bit getpid 20"}, {"ia32_sys_call", 99999, true, ""},
		} {
			i := slices.IndexFunc(s.Places, func(p SyscallPlace) bool { return p.At == c.at })
			if i < 0 {
				if table == (c.at != "ia32_sys_call") {
					t.Errorf("%s is no place", c.at)
				}
				continue
			}
			regs := xenevents.Registers{RDI: regsAt, RSI: c.nr, GSBase: gs, SS: 0x18}
			load := func(at xenevents.GVA) (uint64, error) {
				switch at {
				case regsAt + origAX:
					return c.nr, nil
				case gs + percpu:
					return task, nil
				case task + threadStatus:
					return map[bool]uint64{true: tsCompat | 1, false: 1}[c.compat], nil
				}
				return 0, xenevents.ErrNotMapped
			}
			call, ok, err := s.CallAt(i, &regs, load)
			if got := fmt.Sprint(call, " ", call.Nr); err != nil || ok != (c.want != "") || ok && got != c.want {
				t.Errorf("%t: %s: %s, %t, %v, not %s", table, c.at, got, ok, err, c.want)
			}
			none := func(xenevents.GVA) (uint64, error) { return 0, xenevents.ErrNotMapped }
			if _, ok, err := s.CallAt(i, &regs, none); c.at != "ia32_sys_call" && (ok || !errors.Is(err, xenevents.ErrNotMapped)) {
				t.Errorf("%s: %t, %v", c.at, ok, err)
			}
		}
	}
}

func TestSyscallArgs(t *testing.T) {
	k := callsGuest(t).find(t, callsProfile(t, false))
	s, err := k.Syscalls(every)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		call Syscall
		want string
	}{
		{Syscall{Name: "openat"}, "dfd+0x70 filename+0x68"}, {Syscall{Name: "stat"}, "arg0+0x70 arg1+0x68 arg2+0x60 arg3+0x38 arg4+0x48 arg5+0x40"}, {Syscall{Name: "getpid"}, ""},
		{Syscall{Name: "openat", Compat: true}, "old+0x28/2"}, {Syscall{Name: "getpid", Compat: true}, ""},
		{Syscall{Name: "mmap", Compat: true}, "arg0+0x28/2 arg1+0x58/2 arg2+0x60/2 arg3+0x68/2 arg4+0x70/2 arg5+0x20/2"},
	} {
		for range 2 { // the second time from what is kept
			args, err := s.Args(c.call)
			var all []string
			for _, a := range args {
				all = append(all, fmt.Sprintf("%s+%#x%s", a.Name, a.Offset, map[bool]string{true: "/2"}[a.Half]))
			}
			if got := strings.Join(all, " "); err != nil || got != c.want {
				t.Errorf("%v: %q, %v, not %q", c.call, got, err, c.want)
			}
		}
	}
	mem := func(xenevents.GVA) (uint64, error) { return 0xab00000012345678, nil }
	if v, err := (&Arg{InPtRegs: true, Half: true, Register: 7}).Read(&xenevents.Registers{}, mem); v != 0x12345678 || err != nil {
		t.Errorf("%#x, %v", v, err)
	}
	if args, err := k.AnyArgs(); err != nil || len(args) != 6 || args[3].Name != "arg3" {
		t.Errorf("%+v, %v", args, err)
	}
	if args, err := Args(k.Profile, "__ia32_compat_sys_openat"); err != nil || len(args) != 1 || !args[0].Half {
		t.Errorf("%+v, %v", args, err)
	}
}
