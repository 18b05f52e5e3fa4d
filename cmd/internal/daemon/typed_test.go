package daemon

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/cmd/internal/controlapi"
	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/detectors/binder"
	"github.com/hprobe/hprobe/detectors/condition"
	"github.com/hprobe/hprobe/detectors/sinks"
	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
)

// programTypes are those of serve(struct request *req, double ratio, struct request byValue), which returns
// a char *, or a double.
func programTypes(t testing.TB, returns isf.Type) []byte {
	t.Helper()
	b := isf.NewBuilder()
	b.Base["int"] = isf.BaseType{Kind: "int", Size: 4, Signed: true, Endian: "little"}
	b.Base["char"] = isf.BaseType{Kind: "char", Size: 1, Signed: true, Endian: "little"}
	b.Base["double"] = isf.BaseType{Kind: "float", Size: 8, Signed: true, Endian: "little"}
	request := isf.Type{Kind: isf.Struct, Name: "request"}
	char, number := isf.Type{Kind: isf.Base, Name: "char"}, isf.Type{Kind: isf.Base, Name: "int"}
	b.Users["request"] = isf.UserType{Kind: isf.Struct, Size: 24, Fields: map[string]isf.Field{
		"path": {Type: isf.Type{Kind: isf.Pointer, Subtype: &char}}, "next": {Offset: 8, Type: isf.Type{Kind: isf.Pointer, Subtype: &request}}, "n": {Offset: 16, Type: number},
		"any": {Offset: 20, Anonymous: true, Type: request},
	}}
	b.Funcs["serve"] = isf.Func{Return: returns, Params: []isf.Param{{Name: "req", Type: isf.Type{Kind: isf.Pointer, Subtype: &request}}, {Name: "ratio", Type: isf.Type{Kind: isf.Base, Name: "double"}}, {Name: "byValue", Type: request}}}
	p, err := b.Profile()
	if err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	if err := p.WriteCompact(&packed); err != nil {
		t.Fatal(err)
	}
	return packed.Bytes()
}

var (
	text8  = isf.Type{Kind: isf.Pointer, Subtype: &isf.Type{Kind: isf.Base, Name: "char"}}
	double = isf.Type{Kind: isf.Base, Name: "double"}
)

// inMemory is a hit in a program whose memory holds something everywhere.
type inMemory struct {
	half
	memory []byte
	args   []uint64
}

func (h *inMemory) Registers() *xenevents.Registers { return &xenevents.Registers{} }
func (h *inMemory) Running() detectors.Running      { return nil }
func (h *inMemory) Arg(n int) (uint64, error)       { return h.args[n%len(h.args)], nil }

func (h *inMemory) Read(p []byte, at xenevents.GVA) (int, error) {
	for i := range p {
		p[i] = h.memory[(uint64(at)+uint64(i))%uint64(len(h.memory))]
	}
	return len(p), nil
}

func (h *inMemory) ReadUint64(at xenevents.GVA) (uint64, error) {
	var b [8]byte
	_, err := h.Read(b[:], at)
	return binary.LittleEndian.Uint64(b[:]), err
}

func (h *inMemory) Return() (detectors.Return, bool) {
	return detectors.Return{Value: 64, Ticks: 9}, h.over
}

