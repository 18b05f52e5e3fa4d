package guestos

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
)

func TestRunning(t *testing.T) {
	const gs, task, cred = 0xffff888100000000, 0xffff888200000f90, 0xffff888300000000
	word := isf.Type{Kind: isf.Base, Name: "unsigned long"}
	for name, c := range map[string]struct {
		change           func(b *isf.Builder)
		noUID, noStart   bool
		uidAt, startedAt uint64
	}{
		"as it is": {change: func(b *isf.Builder) {
			b.Users["task_struct"].Fields["cred"] = isf.Field{Offset: 0x80, Type: word}
			b.Users["task_struct"].Fields["start_boottime"] = isf.Field{Offset: 0x90, Type: word}
			b.Users["task_struct"].Fields["start_time"] = isf.Field{Offset: 0x98, Type: word}
			b.Users["cred"] = isf.UserType{Kind: isf.Struct, Size: 64, Fields: map[string]isf.Field{"uid": {Offset: 8, Type: isf.Type{Kind: isf.Struct, Name: "kuid"}}}}
			b.Users["kuid"] = isf.UserType{Kind: isf.Struct, Size: 4, Fields: map[string]isf.Field{"val": {Type: word}}}
		}, uidAt: 8, startedAt: 0x90},
		"as it was": {change: func(b *isf.Builder) {
			b.Users["task_struct"].Fields["cred"] = isf.Field{Offset: 0x80, Type: word}
			b.Users["task_struct"].Fields["real_start_time"] = isf.Field{Offset: 0xa0, Type: word}
			b.Users["cred"] = isf.UserType{Kind: isf.Struct, Size: 64, Fields: map[string]isf.Field{"uid": {Offset: 4, Type: word}}}
		}, uidAt: 4, startedAt: 0xa0},
		"neither": {noUID: true, noStart: true},
	} {
		k := &Kernel{Profile: testProfile(t, c.change)}
		mem := map[uint64][]byte{gs + percpu: binary.LittleEndian.AppendUint64(nil, task), task + 0x54: {9, 1, 0, 0}, task + 0x58: {7, 1, 0, 0}, task + 0x70: []byte("sixteen bytes!!!"),
			task + 0x80: binary.LittleEndian.AppendUint64(nil, cred), cred + c.uidAt: {0xe8, 3, 0, 0}, task + c.startedAt: {1, 2, 3, 4, 5, 6, 7, 0}}
		reads := 0
		read := func(p []byte, at xenevents.GVA) (int, error) {
			reads++
			b, ok := mem[uint64(at)]
			if !ok {
				return 0, xenevents.ErrNotMapped
			}
			return copy(p, b), nil
		}
		r := k.Running(&xenevents.Registers{GSBase: gs}, read)
		if v, err := r.PID(); v != 0x107 || err != nil || reads != 2 {
			t.Errorf("%s: pid %#x, %v after %d reads", name, v, err, reads)
		}
		if v, err := r.TID(); v != 0x109 || err != nil || reads != 3 {
			t.Errorf("%s: tid %#x, %v after %d reads", name, v, err, reads)
		}
		if v, err := r.Comm(); v != "sixteen bytes!!!" || err != nil {
			t.Errorf("%s: comm %q, %v", name, v, err)
		}
		if v, err := r.UID(); (err != nil) != c.noUID || !c.noUID && v != 1000 || c.noUID && !errors.Is(err, isf.ErrNotFound) {
			t.Errorf("%s: uid %d, %v", name, v, err)
		}
		if v, err := r.StartTime(); (err != nil) != c.noStart || !c.noStart && v != 0x7060504030201 {
			t.Errorf("%s: start %#x, %v", name, v, err)
		}
		delete(mem, cred+c.uidAt)
		delete(mem, task+0x70)
		if _, err := r.UID(); err == nil || !c.noUID && !errors.Is(err, xenevents.ErrNotMapped) {
			t.Errorf("%s: %v", name, err)
		}
		if v, err := r.Comm(); v != "" || !errors.Is(err, xenevents.ErrNotMapped) {
			t.Errorf("%s: %q, %v", name, v, err)
		}
		mem[gs+percpu] = nil
		delete(mem, gs+percpu)
		r = k.Running(&xenevents.Registers{GSBase: gs}, read)
		if _, err := r.StartTime(); err == nil {
			t.Errorf("%s: without a task", name)
		}
	}
}

func TestReturns(t *testing.T) {
	for text, want := range map[string]int64{"EPERM": -1, "eacces": -13, "ENOSYS": -38, "ENOMSG": -42, "EBFONT": -59, "EHWPOISON": -133, "0": 0, "-14": -14, "0x10": 16} {
		got, err := ParseReturn(text)
		if err != nil || got != want {
			t.Errorf("%s is %d, %v", text, got, err)
		}
		if back, err := ParseReturn(ReturnText(got)); err != nil || back != got {
			t.Errorf("%s is written %s", text, ReturnText(got))
		}
	}
	for text, v := range map[string]int64{"EPERM": -1, "-41": -41, "-4095": -4095, "5": 5, "-9223372036854775808": -1 << 63} {
		if got := ReturnText(v); got != text {
			t.Errorf("%d is written %s", v, got)
		}
	}
	for _, bad := range []string{"", "EBAD\x1b", "PERM", "1.5"} {
		if v, err := ParseReturn(bad); err == nil || strings.Contains(err.Error(), "\x1b") {
			t.Errorf("%q is %d, %v", bad, v, err)
		}
	}
}
