package condition

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
)

// testProfile has the shapes that a real kernel's has: structs in structs, names
// without a name, pointers, strings, bit fields, enumerations, flags.
func testProfile(t testing.TB) *isf.Profile {
	t.Helper()
	b := isf.NewBuilder()
	integer := func(name string, size uint64, signed bool) isf.Type {
		b.Base[name] = isf.BaseType{Kind: "int", Size: size, Signed: signed, Endian: "little"}
		return isf.Type{Kind: isf.Base, Name: name}
	}
	long, ulong := integer("long int", 8, true), integer("long unsigned int", 8, false)
	sint, uint := integer("int", 4, true), integer("unsigned int", 4, false)
	short := integer("short unsigned int", 2, false)
	b.Base["char"] = isf.BaseType{Kind: "char", Size: 1, Signed: true}
	b.Base["unsigned char"] = isf.BaseType{Kind: "int", Size: 1}
	b.Base["_Bool"] = isf.BaseType{Kind: "bool", Size: 1}
	b.Base["void"] = isf.BaseType{Kind: "void"}
	char, uchar := isf.Type{Kind: isf.Base, Name: "char"}, isf.Type{Kind: isf.Base, Name: "unsigned char"}
	flag := isf.Type{Kind: isf.Base, Name: "_Bool"}
	void := isf.Type{Kind: isf.Base, Name: "void"}
	to := func(t isf.Type) isf.Type { return isf.Type{Kind: isf.Pointer, Subtype: &t} }
	array := func(n uint64, t isf.Type) isf.Type { return isf.Type{Kind: isf.Array, Count: n, Subtype: &t} }
	record := func(name string) isf.Type { return isf.Type{Kind: isf.Struct, Name: name} }
	field := func(offset uint64, t isf.Type) isf.Field { return isf.Field{Offset: offset, Type: t} }
	b.Enums["pid_type"] = isf.EnumType{Base: "unsigned int", Size: 4, Constants: map[string]int64{"PIDTYPE_PID": 0, "PIDTYPE_TGID": 1, "PIDTYPE_PGID": 2, "PIDTYPE_MAX": 2}}
	b.Enums["perm"] = isf.EnumType{Base: "unsigned int", Size: 4, Constants: map[string]int64{"READ": 1, "WRITE": 2, "EXEC": 4}}
	b.Users["qstr"] = isf.UserType{Kind: isf.Struct, Size: 16, Fields: map[string]isf.Field{
		"unnamed_field_0": {Type: record("unnamed_1"), Anonymous: true}, "name": field(8, to(uchar))}}
	b.Users["unnamed_1"] = isf.UserType{Kind: isf.Struct, Size: 8, Fields: map[string]isf.Field{"hash": field(0, uint), "len": field(4, uint)}}
	b.Users["dentry"] = isf.UserType{Kind: isf.Struct, Size: 64, Fields: map[string]isf.Field{
		"d_parent": field(0, to(record("dentry"))), "d_name": field(8, record("qstr")), "d_iname": field(24, array(16, uchar)), "d_flags": field(40, uint)}}
	b.Users["path"] = isf.UserType{Kind: isf.Struct, Size: 16, Fields: map[string]isf.Field{"dentry": field(8, to(record("dentry")))}}
	b.Users["file"] = isf.UserType{Kind: isf.Struct, Size: 96, Fields: map[string]isf.Field{
		"f_mode": field(0, uint), "f_path": field(16, record("path")), "f_pos": field(32, long), "f_count": field(40, ulong), "private": field(48, to(void)), "ok": field(56, flag),
		"low": field(60, isf.Type{Kind: isf.Bitfield, BitLen: 3, BitPos: 0, BitsType: &uint}), "neg": field(60, isf.Type{Kind: isf.Bitfield, BitLen: 4, BitPos: 3, BitsType: &sint}),
		"ids": field(64, array(4, sint)), "name": field(80, array(8, char)), "mode16": field(88, short), "hook": field(48, to(isf.Type{Kind: isf.Function})), "kind": field(92, isf.Type{Kind: isf.Enum, Name: "pid_type"}),
		"perm": field(60, isf.Type{Kind: isf.Enum, Name: "perm"}), "opaque": field(48, to(record("nosuch"))), "as": field(0, uint)}}
	b.Users["task_struct"] = isf.UserType{Kind: isf.Struct, Size: 16, Fields: map[string]isf.Field{"flags": field(0, uint), "real_parent": field(8, to(record("task_struct")))}}
	b.Users["pid"] = isf.UserType{Kind: isf.Struct, Size: 8, Fields: map[string]isf.Field{"level": field(0, uint)}}
	b.Users["iovec"] = isf.UserType{Kind: isf.Struct, Size: 16, Fields: map[string]isf.Field{"iov_base": field(0, to(void)), "iov_len": field(8, ulong)}}
	b.Funcs["f"] = isf.Func{Params: []isf.Param{{Name: "file", Type: to(record("file"))}, {Name: "name", Type: to(char)}, {Name: "count", Type: ulong}, {Name: "flags", Type: uint}, {Name: "type", Type: sint}, {Name: "pos", Type: to(long)}}}
	b.Funcs["kill"] = isf.Func{Params: []isf.Param{{Name: "pid", Type: sint}, {Name: "sig", Type: sint}, {Name: "in", Type: sint}, {Name: "type", Type: isf.Type{Kind: isf.Enum, Name: "pid_type"}}, {Name: "ok", Type: flag}, {Name: "v", Type: record("iovec")}}}
	b.Users["pt_regs"] = isf.UserType{Kind: isf.Struct, Size: 168, Fields: map[string]isf.Field{"di": field(112, ulong), "si": field(104, ulong), "dx": field(96, ulong), "r10": field(56, ulong), "r8": field(72, ulong), "r9": field(64, ulong)}}
	p, err := b.Profile()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// call is a hit: registers and the guest's memory.
type call struct {
	detectors.Hit // what nobody should use panics
	regs          xenevents.Registers
	args          []guestos.Arg
	mem           map[uint64]byte
	reads         int
	canDeny       error
	writeErr      error
	task          task
	result        *detectors.Return // nil: it is at its entry
}

type task struct {
	pid, tid, uid uint32
	start         uint64
	comm          string
	err           error
	asked         []string
}

func (c *call) VCPU() xenevents.VCPU            { return 3 }
func (c *call) Registers() *xenevents.Registers { return &c.regs }
func (c *call) CanDeny() error                  { return c.canDeny }
func (c *call) Running() detectors.Running      { return &c.task }

func (c *call) Return() (detectors.Return, bool) {
	if c.result == nil {
		return detectors.Return{}, false
	}
	return *c.result, true
}

func (t *task) PID() (uint32, error)       { t.asked = append(t.asked, "pid"); return t.pid, t.err }
func (t *task) TID() (uint32, error)       { t.asked = append(t.asked, "tid"); return t.tid, t.err }
func (t *task) UID() (uint32, error)       { t.asked = append(t.asked, "uid"); return t.uid, t.err }
func (t *task) StartTime() (uint64, error) { t.asked = append(t.asked, "start"); return t.start, t.err }
func (t *task) Address() (uint64, error)   { return taskAt, t.err }
func (t *task) Comm() (string, error)      { t.asked = append(t.asked, "comm"); return t.comm, t.err }

var errArg = errors.New("there is no such argument")

func (c *call) Arg(n int) (uint64, error) {
	if n >= len(c.args) {
		return 0, errArg
	}
	return c.args[n].Read(&c.regs, c.ReadUint64)
}

func (c *call) Read(p []byte, at xenevents.GVA) (int, error) {
	c.reads++
	for i := range p {
		b, ok := c.mem[uint64(at)+uint64(i)]
		if !ok {
			return i, xenevents.ErrNotMapped
		}
		p[i] = b
	}
	return len(p), nil
}

func (c *call) ReadUint64(at xenevents.GVA) (uint64, error) {
	var b [8]byte
	_, err := c.Read(b[:], at)
	return binary.LittleEndian.Uint64(b[:]), err
}

func (c *call) Write(p []byte, at xenevents.GVA) error {
	if c.writeErr != nil {
		return c.writeErr
	}
	c.put(uint64(at), p...)
	return nil
}

func (c *call) put(at uint64, b ...byte) {
	for i, x := range b {
		c.mem[at+uint64(i)] = x
	}
}

func (c *call) put64(at, v uint64)       { c.put(at, binary.LittleEndian.AppendUint64(nil, v)...) }
func (c *call) text(at uint64, s string) { c.put(at, append([]byte(s), 0)...) }

// Where things are in the guest of newCall.
const (
	taskAt = 0xffff888000004000

	fileAt, dentryAt, nameAt, pathAt, posAt = 0xffff888000001000, 0xffff888000002000, 0xffff888000003000, 0x7f0000001000, 0xffffc90000001000
)

// newCall is a call of f in which everything is there.
func newCall(t testing.TB, p *isf.Profile) *call {
	t.Helper()
	args, err := guestos.Args(p, "f")
	if err != nil {
		t.Fatal(err)
	}
	c := &call{args: args, mem: map[uint64]byte{}, task: task{pid: 42, tid: 43, uid: 1000, start: 5_000_000_000, comm: "evil\x1b[2J"}}
	c.regs = xenevents.Registers{RDI: fileAt, RSI: pathAt, RDX: 1 << 63, RCX: 0xdeadbeef_00008241, R8: 0x1234_ffffffff, R9: posAt}
	c.put(fileAt, make([]byte, 96)...)
	c.put(dentryAt, make([]byte, 64)...)
	c.put64(fileAt+24, dentryAt)
	c.put64(fileAt+32, ^uint64(6)) // f_pos = -7
	c.put64(fileAt+40, 1<<63)      // f_count
	c.put64(fileAt+48, 0xffffffff81000000)
	c.put(fileAt+56, 1)
	c.put(fileAt+60, 5|0xd<<3) // low 5, neg -3
	c.put(fileAt+64, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 3)
	c.put(fileAt+80, []byte("eightchr")...)
	c.put(fileAt+88, 0xff, 0x41)
	c.put(fileAt+92, 1)
	c.put(dentryAt+8, 1, 0, 0, 0, 6) // hash, len
	c.put64(dentryAt+16, nameAt)
	c.text(dentryAt+24, "inline")
	c.text(nameAt, "shadow")
	c.text(pathAt, "/etc/shadow")
	c.put64(posAt, 17)
	c.put64(posAt+8, 18)
	return c
}

func newScope(t testing.TB, p *isf.Profile, function string) *Scope {
	t.Helper()
	args, err := guestos.Args(p, function)
	if errors.Is(err, guestos.ErrNoPrototype) {
		args, err = guestos.UntypedArgs(), nil
	}
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewScope(p, Place{Args: args})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func BenchmarkEval(b *testing.B) {
	p := testProfile(b)
	for name, text := range map[string]string{
		"number":       "flags == 33345 && pid != 1",
		"string":       `comm == "evil" || name == "/etc/shadow"`,
		"path":         `file.f_path.dentry.d_name.name == "shadow"`,
		"first false":  "flags == 1 && pid != 1",
		"not anything": "true",
	} {
		s := newScope(b, p, "f")
		c, err := s.Condition(text)
		if err != nil {
			b.Fatal(err)
		}
		h := newCall(b, p)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				h.task.asked = h.task.asked[:0]
				s.At(h)
				if _, err := c.Holds(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkCompile(b *testing.B) {
	p := testProfile(b)
	args, err := guestos.Args(p, "f")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Compile(p, Place{Entry: true, Args: args}, Rule{When: "flags == 33345 && pid != 1"}); err != nil {
			b.Fatal(err)
		}
	}
}
