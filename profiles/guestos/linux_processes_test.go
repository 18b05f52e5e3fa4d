package guestos

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
)

const (
	initTaskAt = 0xffffffff82c00000
	tasksField = 0x100
	mmField    = 0x120
	pgdField   = 0x48
	taskSize   = 0x200
)

// newProcesses is a guest with processes 1, 2, …, all of which but the first have
// memory. Their tasks follow one another.
func newProcesses(t *testing.T, comms ...string) (*guest, *Kernel) {
	g := newGuest(t, banner+"\n\x00")
	page := make([]byte, 4096)
	put := func(at int, v uint64) { le.PutUint64(page[at:], v) }
	base := uint64(initTaskAt + slide)
	for i := range len(comms) + 1 {
		task := i * taskSize
		put(task+tasksField, base+uint64((i+1)%(len(comms)+1)*taskSize)+tasksField)
		le.PutUint32(page[task+0x54:], uint32(100+i))
		le.PutUint32(page[task+0x58:], uint32(i))
		if i > 0 {
			copy(page[task+0x70:], comms[i-1])
			if i > 1 {
				put(task+mmField, base+0xf00)
			}
		}
	}
	put(0xf00+pgdField, base)
	g.page(initTaskAt, string(page))
	k := g.find(t, testProfile(t, func(b *isf.Builder) {
		b.Symbols = append(b.Symbols, isf.Symbol{Name: "init_task", Addr: initTaskAt})
		long := isf.Type{Kind: isf.Base, Name: "unsigned long"}
		b.Users["task_struct"].Fields["tasks"] = isf.Field{Offset: tasksField, Type: long}
		b.Users["task_struct"].Fields["mm"] = isf.Field{Offset: mmField, Type: long}
		b.Users["mm_struct"] = isf.UserType{Kind: isf.Struct, Size: 512, Fields: map[string]isf.Field{"pgd": {Offset: pgdField, Type: long}}}
	}))
	return g, k
}

func TestProcess(t *testing.T) {
	_, k := newProcesses(t, "kthreadd", "sh", "a-name-of-15-byt", "sh")
	p, err := k.Process(2)
	if err != nil || p.PID != 2 || p.Comm != "sh" || p.Space.Mode != xenevents.Paging4Level || p.Space.Root == 0 {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err := k.Process(1); err != nil || p.Comm != "kthreadd" || p.Space.Mode != xenevents.PagingNone {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := k.Process(5); !errors.Is(err, isf.ErrNotFound) {
		t.Error(err)
	}
	all, err := k.ProcessesCalled("sh", 10)
	if err != nil || fmt.Sprint(all[0].PID, all[1].PID, len(all)) != "2 4 2" {
		t.Errorf("%+v, %v", all, err)
	}
	if all, err := k.ProcessesCalled("sh", 1); err != nil || len(all) != 1 {
		t.Errorf("%+v, %v", all, err)
	}
	if all, err := k.ProcessesCalled("nobody", 10); err != nil || len(all) != 0 {
		t.Errorf("%+v, %v", all, err)
	}
}

// TestProcessesLie: a list that goes in a circle has an end, and so has one that goes
// nowhere.
func TestProcessesLie(t *testing.T) {
	g, k := newProcesses(t, "a", "b")
	at, err := k.mem.Translate(k.Space, initTaskAt+slide)
	if err != nil {
		t.Fatal(err)
	}
	next := make([]byte, 8)
	le.PutUint64(next, initTaskAt+slide+taskSize+tasksField)
	g.Poke(at.GPA+2*taskSize+tasksField, next)
	if _, err := k.Process(7); err == nil || !strings.Contains(err.Error(), "no end") {
		t.Error(err)
	}
	g.Poke(at.GPA+2*taskSize+tasksField, make([]byte, 8))
	if _, err := k.Process(7); !errors.Is(err, xenevents.ErrNotMapped) {
		t.Error(err)
	}
}