// TestTypedTrace: what is shown of a program's function is by its types.
func TestTypedTrace(t *testing.T) {
	at, err := binder.ParseLocation("image:/bin/x!serve")
	if err != nil {
		t.Fatal(err)
	}
	memory := make([]byte, 128)
	binary.LittleEndian.PutUint64(memory, 64) // path, and next is the same
	binary.LittleEndian.PutUint64(memory[8:], 0)
	binary.LittleEndian.PutUint32(memory[16:], 7)
	copy(memory[64:], "/etc/shadow\x00")
	for _, c := range []struct {
		rule    *controlapi.Rule
		returns isf.Type
		want    string
	}{
		{nil, text8, `req=struct request at 0x80 ratio! byValue!; ->"/etc/shadow"`},
		{nil, double, `req=struct request at 0x80 ratio! byValue!; ->!`},
		{nil, isf.Type{Kind: isf.Base, Name: "void"}, `req=struct request at 0x80 ratio! byValue!; ->`},
		{&controlapi.Rule{When: `ret == "/etc/shadow"`}, text8, `->"/etc/shadow"`},
		{&controlapi.Rule{When: `ret == "/etc/passwd"`}, text8, ""},
	} {
		var hits sinks.Fan[*controlapi.Hit]
		sub := hits.Subscribe()
		tr := &tracer{at: "serve", returns: true, hits: &hits, rule: c.rule, image: &detectors.ImagePlace{Types: programTypes(t, c.returns)}}
		if err := tr.compile(profile(t), at); err != nil {
			t.Fatal(err)
		}
		tr.hit(&inMemory{memory: memory, args: []uint64{128}})
		tr.hit(&inMemory{memory: memory, half: half{over: true}})
		sub.Close()
		shown := func(a *controlapi.Argument) string {
			if a.GetError() != "" {
				return "!"
			}
			return a.GetText()
		}
		var lines []string
		for m := range sub.C {
			var words []string
			for _, a := range m.GetArguments() {
				words = append(words, strings.Replace(a.GetName()+"="+shown(a), "=!", "!", 1))
			}
			if m.GetReturned() {
				words = append(words, "->"+shown(m.GetResult()))
			}
			lines = append(lines, strings.Join(words, " "))
		}
		if got := strings.Join(lines, "; "); got != c.want {
			t.Errorf("%v: %q, not %q", c.rule, got, c.want)
		}
	}
	for want, rule := range map[string]*controlapi.Rule{"register of floats": {When: "ratio > 1.0"}, "on the stack": {Capture: []string{"byValue"}}, "did you mean 'path'": {When: `req.paht == ""`}, "arguments req, ratio": {When: "zzzzzzz == 1"}} {
		tr := &tracer{rule: rule, image: &detectors.ImagePlace{Types: programTypes(t, text8)}}
		if err := tr.compile(profile(t), at); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v", rule, err)
		}
	}
	if err := (&tracer{rule: &controlapi.Rule{When: "comn == 'x'"}}).compile(profile(t), at); err == nil || !strings.Contains(err.Error(), "--debug-file") {
		t.Error(err)
	}
}

// FuzzProgramTypes: whatever comes as a program's types, a rule is compiled or refused, and
// judges a hit within bounds.
func FuzzProgramTypes(f *testing.F) {
	for _, returns := range []isf.Type{text8, double} {
		f.Add(programTypes(f, returns), `req.path == "/etc/shadow" || req.next.next.n > 7`)
		f.Add(programTypes(f, returns), `req.path.size() > 1`)
	}
	at, err := binder.ParseLocation("image:/bin/x!serve")
	if err != nil {
		f.Fatal(err)
	}
	kernel := profile(f)
	memory := []byte("some of a program's memory, which is everywhere\x00\x10")
	f.Fuzz(func(t *testing.T, types []byte, when string) {
		for _, rule := range []*controlapi.Rule{nil, {Capture: []string{when}}} {
			tr := &tracer{rule: rule, returns: rule == nil, image: &detectors.ImagePlace{Types: types}}
			if err := tr.compile(kernel, at); err != nil {
				continue
			}
			for _, p := range []*condition.Program{tr.program, tr.ended} {
				if p == nil {
					continue
				}
				p.Judge(&inMemory{memory: memory, args: []uint64{3, 0, ^uint64(0)}, half: half{over: p == tr.ended}})
				for _, v := range p.Captured() {
					if len(v.Text) > 4096 {
						t.Errorf("%d bytes are shown", len(v.Text))
					}
				}
				p.Result()
			}
		}
	})
}
